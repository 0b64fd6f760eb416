"""The tables of both stores, how each is mirrored at the moment, and the oracle: plain SQL over the source says what the
target must hold. Knows nothing of what is done to them.
"""

from dataclasses import dataclass, field
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]

WATCHED = ("story", "line", "item")  # parents first
KEYS = {"story": "id", "line": "id", "item": "j, k", "card": "id"}
_OTHERS = {"story": "", "line": "story, ", "item": "", "card": ""}
REFERENCE = "foreign key (story) references story on delete cascade on update cascade"
ADDED = "x"  # a column that comes and goes
EXPIRES = "n >= public.today()"  # a filter that rows leave without being written

SOURCE_ONLY = """
create table day (n int not null); insert into day values (0);
create function today() returns int language sql stable as 'select n from public.day';
"""
FIRST = """
insert into story select k, k, 'first' from generate_series(0, 5) k;
insert into line select k, k, k, 'first' from generate_series(0, 5) k;
insert into item select k % 2, k::text, k, 'first' from generate_series(0, 5) k;
insert into card select k, k, 'first' from generate_series(0, 3) k;
select outbox.emit('public.card', 'upsert', row_to_json(c)) from card c;
"""
TARGET_ONLY = """
create table fan (story int references story, card int references card);
"""


def ddl(table: str, note: str = "note") -> str:
    """Its statements, on either side."""
    return {
        "story": f"create table story (id int primary key, n int not null, {note} text)",
        "line": f"create table line (id int primary key, story int not null, n int not null, {note} text, {REFERENCE})",
        "item": f"create table item (j int, k text, n int not null, {note} text, primary key (j, k)) partition by list (j);"
        + "; ".join(f"create table item_{j} partition of item for values in ({j})" for j in range(2)),
        "card": f"create table card (id int primary key, n int not null, {note} text)",
    }[table]


TABLES = ";\n".join(ddl(table) for table in KEYS)


def has(conn: Connection, table: str, column: str) -> bool:
    """Does it have a column of this name?"""
    found = conn.execute(
        "select from pg_attribute where attrelid = %s::regclass and attname = %s and not attisdropped", (table, column)
    )
    return found.rowcount > 0


@dataclass
class Mirrored:
    """How a table's rows travel. `note`: what the source calls that column; `hidden`: it does not travel; `added`: is there
    an x? `stale`: it was renamed, and the table has not been watched again since."""

    table: str
    condition: str | None = None
    hidden: bool = False
    watched: bool = True
    note: str = "note"
    added: bool = False
    stale: bool = field(default=False)

    def anew(self, condition: str | None = None, *, hidden: bool = False) -> None:
        """Watched so from now on."""
        self.condition, self.hidden, self.watched, self.stale = condition, hidden, True, False

    def _select(self, note: str, where: str = "true") -> bytes:
        added = f", {ADDED}" if self.added else ""
        columns = f"{KEYS[self.table]}, {_OTHERS[self.table]}n, {note}{added}"
        return f"select {columns} from {self.table} where {where} order by {KEYS[self.table]}".encode()

    def wanted(self, app: Connection) -> list[Any]:
        """What the target must hold, by the source's own rows."""
        note = "null" if self.hidden else self.note
        return app.execute(self._select(note, self.condition or "true")).fetchall()

    def allowed(self, app: Connection) -> list[Any]:
        """What it may hold: who has left the filter with time alone stays until the row is written."""
        if self.condition != EXPIRES:
            return self.wanted(app)
        return app.execute(self._select("null" if self.hidden else self.note)).fetchall()

    def there(self, mirror: Connection) -> list[Any]:
        """What it holds."""
        return mirror.execute(self._select(self.note)).fetchall()

    def wrong(self, app: Connection, mirror: Connection) -> str | None:
        """In what it is not as it must be."""
        wanted, there = self.wanted(app), self.there(mirror)
        if set(wanted) <= set(there) and set(there) <= set(self.allowed(app)):
            return None
        return f"{self.table}: {there} instead of {wanted}"

    def drift(self, app: Connection, mirror: Connection) -> tuple[int, int, int]:
        """Rows that are missing, different, too many on the target."""
        size = len(KEYS[self.table].split(","))
        wanted, there = ({row[:size]: row for row in rows} for rows in (self.wanted(app), self.there(mirror)))
        both = wanted.keys() & there.keys()
        different = sum(wanted[key] != there[key] for key in both)
        return len(wanted) - len(both), different, len(there) - len(both)
