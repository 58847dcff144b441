"""
The way of a call to an instance: what a sidecar decides for outbound traffic, as values and rules.

Knows no I/O: no socket, no clock, no dice; moments (monotonic seconds) and dice (a number from 0 up
to, not including, 1) are arguments. Safe to use from several threads; nothing here waits.

The shape, from the outside in::

    course = Course("tax")                      # one upstream: chain, instances, who is ejected
    course.learn_chain(chain)                   # the watch tells; without it: the default chain
    course.learn_instances(place, instances, now)   # for each of course.places()

    trip = course.begin(Call("GET", b"/rates?y=1", headers), now, dice)
    while True:
        attempt = trip.next(now, dice)     # NoHealthyInstanceError, BreakerOpenError, DeadlineError
        ...                                # send attempt.target (raw, rewritten) to
                                           # attempt.endpoint, with attempt.request_headers applied
        pause = trip.heard(Outcome(...), now, dice)     # exactly once per attempt
        if pause is None:                  # final: give the answer, or raise what happened
            break
        ...                                # else drop this answer, wait *pause* seconds, again
    trip.close(now)                        # the answer's body has ended, or was given up

`Attempt` also tells `connect_timeout`, `timeout` (seconds left for the whole call), `to` (the
chain's target) and `limits`; `course.endpoints` are the instances of all places, for a pool's
lanes. `Course.look` is for people: an `UpstreamState`, with an `InstanceState` per instance. The
deadline goes to the upstream in `DEADLINE_HEADER`, which the transport writes from `timeout`.

Modules: `chain` values and the agent's chain answers; `entries` the same from config entries;
`fields` what is honoured; `matching` routes and header changes; `filters` subsets; `balance` and
`hashing` which instance; `breaking` ejection, limits, budget; `retries` when to try again; `course`
and `trip` put them together.

Source: Consul discovery chain (reference 7), Envoy's outlier detection, load balancers and retries.
"""

from .breaking import BreakerState, Breaking
from .calls import DEADLINE_HEADER, IDEMPOTENT, Attempt, Call, Limits, Outcome
from .chain import (
    Balancing,
    Chain,
    Condition,
    HashPolicy,
    HeaderChanges,
    Match,
    Place,
    Resolution,
    Retries,
    Route,
    Split,
    Target,
    default_chain,
)
from .course import Course, InstanceState, Manners, UpstreamState
from .instances import Instance, Locality, parse_instances
from .reading import parse_chain
from .retries import DEFAULT_RETRIES, NO_RETRIES
from .trip import Trip

__all__ = [
    "DEFAULT_RETRIES",
    "NO_RETRIES",
    "BreakerState",
    "Breaking",
    "Course",
    "Instance",
    "InstanceState",
    "Locality",
    "Manners",
    "Trip",
    "UpstreamState",
    "parse_instances",
    "DEADLINE_HEADER",
    "IDEMPOTENT",
    "Attempt",
    "Balancing",
    "Call",
    "Chain",
    "Condition",
    "HashPolicy",
    "HeaderChanges",
    "Limits",
    "Match",
    "Outcome",
    "Place",
    "Resolution",
    "Retries",
    "Route",
    "Split",
    "Target",
    "default_chain",
    "parse_chain",
]
