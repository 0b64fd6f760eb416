"""The scenarios of test_capture_property.py on tables that are mapped and filtered: the outbox replays to what is inside."""

import json
import os
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from tests.captured import Connection
from tests.integration.test_capture_property import Scenario, Session, play, scenarios

SEARCH = int(os.environ.get("CAPTURE_EXAMPLES", "0"))

# Values go back and forth over both borders all the time; a key under another name, and a hash of what moves.
MAPPING = {
    "item": {
        "rename": json.dumps({"id": "number", "a": "ü \"A\""}), "mask": json.dumps({"b": "hash"}),
        "constant": json.dumps({"origin": "here"}), "filter": "a % 3 <> 1 and b is not null",
    },
    "part": {"filter": "a < 2 and item > 1"},
}  # fmt: skip


@pytest.fixture(scope="module", params=["read committed", "serializable"])
def session(shared_app: Connection, request: pytest.FixtureRequest) -> Session:
    """At the mildest level and at the strictest."""
    return Session(shared_app.info.dsn, request.param)


@given(scenario=scenarios)
@settings(
    derandomize=not SEARCH, max_examples=SEARCH or 40, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_any_scenario_replays_to_what_is_inside(session: Session, scenario: Scenario) -> None:
    """Whatever triggers and statements an application has, rows enter and leave as they should."""
    play(session, scenario, mapping=MAPPING)
    play(session, scenario, mapping=MAPPING, at_once=True)


def rewritten(conn: Connection, old: str, new: str) -> None:
    """Another text in what outbox.watch has installed."""
    for (source,) in conn.execute(
        "select pg_get_functiondef(to_regproc('outbox.capture_' || id)) from outbox.watched"
    ).fetchall():
        assert old in source
        conn.execute(source.replace(old, new))


BREAKS = {
    "rows that leave are not deleted": ("where f.inside is not false or old.id is not null and", "where f.inside is not false or false and"),
    "rows are copied whatever became of them": ("if new.xmax = 0 and", "if tg_op <> 'DELETE' and"),
    "what is re-read is not filtered": ("t.id is not null and outbox.inside", "t.id is not null or outbox.inside"),
}  # fmt: skip


@pytest.mark.parametrize("how", BREAKS)
def test_the_property_can_fail(session: Session, how: str) -> None:
    """With one of the rules broken, the search finds a scenario that ends wrong."""

    def ends_wrong(scenario: Scenario) -> bool:
        try:
            play(session, scenario, mapping=MAPPING, breaks=lambda conn: rewritten(conn, *BREAKS[how]))
        except AssertionError:
            return True
        return False

    search = settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate])
    play(session, find(scenarios, ends_wrong, settings=search, random=Random(1)), mapping=MAPPING)
