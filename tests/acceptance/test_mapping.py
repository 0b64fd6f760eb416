"""A mapping as a person gives it: by options, by [tables], and what the commands say of it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, ended
from tests.databases import Database

TOML = """
[tables."public.Story"]
target = "app.story"
rename = {{ "authorEmail" = "mail" }}
mask = {{ authorEmail = "{mask}" }}
constant = {{ origin = "main" }}
where = "id <> 'hidden'"
"""


@pytest.fixture
def bare(source: Database, target: Database) -> Iterator[Pair]:
    """outboxd on both sides, one table, and nothing watched or mapped yet."""
    with source.connect() as here, target.connect() as there:
        here.execute('create table "Story" (id text primary key, "authorEmail" text, title text not null)')
        there.execute(
            "create schema app; create table app.story (id text primary key, mail text, title text not null, origin text)"
        )
    way = {"source_dsn": source.dsn, "transport": "postgres", "target_dsn": target.dsn}
    with closing(Pair(source, target, way)) as pair:
        yield pair


def test_options_map_a_table(bare: Pair, start: Start) -> None:
    """Watched, allowed under its name there, listed, and carried so."""
    outboxd = Cli(bare.settings)
    said = outboxd(
        "watch", "Story", "--target", "app.story", "--rename", "authorEmail=mail", "--mask", "authorEmail=hash",
        "--constant", "origin=a=b", "--where", "id <> 'hidden'",
    )  # fmt: skip
    assert said.code == 0, said.err
    summary = "as app.story; authorEmail as mail; origin = 'a=b'; authorEmail masked (hash); where id <> 'hidden'"
    assert summary in said.err
    assert "mapped app.story on the target" in said.err
    assert summary in outboxd("watched").out
    (row,) = outboxd("watched", "--json").json()
    assert {name: row[name] for name in ("target", "rename", "constant", "mask", "where")} == {
        "target": "app.story", "rename": {"authorEmail": "mail"}, "constant": {"origin": "a=b"},
        "mask": {"authorEmail": "hash"}, "where": "id <> 'hidden'",
    }  # fmt: skip
    bare.write("insert into \"Story\" values ('hidden', 'a@b', 't'), ('one', 'a@b', 't')")
    assert ended(start(bare.settings, "run", "--until-idle")) == 0
    ((story, length, title, origin),) = bare.ask(bare.target, "select id, length(mail), title, origin from app.story")
    assert (story, length, title, origin) == ("one", 64, "t", "a=b")
    assert outboxd.found().keys() <= {'target public."Story"'}  # row level security is for the schema to see to


def test_the_configuration_maps_a_table_and_options_win(bare: Pair, tmp_path: Path) -> None:
    """Once for every environment; what is not named again stays, and --plain takes it away."""
    outboxd, file = Cli(bare.settings), tmp_path / "outboxd.toml"
    file.write_text(TOML.format(mask="hash"))
    given = ("--config", str(file))
    assert outboxd(*given, "watch", "Story").code == 0
    (before,) = outboxd("watched", "--json").json()
    assert (before["target"], before["mask"], before["where"]) == (
        "app.story",
        {"authorEmail": "hash"},
        "id <> 'hidden'",
    )
    assert "differs" not in outboxd(*given, "watch", "Story").err
    assert "differs" not in outboxd("watch", "Story").err
    assert outboxd("watched", "--json").json() == [before]

    said = outboxd(*given, "watch", "Story", "--mask", "authorEmail=redact")
    assert (
        "differs from before: the daemon copies the table anew; rows that do not travel any more are deleted"
        in said.err
    )
    assert outboxd("watched", "--json").json()[0]["mask"] == {"authorEmail": "redact"}
    assert "differs" in outboxd("watch", "Story", "--plain").err
    (row,) = outboxd("watched", "--json").json()
    assert {row[name] for name in ("target", "where", "mask", "rename", "constant")} == {None}


def test_a_column_left_out_stays_out_when_the_table_is_watched_again(bare: Pair) -> None:
    """As after a migration; but not when other columns are named, and --plain lets it in."""
    outboxd = Cli(bare.settings)
    for arguments, include, exclude in (
        (["--exclude", "authorEmail"], None, ["authorEmail"]),
        ([], None, ["authorEmail"]),
        (["--include", "id"], ["id"], None),
        ([], ["id"], None),
        (["--plain"], None, None),
    ):
        assert outboxd("watch", "Story", *arguments).code == 0
        (row,) = outboxd("watched", "--json").json()
        assert (row["include"], row["exclude"]) == (include, exclude)


def test_without_a_direct_connection_the_statement_has_both_names(bare: Pair) -> None:
    """It runs as printed."""
    said = Cli({"source_dsn": bare.source.dsn})("watch", "Story", "--target", "app.story")
    assert said.out == "select outboxd.map('app.story', 'public.\"Story\"');\n"
    bare.ask(bare.target, said.out)


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["--rename", "authorEmail"], "--rename takes NAME=VALUE"),
        (["--mask", "a=null", "--mask", "a=hash"], "--mask names a twice"),
        (["--target", "story"], "is no name of a table"),
        (["--target", "app.story", "Other"], "--target names one table"),
    ],
)
def test_a_misspelled_option_has_its_sentence(bare: Pair, arguments: list[str], because: str) -> None:
    said = Cli(bare.settings)("watch", "Story", *arguments)
    assert said.code == 2
    assert because in said.err


def test_what_the_source_refuses_is_said(bare: Pair) -> None:
    said = Cli(bare.settings)("watch", "Story", "--where", "id in (select 1::text)")
    assert said.code == 1
    assert 'cannot watch public."Story": its filter is refused: it has a subquery' in said.err
