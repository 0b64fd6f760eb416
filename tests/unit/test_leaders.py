"""How a daemon is called among the source's sessions, and what is made of such names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.leaders import POOLED, Company, session_name

BELL = "outboxd/0.1.0"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("db-7", "outboxd/0.1.0 bell db-7 4711"),
        ("ip-10-0-0-7.eu-west-1.compute.internal", "outboxd/0.1.0 bell ip-10-0-0-7 4711"),
        ("a-deployment-with-a-very-long-name-indeed-7d9c5b8f6d-x2x9z", f"{BELL} bell -very-long-name-indeed-7d9c5b8f6d-x2x9z 4711"),
        ("", f"{BELL} bell - 4711"),
    ],
)  # fmt: skip
def test_a_session_is_named_by_host_and_pid(host: str, shown: str) -> None:
    """The domain goes; of a name that is too long the end stays, where replicas differ."""
    assert len(shown) <= 63
    assert session_name(BELL, host, 4711) == shown


@given(st.text(max_size=100), st.integers(1, 2**22))
def test_whatever_the_host_is_called_its_name_fits_and_is_understood(host: str, pid: int) -> None:
    """63 bytes are what Postgres keeps, and printable ASCII."""
    name = session_name(BELL, host, pid)
    assert len(name.encode()) <= 63
    company = Company()
    company.learn([(name, 7, False, None, False)])
    (told,) = company.standbys
    assert told["who"].endswith(f":{pid}")
    assert told["version"] == "0.1.0"


def test_the_holder_of_the_lock_leads_and_the_others_wait_or_cannot_lead() -> None:
    """What an older version calls itself is shown as it is."""
    company = Company()
    company.learn([
        ("outboxd/0.1.0 bell a 1", 7, True, "2026-11-23T16:00:00Z", False),
        ("outboxd/0.0.9 bell", 8, False, None, False),
        ("outboxd/0.1.0 bell c 3", 9, False, None, True),
    ])  # fmt: skip
    assert company.told(pooled=False) == {
        "leader": {"who": "a:1", "since": "2026-11-23T16:00:00Z", "version": "0.1.0", "backend": 7},
        "standbys": [{"who": "outboxd/0.0.9 bell", "version": None, "backend": 8}],
        "disabled": [{"who": "c:3", "version": "0.1.0", "backend": 9}],
        "strangers": [],
    }
    company.learn([])
    assert company.told(pooled=False) == {"leader": None, "standbys": [], "disabled": [], "strangers": []}


def test_behind_a_transaction_pooler_it_is_unknown() -> None:
    """Sessions there are the pooler's, and carry the name of whoever used them last."""
    company = Company()
    company.learn([("outboxd/0.1.0 bell a 1", 7, False, None, False), ("outboxd/0.1.0 bell a 2", 8, False, None, True)])
    assert company.told(pooled=True) == {"leader": POOLED, "standbys": [], "disabled": [], "strangers": []}
