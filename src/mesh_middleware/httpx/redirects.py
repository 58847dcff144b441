"""
Where an answer says to go, as httpx has to read it to stay in the mesh.

Owns the change of a ``Location``. Follows none: that is httpx's business, and whether it does.

Theory. A service does not know by which scheme it was called: it redirects to ``http://tax/new``,
or to ``/new``. The one would leave the mesh where only ``mesh://`` is mounted, in the open; the
other cannot be joined to a URL whose scheme the standard library does not know.
"""

from __future__ import annotations

from collections.abc import Callable

from .library import httpx

_WEB = ("http", "https")


def keep_inside(
    response: httpx.Response, url: httpx.URL, in_mesh: Callable[[httpx.URL], bool]
) -> None:
    """
    Give a redirect to a name in the mesh the scheme that the request had.

    Args:
        response: any answer; another than a redirect stays what it is.
        url: of the request.
        in_mesh: whether a URL names something in the mesh.
    """
    if not response.has_redirect_location:
        return
    said = response.headers["location"]
    try:
        to = httpx.URL(said)
        if to.is_relative_url:
            # httpx can join those of the web itself.
            to = to if url.scheme in _WEB else url.copy_with(scheme="https").join(to)
    except (httpx.InvalidURL, ValueError):
        return  # httpx will say so
    if to.scheme not in _WEB or url.scheme == "http" or not in_mesh(to):
        return
    if to.scheme != url.scheme and (to.scheme == "http" or url.scheme not in _WEB):
        response.headers["location"] = str(to.copy_with(scheme=url.scheme))
