"""`outboxd dead-letters` beside a running daemon, through the Data API."""

import re
from pathlib import Path

import pytest

from tests.acceptance.cli import Cli
from tests.acceptance.conftest import Pair, Start, measured, streaming, wait_until

CANARY = "canary-5519"
_STORY = """insert into "Story" ("id", "title", "updatedAt") values ('{id}', '{title}', now())"""
_FIRST, _SECOND, _THIRD = (f"{n}0000000-0000-4000-8000-000000000000" for n in (1, 2, 3))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_from_refusal_to_retry_by_hand(rest: Pair, start: Start) -> None:
    """Held within a second, seen in status and metrics, listed without values, shown on request, mended, delivered."""
    with rest.target.connect() as conn:
        conn.execute("""alter table "Story" add constraint tame check (title not like 'canary%')""")
    outboxd, cli = streaming(start(rest.settings)), Cli(rest.settings)
    assert cli("dead-letters", "list").err == "no dead letters\n"

    rest.write(_STORY.format(id=_FIRST, title=CANARY) + ";" + _STORY.format(id=_SECOND, title="neighbour"))
    wait_until(lambda: rest.mirrored() == 1)
    wait_until(lambda: (outboxd.status() or {}).get("held_keys") == 1)
    status = outboxd.status()
    assert status is not None
    assert status["state"] == "streaming"
    assert "1 row held as dead letters: `outboxd dead-letters list`" in status["verdict"]
    assert measured(outboxd, "outboxd_held_keys") == 1
    assert measured(outboxd, 'outboxd_dead_letters_total{table="public.\\"Story\\""}') == 1

    said = cli("dead-letters", "list")
    assert "the target refuses the upsert because of tame (23514)" in said.out
    assert CANARY not in said.out + said.err
    assert _FIRST not in said.out
    [one] = cli("dead-letters", "list", "--json").json()
    letter = str(one["letter"])
    assert one["table"] == 'public."Story"'
    assert CANARY not in cli("dead-letters", "show", letter).out
    assert CANARY in cli("dead-letters", "show", letter, "--values").out
    assert "1 row held" in cli("status").out

    again = cli("dead-letters", "retry", letter)
    assert again.code == 3
    assert f"refused again: letter {letter}" in again.err
    with rest.target.connect() as conn:
        conn.execute("""alter table "Story" drop constraint tame""")
    assert cli("dead-letters", "retry", "--all").err == "delivered: 1 change(s)\n"
    rest.arrives()
    wait_until(lambda: measured(outboxd, "outboxd_held_keys") == 0)
    assert CANARY not in outboxd.log.read_text()


def test_discard_asks_and_says_what_is_lost(rest: Pair, start: Start) -> None:
    with rest.target.connect() as conn:
        conn.execute("""alter table "Story" add constraint tame check (title not like 'canary%')""")
    streaming(start(rest.settings))
    cli = Cli(rest.settings)
    rest.write(_STORY.format(id=_FIRST, title=CANARY))
    wait_until(lambda: cli("dead-letters", "list", "--json").json())
    refused = cli("dead-letters", "discard", "--all")
    assert refused.code == 1
    assert "drop 1 change(s) of 1 row(s) for good?" in refused.err
    [one] = cli("dead-letters", "list", "--json").json()
    rest.write(f"""update "Story" set "updatedAt" = now() where id = '{_FIRST}'""")
    wait_until(lambda: cli("dead-letters", "list", "--json").json()[0]["changes"] == 2)
    follower = str(
        max(
            int(n)
            for n in re.findall(r"^letter +(\d+)", cli("dead-letters", "show", str(one["letter"])).out, re.MULTILINE)
        )
    )
    assert "drop 2 change(s) of 1 row(s) for good?" in cli("dead-letters", "discard", follower).err
    assert cli("dead-letters", "discard", "--all", "--yes").err == "dropped: 2 change(s)\n"
    assert cli("dead-letters", "list", "--json").json() == []
    assert rest.mirrored() == 0
    rest.write(f"""update "Story" set title = 'tame' where id = '{_FIRST}'""")
    rest.arrives()


def test_without_a_daemon_a_retry_waits_for_one(direct: Pair, start: Start) -> None:
    with direct.target.connect() as conn:
        conn.execute("""alter table "Story" add constraint tame check (title not like 'canary%')""")
    cli = Cli(direct.settings)
    direct.write(_STORY.format(id=_THIRD, title=CANARY))
    assert cli("run", "--until-idle").code == 0
    with direct.target.connect() as conn:
        conn.execute("""alter table "Story" drop constraint tame""")
    asked = cli("dead-letters", "retry", "--all", "--wait", "0")
    assert asked.code == 75
    assert "1 change(s) still wait" in asked.err
    streaming(start(direct.settings))
    wait_until(lambda: direct.mirrored() == 1)
    assert direct.unequal() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("retry",), "say which: LETTER…, --table, or --all"),
        (("discard", "1", "--all"), "say which: LETTER…, --table, or --all"),
        (("show", "12345"), "no such dead letter"),
    ],
)
def test_what_cannot_be_meant_is_said(direct: Pair, arguments: tuple[str, ...], says: str) -> None:
    said = Cli(direct.settings)("dead-letters", *arguments)
    assert said.code == 2
    assert says in said.err


@pytest.mark.parametrize("which", [["--all"], ["17"], ["--table", "public.no"]])
def test_discarding_nothing_asks_nothing(direct: Pair, which: list[str]) -> None:
    """The sentence and the code of a retry, at once."""
    said = Cli(direct.settings)("dead-letters", "discard", *which)
    again = Cli(direct.settings)("dead-letters", "retry", *which)
    assert said == again
    assert (said.code, said.err) == (0, "no such dead letter: `outboxd dead-letters list` names them\n")


def test_retrying_an_unknown_letter_says_so(direct: Pair) -> None:
    assert "no such dead letter" in Cli(direct.settings)("dead-letters", "retry", "12345").err


def test_on_error_is_chosen_at_watch_and_listed(direct: Pair) -> None:
    cli = Cli(direct.settings)
    assert cli("watch", 'public."Story"', "--on-error", "halt").code == 0
    rows = {row["table"]: row["on_error"] for row in cli("watched", "--json").json()}
    assert rows['public."Story"'] == "halt"
    assert set(rows.values()) == {"hold", "halt"}
