"""A door is exchanged while a question is on its way through the old one."""

import asyncio

from daemon.doorway import Doorway


class Slow:
    """A door whose answer comes when it may; one that is closed before has lost it."""

    place = "nowhere"

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.closed = False

    async def send(self, document: bytes) -> str:
        await self.may.wait()
        assert not self.closed
        return document.decode()

    async def close(self) -> None:
        self.closed = True


async def test_the_old_door_is_closed_when_nothing_is_on_its_way_through_it() -> None:
    """A daemon without its source asks the target by itself; a key may be exchanged meanwhile."""
    old, new = Slow(), Slow()
    new.may.set()
    doorway = Doorway(old)
    asking = asyncio.create_task(doorway.send(b"where?"))
    await asyncio.sleep(0)
    exchanging = asyncio.create_task(doorway.exchange(new))
    await asyncio.sleep(0)
    assert await doorway.send(b"there?") == "there?"
    assert not old.closed
    old.may.set()
    assert await asking == "where?"
    await exchanging
    assert (old.closed, new.closed) == (True, False)
