"""Where the door to the target hangs: exchanged while the relay runs, or missing until somebody says where it leads.

Knows which errors say that the key is not accepted. Knows nothing of settings or of documents.
"""

import asyncio
import contextlib
from collections.abc import Callable

from daemon.errors import DaemonError, Kind, Refusal, TargetError, refuses_the_key
from daemon.target import Placed


class Doorway:
    """A door that can be another one. `lacking`: what is missing or wrong, while there is none.

    `refused`: the last answer, when it was that the key is not accepted; `on_refused` is told at once.
    """

    def __init__(self, door: Placed | None, lacking: str | None = None) -> None:
        self._door = door
        self.lacking = lacking
        self.refused: str | None = None
        self.on_refused: Callable[[], None] = lambda: None
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def send(self, document: bytes) -> str:
        """What the door does; of kind AUTH while there is none."""
        if self._door is None:
            raise TargetError(Kind.AUTH, self.lacking or "the target is not set", Refusal("SETTINGS"))
        self._inside += 1
        self._empty.clear()
        try:
            answer = await self._door.send(document)
        except TargetError as exc:
            self.refused = str(exc) if refuses_the_key(exc) else None
            if self.refused:
                self.on_refused()
            raise
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()
        self.refused = None
        return answer

    @property
    def place(self) -> str:
        """By what address the target is reached; empty while there is no door."""
        return self._door.place if self._door else ""

    async def exchange(self, door: Placed | None, lacking: str | None = None) -> None:
        """Go through another door from now on. The old one is closed once nothing is on its way through it."""
        old, self._door, self.lacking, self.refused = self._door, door, lacking, None
        if old is not None:
            await self._empty.wait()
            with contextlib.suppress(OSError, DaemonError):
                await old.close()

    async def close(self) -> None:
        if self._door is not None:
            await self._door.close()
