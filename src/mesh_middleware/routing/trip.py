"""
One call on its way: the node it stands at, the instances it has tried, what is left of its time.

Owns the walk over the chain (routers, splitters, one resolver), and the loop of attempts. The
caller sends, and tells what became of it. Knows no socket; moments and dice are arguments.

Source: reference 7; Envoy's router filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..exceptions import BreakerOpenError, DeadlineError, NoHealthyInstanceError, ResolveError
from ..resolve import Endpoint
from .balance import Seat
from .calls import Attempt, Call, Outcome
from .chain import Chain, HashPolicy, HeaderChanges, Resolution, Retries, Route, Split
from .goal import Goal
from .hashing import hash_text
from .matching import RouteTest, choose_route, parameter, rewrite_target
from .retries import may_retry, pause

if TYPE_CHECKING:
    from .course import Course

_BY_KEY = frozenset({"ring_hash", "maglev"})
_BROKEN = Outcome("reset")
_NOTHING: tuple[HeaderChanges, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """
    A chain ready to be walked.

    Args:
        chain: the chain.
        tests: by router node, its routes.
        goals: by resolver node and target ID.
    """

    chain: Chain
    tests: Mapping[str, tuple[RouteTest, ...]]
    goals: Mapping[tuple[str, str], Goal]


class Trip:
    """
    One call; made by `Course.begin`.

    Args:
        course: the upstream.
        plan: what held when the call began; it is kept to the end.
        call: what is asked.
        now: this moment.
        dice: chooses the split.
    """

    __slots__ = (
        "_call", "_changes", "_course", "_goal", "_key", "_number", "_plan", "_requests",
        "_resolution", "_resolver", "_responses", "_retries", "_route", "_seat", "_sticky",
        "_tried", "deadline",
    )  # fmt: skip

    def __init__(self, course: Course, plan: Plan, call: Call, now: float, dice: float) -> None:
        self._course = course
        self._plan = plan
        self._call = call
        self._requests = self._responses = _NOTHING
        self._route: Route | None = None
        self._resolver = self._walk(dice)
        self._resolution: Resolution = plan.chain.resolvers[self._resolver]
        self._retries: Retries = call.retries or course.manners.retries
        self._number = 0
        self._seat: Seat | None = None
        self._goal: Goal | None = None
        self._tried: list[Seat] = []
        self._key: int | None = None
        if self._resolution.balancing.policy in _BY_KEY:
            self._key = _make_key(self._resolution.balancing.hash_policies, call)
        limit = self._resolution.request_timeout if self._resolver == plan.chain.start else None
        if self._route is not None:
            limit = self._route.timeout
            if self._route.retries is not None:
                self._retries = self._route.retries
        self.deadline = call.deadline
        if limit is not None:
            self.deadline = now + limit if self.deadline is None else min(
                self.deadline, now + limit
            )  # fmt: skip

    def _walk(self, dice: float) -> str:
        chain, node = self._plan.chain, self._plan.chain.start
        call = self._call
        while node not in chain.resolvers:
            if node in chain.routers:
                found = choose_route(self._plan.tests[node], call.method, call.target, call.headers)
                if found is None:
                    raise ResolveError(f"{self._course}: no route takes this request")
                self._route, node = found, found.next
                self._requests = _some(found.request_headers)
                self._responses = _some(found.response_headers)
            else:
                split = _choose_split(chain.splitters[node], self._sticky_dice(node, dice))
                # What is nearest to the instance comes first. Source: Envoy, header order.
                self._requests = (*_some(split.request_headers), *self._requests)
                self._responses = (*_some(split.response_headers), *self._responses)
                node = split.next
        return node

    def _sticky_dice(self, node: str, dice: float) -> float:
        key = self._call.key
        return dice if key is None else hash_text(f"{node}/{key}") / 2.0**64

    def next(self, now: float, dice: float) -> Attempt:
        """
        Choose the instance of the next attempt; `heard` has to be called before the one after.

        Raises:
            DeadlineError: the call's time is over.
            BreakerOpenError: all instances are ejected, or a limit is reached.
            NoHealthyInstanceError: there is no instance.
        """
        left = None if self.deadline is None else self.deadline - now
        if left is not None and left <= 0:
            raise DeadlineError(f"{self._course}: the time of this call is over")
        with self._course.lock:
            if self._number == 0:
                self._course.budget.count(now)
            goal, seat = self._choose(now, dice)
            goal.load.calls += 1
            seat.outstanding += 1
            if seat.health.until is not None:
                seat.trial = True
            self._goal, self._seat = goal, seat
        self._number += 1
        return self._attempt(goal, seat, left)

    def _choose(self, now: float, dice: float) -> tuple[Goal, Seat]:
        goals = self._goals()
        # First whom this call has not tried, nearest target first; then, if that may be, again.
        rounds = [self._tried, []] if self._tried and self._retries.same else [self._tried]
        for tried in rounds:
            for goal in goals:
                if goal.most is not None and goal.load.calls >= goal.most and len(goal):
                    raise BreakerOpenError(
                        f"{self._course}: {goal.target.id} has its limit of {goal.most} calls"
                    )
                seat = goal.pick(now, dice, self._key, tried, self._course.ejected)
                if seat is not None:
                    return goal, seat
        for goal in goals:
            seat = goal.pick_ejected(now, dice, self._key, rounds[-1])
            if seat is not None:
                return goal, seat
        if any(map(len, goals)):
            raise BreakerOpenError(f"{self._course}: every instance is ejected for now")
        raise NoHealthyInstanceError(f"{self._course}: {goals[0].why_none}")

    def _goals(self) -> list[Goal]:
        goals, node, to = self._plan.goals, self._resolver, self._resolution
        if not to.failover:
            return [goals[node, to.target]]
        return [goals[node, target] for target in (to.target, *to.failover)]

    def _attempt(self, goal: Goal, seat: Seat, left: float | None) -> Attempt:
        call, route, manners = self._call, self._route, self._course.manners
        return Attempt(
            seat.endpoint,
            self._number,
            call.target if route is None else rewrite_target(route, call.target),
            self._requests,
            self._responses,
            manners.connect_timeout or self._resolution.connect_timeout,
            left,
            None if route is None else route.idle_timeout,
            goal.target.id,
            goal.limits,
        )

    def moved(self, endpoint: Endpoint) -> bool:
        """
        Tell whether the attempt may go to another instance, to which a connection is free; from
        then on it does. Not where a key decides, nor to whom was tried or is not in use.
        """
        seat, goal = self._seat, self._goal
        if seat is None or goal is None:
            return False
        if seat.endpoint is endpoint or seat.endpoint == endpoint:
            return True
        if self._resolution.balancing.policy in _BY_KEY or seat.trial:
            return False
        with self._course.lock:
            other = goal.find(endpoint)
            if other is None or other.health.until is not None or other in self._tried:
                return False
            seat.outstanding -= 1
            other.outstanding += 1
            self._seat = other
        return True

    def heard(self, outcome: Outcome, now: float, dice: float) -> float | None:
        """
        Take what became of the attempt.

        Args:
            outcome: what happened.
            now: this moment.
            dice: jitter, and enforcement of ejections.

        Returns:
            Seconds to wait before `next`; ``None`` when the outcome is final. A final answer goes
            on counting as a call under way until `close`.
        """
        seat, goal = self._seat, self._goal
        assert seat is not None and goal is not None, "heard without next"
        with self._course.lock:
            self._judge(goal, seat, outcome, now, dice)
            wait = self._retry(seat, outcome, now, dice)
            if wait is not None or outcome.kind != "answer":
                self._release()
        return wait

    def repeats(self) -> bool:
        """
        Whether this attempt would be repeated if its connection broke now, in mid-answer: then the
        rest of a short answer is worth waiting for before it is handed over.
        """
        retries = self._retries
        return self._number <= retries.count and may_retry(retries, self._call, _BROKEN)

    def _judge(self, goal: Goal, seat: Seat, outcome: Outcome, now: float, dice: float) -> None:
        before = seat.health
        seat.trial = False
        if outcome.failed:
            goal.failed(seat, now, dice)
        elif outcome.kind == "answer" and not outcome.denied:
            goal.succeeded(seat, now)
        if before.until is not seat.health.until:
            self._course.refresh()

    def _retry(self, seat: Seat, outcome: Outcome, now: float, dice: float) -> float | None:
        retries = self._retries
        if self._number > retries.count or not may_retry(retries, self._call, outcome):
            return None
        wait = pause(self._number, outcome, dice)
        if self.deadline is not None and now + wait >= self.deadline:
            return None
        self._tried.append(seat)
        if not self._has_another(now):
            return None
        # Who could not be reached got no load: to ask somebody else costs nothing of the budget.
        if outcome.sent or outcome.kind in ("answer", "reset", "timeout"):
            return wait if self._course.budget.take(now) else None
        return wait

    def _has_another(self, now: float) -> bool:
        if self._retries.same:
            return True
        return any(one.offers(now, self._tried) for one in self._goals())

    def close(self, now: float) -> None:
        """The call is over, its answer read or given up; twice is once."""
        with self._course.lock:
            self._release()

    def _release(self) -> None:
        seat, goal, self._seat, self._goal = self._seat, self._goal, None, None
        if seat is None or goal is None:
            return
        seat.outstanding -= 1
        goal.load.calls -= 1
        seat.trial = False


def _some(changes: HeaderChanges) -> tuple[HeaderChanges, ...]:
    return (changes,) if changes else _NOTHING


def _choose_split(splits: tuple[Split, ...], dice: float) -> Split:
    point = dice * sum(split.weight for split in splits)
    for split in splits:
        point -= split.weight
        if point < 0:
            return split
    return max(splits, key=lambda split: split.weight)


def _make_key(policies: tuple[HashPolicy, ...], call: Call) -> int | None:
    """Make a call's key of what the policies name; the call's own when they find nothing."""
    key: int | None = None
    for policy in policies:
        found = _value(policy, call)
        if found is None:
            continue
        # As Envoy: rotated by one, so that the order of the parts counts.
        turned = 0 if key is None else ((key << 1) | (key >> 63)) & (2**64 - 1)
        key = turned ^ hash_text(found)
        if policy.terminal:
            break
    if key is None and call.key is not None:
        return hash_text(call.key)
    return key


def _value(policy: HashPolicy, call: Call) -> bytes | str | None:
    if policy.field == "source_ip":
        return call.source
    if policy.field == "query_parameter":
        return parameter(call.target, policy.name)
    wanted = b"cookie" if policy.field == "cookie" else policy.name.lower().encode()
    values = [value for name, value in call.headers if name.lower() == wanted]
    if policy.field == "header":
        return b",".join(values) if values else None
    for value in values:
        for pair in value.split(b";"):
            name, _, content = pair.strip().partition(b"=")
            if name == policy.name.encode():
                return content
    return None
