"""The doctor: one line an item, each with what is wrong and what to do about it.

Knows what a source and a target must look like for changes to travel. Changes nothing.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from daemon.connection import cause, connect
from daemon.copies import other_key
from daemon.errors import DaemonError, SourceUnavailable, TargetError, advice
from daemon.identity import Identity
from daemon.printable import word
from daemon.selection import Named, unmet
from daemon.session import failure, query
from daemon.source import Source
from daemon.tables import TableSettings, parts, readings
from daemon.target import Target
from daemon.wakeup import Bell
from daemon.watchlist import Level, by_table, elsewhere, objections, unspoken
from outbox import __version__
from outbox.migrations import literal, migrations, quote

Row = Mapping[str, Any]
Labels = Mapping[str, Mapping[str, Sequence[str]]]

INSUFFICIENT_PRIVILEGE = "42501"
_NAME = f"outboxd/{__version__} check"
LONG = 60.0  # seconds from which a writing transaction is worth a line
_NAMED = 3  # objects that one line names
_MISSED, _LATE = 3, 30.0  # heartbeats that may be missing, and seconds beyond
_NEWER = "migration {} is newer than this outboxd ({}), which works with it and leaves the schema alone"
# Equal values of these may differ in text: two rows of the source could be one on the target.
_LOOSE_KEYS = {"citext", "character", "interval", "double precision", "real"}


@dataclass(frozen=True, slots=True)
class Item:
    """One finding. `fix` is a sentence or a statement; empty when all is well."""

    name: str
    level: Level
    what: str
    fix: str = ""


async def check(
    source_dsn: str | None,
    target: Target | None,
    *,
    pooled_address: bool = False,
    grants: str = "",
    heartbeat: float = 0.0,
    installed: str | None = None,
) -> list[Item]:
    """Everything that can be seen from here. A store that is away is one FAIL, not an exception.

    `grants` are the statements that open the target's door to the role that knocks there. `heartbeat`: seconds between
    two of the daemon's, 0: it writes none. `installed`: when outboxd was installed where the target's direct address leads.
    """
    items: list[Item] = []
    watched: list[Row] = []
    labels: Labels = {}
    if source_dsn is not None:
        try:
            watched, labels = await _source(source_dsn, items, pooled_address=pooled_address)
        except DaemonError as exc:
            fix = "is the address right, and the server up?" if isinstance(exc, SourceUnavailable) else ""
            items.append(Item("source", "FAIL", str(exc), fix))
    if target is not None:
        try:
            described = (await target.describe()).more
            if installed is not None and described.get("installed") != installed:
                what = "OUTBOXD_SUPABASE_URL leads to another project than OUTBOXD_TARGET_DSN (or SUPABASE_DB_URL)"
                items.append(Item("addresses", "FAIL", what, "give both of one project"))
            items.extend(_target(described, watched, labels))
            if described["migration"] >= migrations("target")[-1].version:
                items.extend(_advice((await target.advise()).more["findings"]))
            stands = (await target.cursor()).more
            items.extend(_out(stands.get("copies", ())))
            items.extend(_heartbeat(stands.get("heartbeat") or {}, heartbeat))
        except TargetError as exc:
            denied = exc.refusal.sqlstate == INSUFFICIENT_PRIVILEGE
            what = f"{exc}: {exc.refusal.message}" if denied and exc.refusal.message else str(exc)
            items.append(Item("target", "FAIL", what, grants if denied else advice(exc.kind, exc.refusal)))
        except DaemonError as exc:
            items.append(Item("target", "FAIL", str(exc)))
    return items


def said(name: str, settings: TableSettings, found: Named, mapped: Collection[str]) -> Iterator[Item]:
    """`[tables]` against what is in force. `mapped`: on the target; one that is only emitted may be there alone."""
    table, now = found.table, found.now
    if found.amiss:
        yield Item(name, "FAIL", f"[tables]: {found.amiss}", "write its name there as `outboxd watched` does")
        return
    if table is None:
        if not set(readings(name)) & {parts(one) for one in mapped}:
            near = difflib.get_close_matches(name, mapped, n=1)
            what = f"[tables] names it, and the source has no such table{f'; did you mean {near[0]}?' if near else ''}"
            yield Item(name, "WARN", what, "write its name there as `outboxd watched` does, or take it off")
        return
    again = f"outboxd watch {word(table)}"
    if now is None:
        yield Item(table, "WARN", "[tables] names it, and it is not watched", again)
        return
    if not now.capture:
        if useless := [one for one in ("rename", "constant", "mask", "where") if getattr(settings, one)]:
            what = (
                f"{', '.join(useless)} in [tables] is not in force: the application emits its changes as it gives them"
            )
            yield Item(table, "FAIL", what, "take that off, and map where it emits")
            return
        again += " --emit-only"
    apart = unmet(table, settings, now)
    if apart.lacks:
        kept = f"say {', '.join(apart.ends)} in [tables] as well, or it ends; then " if apart.ends else ""
        yield Item(table, "FAIL", f"{', '.join(apart.lacks)} in [tables] is not in force", f"{kept}{again}")


def door_grants(role: str, exposed_schema: str) -> str:
    """What a role needs on the target, and all that it needs."""
    door = f"{quote(exposed_schema)}.outboxd(text)"
    return (
        f"grant usage on schema outboxd, {quote(exposed_schema)} to {role}; "
        f"grant execute on function outboxd.door(text), {door} to {role};"
    )


def user_of(dsn: str) -> str:
    """The role a connection string names, as SQL writes it."""
    return quote(str(conninfo_to_dict(dsn).get("user") or "postgres"))


# -- the source --------------------------------------------------------------------------------------------


async def _source(dsn: str, items: list[Item], *, pooled_address: bool) -> tuple[list[Row], Labels]:
    source = Source(dsn, application_name=_NAME)
    try:
        identity = await source.identify()
    finally:
        await source.close()
    items.extend(_server(identity))
    if not identity.in_recovery:
        items.append(await _listener(dsn, pooled_address=pooled_address))
    try:
        return await _tables(dsn, items)
    except psycopg.Error as exc:  # a right that is missing, a statement that takes too long: a finding like any other
        raise failure(exc) from None


async def _tables(dsn: str, items: list[Item]) -> tuple[list[Row], Labels]:
    conn = await connect(dsn, _NAME)
    async with conn:
        conn.row_factory = dict_row
        if broken := await _functions(conn):
            items.extend(broken)
            return [], {}
        items.extend(
            [_open(row) for row in await (await conn.execute(query("check_open"), {"older": LONG})).fetchall()]
        )
        for name, about in (("check_grants", _granted), ("check_strangers", _stranger), ("check_trust", _trusted)):
            items.extend([about(row) for row in await (await conn.execute(query(name))).fetchall()])
        items.extend([_locked(row) for row in await (await conn.execute(query("locked"))).fetchall()])
        watched: list[Any] = await (await conn.execute(query("check_watched"))).fetchall()
        labels = by_table(await (await conn.execute(query("check_labels"))).fetchall())
        held = len(await (await conn.execute(query("held_keys"))).fetchall())
    if held:
        items.append(Item("dead letters", "WARN", f"{held} rows are held", "outboxd dead-letters list"))
    if not watched:
        items.append(Item("watched", "WARN", "no table is watched", "outboxd watch public.your_table"))
    for row in watched:
        items.extend(_watched(row))
    return watched, labels


def _server(identity: Identity) -> Iterator[Item]:
    major = identity.version // 10_000
    if identity.in_recovery:
        yield Item(
            "source",
            "FAIL",
            "the source is a standby, which cannot say what has committed",
            "give the primary's address",
        )
    elif major < 14:
        yield Item("source", "FAIL", f"PostgreSQL {major} is too old", "PostgreSQL 15 or newer (14 is untested)")
    elif major == 14:
        yield Item("source", "WARN", "PostgreSQL 14 is untested", "PostgreSQL 15 or newer")
    else:
        yield Item("source", "OK", f"PostgreSQL {major}, a primary")
    newest = migrations("source")[-1].version
    if identity.migration < newest:
        yield Item("source schema", "FAIL", f"migration {identity.migration} of {newest}", "outboxd setup source")
    elif identity.migration > newest:
        yield Item("source schema", "WARN", _NEWER.format(identity.migration, newest), "install the newer outboxd")
    else:
        yield Item("source schema", "OK", f"migration {newest}")
    if identity.identity_cache != 1:
        yield Item(
            "identity", "FAIL", f"outbox.change_id_seq has CACHE {identity.identity_cache}: ids do not follow commits",
            "alter sequence outbox.change_id_seq cache 1",
        )  # fmt: skip


async def _listener(dsn: str, *, pooled_address: bool) -> Item:
    bell = Bell(dsn, application_name=_NAME)
    try:
        await bell.connect()
        if bell.pooled or pooled_address:
            return Item(
                "listener", "FAIL", "the address is a pooler in transaction mode: LISTEN and locks do not hold there",
                "give the direct or session-mode address (port 5432)",
            )  # fmt: skip
        return Item("listener", "OK", "LISTEN works, one backend of its own")
    finally:
        await bell.close()


async def _functions(conn: psycopg.AsyncConnection[Any]) -> list[Item]:
    """A new session of the application loads PL/pgSQL as this one does; capture needs it."""
    try:
        await conn.execute("do $$ begin end $$")
    except psycopg.Error as exc:
        return [
            Item(
                "capture", "FAIL", f"new sessions cannot run PL/pgSQL ({cause(exc)}): writes to watched tables fail there",
                "restart the server: an upgrade has replaced its files while it ran",
            )
        ]  # fmt: skip
    return []


def _open(row: Row) -> Item:
    """A transaction that holds its own changes back, and nobody else's."""
    age, name = f"for {row['age']:.0f} s", str(row["name"])
    if row["kind"] == "prepared":
        gid = name.replace("'", "''")
        return Item(
            "prepared transaction", "WARN", f"{name} has been prepared {age}: its changes wait for it, and nothing old can be vacuumed",
            f"commit prepared '{gid}'; or rollback prepared '{gid}';",
        )  # fmt: skip
    return Item(
        "open transaction", "WARN", f"a writing transaction has been open {age} (pid {name}): its changes wait for it",
        f"end it, or select pg_terminate_backend({name});",
    )  # fmt: skip


def _locked(row: Row) -> Item:
    return Item(str(row["table_name"]), "WARN", str(row["said"]), "its writers and its copies wait until then")


def _granted(row: Row) -> Item:
    """What somebody can use of schema outbox, and was not meant to: copies of rows, the key of `hash`, the right to forge."""
    objects = row["objects"]
    named = ", ".join(objects[:_NAMED]) + (f" and {len(objects) - _NAMED} more" if len(objects) > _NAMED else "")
    what = f"{row['grantee']} may {', '.join(row['rights'])} {row['kind']} {named}"
    return Item("grants", "FAIL", f"{what}: a default privilege, or a grant by hand", row["fix"])


def _stranger(row: Row) -> Item:
    what = f"{row['kind']} {row['object']} is {row['owner']}'s and no part of outboxd: "
    what += (
        "it runs as whoever writes there" if row["kind"] == "trigger" else "what is called by its name may be another"
    )
    return Item("schema outbox", "FAIL", what, f"drop {row['kind']} {row['object']};")


def _trusted(row: Row) -> Item:
    """Whoever watches a table trusts its owner."""
    return Item(
        str(row["table_name"]), "WARN",
        f"{row['watcher']}, a superuser, watches it, and {row['owner']} owns it: what that one puts into an index may run as {row['watcher']}",
        "watch it as a role that is no superuser and a member of its owner; what that role needs, `outboxd watch` says",
    )  # fmt: skip


def _watched(row: Row) -> Iterator[Item]:
    table = str(row["table_name"])
    if not (row["is_there"] or row["capture"]):
        return
    wrong = [Item(table, one.level, one.what, one.fix) for one in objections(row)]
    if wrong:
        yield from wrong
    elif row["capture"]:
        drawn = "; lastval() of its writers is the outbox's number: let them use RETURNING" if row["draws"] else ""
        yield Item(table, "OK", f"captured, {len(row['columns'])} columns{drawn}")
    else:
        yield Item(table, "OK", "emitted by the application")


# -- the target --------------------------------------------------------------------------------------------


def _target(described: Row, watched: list[Row], labels: Labels) -> Iterator[Item]:
    newest = migrations("target")[-1].version
    if described["migration"] > newest:
        yield Item("target schema", "WARN", _NEWER.format(described["migration"], newest), "install the newer outboxd")
    elif described["migration"] < newest:
        yield Item("target schema", "FAIL", f"migration {described['migration']} of {newest}", "outboxd setup target")
    else:
        yield Item("target schema", "OK", f"migration {newest}, PostgreSQL {described['version'] // 10_000}")
    mirrors = {table["table"]: table for table in described["tables"]}
    for row in watched:
        name, mirror = row["table_name"], mirrors.get(row["table_name"])
        if mirror is None:
            yield Item(f"target {name}", "FAIL", "not mapped on the target", "outboxd schema apply")
        elif other := elsewhere(row, mirror):
            yield Item(f"target {name}", "FAIL", other, "outboxd schema apply")
    # A table that the application only emits may be on the target alone: its columns are not known here.
    columns = {
        row["table_name"]: {name: row["types"][name] for name in row["columns"]} for row in watched if row["columns"]
    }
    keys = {row["table_name"]: row.get("key") or () for row in watched}
    for name, mirror in mirrors.items():
        found = list(_mirror(name, mirror, columns.get(name), str(described["role"])))
        lacks = mirror["exists"] and (
            unspoken(labels.get(name, {}), mirror) or other_key(name, mirror, keys.get(name, ()))
        )
        if lacks:
            found = [item for item in found if item.level != "OK"]
            found.append(Item(f"target {name}", "FAIL", lacks, "outboxd schema apply"))
        yield from found
    for reference in described["references"]:
        yield from _reference(reference)


def _out(copies: Iterable[Row]) -> Iterator[Item]:
    for copy in copies:
        if copy["state"] == "out":
            what = f"out, its changes do not flow: {copy['reason']}"
            yield Item(f"copy {copy['table']}", "FAIL", what, "it is copied by itself once that is mended")


def _heartbeat(last: Row, interval: float) -> Iterator[Item]:
    """Nothing is said before the first: outboxd may not have been started yet."""
    if not last or interval <= 0:
        return
    ago = max(0.0, last["seconds_ago"])
    if late(ago, interval):
        what = f"the last one arrived {ago:.0f} s ago, and one is due every {interval:g} s"
        yield Item(
            "heartbeat", "WARN", what, "is outboxd running, and does Supabase take its batches? `outboxd status`"
        )
    else:
        yield Item("heartbeat", "OK", f"the last one arrived {ago:.0f} s ago")


def late(ago: float, interval: float) -> bool:
    """Is the last heartbeat older than it would be, did somebody lead?"""
    return interval <= 0 or ago > _MISSED * interval + _LATE


def _mirror(name: str, mirror: Row, sent: Mapping[str, str] | None, role: str) -> Iterator[Item]:
    target, title = mirror["target"], f"target {name}"
    if not mirror["exists"]:
        yield Item(
            title,
            "FAIL",
            f"the target has no table {target}",
            f"outboxd schema apply, or select outboxd.unmap({literal(name)});",
        )
        return
    has = {column["name"] for column in mirror["columns"]}
    missing = [column for column in sent or {} if column not in has]
    added = ", ".join(f"add column {quote(column)} {sent[column]}" for column in missing) if sent else ""
    required = [c["name"] for c in mirror["columns"] if c["required"] and sent is not None and c["name"] not in sent]
    grants = mirror["missing_grants"]
    loose = [kind for kind in mirror.get("key_types") or [] if kind in _LOOSE_KEYS]
    schema = mirror.get("missing_usage")
    findings: list[tuple[bool, Level, str, str]] = [
        (bool(mirror.get("locked")), "WARN", f"{mirror.get('locked')}", "until then its changes wait, or it is out"),
        (bool(schema), "FAIL", f"{role} may not use schema {schema}", f"grant usage on schema {schema} to {role};"),
        (bool(grants), "FAIL", f"{role} may not {', '.join(grants)}", f"grant {', '.join(grants).lower()} on {target} to {role};"),
        (not mirror["key_is_unique"], "FAIL", f"({', '.join(mirror['key'])}) is no unique, not deferrable key of {target}",
         f"alter table {target} add primary key ({', '.join(map(quote, mirror['key']))});"),
        (bool(missing), "FAIL", f"columns missing: {', '.join(missing)}", f"alter table {target} {added};"),
        (bool(required), "FAIL", f"NOT NULL without a default, and the source has no such column: {', '.join(required)}",
         f"alter table {target} alter column … drop not null, or give it a default"),
        (bool(loose), "WARN", f"the key's type ({', '.join(loose)}) may take two rows of the source for one", "use the source's type"),
        (mirror["hides_rows"], "FAIL", f"row level security hides rows from {role}", f"alter role {role} bypassrls;"),
        (not mirror["row_security"], "WARN", f"row level security is off: the Data API shows {target} to whoever holds a grant",
         f"alter table {target} enable row level security;"),
        (bool(mirror["triggers"]), "WARN", f"triggers may change what is written: {', '.join(mirror['triggers'])}",
         f"alter table {target} disable trigger … when it should not fire for mirrored rows"),
    ]  # fmt: skip
    wrong = [Item(title, level, what, fix) for holds, level, what, fix in findings if holds]
    yield from wrong or [Item(title, "OK", f"{target}, key ({', '.join(mirror['key'])})")]


def _advice(findings: Iterable[Row]) -> Iterator[Item]:
    """What Supabase's advisors would say of mirrored tables, and what only their writer has to fear."""
    for one in findings:
        yield Item(f"target {one['name'] or 'views'}", "WARN", f"{one['what']} ({one['rule']})", one["fix"])


def _reference(reference: Row) -> Iterator[Item]:
    name = f"target {reference['child']}"
    fix = (
        f"alter table {reference['child']} drop constraint {quote(reference['constraint'])}, and add it again "
        "on delete no action deferrable"
    )
    if reference["on_delete"] in {"c", "n", "d"}:
        yield Item(
            name,
            "WARN",
            f"foreign key {reference['constraint']} deletes or empties rows by itself: a batch that needs gear 2 is refused",
            fix,
        )
    elif not reference["deferrable"]:
        yield Item(
            name, "WARN", f"foreign key {reference['constraint']} is not deferrable: moved parents are refused", fix
        )


def worst(items: list[Item]) -> Level:
    """The gravest level."""
    rank: Callable[[Item], int] = lambda item: ("OK", "WARN", "FAIL").index(item.level)  # noqa: E731
    return max(items, key=rank).level if items else "OK"
