"""The counter, the topics, and who is woken."""

from __future__ import annotations

import asyncio
import threading

from mesh_middleware.dev.index import Index, Watch

PATIENCE = 10.0


def test_untouched_topic_has_the_first_index() -> None:
    """A topic nobody wrote to has the index of the beginning, above 1."""
    index = Index()
    assert index.of("x") == index.counter > 1


def test_topic_keeps_its_index_while_others_grow() -> None:
    """Unrelated writes change nothing; together topics have the latest of theirs."""
    index = Index()
    first = index.reserve()
    index.touch(first, "a")
    second = index.reserve()
    index.touch(second, "b", "c")
    assert (index.of("a"), index.of("b"), index.of("a", "b")) == (first, second, second)
    assert second > first


def test_topic_never_goes_back() -> None:
    """A change published late does not lower the index."""
    index = Index()
    early, late = index.reserve(), index.reserve()
    index.touch(late, "a")
    index.touch(early, "a")
    assert index.of("a") == late


def test_no_topic_at_all_has_index_one() -> None:
    """Index 0 is never given."""
    assert Index().of() == 1


def wait_once(index: Index, topic: str, act: object) -> bool:
    """Watch *topic*, act in another thread, and tell whether the watch woke."""

    async def run() -> bool:
        never: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        with Watch(index, (topic,)) as watch:
            watch.rearm()
            thread = threading.Thread(target=act)  # type: ignore[arg-type]
            thread.start()
            before = asyncio.get_running_loop().time()
            await watch.wait(never, 0.3)
            thread.join(PATIENCE)
            return asyncio.get_running_loop().time() - before < 0.29

    return asyncio.run(run())


def test_touch_and_poke_wake_from_another_thread() -> None:
    """Writers and watchers live in different threads and loops."""
    index = Index()
    assert wait_once(index, "a", lambda: index.touch(index.reserve(), "a"))
    assert wait_once(index, "a", lambda: index.poke("a"))
    assert wait_once(index, "a", index.poke_all)


def test_other_topics_do_not_wake() -> None:
    """Only its own topics wake a watch."""
    index = Index()
    assert not wait_once(index, "a", lambda: index.touch(index.reserve(), "b"))


def test_wake_before_the_wait_is_not_lost() -> None:
    """A write between looking and waiting ends the wait at once."""
    index = Index()

    async def run() -> None:
        never: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        with Watch(index, ("a",)) as watch:
            watch.rearm()
            index.touch(index.reserve(), "a")
            async with asyncio.timeout(PATIENCE):
                await watch.wait(never, PATIENCE * 2)

    asyncio.run(run())


def test_hang_up_ends_the_wait() -> None:
    """When the client has gone there is nobody to wait for."""
    index = Index()

    async def run() -> None:
        gone: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        gone.set_result(None)
        with Watch(index, ("a",)) as watch:
            async with asyncio.timeout(PATIENCE):
                await watch.wait(gone, PATIENCE * 2)

    asyncio.run(run())


def test_watches_are_forgotten() -> None:
    """After its request a watch is counted no more, and a closed loop harms no writer."""
    index = Index()
    held: list[Watch] = []

    async def run() -> None:
        with Watch(index, ("a", "b")) as watch:
            assert index.watching == 1
            held.append(watch)

    asyncio.run(run())
    assert index.watching == 0
    index.add(held[0])  # as if its loop had died without cleaning up
    index.touch(index.reserve(), "a")
