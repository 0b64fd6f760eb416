"""The relay: reads a window, plans it, applies it, advances. The loop that moves changes, and nothing else.

Knows the order of things and what each failure means for the next turn. Knows neither SQL nor HTTP.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from daemon.batch import Batch
from daemon.breaker import BreakerOpen, State
from daemon.copier import Copier
from daemon.copies import Progress
from daemon.delivery import Delivery, Parcel
from daemon.errors import CaptureLost, DaemonError, Kind, SourceUnavailable, SourceUnfit, TargetError, advice
from daemon.failpoint import come_by, reach
from daemon.flight import Flight, Flights
from daemon.heartbeat import alone, apart, arrived, known, notes
from daemon.letters import Letters
from daemon.plan import Plan
from daemon.progress import Observer, Status, Timing
from daemon.prune import Pruner
from daemon.ranges import Ranges
from daemon.retries import Place, Retries
from daemon.sizing import Sizing
from daemon.source import Source
from daemon.target import Answer, Target, require_known, require_reached, require_schema
from daemon.tracing import Tracing
from daemon.verifier import Verifier
from daemon.wakeup import Bell, Pace
from outbox import Cursor

log = structlog.get_logger()

_TRAIN = 64  # batches
_LAST_TRAIN = 8  # of one that is to stop: near by they go one after the other, and the clock is looked at in between
_REMEMBER_EVERY = 60.0  # seconds: the source is told where the target stands
_TOLD_EVERY = 300.0  # seconds until the target is asked what its tables are, where no heartbeat's answer tells it


class Relay:
    """Moves changes from one source to one target. `step` is one turn of the wheel; `run` decides when."""

    def __init__(
        self,
        source: Source,
        target: Target,
        bell: Bell,
        observer: Observer,
        timing: Timing | None = None,
        *,
        pruner: Pruner | None = None,
        copier: Copier | None = None,
        verifier: Verifier | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._bell = bell
        self._observer = observer
        self._timing = timing or Timing()
        self._pruner = pruner
        self.copier = copier or Copier(source, target, recheck=self._timing.recheck)
        self.verifier = verifier or Verifier(source, target)
        self.verifier.absent = self.copier.away
        self._ranges = Ranges(source, (self.copier.begin, self.verifier.begin))
        self._pace = Pace()
        self._leads = asyncio.Event()
        self._unled: tuple[str, str] | None = None  # why nobody can lead here, and what kind of problem that is
        self._stopping = False
        self._cursor: Cursor | None = None  # where to read on: ahead of `_stated` after windows without changes
        self._stated: Cursor | None = None  # where the target says it stands
        self._digest = ""  # of the batch that led it there
        self._flights = Flights(tracing)
        self._term = 0  # another begins when this one leads, follows or is to stop: a train under way ends then
        self._read_at = 0.0
        self._adjustments: list[Callable[[], Awaitable[None]]] = []
        self._next_at = 0.0  # when the next request may go, on the monotonic clock
        self._dry = False  # did the last look at the source find nothing?
        self._claimed = False
        self._restored = (
            False  # does the target stand behind where it stood, and what that means for letters is still to be done?
        )
        self._letters = letters = Letters(source, lambda: (target.relay, self.status.epoch))
        self._delivery = Delivery(target, letters, observer, row_bytes=source.limits.row_bytes)
        self._delivery.captured = lambda: self.copier.captured
        self.copier.held_of = self._delivery.held_of
        self._retries = Retries(
            self._delivery, letters, self.copier, recheck=self._timing.recheck, structured=self._structured,
            cover=tracing.cover if tracing else None,
        )  # fmt: skip
        self._sizing = Sizing(source.limits.changes, source.limits.bytes)
        self._letters_seen = float("-inf")
        self._failures = 0
        self._without_letters = False  # did the turn before fail with letters, before anything was read?
        self._ahead: asyncio.Future[Batch | None] | None = None  # the next batch, read while others are on their way
        self._ahead_term = 0
        self._rewinding: str | None = None
        self._noted, self._remembered = 0, 0.0  # the batch number the source was told, and when
        self._told = float("-inf")  # when the target last said what of its tables is another by now
        self.described: Mapping[str, Any] | None = None  # the target's tables, as it said last
        self.turns = 0
        self.beat = time.monotonic()  # when the loop last gave a sign of life
        self.status = Status()

    @property
    def stated(self) -> Cursor | None:
        """Where the target says it stands; None while it has not been asked."""
        return self._stated

    # -- one turn ------------------------------------------------------------------------------------------

    async def step(self, batches: int = 1) -> bool:
        """Read, plan, apply, advance: one batch, or a train of several. True: there was something, call again at once.

        Of a train two batches may be on their way at once; when it ends, none is. Whatever this raises, the cursor in
        memory is forgotten: the next turn asks the target where it stands.
        """
        self.turns += 1
        term, sent = self._term, 0
        try:
            await self._begin(term)
            while True:
                patience = None
                if sent < batches and term == self._term and not (sent and self._pruner and self._pruner.due):
                    patience = self._flights.room_in(time.monotonic())
                    if patience == 0.0:
                        if batch := await self._taken():
                            sent += 1
                            batches = sent if self._spaced(batch) else batches
                            await self._send(batch, on=sent < batches)
                            continue
                        patience = self._pace.pause(time.monotonic()) or self._pace.longest
                if not self._flights:
                    break
                if flight := await self._flights.landed(patience):
                    await self._land(flight)
            return await self._retry() or sent > 0 or self._ranges.looked
        except BaseException as exc:
            await self._forget()
            if isinstance(exc, (TargetError, CaptureLost)) and await self._spared(exc):
                self._observer.turn_failed(str(exc.kind) if isinstance(exc, TargetError) else "source")
                self._sizing.forgive()
                return True  # the others go on without that table
            raise

    async def _begin(self, term: int) -> None:
        """Let go of what is out of date. What keeps failing may wait for a row that is held: then nothing but its letter
        leads on. Or it is a letter that keeps failing: each second turn goes without."""
        if (self._ahead is not None and self._ahead_term != term) or time.monotonic() >= self._told + _TOLD_EVERY:
            await self._forget()
        without, self._without_letters = self._without_letters, False
        if self._failures and self._delivery.held and not without:
            if self._cursor is None or not self._claimed:
                await self._resume()
            self._without_letters = True
            await self._retry()
            self._without_letters = False

    async def _spared(self, exc: TargetError | CaptureLost) -> bool:
        """May the others go on without the table that is to blame?"""
        if isinstance(exc, TargetError) and exc.kind not in (Kind.CONTRACT, Kind.AUTH):
            return False
        table = exc.table if isinstance(exc, CaptureLost) else exc.refusal.table
        return table is not None and await self._delivery.spares(table) and self.copier.blames(exc)

    async def _forget(self) -> None:
        """Let go of all that was read or sent from where the target was thought to stand."""
        ahead, self._ahead = self._ahead, None
        try:
            await self._flights.give_up(ahead)
        finally:
            self._cursor = None  # not before: what is being read moves it when it finds nothing

    async def _read_ahead(self) -> None:
        self._ahead, self._ahead_term = asyncio.create_task(self._read()), self._term
        self._ahead.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # looked at, or asyncio complains
        await asyncio.sleep(0)  # so that the source is asked before anything else is done

    def _put_back(self, batch: Batch) -> None:
        self._ahead, self._ahead_term = asyncio.get_running_loop().create_future(), self._term
        self._ahead.set_result(batch)

    async def _taken(self) -> Batch | None:
        """The batch that is being read ahead, or the next one."""
        ahead, self._ahead = self._ahead, None
        return await (self._read() if ahead is None else ahead)

    async def _read(self) -> Batch | None:
        """The next batch with changes; None when the source has no more."""
        self._source.limits = replace(self._source.limits, changes=self._sizing.changes, bytes=self._sizing.bytes)
        cursor = self._cursor if self._cursor and self._claimed else await self._resume()
        started = time.monotonic()
        batch = apart(await self._ranges.read(cursor))
        if batch.copied is None and batch.checked is None:
            self.verifier.passed(changes=bool(batch.sheaves), more=batch.more)
        self._dry = not (batch.tells or self._ranges.looked)
        if not batch.tells:
            # Nothing happened up to here: start the next window later. The target need not know.
            self._cursor = batch.cursor
            if not self._flights:
                self.status.cursor = batch.cursor
                self.status.behind_seconds = 0.0
            return None
        self._read_at = time.monotonic()
        self._observer.batch_read(batch, self._read_at - started)
        await come_by("after_read")
        return batch

    async def _resume(self) -> Cursor:
        """The target's own cursor. Claims the target first, once a term of leadership."""
        identity = await self._source.identify(to_read=True)
        if self._claimed:
            answer = await self._target.cursor()
            require_reached(answer.standing, self.status.batch_no)
        else:
            answer = await self._claim(identity.beginning())
        self._told = time.monotonic()
        await self._delivery.learn_held(answer)
        self._ranges.forget()
        self.copier.learn(answer)
        self.verifier.learn(answer)
        self.status.pulse.taken = known(answer)
        cursor = self._go_on_from(answer, identity.beginning())
        await self._source.begin(cursor)  # is it this source's? Else nothing may be done about its letters either
        await self._delivery.settle(cursor, self.copier.told_out)
        await self._retries.adopt(cursor, restored=self._restored)
        self._restored = False
        return cursor

    async def _claim(self, beginning: Cursor) -> Answer:
        """Become the one writer. The source remembers where the target stood: one restored from a backup stands behind.

        Promise I6: whoever has the wrong source or the wrong target finds that out before it fences the right relay.
        """
        epoch, batch_no, place = await self._source.remembered(self._target.relay)
        standing = (await self._target.cursor()).standing
        require_known(standing, self._target.place(), (epoch, batch_no, place))
        await self._source.begin(standing.cursor or beginning)
        term = self._term
        answer = await self._target.claim(above=epoch, since=max(batch_no, standing.batch_no))
        require_schema(answer)
        reach("after_claim")
        self._learn(answer)
        log.info("target_claimed", epoch=answer.standing.epoch, batch_no=answer.standing.batch_no)
        if (behind := batch_no - answer.standing.batch_no) > 0:
            self._restored = True
            self._rewinding = (
                f"the target stands {behind} batches behind where it stood (restored from a backup, or another one): "
                "what the outbox still has is sent again"
            )
            log.warning("target_restored", batch_no=answer.standing.batch_no, remembered=batch_no, batches=behind)
        # Whoever leads after this one died is to see it, too: what was lost with the letters may not be made good yet.
        await self._remember(answer.standing.epoch, max(batch_no, answer.standing.batch_no), answer.standing.cursor)
        # Not before: from here on nobody of an earlier epoch writes letters, and they are looked at next.
        self._claimed = term == self._term
        return answer

    async def _remember(self, epoch: int, batch_no: int, cursor: Cursor | None) -> None:
        await self._source.remember(self._target.relay, epoch, batch_no, cursor, self._target.place())
        self._noted, self._remembered = batch_no, time.monotonic()

    def _learn(self, answer: Answer) -> None:
        self.described = answer.more
        self._delivery.learn_tables(answer.more)
        self.copier.order = self.verifier.order = self._delivery.order
        self.verifier.places = self._delivery.places
        self._observer.tables_known(self._delivery.order)
        self._retries.learn(answer.more)

    async def _structured(self) -> str | None:
        """What tells one state of the target's tables from another."""
        answer = await self._target.describe()
        self._learn(answer)
        return answer.more.get("structure")

    def _go_on_from(self, answer: Answer, beginning: Cursor) -> Cursor:
        self._stand(answer, beginning)
        self._cursor = self.status.cursor = self._stated
        if answer.what == "claimed":
            self.status.epoch = answer.standing.epoch
        assert self._cursor is not None
        return self._cursor

    def _stand(self, answer: Answer, beginning: Cursor) -> None:
        """Promise I5: where the target stands comes from its own transaction, never from what was meant to happen."""
        self._stated = answer.standing.cursor or beginning
        self._digest = answer.standing.digest
        self.status.batch_no = answer.standing.batch_no
        self.status.held_keys = len(self._delivery.held)

    async def _send(self, batch: Batch, *, on: bool) -> None:
        """Send a batch behind those that are on their way. What follows is read from where it leads, meanwhile if the
        train goes `on`: until the target has answered that is a guess, which costs a turn when it is wrong, and no more.
        """
        if not self._delivery.order.keys() >= {sheaf.table for sheaf in batch.sheaves} - self.copier.out:
            self._learn(await self._target.describe())  # mapped since the claim, or not at all
        before = self._flights.last
        if before is not None and before.load.settles:
            # Promise I4: refused while this one was read. What it holds is known only once it has arrived; parted before,
            # a later change of a key that is held would flow past it.
            self._put_back(batch)
            return
        await self.copier.meets(batch)
        await self._succeeds(batch)
        outgoing = self.copier.outgoing(batch)
        batch_no, after = self.status.batch_no, self._digest
        if before is not None:
            batch_no, after = before.load.parcel.batch_no, before.load.digest
        waited = time.monotonic() - self._read_at
        batch = replace(batch, read_us=batch.read_us + int(waited * 1e6))
        self._cursor = batch.cursor
        if on and batch.more:
            await self._read_ahead()
        parcel = Parcel(
            outgoing.sheaves, batch.shapes, batch.cursor, self.status.epoch, batch_no + 1, after,
            notes=(*outgoing.notes, *notes(batch, self._target.relay, self.status.pulse)),
            copy=batch.copied.copy if batch.copied else None, freed=batch.copied.freed if batch.copied else frozenset(),
            copied=batch.copied is not None or batch.checked is not None, picked=batch.checked is not None,
            aside=outgoing.aside, vacates=outgoing.vacates,
            reasons={table: self.copier.copies[table].reason or "" for table in self.copier.out},
        )  # fmt: skip
        try:
            load = await self._delivery.prepare(parcel)
        except TargetError as exc:
            self._too_large(batch, exc)
            raise
        self._flights.launch(batch, load, self._delivery.send(load))

    async def _succeeds(self, batch: Batch) -> None:
        """Is there a captured table in it, and what was recorded by a name that it had, or that its place had? Whether both
        spell a key alike nobody knows, so that a copy follows (promise I1)."""
        tables = {sheaf.table for sheaf in batch.sheaves} - self.copier.out
        places = {table: self._delivery.place(table) for table in tables}
        if batch.copied or batch.checked or len(set(places.values())) == len(tables):
            return
        identities = await self._letters.identities(tables)
        ended = {
            places[table]
            for table, one in identities.items()
            if not one.watched or (one.aim is None and table in self.copier.captured)
        }
        for table, one in identities.items():
            if one.aim is not None and places[table] in ended:
                log.info("copy_wanted", table=table, because="what was recorded by another name of it comes with it")
                await self._letters.copy(table)
                self.copier.ring()

    async def _land(self, flight: Flight) -> None:
        """Take the answer to the oldest batch on its way."""
        batch, seconds = flight.batch, time.monotonic() - flight.started
        self.beat = time.monotonic()
        try:
            planned, answer = flight.outcome.result()
        except TargetError as exc:
            if batch.checked is not None and self.verifier.refused(batch.checked, exc):
                await self._forget()
                return
            self._too_large(batch, exc)
            raise
        self._stand(answer, batch.cursor.start)
        self.status.cursor = self._stated
        if answer.what == "mismatch":
            log.warning("batch_mismatched", batch_no=answer.standing.batch_no)
            await self._forget()  # an answer that came out of turn may be older than another
            return
        self.copier.told(flight.load.parcel.notes)
        await self._moved(answer)
        if batch.checked is not None:
            self._failures = 0
            self.verifier.arrived(batch.checked, answer, seconds, self._delivery.held)
            return
        if not alone(batch):  # a heartbeat does not keep anybody awake
            self._pace.found(time.monotonic())
            if flight.load.slow:
                self._sizing.forgive()
            self._sizing.applied(batch.count, batch.size, seconds, time.monotonic())
        if batch.copied is not None:
            await self._copied(batch.copied, seconds, flight.load.unpruned)
            return
        self._succeeded(batch, planned, seconds)
        if not alone(batch):
            self._observer.batch_applied(batch, planned, answer, seconds)
        self._observer.left_out(flight.load.left_out)
        if (latency := arrived(batch, self._target.relay, answer, seconds, self.status.pulse)) is not None:
            self._heartbeat_arrived(batch, latency, seconds)
        ids = [*(sheaf.ids[at] for sheaf in batch.sheaves for at in (0, -1)), *(beat.id for beat in batch.beats)]
        log.log(
            10 if alone(batch) else 20,
            "batch_applied", changes=planned.changes, superseded=planned.superseded, gear=answer.more.get("gear", 1),
            answer=answer.what, batch_no=answer.standing.batch_no, first_id=min(ids), last_id=max(ids),
            torn=batch.torn, lag_s=round(self.status.behind_seconds, 4), duration_s=round(seconds, 4), **flight.trace,
        )  # fmt: skip
        await self.note(every=_REMEMBER_EVERY)

    async def _moved(self, answer: Answer) -> None:
        """Tables that the target says are others by now: what is known of their copies is to be learnt anew."""
        if moved := answer.more.get("moved"):
            log.warning(
                "tables_replaced",
                tables=moved,
                because="the target has others under their names, or keys in another order, or had to keep rows: they begin anew",
            )
            await self._forget()

    def _heartbeat_arrived(self, batch: Batch, latency: float, seconds: float) -> None:
        """With its answer the target has said which tables are others by now, though not what of their columns is."""
        self._observer.heartbeat_arrived(batch, latency, seconds)
        if not self.copier.keeps:
            self._told = time.monotonic()

    def _too_large(self, batch: Batch, exc: TargetError) -> None:
        """A batch did not arrive: was it because of its size?"""
        if alone(batch) or (batch.checked is not None and not batch.checked.mends):
            pass  # says nothing of how large a batch may be
        elif exc.kind is Kind.SIZE:
            self._sizing.refused(batch.count, batch.size, time.monotonic())
        elif exc.kind is Kind.AMBIGUOUS and self._failures:  # twice at the same place: is it too large?
            self._sizing.suspected(batch.count, batch.size)

    async def _copied(self, progress: Progress, seconds: float, unpruned: int) -> None:
        """Rows of a table have arrived. `unpruned`: of those to be deleted so many were refused."""
        self._failures = 0
        if unpruned and progress.copy is not None:
            progress = replace(progress, copy=progress.copy.less_pruned(unpruned))
            await self._forget()  # what has been read behind it counts on: the target has been told what was done
        await self.copier.arrived(progress)
        if progress.begins and self._stated is not None:
            await self._delivery.settle(self._stated, self.copier.told_out)  # what waited for a table that was out
        if progress.copy is not None:
            self._observer.rows_copied(progress.copy.table, progress.rows)
            log.debug(
                "rows_copied",
                table=progress.copy.table,
                rows=progress.rows,
                of=progress.copy.rows,
                duration_s=round(seconds, 4),
            )

    async def _retry(self) -> bool:
        """Dead letters that are to be sent again, or dropped. True: there were some."""
        if self._cursor is None:
            return (
                False  # what was read was let go of: it counts until the target has said where it stands (promise I1)
            )
        now = time.monotonic()
        if not self._retries.any or self._stated is None or now < self._letters_seen + self._timing.letters:
            return False
        place = Place(self._stated, self.status.epoch, self.status.batch_no + 1, self._digest)
        done = await self._retries.turn(place)
        if done is None:
            self._letters_seen = now
            return False
        self._go_on_from(done[1], self._stated)
        await self._moved(done[1])
        self.status.applied += done[0].changes
        await self.note()  # the letters are gone: a target that is put back to before is to be known as such
        return True

    def _succeeded(self, batch: Batch, planned: Plan, seconds: float) -> None:
        oldest = min([*(min(sheaf.times) for sheaf in batch.sheaves), *(beat.created_us for beat in batch.beats)])
        self.status.behind_seconds = max(0.0, (batch.read_us - oldest) / 1e6 + seconds)
        self.status.applied += planned.changes
        if not alone(batch):
            self.status.last_applied = time.time()
        self._failures = 0
        if not batch.more:
            self._rewinding = None
        self._set(
            "catching_up" if batch.more else "streaming",
            self._rewinding,
            "target_restored" if self._rewinding else None,
        )

    # -- when to turn --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn while leading, until stopped. Raises Fenced, which ends the process."""
        while not self._stopping:
            self.beat = time.monotonic()
            if self._adjustments:
                await self._adjust()
            if not self._leads.is_set():
                if self._unled is None:
                    self._set("standby")
                else:
                    self._set("paused", *self._unled)
                await self._bell.wait(self._timing.poll)
                continue
            try:
                await self._prune()
                await self.note(every=_REMEMBER_EVERY)
                if await self.step(self._train()):
                    self._observer.woken("backlog")
                if self._dry:
                    self._quiet()
                    await self._rest()
                else:
                    await self._pause()
            except BreakerOpen as exc:
                self._observer.rejected(exc.breaker)
                await self._wait(min(max(exc.retry_in, 0.01), self._timing.retry_cap))
            except (TargetError, SourceUnavailable, SourceUnfit, CaptureLost) as exc:
                await self._wait(self._stumble(exc))
        await self._wind_up()

    async def _prune(self) -> None:
        """Let go of what the target has had for the time of retention.

        Promise I1: by the floor of the cursor that the target stated last in this term. The one in memory moves past
        empty windows untold: a target that answers with its own again would want what lies between. And only where
        the source has shown to be that cursor's: another one's ids are others.
        """
        if self._pruner is not None and self._stated is not None and self._source.proven:
            await self._pruner.turn(self._source, self._stated.floor_id)

    async def _wind_up(self) -> None:
        """What was committed before `stop` still goes, unless it takes long or does not go at once."""
        deadline = time.monotonic() + self._timing.wind_up
        with contextlib.suppress(BreakerOpen, TargetError, SourceUnavailable, SourceUnfit, CaptureLost):
            while self._leads.is_set() and not self._failures and time.monotonic() < deadline:
                if not await self.step(min(self._train(), _LAST_TRAIN)):
                    break
        await self.note()

    async def note(self, every: float = 0.0) -> None:
        """Tell the source where the target stands, when that is news and the last was told longer ago than this."""
        status = self.status
        told = self._noted == status.batch_no or time.monotonic() - self._remembered < every
        if self._stated is None or told or self._restored or not self._leads.is_set():
            return
        with contextlib.suppress(BreakerOpen, SourceUnavailable, SourceUnfit):
            await self._remember(status.epoch, status.batch_no, self._stated)

    async def drain(self) -> int:
        """Turn until the source has no more; returns how many changes were applied. Raises what `step` raises."""
        before = self.status.applied
        while await self.step(self._train()):
            pass
        return self.status.applied - before

    async def finish(self) -> int:
        """Drain, and go on until what somebody asked for is done: copies, at their pace, and verifications."""
        applied = await self.drain()
        while self.copier.asked or self.verifier.asked:
            await asyncio.sleep(min(self._due() or self._pace.longest, self._pace.longest))
            applied += await self.drain()
        return applied

    def _train(self) -> int:
        """Batches of one turn. While something is wrong, one request shows whether it still is."""
        return 1 if self._failures or self._target.breaker.state is not State.CLOSED else _TRAIN

    def lead(self) -> None:
        """Leadership was won: the next turn claims the target."""
        self._term += 1
        self.meet()
        self._leads.set()
        self._bell.ring()

    def meet(self, because: str | None = None) -> None:
        """The target may be another one: the next turn claims it and goes on from where it stands.

        What was wrong with the one before is wrong no longer; `because` is said until this one has answered.
        """
        self._claimed = False
        self._cursor = self._stated = None
        if because and self.status.problem and self._leads.is_set():
            self._set("catching_up", because, str(Kind.TRANSIENT))
        if self._unled and self._unled[1] == Kind.AUTH:
            self._unled = None

    def ask_again(self) -> None:
        """The target's tables may be others: the next turn asks it what it has."""
        self._told = float("-inf")

    def adjust(self, adjustment: Callable[[], Awaitable[None]]) -> None:
        """Have this done between two turns, when nothing is on its way. A wait for the next turn ends."""
        self._term += 1
        self._adjustments.append(adjustment)
        self._bell.ring()

    async def _adjust(self) -> None:
        await self._forget()
        self._failures = 0
        while self._adjustments:
            await self._adjustments.pop(0)()

    def resize(self, changes: int, size: int) -> None:
        """Other bounds for a batch, from the next one on."""
        self._sizing = Sizing(changes, size)

    def follow(self, because: str | None = None, kind: str = "source") -> None:
        """No further turn: another one leads, or, with a reason, nobody can."""
        self._term += 1
        self._unled = (because, kind) if because else None
        self._leads.clear()
        self._bell.ring()

    def stop(self) -> None:
        """Finish what is there, then return from `run`. A copy goes on another time."""
        self.copier.stopping = self.verifier.stopping = True
        self._term += 1
        self._stopping = True
        self._bell.ring()

    async def _rest(self) -> None:
        """Nothing to do: poll a little while, then sleep until a writer rings."""
        pause = self._pace.pause(time.monotonic())
        due = self._due()
        if due is not None and due <= self._pace.longest:  # rows that go at a measured pace
            await self._wait(due)
            return
        patience = self._timing.poll if due is None else min(due, self._timing.poll)
        if pause is None and self._may_sleep() and await self._bell.try_arm():
            # K is ours: whoever commits from here on rings. One more read finds whoever committed before.
            reach("after_arm")
            try:
                await self._read_ahead()
                assert self._ahead is not None
                if await self._ahead:
                    return
                self._ahead = None
                if not self._stopping:
                    rung = await self._bell.wait(patience)
                    self._observer.woken("notify" if rung else "poll")
                    if rung:
                        self._letters_seen = float("-inf")  # whoever wants one sent again rings, too
                        self.copier.ring()
                        self.verifier.ring()
            except BaseException:
                await self._forget()
                raise
            finally:
                await self._bell.disarm()
            return
        if pause is None:  # K cannot be had (a long writer holds it), or nobody can ring here
            rings = self._may_sleep() and self._bell.connected and not self._bell.pooled
            pause = self._pace.longest if rings else min(0.25, self._timing.poll)
        await self._wait(min(max(pause, self._timing.request), patience))

    def _spaced(self, batch: Batch) -> bool:
        """Must the next request keep its distance from that with this batch? Not in a backlog, nor what is copied."""
        spaced = self._timing.request > 0 and not batch.more and batch.copied is None and batch.checked is None
        self._next_at = time.monotonic() + self._timing.request if spaced else 0.0
        return spaced

    async def _pause(self) -> None:
        """Keep the distance to the last request, unless something is to be copied or compared before."""
        if (left := self._next_at - time.monotonic()) > 0:
            due = self._due()
            await self._wait(left if due is None else min(due, left))

    def _due(self) -> float | None:
        """Seconds until there is something to be copied or compared; None: there is nothing."""
        dues = [due for due in (self.copier.due_in(), self.verifier.due_in()) if due is not None]
        return min(dues, default=None)

    def _may_sleep(self) -> bool:
        identity = self._source.identity
        prepares = identity is not None and identity.prepared_transactions > 0
        return self._timing.wake == "notify" or (self._timing.wake == "auto" and not prepares)

    async def _wait(self, seconds: float) -> None:
        """Wait, but not beyond `stop`, nor once another leads or nobody can: that is said at once. Rings of writers do not
        cut a back-off short."""
        began = time.monotonic()
        while (
            self._leads.is_set()
            and not (self._stopping or self._adjustments)
            and (left := began + seconds - time.monotonic()) > 0
        ):
            self.beat = time.monotonic()
            await self._bell.wait(min(left, 1.0))
        self._observer.stage("wait", time.monotonic() - began)

    # -- what failed ---------------------------------------------------------------------------------------

    def _stumble(self, exc: DaemonError) -> float:
        """Say what failed; returns how long to wait before the next turn."""
        kind = str(exc.kind) if isinstance(exc, TargetError) else "source"
        sentence = advice(exc.kind, exc.refusal) if isinstance(exc, TargetError) else str(exc)
        self._failures += 1
        self._observer.turn_failed(kind)
        needs_person = isinstance(exc, (SourceUnfit, CaptureLost)) or (
            isinstance(exc, TargetError) and exc.kind in (Kind.DATA, Kind.CONTRACT, Kind.AUTH)
        )
        self._set(
            "paused" if needs_person else "catching_up",
            f"{exc}: {sentence}" if sentence != str(exc) else sentence,
            kind,
        )
        log.log(
            40 if needs_person else 30,
            "turn_failed",
            kind=kind,
            error=str(exc),
            advice=sentence,
            attempt=self._failures,
        )
        doubled = 2.0 ** min(self._failures - 1, 10)
        if needs_person:
            return min(doubled, self._timing.recheck)
        if isinstance(exc, TargetError) and exc.retry_after is not None:
            return min(exc.retry_after, 300.0)
        breaker = self._target.breaker if isinstance(exc, TargetError) else self._source.breaker
        # An open breaker has its own ladder; two of them would keep a store waiting that is back.
        jitter = 0.8 + 0.4 * random.random()  # noqa: S311
        return breaker.retry_in or min(self._timing.retry_first * doubled, self._timing.retry_cap) * jitter

    def _quiet(self) -> None:
        self._failures, self._rewinding = 0, None
        self._set("streaming")

    def _set(self, state: str, problem: str | None = None, kind: str | None = None) -> None:
        status = self.status
        if (state, problem) != (status.state, status.problem):
            status.state, status.problem, status.problem_kind, status.since = state, problem, kind, time.time()
            self._observer.state_changed(state)
