"""R17: answers that say the same, come twice, or out of order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import Answer, DevAgent, Request

from ..support.servers import PATIENCE, until

Join = Callable[..., Mesh]


@pytest.mark.parametrize("poll", [0.0, 0.1], ids=["blocking", "polling"])
def test_r17_equal_answers_swap_nothing(agent: DevAgent, join: Join, poll: float) -> None:
    """A resource that wakes its watchers without a change: asked again, and no swap."""
    agent.deny("web", "tax")
    mesh = join(poll=poll)
    assert mesh.wait_for(lambda s: s.ready and bool(s.intentions), PATIENCE)
    asked = 0

    async def count(request: Request) -> Answer | None:
        nonlocal asked
        asked += request.path.startswith("/v1/connect/intentions/match")
        return None

    before = mesh.status()
    agent.interpose = count
    for wakes in range(1, 6):
        agent.state.publish(agent.state.index.reserve(), "intentions/tax", "roots", "leaf/tax")
        until(lambda w=wakes: asked >= w, "another question")
    after = mesh.status()
    assert (after["version"], after["generation"]) == (before["version"], before["generation"])


def test_r17_answers_in_the_wrong_order_end_with_the_newest(agent: DevAgent, join: Join) -> None:
    """An old answer with an old index arrives late: asked again at once, and the newest holds."""
    mesh = join()
    assert mesh.ready(PATIENCE)
    old: list[Answer] = []
    later = 0

    async def repeat_once(request: Request) -> Answer | None:
        nonlocal later
        if not request.path.startswith("/v1/connect/intentions/match"):
            return None
        later += not old
        return old.pop() if old else None

    agent.allow("web", "tax")
    assert mesh.wait_for(lambda s: len(s.intentions or ()) == 1, PATIENCE)
    stale = Answer({"tax": None}, index=3)
    agent.interpose = repeat_once
    old.append(replace(stale))
    agent.allow("order", "tax")
    # The question that was held tells the newest, the next one is told the old answer.
    until(lambda: not old and later, "the old answer, and another question")
    assert mesh.wait_for(lambda s: len(s.intentions or ()) == 2, PATIENCE)
