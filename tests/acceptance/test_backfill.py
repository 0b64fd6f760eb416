"""`outboxd backfill`, and copies by the daemon: killed in the middle, paced, reported."""

import pytest

from daemon.failpoint import VARIABLE
from tests.acceptance.cli import Cli
from tests.acceptance.conftest import STORIES, Pair, Start, ended, measured, streaming, wait_until
from tests.acceptance.counting import count_writes

PATIENCE = 90.0
EDGES = ["before_send", "after_send", "after_answer", "after_read"]


@pytest.fixture
def stories(request: pytest.FixtureRequest) -> Pair:
    """2000 stories that no change speaks of."""
    pair: Pair = request.getfixturevalue(request.param)
    pair.write(STORIES, 2000)
    pair.write("truncate outbox.change")
    return pair


def copied(pair: Pair) -> tuple[str, int]:
    found = pair.ask(pair.target, """select state, rows from outboxd.copy where table_name = 'public."Story"'""")
    return found[0] if found else ("", 0)


@pytest.mark.parametrize("stories", ["direct", "rest"], indirect=True)
def test_a_backfill_without_a_daemon_is_done_by_the_command(stories: Pair) -> None:
    cli = Cli({**stories.settings, "batch_changes": "500"})
    stories.ask(
        stories.target,
        """insert into "Story" select gen_random_uuid(), 'mine', null, true, null, '{}', now(), now() returning 1""",
    )
    said = cli("backfill", "public.Story")
    assert said.code == 0, said
    assert "2000 rows copied; the target has 1 rows that the source does not have (--prune deletes them)" in said.err
    assert copied(stories) == ("done", 2000)
    said = cli("backfill", "public.Story", "--prune", "--json")
    assert [(one["rows"], one["extra"], one["pruned"]) for one in said.json()] == [(2000, 1, 1)]
    stories.arrives()


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_backfill_is_done_by_the_daemon_that_runs(stories: Pair, start: Start) -> None:
    outboxd = streaming(start(stories.settings))
    said = Cli(stories.settings)("backfill", "public.Story")
    assert said.code == 0, said
    assert "the daemon that runs copies" in said.err
    assert outboxd.returncode is None
    stories.arrives()
    assert measured(outboxd, 'outboxd_copy_rows_total{table="public.\\"Story\\""}') == 2000
    assert measured(outboxd, 'outboxd_copy_tables{state="done"}') == 1
    assert measured(outboxd, "outboxd_changes_read_total") == 0, "copied rows are no changes"
    assert [(copy["state"], copy["rows"]) for copy in (outboxd.status() or {})["copies"]] == [("done", 2000)]


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_table_that_is_out_is_shown_by_every_daemon_that_leads_for_as_long_as_something_of_it_waits(
    stories: Pair, start: Start
) -> None:
    outboxd = streaming(start(stories.settings))
    with stories.target.connect() as conn:
        conn.execute('alter table "Story" rename to "Tale"')
    stories.write(STORIES, 1)
    wait_until(lambda: measured(outboxd, 'outboxd_copy_tables{state="out"}') == 1)
    outboxd.stop()
    again = streaming(start(stories.settings))
    wait_until(lambda: measured(again, 'outboxd_copy_tables{state="out"}') == 1)
    status = Cli(stories.settings)("status", "--json")
    assert status.code == 3
    assert [(copy["table"], copy["state"]) for copy in status.json()["copies"]] == [('public."Story"', "out")]
    stories.ask(stories.source, """select outbox.unwatch('public."Story"')""")
    wait_until(lambda: stories.ask(stories.source, "select from outbox.held"))
    assert measured(again, 'outboxd_copy_tables{state="out"}') == 1, (
        "what was skipped waits: no copy will bring it any more"
    )
    with stories.target.connect() as conn:
        conn.execute('alter table "Tale" rename to "Story"')
    wait_until(lambda: measured(again, 'outboxd_copy_tables{state="out"}') == 0)
    assert not stories.ask(stories.source, "select from outbox.held")
    assert (again.status() or {})["copies"] == []
    assert Cli(stories.settings)("status", "--json").json()["copies"] == []


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_a_copy_keeps_its_pace_and_changes_do_not_wait_for_it(stories: Pair, start: Start) -> None:
    outboxd = streaming(start({**stories.settings, "copy_rows_per_second": "200"}))
    stories.ask(stories.source, """select outbox.ask_copy('public."Story"')""")
    wait_until(lambda: copied(stories)[0] == "copying")
    for _ in range(5):
        stories.write("""update "Story" set "title" = 'now' where "id" = (select min("id"::text) from "Story")::uuid""")
        stories.write(STORIES, 1)
        wait_until(lambda: not stories.waits(), 5.0)
    assert copied(stories)[0] == "copying", "it takes ten seconds"
    wait_until(lambda: copied(stories)[0] == "done", PATIENCE)
    assert outboxd.returncode is None
    stories.arrives()


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_status_tells_of_a_copy_under_way_that_has_no_reason(stories: Pair, start: Start) -> None:
    """The target leaves out what is null: nothing is wrong with that copy."""
    outboxd = streaming(start({**stories.settings, "copy_rows_per_second": "200"}))
    stories.ask(stories.source, """select outbox.ask_copy('public."Story"')""")
    wait_until(lambda: copied(stories)[0] == "copying")
    outboxd.stop()
    said = Cli(stories.settings)("status", "--json")
    (copy,) = said.json()["copies"]
    assert (copy["table"], copy["state"], copy["reason"], copy["slow"]) == ('public."Story"', "copying", None, None)
    assert said.code == Cli(stories.settings)("status").code


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_until_idle_waits_for_a_copy_that_keeps_its_pace(stories: Pair, start: Start) -> None:
    """What is not written any more is idle, what was asked for and not done is not."""
    stories.ask(stories.source, """select outbox.ask_copy('public."Story"')""")
    outboxd = start({**stories.settings, "copy_rows_per_second": "1500"}, "run", "--until-idle")
    assert ended(outboxd, PATIENCE) == 0
    assert copied(stories) == ("done", 2000)
    assert stories.unequal() == []


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_until_idle_does_not_wait_for_a_table_that_is_out(stories: Pair, start: Start) -> None:
    with stories.target.connect() as conn:
        conn.execute('alter table "Story" rename to "Tale"')
    stories.ask(
        stories.source, """select outbox.ask_copy('public."Story"'), outbox.ask_verification('public."Story"')"""
    )
    assert ended(start({**stories.settings, "copy_rows_per_second": "1500"}, "run", "--until-idle"), PATIENCE) == 0
    assert copied(stories)[0] == "out"


@pytest.mark.parametrize("stories", ["direct"], indirect=True)
def test_until_idle_waits_for_a_verification_that_is_asked_for_and_not_for_those_by_the_clock(
    stories: Pair, start: Start
) -> None:
    """At a row a second the clock's own pass through 2000 stories would take half an hour."""
    assert ended(start({**stories.settings, "verify_interval": "0"}, "run", "--until-idle")) == 0
    stories.ask(stories.source, """select outbox.ask_verification('public."Scenario"')""")
    assert ended(start({**stories.settings, "verify_rows_per_second": "1"}, "run", "--until-idle"), PATIENCE) == 0
    found = stories.ask(stories.target, "select table_name, state, asked from outboxd.verification order by 1")
    assert ('public."Scenario"', "done", True) in found
    assert ('public."Story"', "running", False) in found


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("stories", ["rest"], indirect=True)
def test_killed_in_the_middle_a_copy_goes_on_from_the_targets_record(stories: Pair, start: Start, edge: str) -> None:
    """Each row is written once, but for the batch that died on its way back; and none is missing."""
    count_writes(stories)
    stories.ask(stories.source, """select outbox.ask_copy('public."Story"')""")
    settings = {**stories.settings, "batch_changes": "100"}
    reached = []
    for passing in (4, 6):
        assert ended(start(settings, environment={VARIABLE: f"{edge}:kill:{passing}"})) == -9
        reached.append(copied(stories)[1])
    assert 0 < reached[0] < reached[1] < 2000
    streaming(start(settings))
    wait_until(lambda: copied(stories) == ("done", 2000), PATIENCE)
    stories.arrives()
    ((written,),) = stories.ask(stories.target, "select count(*) from writes")
    assert written == 2000


def test_with_schema_auto_a_table_that_is_out_is_made_to_fit(direct: Pair, start: Start) -> None:
    """A column of the source that the target lacks is added there unasked; its values come with the copy."""
    direct.write(STORIES, 20)
    streaming(start({**direct.settings, "schema__auto": "additive"}))
    direct.arrives()
    direct.write("""alter table "Story" add column "mood" text not null default 'calm'""")
    direct.write(STORIES, 5)
    wait_until(lambda: copied(direct)[0] == "out", PATIENCE)
    wait_until(lambda: copied(direct) == ("done", 25), PATIENCE)
    direct.arrives(PATIENCE)
    assert direct.ask(direct.target, """select count(*) from "Story" where "mood" = 'calm'""") == [(25,)]
