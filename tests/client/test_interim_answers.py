"""An upstream that sends interim answers without end does not hold a call."""

from __future__ import annotations

import httpx
import pytest

from mesh_middleware.httpx.h1 import MAX_INTERIM, Reading

INTERIM = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
}
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", INTERIM)
def test_as_many_as_are_allowed_are_taken(kind: str, together: bool, fast: bool) -> None:
    """Then the answer itself; in one packet or each in its own."""
    reading = Reading(fast=fast)
    feed(reading, [INTERIM[kind]] * MAX_INTERIM + [FINAL], together)
    assert (reading.status, reading.take()) == (200, b"ok")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", INTERIM)
def test_one_more_is_an_error(kind: str, together: bool, fast: bool) -> None:
    """Of httpx's own kinds, so that the call can be tried elsewhere."""
    reading = Reading(fast=fast)
    with pytest.raises(httpx.RemoteProtocolError, match="interim"):
        feed(reading, [INTERIM[kind]] * (MAX_INTERIM + 1) + [FINAL], together)


def feed(reading: Reading, packets: list[bytes], together: bool) -> None:
    """Give an answer to the reader."""
    for packet in [b"".join(packets)] if together else packets:
        reading.feed(packet)
