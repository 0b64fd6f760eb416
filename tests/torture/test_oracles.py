"""Whoever judges a torture run sees what is wrong: each promise, broken on purpose."""

from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from tests.databases import Database
from tests.torture.checker import Checker, Look
from tests.torture.ledger import Drawn, Ledger
from tests.torture.world import World, witness
from tests.torture.writers import ACCOUNTS, BALANCE, TOTAL, populate

_BALANCED = (2 * ACCOUNTS, TOTAL)


@pytest.fixture
def checker() -> Checker:
    return Checker(cast("World", SimpleNamespace(ledger=Ledger())))


def test_a_faithful_target_is_found_right(checker: Checker) -> None:
    """Nothing there yet, a prefix, the whole."""
    checker.judge(Look(0, 0, {}, {}))
    checker.judge(Look(*_BALANCED, {1: [1]}, {1: [1, 2], 2: [3]}))
    checker.judge(Look(*_BALANCED, {1: [1, 2], 2: [3]}, {1: [1, 2], 2: [3]}))
    assert checker.wrong == []


@pytest.mark.parametrize(
    ("look", "says"),
    [
        (Look(2 * ACCOUNTS, TOTAL - 1, {1: [1, 2]}, {1: [1, 2]}), "unbalanced"),
        (Look(2 * ACCOUNTS - 1, TOTAL - BALANCE, {1: [1, 2]}, {1: [1, 2]}), "unbalanced"),
        (Look(*_BALANCED, {1: [1, 2, 4]}, {1: [1, 2, 3, 4]}), "no prefix"),
        (Look(*_BALANCED, {1: [1, 2], 2: [9]}, {1: [1, 2]}), "no prefix"),
        (Look(*_BALANCED, {1: [1]}, {1: [1, 2]}), "shrunk"),
        (Look(*_BALANCED, {}, {1: [1, 2]}), "shrunk"),
    ],
)
def test_a_look_that_must_not_be_is_noted(checker: Checker, look: Look, says: str) -> None:
    """A torn transfer, a lost or foreign number, a step back."""
    checker.judge(Look(*_BALANCED, {1: [1, 2]}, {1: [1, 2]}))
    checker.judge(look)
    assert [line.split(":")[0] for line in checker.wrong] == [says]


@pytest.fixture
def bank(target: Database) -> psycopg.Connection[Any]:
    """The target, with its witness."""
    with target.connect(autocommit=False) as conn:
        witness(conn)
        populate(conn)
        conn.execute("insert into outboxd.cursor (relay, epoch) values ('main', 1)")
    return target.connect()


@pytest.mark.parametrize(
    ("statements", "noted"),
    [
        (["update checking set version = version + 1"], []),
        (["delete from savings where id = 1", "insert into savings values (1, 1000, 2)"], []),
        (["update checking set balance = balance where id = 1"], ["repeated"]),
        (["update checking set version = 0 where id = 1"], ["backwards"]),
        (["delete from savings where id = 1", "insert into savings values (1, 1000, 1)"], ["repeated"]),
        (["delete from savings where id = 1"], ["unbalanced"]),
        (["update checking set balance = balance - 1, version = 2 where id = 1"], ["unbalanced"]),
    ],
)
def test_the_target_itself_notes_what_must_not_be(
    bank: psycopg.Connection[Any], statements: list[str], noted: list[str]
) -> None:
    """Each row written is compared with what was there before, each batch is weighed."""
    with bank, bank.transaction():
        for statement in [*statements, "update outboxd.cursor set batch_no = batch_no + 1"]:
            bank.execute(statement.encode())
        assert [what for (what,) in bank.execute("select what from torture.violation order by id")] == noted


def test_a_writer_may_fail_only_while_the_source_is_in_trouble() -> None:
    """Promise I7: a failed statement of the application is harm, unless its server was down."""
    ledger = Ledger()
    ledger.trouble(begins=True)
    ledger.broke(Drawn([1]), "AdminShutdown", in_doubt=True, connection=True)
    assert (ledger.harm, ledger.unknown) == ([], {1})
    ledger.broke(Drawn([2]), "DeadlockDetected", in_doubt=False, connection=False)
    assert (ledger.harm, ledger.forbidden) == (["DeadlockDetected"], {2})


def test_a_connection_lost_in_quiet_times_is_harm() -> None:
    ledger = Ledger()
    ledger.broke(Drawn([1]), "OperationalError", in_doubt=False, connection=True)
    assert ledger.harm == ["OperationalError"]
