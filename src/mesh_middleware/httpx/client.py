"""
`httpx.Client` and `httpx.AsyncClient` whose transport speaks mesh.

Owns which transport carries a URL: names in the mesh always go through the mesh, all else only
where the user mounted an ordinary transport. Refuses the options that would weaken that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from ..exceptions import ConfigError
from ..resolve import Resolver
from .library import httpx
from .transport import DEFAULT_LIMITS, AsyncMeshTransport, MeshTransport
from .upstreams import MeshLike

T = TypeVar("T")

MAX_READ = 256
"""URLs that are kept as they were read."""
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
        transport: carries URLs that name nothing in the mesh.
        mounts: as httpx.
        options: what else `httpx.Client` takes.

    Raises:
        ConfigError: ``verify``, ``cert``, ``proxy`` or ``trust_env`` is among *options*.
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
        transport: httpx.BaseTransport | None = None,
        mounts: Mapping[str, httpx.BaseTransport | None] | None = None,
        **options: Any,
    ) -> None:
        _refuse(options)
        ours = MeshTransport(
            mesh, resolver=resolver, domain=domain, http1=http1, http2=http2, limits=limits
        )
        super().__init__(
            transport=ours if transport is None else _Beside(ours, transport),
            mounts=_guarded(mounts, partial(_Beside, ours)),
            trust_env=False,
            **options,
        )
        self._ours, self._urls = ours, _Urls()
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
        base = self.base_url
        known = self._urls.find(url, base)
        request = super().build_request(method, known, **options)
        if known is url and not (options.get("params") or self.params):
            self._urls.keep(url, base, request.url)
        return request

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
        transport: carries URLs that name nothing in the mesh.
        mounts: as httpx.
        options: what else `httpx.AsyncClient` takes.

    Raises:
        ConfigError: ``verify``, ``cert``, ``proxy`` or ``trust_env`` is among *options*.
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
        transport: httpx.AsyncBaseTransport | None = None,
        mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None = None,
        **options: Any,
    ) -> None:
        _refuse(options)
        ours = AsyncMeshTransport(
            mesh, resolver=resolver, domain=domain, http1=http1, http2=http2, limits=limits
        )
        super().__init__(
            transport=ours if transport is None else _AsyncBeside(ours, transport),
            mounts=_guarded(mounts, partial(_AsyncBeside, ours)),
            trust_env=False,
            **options,
        )
        self._ours, self._urls = ours, _Urls()
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
        base = self.base_url
        known = self._urls.find(url, base)
        request = super().build_request(method, known, **options)
        if known is url and not (options.get("params") or self.params):
            self._urls.keep(url, base, request.url)
        return request

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


class _Urls:
    """
    URLs as httpx read them: that costs a tenth of a call, and a service calls the same ones again.

    What was merged with a base URL is kept as long as that is the client's.
    """

    def __init__(self) -> None:
        self._base: httpx.URL | None = None
        self._read: dict[str, httpx.URL] = {}

    def find(self, url: httpx.URL | str, base: httpx.URL) -> httpx.URL | str:
        """What *url* was read as, if it is known, else *url*."""
        if base is not self._base:
            self._base, self._read = base, {}
        return self._read.get(url, url) if isinstance(url, str) else url

    def keep(self, url: httpx.URL | str, base: httpx.URL, read: httpx.URL) -> None:
        """Keep what *url* was read as."""
        if isinstance(url, str) and len(url) <= MAX_LENGTH and base is self._base:
            if len(self._read) >= MAX_READ:
                self._read = {}
            self._read[url] = read


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
