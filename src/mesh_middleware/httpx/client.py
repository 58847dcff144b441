"""
`httpx.Client` and `httpx.AsyncClient` whose transport speaks mesh.

Owns which transport carries a URL: names in the mesh always go through the mesh, all else only
where the user mounted an ordinary transport. Refuses the options that would weaken that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from ..exceptions import ConfigError
from ..resolve import Resolver
from ..routing.chain import Retries
from .library import httpx
from .transport import DEFAULT_LIMITS, AsyncMeshTransport, MeshTransport
from .upstreams import MeshLike

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

MAX_READ = 256
"""URLs, and requests, that are kept as they were read and built."""
MAX_LENGTH = 256
"""Characters of a URL that is kept."""

_NOT_OURS = {
    "verify": "the mesh's roots and the upstream's SPIFFE ID are what is verified",
    "cert": "the leaf from the agent is what is shown",
    "proxy": "it would carry mesh traffic; mount a transport with a proxy for the hosts behind it",
}


class Client(httpx.Client):
    """
    An `httpx.Client` that calls upstreams: ``client.get("https://tax/rates")``.

    Everything else of httpx works as it does there: base URL, headers, timeouts, event hooks,
    authentication, streaming. Only names in the mesh are called, unless *mounts* or *transport*
    give ordinary transports for the rest; those never carry a name in the mesh, unless mounted
    for that very host.

    Args:
        mesh: the mesh to call through; ``None`` takes this process's own, at the first request.
        resolver: tells instances instead of the agent.
        domain: Consul's DNS domain; the mesh's setting unless given.
        http1: as httpx.
        http2: as httpx.
        limits: as httpx.
        retries: when a call is tried again, where neither it nor a route says otherwise.
        transport: carries URLs that name nothing in the mesh.
        mounts: as httpx.
        options: what else `httpx.Client` takes.

    Raises:
        ConfigError: ``verify``, ``cert``, ``proxy`` or ``trust_env`` is among *options*, or
            *retries* is no `Retries`.
    """

    def __init__(
        self,
        mesh: MeshLike | None = None,
        *,
        resolver: Resolver | None = None,
        domain: str | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = DEFAULT_LIMITS,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        mounts: Mapping[str, httpx.BaseTransport | None] | None = None,
        **options: Any,
    ) -> None:
        _refuse(options)
        ours = MeshTransport(
            mesh,
            resolver=resolver,
            domain=domain,
            http1=http1,
            http2=http2,
            limits=limits,
            retries=retries,
        )
        super().__init__(
            transport=ours if transport is None else _Beside(ours, transport),
            mounts=_guarded(mounts, partial(_Beside, ours)),
            trust_env=False,
            **options,
        )
        self._ours, self._built = ours, _Built()
        self._kept = _Cookies(options.get("cookies"))

    @property
    def cookies(self) -> httpx.Cookies:
        """The cookies that are sent, as httpx keeps them."""
        return self._kept

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        self._kept = _Cookies(cookies)

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:
        """Build a request, as httpx does."""
        return self._built.build(self, super().build_request, method, url, options)

    def close(self) -> None:
        """Close every connection; the mesh goes on."""
        super().close()
        self._ours.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        self._ours.close()


class AsyncClient(httpx.AsyncClient):
    """
    An `httpx.AsyncClient` that calls upstreams; all of `Client` holds.

    Args:
        mesh: the mesh to call through; ``None`` takes this process's own, at the first request.
        resolver: tells instances instead of the agent.
        domain: Consul's DNS domain; the mesh's setting unless given.
        http1: as httpx.
        http2: as httpx.
        limits: as httpx.
        retries: when a call is tried again, where neither it nor a route says otherwise.
        transport: carries URLs that name nothing in the mesh.
        mounts: as httpx.
        options: what else `httpx.AsyncClient` takes.

    Raises:
        ConfigError: ``verify``, ``cert``, ``proxy`` or ``trust_env`` is among *options*, or
            *retries* is no `Retries`.
    """

    def __init__(
        self,
        mesh: MeshLike | None = None,
        *,
        resolver: Resolver | None = None,
        domain: str | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = DEFAULT_LIMITS,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None = None,
        **options: Any,
    ) -> None:
        _refuse(options)
        ours = AsyncMeshTransport(
            mesh,
            resolver=resolver,
            domain=domain,
            http1=http1,
            http2=http2,
            limits=limits,
            retries=retries,
        )
        super().__init__(
            transport=ours if transport is None else _AsyncBeside(ours, transport),
            mounts=_guarded(mounts, partial(_AsyncBeside, ours)),
            trust_env=False,
            **options,
        )
        self._ours, self._built = ours, _Built()
        self._kept = _Cookies(options.get("cookies"))

    @property
    def cookies(self) -> httpx.Cookies:
        """The cookies that are sent, as httpx keeps them."""
        return self._kept

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        self._kept = _Cookies(cookies)

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:
        """Build a request, as httpx does."""
        return self._built.build(self, super().build_request, method, url, options)

    async def aclose(self) -> None:
        """Close every connection; the mesh goes on."""
        await super().aclose()
        await self._ours.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await super().__aexit__(exc_type, exc_value, traceback)
        await self._ours.aclose()


class _Built:
    """
    What httpx made of earlier calls: building a request is a fifth of a call, and a service makes
    the same calls again.

    URLs are kept as they were read, and requests of which nothing but method and URL was said, as
    long as base URL and headers of the client are what they were.
    """

    def __init__(self) -> None:
        self._kept = _Kept(None, [], {}, {})

    def build(
        self,
        client: httpx.Client | httpx.AsyncClient,
        build: Callable[..., httpx.Request],
        method: str,
        url: httpx.URL | str,
        options: dict[str, Any],
    ) -> httpx.Request:
        """Build a request by *build*, or like an earlier one."""
        if not isinstance(url, str):
            return build(method, url, **options)
        # One reference for the whole call: another thread may begin anew meanwhile.
        kept, headers = self._kept, client.headers.raw
        if kept.base is not client.base_url or kept.headers != headers:
            kept = self._kept = _Kept(client.base_url, headers, {}, {})
        plain = _is_plain(options) and not client.params and not client.cookies
        if plain:
            like = kept.requests.get((method, url))
            if like is not None:
                return _copy(like, {"timeout": client.timeout.as_dict()})
        known = kept.urls.get(url)
        request = build(method, url if known is None else known, **options)
        if client.params or options.get("params") is not None or len(url) > MAX_LENGTH:
            return request
        _keep(kept.urls, url, request.url)
        if plain and client.headers.raw == headers:
            _keep(kept.requests, (method, url), _copy(request, {}))
        return request


class _Kept(NamedTuple):
    """What holds as long as base URL and headers do."""

    base: httpx.URL | None
    headers: list[tuple[bytes, bytes]]
    urls: dict[str, httpx.URL]
    requests: dict[tuple[str, str], httpx.Request]


def _is_plain(options: Mapping[str, Any]) -> bool:
    for value in options.values():
        if value is not None and value is not httpx.USE_CLIENT_DEFAULT:
            return False
    # No timeout is something that was said.
    return options.get("timeout", httpx.USE_CLIENT_DEFAULT) is not None


def _copy(request: httpx.Request, extensions: dict[str, Any]) -> httpx.Request:
    # `copy.copy` would pickle it, and lose the stream. The rest of a request without a body is
    # never changed, only replaced.
    made = httpx.Request.__new__(httpx.Request)
    vars(made).update(vars(request))
    made.headers, made.extensions = httpx.Headers(request.headers), extensions
    return made


def _keep(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= MAX_READ:
        known.clear()
    known[key] = value


class _Cookies(httpx.Cookies):
    """httpx's, which it makes urllib read from every answer: here, from those that have some."""

    def extract_cookies(self, response: httpx.Response) -> None:
        if "set-cookie" in response.headers:
            super().extract_cookies(response)


def _refuse(options: dict[str, Any]) -> None:
    for name, why in _NOT_OURS.items():
        if name in options:
            raise ConfigError(f"{name}= has no place in a mesh client: {why}")
    if options.pop("trust_env", False):
        raise ConfigError(
            "trust_env=True has no place in a mesh client: no variable may reroute its traffic"
        )


def _guarded(
    mounts: Mapping[str, T | None] | None, beside: Callable[[T], T]
) -> dict[str, T | None]:
    return {
        pattern: one if one is None or _as_mounted(pattern, one) else beside(one)
        for pattern, one in (mounts or {}).items()
    }


def _as_mounted(pattern: str, transport: object) -> bool:
    # A pattern for one very host is the user's own word about it (a test double, for one); those
    # for schemes and wildcards are about hosts in general, and names in the mesh are not meant.
    if isinstance(transport, (MeshTransport, AsyncMeshTransport)):
        return True
    host = httpx.URL(pattern).host
    return bool(host) and not host.startswith("*")


class _Beside(httpx.BaseTransport):
    """An ordinary transport that is kept away from names in the mesh."""

    def __init__(self, mesh: MeshTransport, ordinary: httpx.BaseTransport) -> None:
        self._mesh = mesh
        self._ordinary = ordinary

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._mesh.carries(request.url):
            return self._mesh.handle_request(request)
        return self._ordinary.handle_request(request)

    def close(self) -> None:
        self._ordinary.close()


class _AsyncBeside(httpx.AsyncBaseTransport):
    """An ordinary transport that is kept away from names in the mesh."""

    def __init__(self, mesh: AsyncMeshTransport, ordinary: httpx.AsyncBaseTransport) -> None:
        self._mesh = mesh
        self._ordinary = ordinary

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._mesh.carries(request.url):
            return await self._mesh.handle_async_request(request)
        return await self._ordinary.handle_async_request(request)

    async def aclose(self) -> None:
        await self._ordinary.aclose()
