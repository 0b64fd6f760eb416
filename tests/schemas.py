"""Two databases, and what `outboxd schema` makes of them; on any version of Postgres."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.demo.cluster import Cluster
from daemon.errors import SchemaUnfit
from daemon.schema_apply import Done, apply, look
from daemon.schema_steps import Plan, Step
from daemon.tables import TableSettings
from tests.databases import Database, clone, running_cluster, source_template, target_template
from tests.pairs import Pair


@dataclass
class Schemas:
    """`said` is what [tables] says. Whoever applies is no superuser: the role that hosted projects give."""

    source: Database
    target: Database
    said: dict[str, TableSettings] = field(default_factory=dict)

    @property
    def pair(self) -> Pair:
        return Pair(self.source, self.target)

    def on_source(self, *statements: str) -> None:
        _run(self.source, statements)

    def on_target(self, *statements: str) -> None:
        _run(self.target, statements)

    def watch(self, *tables: str) -> None:
        self.on_source(*(f"select outbox.watch('{table}')" for table in tables))

    def say(self, table: str, **settings: Any) -> None:
        self.said[table] = TableSettings(**settings)

    def look(self, *only: str) -> Plan:
        found = look(self.source.dsn, self.target.dsn, self.said, only)
        if found.problems:
            raise SchemaUnfit("; ".join(found.problems))
        return found

    def apply(self, *only: str, **options: Any) -> Done:
        done = apply(self.source.dsn, self.target.dsn, self.said, only, **options)
        if done.refused:
            raise SchemaUnfit("; ".join(done.refused))
        return done

    def settle(self, **options: Any) -> list[Step]:
        """Do everything; then there must be nothing left to do. Returns what was done."""
        done = self.apply(**options)
        left = self.look()
        assert left.due == (), [(step.table, step.kind, step.sql) for step in left.due]
        assert self.apply(**options).steps == ()
        return list(done.steps)

    def kinds(self) -> list[str]:
        """What there is to do."""
        return [step.kind for step in self.look().steps]

    def step(self, kind: str) -> Step:
        """The one step of a kind."""
        (step,) = [step for step in self.look().steps if step.kind == kind]
        return step

    def ask(self, query: str) -> Any:
        """The one value that a query on the target gives."""
        with self.target.connect() as conn:
            row = conn.execute(query.encode()).fetchone()
            return None if row is None else row[0]

    def columns(self, table: str) -> dict[str, str]:
        """Of the target: types, and whether null is allowed."""
        with self.target.connect() as conn:
            return dict(
                conn.execute(
                    "select attname, format_type(atttypid, atttypmod) || case when attnotnull then ' not null' else '' end"
                    " from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
                    (table,),
                ).fetchall()
            )


def _run(database: Database, statements: tuple[str, ...]) -> None:
    with database.connect() as conn:
        for statement in statements:
            conn.execute(statement.encode())


@contextmanager
def templates(folder: Path, version: int) -> Iterator[tuple[Database, Database]]:
    """Both sides of one version, to be cloned."""
    with running_cluster(folder, version) as cluster:
        assert isinstance(cluster, Cluster)
        yield source_template(cluster), target_template(cluster)


@contextmanager
def fresh(pair: tuple[Database, Database]) -> Iterator[Schemas]:
    source, target = pair
    with clone(source) as app, clone(target) as project:
        yield Schemas(app, project)
