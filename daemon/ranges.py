"""What the relay reads: windows, and in between what somebody asks of a table as of the end of one.

Knows the rule that makes copies and comparisons right: rows are read as of the very snapshot to which the window
before them leads, and follow it as a batch of their own, at that cursor (docs/decisions/0016). Knows nothing of what
is asked, nor what for.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from daemon.batch import Batch, Found, Question
from daemon.errors import CopyRefused, SourceUnavailable
from daemon.source import Source
from outbox import Cursor


@dataclass(frozen=True, slots=True)
class Look:
    """What to ask (None: nothing), the batch that is made of it at the end of the window (None: there is nothing to be
    sent), and who is told when the source refuses, when nothing can be made of it, or when the connection is lost over it."""

    question: Question | None
    made: Callable[[Found, Batch], Batch | None]
    refused: Callable[[CopyRefused], None] = lambda _: None
    dropped: Callable[[], None] = lambda: None
    lost: Callable[[], None] = lambda: None


Asker = Callable[[], Awaitable[Look | None]]


class Ranges:
    """Reads from `source`, in turn what `askers` want: the first that wants something has it."""

    def __init__(self, source: Source, askers: Sequence[Asker]) -> None:
        self._source = source
        self._askers = askers
        self._waiting: tuple[Look, Found, str] | None = None  # read as of a snapshot; the window up to there goes first
        self._next: Batch | None = None
        self.looked = False  # did the last read ask something of which nothing was to be sent? There may be more

    def forget(self) -> None:
        """Begin anew: the target has said where it stands."""
        self._waiting = self._next = None

    async def read(self, cursor: Cursor) -> Batch:
        """The next batch after `cursor`: changes, or rows of a table as of it."""
        self.looked = False
        if self._next is not None:
            batch, self._next = self._next, None
            return batch
        if self._waiting is not None:
            batch = await self._source.read(cursor, beyond=False)
        elif (look := await self._look()) is None:
            return await self._source.read(cursor)
        else:
            try:
                batch, found, goal = await self._source.read_as_of(cursor, look.question)
            except CopyRefused as exc:
                look.refused(exc)
                self.looked = exc.other
                return await self._source.read(cursor)
            except SourceUnavailable:
                look.lost()
                raise
            self._waiting = look, found, goal
        if batch.more:
            return batch
        (look, found, goal), self._waiting = self._waiting, None
        if batch.cursor.snapshot != goal:
            look.dropped()
            return batch  # another window was begun meanwhile: what was read is older than its end
        made = look.made(found, batch)
        if made is None:
            self.looked = True
            return batch
        if not batch.sheaves:
            return made
        self._next = made
        return batch

    async def _look(self) -> Look | None:
        for asker in self._askers:
            if look := await asker():
                return look
        return None
