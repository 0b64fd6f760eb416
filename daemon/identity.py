"""Is this the source that the cursor speaks of, and has it lost nothing of what was applied? Asked of every cursor
that is not this connection's own.

Knows what a cursor's mark proves, and the sentence for each way in which a source is not what it was. Knows nothing
of connections: what the source's outbox holds is handed in. Pure.

Why the mark proves it: a copy, a standby or a restored server holds the log up to one point and nothing beyond.
Whatever the last two windows brought was committed after what came before. So if all of that is there, unchanged and
with nothing between, everything before is there too. `daemon/window.py` keeps the mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from daemon.errors import STANDBY, SourceForeign, SourceUnfit
from daemon.snapshot import Snapshot
from outbox import Cursor, Mark

# Of a window that is still being caught up with, more than this is not added up again: its last changes by name
# then have to do.
ADDED_UP = 200_000

_ON = "nothing is applied until that is settled: `outboxd rebase` (a dry run first) leads on"


@dataclass(frozen=True, slots=True)
class Identity:
    """What this server is, and since when it runs (Unix time in microseconds). A standby has no timeline here.
    `backend` is the server process that answered. `database` is this one's oid, `databases` are the names of all;
    `installation` is that of schema outbox here."""

    system: str
    in_recovery: bool
    version: int
    identity_cache: int
    prepared_transactions: int
    migration: int
    timeline: int
    started_us: int
    backend: int = 0
    database: int = 0
    installation: str = ""
    databases: Mapping[str, str] = field(default_factory=dict)

    def beginning(self, floor_id: int = 0) -> Cursor:
        """Before all that was ever recorded here above this id."""
        return replace(Cursor.beginning(self.system, floor_id), database=self.database, installation=self.installation)


@dataclass(frozen=True, slots=True)
class Named:
    """One change of a mark, looked up: is it there as it was, or another one in its place?"""

    id: int
    there: bool
    another: bool


@dataclass(frozen=True, slots=True)
class Held:
    """What the source's outbox holds of a mark. `count` is None where it was not added up. Up to id `pruned` the
    outbox has let go of what the target had."""

    pruned: int
    count: int | None
    sum: int
    named: Sequence[Named]


def require_fit(identity: Identity, cursor: Cursor) -> None:
    """What can be said without a look into the outbox. Raises SourceUnfit."""
    if identity.in_recovery:
        raise SourceUnfit(STANDBY)
    if identity.identity_cache != 1:
        raise SourceUnfit(
            f"outbox.change_id_seq has CACHE {identity.identity_cache}, so ids do not follow commits: "
            "alter sequence outbox.change_id_seq cache 1"
        )
    if cursor.system and cursor.system != identity.system:
        raise SourceForeign(
            f"the target's cursor belongs to another database cluster ({cursor.system}, this one is {identity.system}: "
            f"another server, or this one was filled from a dump); transaction ids of one mean nothing in the other; {_ON}"
        )
    if cursor.installation and (cursor.database, cursor.installation) != (identity.database, identity.installation):
        raise SourceForeign(_elsewhere(identity, cursor))


def _elsewhere(identity: Identity, cursor: Cursor) -> str:
    """The same server, and another database of it, or another outbox. Of the first a rebase is mostly not what is wanted."""
    here = identity.databases.get(str(identity.database), "this database")
    if cursor.database == identity.database:
        return (
            f"schema outbox of {here} was dropped and installed anew since the target's cursor was written: what changed in "
            f"between nobody recorded; nothing is applied until that is settled: `outboxd rebase` (a dry run first) leads on, "
            "and copies every watched table anew"
        )
    other = identity.databases.get(str(cursor.database), "one that is not there any more")
    return (
        f"the target's cursor is of another database of this server: {other}, and DATABASE_URL leads to {here}; nothing is "
        f"applied: set DATABASE_URL to the right database; only if {here} takes the other's place for good, `outboxd rebase` "
        "(a dry run first) leads on"
    )


def require_schema(identity: Identity, needs: int) -> None:
    """Schema outbox must have what this version asks of it; what a newer one added is in nobody's way. Raises SourceUnfit."""
    if identity.migration < needs:
        raise SourceUnfit(
            f"schema outbox is at migration {identity.migration}, this outboxd needs {needs}: run `outboxd setup source` "
            "with this version; it goes on by itself"
        )


def reached(cursor: Cursor) -> Snapshot:
    """What the cursor has seen end. Raises SourceUnfit."""
    try:
        return Snapshot.parse(cursor.snapshot)
    except ValueError:
        raise SourceUnfit("the target's cursor cannot be read: its snapshot is none") from None


def require_kept(pruned: int, cursor: Cursor) -> None:
    """Every change that a reader at `cursor` wants has an id above its floor. Raises SourceForeign."""
    if cursor.floor_id < pruned:
        raise SourceForeign(
            "the outbox no longer holds the changes after the target's cursor (they were kept for `retention`): "
            "`outboxd rebase` (a dry run first) leads on"
        )


def require_passed(reached: Snapshot, now: Snapshot) -> None:
    """The source's transaction ids must be beyond all that the cursor has seen end. Raises SourceForeign."""
    if now.xmax < reached.xmax:
        raise SourceForeign(
            f"the target's cursor lies in this source's future (transaction {reached.xmax}, this source is at {now.xmax}): "
            f"it was restored from a backup, or is another database; {_ON}"
        )
    again = sorted(xid for xid in now.running if reached.sees(xid))
    if again:
        raise SourceForeign(
            f"transaction ids that the target's cursor has seen end are in use again (transaction {again[0]}): the source "
            f"was restored to an earlier moment, or failed over with loss; {_ON}"
        )


def to_add_up(mark: Mark, pruned: int) -> bool:
    """Can the mark's sums be compared: is all of it still there, and little enough to be added up?"""
    spans = [span for span in mark.spans if span.count]
    return bool(spans) and min(s.first_id for s in spans) > pruned and sum(s.count for s in spans) <= ADDED_UP


def require_held(mark: Mark, identity: Identity, held: Held) -> None:
    """Everything the mark speaks of must be there, unless it was pruned. Raises SourceForeign.

    Pruned is as good as there: the outbox was pruned after the target had it, so this server's log has it, too.
    """
    missing = [entry for entry in held.named if not entry.there and entry.id > held.pruned]
    count = sum(span.count for span in mark.spans)
    total = sum(span.sum for span in mark.spans) % 10**15
    if not missing and (held.count is None or (held.count, held.sum) == (count, total)):
        return
    raise SourceForeign(f"{_lost(mark, identity, held, missing, count)}; {_ON}")


def _lost(mark: Mark, identity: Identity, held: Held, missing: Sequence[Named], count: int) -> str:
    if mark.timeline == identity.timeline:
        what = f"its timeline is {identity.timeline} as before, so an older image of its disk was put back"
    else:
        what = f"timeline {mark.timeline} → {identity.timeline}, so it was restored to an earlier moment or failed over with loss"
    if held.count is None:
        known = f"of {len(held.named)} changes looked up {len(missing)} are not in its outbox as they were"
    elif held.count < count:
        known = f"of the last {count} changes {count - held.count} are not in its outbox"
    else:
        known = f"in place of the last {count} changes its outbox has {held.count} others"
    replaced = ", others stand in their place" if any(entry.another for entry in missing) else ""
    ids = ", ".join(str(entry.id) for entry in sorted(missing, key=lambda entry: entry.id))
    named = f" (change {ids}{replaced})" if missing else ""
    return f"the source has lost changes that the target has: {what}; {known}{named}"
