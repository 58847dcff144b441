"""
One request, from the moment its upstream is known until its answer's body has ended.

Owns what the sync and the async transport share: asking the trip for an instance, what is written
to it, how an attempt's end is told to the trip, to plugins and to the caller. Waits for nothing.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Any

from ..exceptions import MeshError
from ..resolve import Endpoint
from ..routing.calls import DEADLINE_HEADER, Attempt, Call, Outcome
from ..routing.matching import change_headers
from ..routing.report import AttemptReport
from ..routing.retries import read_retry_after
from ..trace import current_trace
from .carrier import Answer, Patience
from .denial import MeshInfo, MeshResponse, is_denial
from .drawn import BodyError
from .errors import (
    MeshConnectError,
    MeshConnectTimeout,
    UpstreamBusyError,
    UpstreamMismatchError,
    UpstreamUnverifiedError,
    explain_refusal,
    note_where,
)
from .library import httpx
from .pool import Lane
from .upstreams import Target
from .wire import Outgoing
from .wishes import Wishes

_DEADLINE = DEADLINE_HEADER.encode()
_GIVEN_UP = Outcome("given_up")
MAX_HELD_BYTES = 64 * 1024
"""A longer body is handed over as it comes, and not repeated when it breaks."""


class Journey:
    """
    A request on its way.

    Args:
        target: its upstream; told, and joined.
        request: the request.
        wishes: what the caller asks for beside it.
        began: moment the call began; it may have waited for the mesh since.

    Raises:
        httpx.LocalProtocolError: the request is unfit to be sent.
        MeshConnectError: there is nobody to send it to.
    """

    __slots__ = (
        "attempt",
        "began",
        "course",
        "failure",
        "instance",
        "outgoing",
        "patience",
        "request",
        "target",
        "timeouts",
        "trip",
    )

    def __init__(
        self, target: Target, request: httpx.Request, wishes: Wishes, began: float
    ) -> None:
        self.target, self.request = target, request
        self.timeouts = request.extensions.get("timeout") or {}
        self.outgoing = outgoing = Outgoing(request, current_trace(), target.heads)
        self.course = target.course()
        call = _call(outgoing, wishes, began)
        self.began = time.monotonic()
        try:
            self.trip = self.course.begin(call, self.began, random.random())
        except MeshError as error:
            raise explain_refusal(error, target.name) from error
        self.attempt: Attempt
        self.instance: Endpoint
        self.patience: Patience
        self.failure: BaseException | None = None

    def depart(self) -> None:
        """
        Learn where the next attempt goes.

        Raises:
            NoHealthyInstanceError: nowhere.
            MeshError: the trip's reason why not.
        """
        now = time.monotonic()
        try:
            attempt = self.trip.next(now, random.random())
        except MeshError as error:
            self.end()
            if self.failure is not None:
                # What happened says more than that there is no other way left.
                raise self.failure from None
            raise explain_refusal(error, self.target.name) from error
        self.attempt, self.instance, self.began = attempt, attempt.endpoint, now
        self.outgoing.sent = False
        self.patience = Patience.of(self.timeouts, attempt, now)
        try:
            self._address(attempt)
        except BaseException as error:
            self.lost(error)
            raise

    def _address(self, attempt: Attempt) -> None:
        outgoing = self.outgoing
        changed = attempt.request_headers or attempt.target != outgoing.target
        if not changed and attempt.timeout is None and outgoing.aimed is None:
            return
        fields = change_headers(outgoing.fields, attempt.request_headers)
        if attempt.timeout is not None:
            left = b"%d" % max(0, int(attempt.timeout * 1000))
            fields = [field for field in fields if field[0].lower() != _DEADLINE]
            fields.append((_DEADLINE, left))
        outgoing.aim(attempt.target, fields)

    def takes(self, lane: Lane[Any]) -> bool:
        """Whether a connection to another instance than the attempt's will do; then it does."""
        if not self.trip.moved(lane.endpoint):
            return False
        self.instance = lane.endpoint
        return True

    def lost(self, error: BaseException) -> float | None:
        """
        Take note of an attempt that brought no answer.

        Returns:
            Seconds until the next; ``None`` when *error* is to be raised.
        """
        note_where(error, self.target.name, self.instance, self.attempt.number)
        outcome = _outcome(error, self.outgoing.sent)
        pause = self._tell(outcome, error.error if isinstance(error, BodyError) else error)
        if pause is None or not self._may_go_again(outcome.sent):
            self.end()
            return None
        self.failure = error
        return pause

    def heard(self, response: MeshResponse) -> float | None:
        """
        Take note of an answer.

        Returns:
            Seconds until the next attempt; ``None`` when this is the answer.
        """
        status, wait = response.status_code, None
        if status >= 400 and "retry-after" in response.headers:
            wait = read_retry_after(response.headers["retry-after"], datetime.now(UTC))
        denied = response.extensions["mesh"].denied
        pause = self._tell(Outcome("answer", status, denied, wait), None)
        self.failure = None
        return pause if pause is not None and self._may_go_again(True) else None

    def waits_for_body(self, answer: Answer, response: MeshResponse) -> bool:
        """
        Tell whether to read the whole body before handing the answer over: a short one of a call
        that is repeated when the instance dies in the middle of it.
        """
        if answer.whole is not None or self.outgoing.method == "HEAD":
            return False
        length = response.headers.get("content-length", "")
        return length.isdecimal() and int(length) <= MAX_HELD_BYTES and self.trip.repeats()

    def arrive(self, response: MeshResponse, answer: Answer) -> MeshResponse:
        """Hand over the answer; the journey ends with its body."""
        if answer.whole is not None or answer.stream.over:
            self.end()
        else:
            answer.stream.ended = self.end
        return response

    def end(self) -> None:
        """The body has ended, or nobody wants it."""
        self.trip.close(time.monotonic())

    def _tell(self, outcome: Outcome, error: BaseException | None) -> float | None:
        now = time.monotonic()
        pause = self.trip.heard(outcome, now, random.random())
        told = self.target.told
        if told is not None:
            final = pause is None or not self._may_go_again(outcome.sent)
            told(
                AttemptReport(
                    self.target.name,
                    self.outgoing.method,
                    self.instance,
                    self.attempt.number,
                    outcome.kind,
                    outcome.status,
                    outcome.denied,
                    now - self.began,
                    final,
                    self.attempt.to,
                    "" if error is None else type(error).__name__,
                )
            )
        return pause

    def _may_go_again(self, sent: bool) -> bool:
        # Whatever the trip thinks: a body that was drawn is gone.
        return self.outgoing.stream is None or not sent

    def dress(self, answer: Answer) -> MeshResponse:
        """Make the response that the caller sees."""
        info = self.target.info
        attempt = self.attempt
        if (
            info is None
            or info.instance is not answer.endpoint
            or info.attempts != attempt.number
            or info.split != attempt.to
        ):
            info = MeshInfo(self.target.name, answer.endpoint, attempt.number, split=attempt.to)
            self.target.info = info
        answer.extensions["mesh"] = info
        headers = answer.headers
        if attempt.response_headers:
            headers = change_headers(headers, attempt.response_headers)
        response = MeshResponse(
            answer.status,
            headers=headers,
            stream=answer.stream,
            extensions=answer.extensions,
        )
        response.whole = answer.whole
        for _, value in headers:
            if not value.isascii():
                break
        else:
            # httpx would find out by decoding them all, twice.
            response.headers.encoding = "ascii"
        return response


def mark(response: MeshResponse, body: bytes) -> None:
    """Note on *response*, a 403 whose whole body this is, whether it is a refusal by policy."""
    if is_denial(response.headers, body):
        info: MeshInfo = response.extensions["mesh"]
        response.extensions["mesh"] = MeshInfo(
            info.upstream, info.instance, info.attempts, info.split, denied=True
        )


def _call(outgoing: Outgoing, wishes: Wishes, began: float) -> Call:
    return Call(
        outgoing.method,
        outgoing.target,
        outgoing.fields,
        outgoing.stream is None,
        None if wishes.timeout is None else began + wishes.timeout,
        wishes.key,
        wishes.source,
        wishes.retries,
    )


def _outcome(error: BaseException, sent: bool) -> Outcome:
    if isinstance(error, UpstreamBusyError):
        return _GIVEN_UP  # no instance is to blame
    if isinstance(error, (UpstreamMismatchError, UpstreamUnverifiedError)):
        return Outcome("refused", sent=False)
    if isinstance(error, (MeshConnectError, MeshConnectTimeout)):
        return Outcome("connect_failure", sent=False)
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        return Outcome("timeout", sent=sent)
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError)):
        return Outcome("reset", sent=sent)
    return _GIVEN_UP
