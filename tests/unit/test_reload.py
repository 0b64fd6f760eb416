"""What a reload takes over, what it leaves, and what of both it says; the door that is exchanged."""

import pytest

from daemon.breaker import Breaker, BreakerOpen, Thresholds
from daemon.doorway import Doorway
from daemon.errors import Kind, Refusal, TargetError, refuses_the_key
from daemon.provenance import Problem
from daemon.reload import differ, sentence, thresholds
from daemon.settings import BreakerSettings, Settings

OLD = Settings(source_dsn="postgresql://db/shop", supabase_key="sb_secret_old", batch_changes=100)  # type: ignore[arg-type]


def test_what_may_change_between_batches_does_and_the_rest_is_named():
    new = Settings(source_dsn="postgresql://db2/shop", supabase_key="sb_secret_new", batch_changes=7, admin_port=1)  # type: ignore[arg-type]
    difference = differ(OLD, new)
    assert difference.applied == ("supabase_key", "batch_changes")
    assert difference.restart == ("source_dsn", "admin_port")
    assert difference.settings.supabase_key == new.supabase_key
    assert difference.settings.source_dsn == OLD.source_dsn
    assert "sb_secret" not in f"{difference}"


def test_the_heartbeats_interval_may_change_between_batches():
    difference = differ(OLD, OLD.model_copy(update={"heartbeat_interval": 3.0}))
    assert (difference.applied, difference.restart) == (("heartbeat_interval",), ())


def test_unasked_only_the_way_to_the_target_changes():
    new = OLD.model_copy(update={"batch_changes": 7, "transport": "postgres"})
    difference = differ(OLD, new, ("transport",))
    assert (difference.applied, difference.restart) == (("transport",), ("batch_changes",))


def test_the_sources_breaker_keeps_its_own_cap():
    settings = Settings(breaker=BreakerSettings(open_cap=50, window=7))
    assert (thresholds("target", settings).open_cap, thresholds("source", settings).open_cap) == (50, 10)
    assert thresholds("source", settings).window == 7


def test_what_lacks_is_one_sentence_with_examples():
    assert sentence([]) is None
    wrong = [
        Problem("a", "is missing", "x"),
        Problem("b", "cannot be read", "", "the file b"),
        Problem("c", "is not", "y", "C"),
    ]
    assert (
        sentence(wrong) == "a is missing (example: x), and b cannot be read (the file b), and c is not (C; example: y)"
    )


class Stub:
    """A door that answers as it is told."""

    place = "nowhere"

    def __init__(self, *answers: str | TargetError) -> None:
        self.answers = list(answers)
        self.closed = False

    async def send(self, document: bytes) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, TargetError):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed = True


def refusal(status: int | None, code: str | None = None, kind: Kind = Kind.AUTH) -> TargetError:
    return TargetError(kind, f"the target answered {status}", Refusal(code, status))


async def test_no_door_is_an_answer_of_its_own():
    doorway = Doorway(None, "supabase_key is missing")
    with pytest.raises(TargetError, match="supabase_key is missing") as refused:
        await doorway.send(b"")
    assert refused.value.kind is Kind.AUTH
    assert doorway.refused is None
    await doorway.close()


async def test_a_refusal_of_the_key_is_remembered_until_another_word():
    told: list[str | None] = []
    doorway = Doorway(Stub(refusal(401), refusal(503, kind=Kind.TRANSIENT), refusal(401), "fine", refusal(401)))
    doorway.on_refused = lambda: told.append(doorway.refused)
    for remembered in ("the target answered 401", None, "the target answered 401"):
        with pytest.raises(TargetError):
            await doorway.send(b"")
        assert doorway.refused == remembered
    assert await doorway.send(b"") == "fine"
    assert doorway.refused is None
    assert told == ["the target answered 401"] * 2


async def test_the_old_door_is_closed_and_its_refusal_forgotten():
    old, new = Stub(refusal(401)), Stub("fine")
    doorway = Doorway(old)
    with pytest.raises(TargetError):
        await doorway.send(b"")
    await doorway.exchange(new)
    assert old.closed
    assert doorway.refused is None
    assert await doorway.send(b"") == "fine"


@pytest.mark.parametrize(
    ("status", "code", "kind", "refuses"),
    [
        (401, None, Kind.AUTH, True),
        (403, None, Kind.AUTH, True),
        (401, "PGRST301", Kind.AUTH, True),
        (None, "28P01", Kind.AUTH, True),
        (None, None, Kind.AUTH, True),  # libpq was turned away before there was a SQLSTATE
        (402, None, Kind.AUTH, False),
        (403, "42501", Kind.AUTH, False),
        (None, "TLS_CERTIFICATE", Kind.AUTH, False),
        (None, "SETTINGS", Kind.AUTH, False),
        (503, None, Kind.TRANSIENT, False),
        (404, "PGRST202", Kind.CONTRACT, False),
    ],
)
def test_which_refusals_are_about_the_key(status, code, kind, refuses):
    """A missing grant, a bill and a certificate are not: another key would change nothing."""
    assert refuses_the_key(refusal(status, code, kind)) is refuses


def test_a_breaker_that_relents_lets_a_probe_out_at_once():
    now = 100.0
    breaker = Breaker("target", Thresholds(consecutive_failures=1, open_first=30), clock=lambda: now)
    with breaker.attempt() as attempt:
        attempt.failed("away")
    with pytest.raises(BreakerOpen), breaker.attempt():
        pass
    breaker.relent()
    assert breaker.state == "open"
    with breaker.attempt():
        pass
    assert breaker.state == "closed"
