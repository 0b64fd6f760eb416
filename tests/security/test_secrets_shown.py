"""Every form of a secret, wherever it is shown: `config show`, the log, errors, status."""

import io
import json
import time

import pytest
import structlog
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from daemon import logs
from daemon.cli import main
from daemon.credentials import carries_secret, masked
from daemon.secrecy import mask

SECRET = "zqcanaryqz"
HIDDEN = sorted(
    {each.keyword.decode() for each in Conninfo.get_defaults() if each.dispchar == b"*"}
    | {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
KNOWN = {each.keyword.decode() for each in Conninfo.get_defaults()}


def spellings(name: str) -> list[str]:
    """As libpq reads them in an address: plain, one letter encoded, all of them."""
    return [name, f"{name[:4]}%{ord(name[4]):02x}{name[5:]}", "".join(f"%{ord(one):02X}" for one in name)]


ADDRESSES = [
    f"{base}?{before}{spelled}={SECRET}{after}"
    for name in HIDDEN
    for spelled in spellings(name)
    for base, before, after in (
        ("postgresql://db/app", "", ""),
        ("postgresql://app@one:5432,two:5433/app", "sslmode=require&", "&connect_timeout=3"),
    )
]
PAIRS = [
    f"host=db {name}{is_}{value} user=app"
    for name in HIDDEN
    for is_ in ("=", " = ")
    for value in (SECRET, f"'{SECRET} {SECRET}'")
]
OTHERS = [
    f"postgresql://app:{SECRET}@one:5432,two:5433/app",
    f"postgresql://app:p%40{SECRET}@db/app",
    f"host=one,two port=5432,5433 dbname='postgresql://app:{SECRET}@db/app'",
    f"postgresql://db/app?options=-c%20app.api_token%3D{SECRET}",
]


@pytest.mark.parametrize("address", [*ADDRESSES, *PAIRS, *OTHERS])
def test_no_address_shows_a_secret(address: str) -> None:
    """By `config show` as a process, by the log, and by an error that quotes it."""
    assert SECRET not in masked("source_dsn", address)
    assert carries_secret("source_dsn", address)
    out = io.StringIO()
    logs.configure("info", "json", stream=out)
    try:
        structlog.get_logger().warning(
            "x", dsn=address, error=ValueError(f"bad: {address}"), nested={"a": [json.dumps({"b": address})]}
        )
    finally:
        structlog.reset_defaults()
    assert SECRET not in out.getvalue()


@pytest.mark.parametrize("address", [one for one in [*ADDRESSES[:6], *PAIRS[:4], *OTHERS[:2]] if "scram" not in one])
def test_config_show_has_stars(address: str) -> None:
    names = set()
    try:
        names = set(conninfo_to_dict(address))
    except Exception:  # noqa: BLE001  this libpq may be older than the option
        pytest.skip("libpq does not know it")
    assert names <= KNOWN
    for more in ([], ["--json"]):
        said = CliRunner().invoke(main, ["config", "show", *more], env={"OUTBOXD_SOURCE_DSN": address})
        assert said.exit_code == 0, said.output
        assert SECRET not in said.output
        assert "***" in said.output


@pytest.mark.parametrize(
    "text",
    [
        f"?token={SECRET}", f"secret={SECRET}", f"api_key={SECRET}", f"apikey: {SECRET}", f"X-API-Key: {SECRET}",
        f"Authorization: Basic {SECRET}", f"Authorization: Bearer {SECRET}", f"authorization=basic {SECRET}", f"got Bearer {SECRET}",
        f"sb_secret_{SECRET}", f"sb%5fsecret%5F{SECRET}", f"eyJ{SECRET}.eyJ{SECRET}.{SECRET}", f"https://x:{SECRET}@proxy/",
        f"https%3A%2F%2Fx%3A{SECRET}%40proxy", f"pass%77ord={SECRET}", f"p%61ss%2577ord={SECRET}",
        f'{{"authorization": "Basic {SECRET}"}}', f'{{"pass\\u0077ord":"{SECRET}"}}', json.dumps(json.dumps({"password": f"a {SECRET}"})),
        json.dumps({"text": json.dumps({"client_secret": f"a '{SECRET}'"})}), f"token='a {SECRET}'", f'secret = "a \\" {SECRET}"',
        f"SUPABASE_KEY={SECRET}", f"service_role_key={SECRET}", f"access-key: {SECRET}", f"credential={SECRET}",
    ],
)  # fmt: skip
def test_no_text_shows_one(text: str) -> None:
    assert SECRET not in mask(f"before {text}")
    assert mask(f"before {text}").startswith("before")


@pytest.mark.parametrize(
    "text",
    [
        "password authentication failed for user app", "set OUTBOXD_SUPABASE_KEY to the secret key (sb_secret_…; dashboard)",
        "postgresql://app@db.example:5432/shop?sslmode=require", "the key's role may not use it", "https://x.supabase.co/rest/v1?a=%20",
        "a basic answer", "key (id) is no unique key", "the token is none",
    ],
)  # fmt: skip
def test_what_is_none_stays(text: str) -> None:
    """What an operator needs to see."""
    assert mask(text) == text


def took(text: str) -> float:
    """The least of fifteen: whatever else the machine does only adds."""
    times = []
    for _ in range(15):
        began = time.thread_time()
        mask(text)
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize(
    ("before", "again"),
    [
        ('password=\\"', "\\"), ("password='", "\\"), ("password", "\\"), ("password=", "\\'"), ("", "password=\\'"),
        ("", "x://x:"), ("password=bearer", " "), ("bearer", " "), ("", "eyJ."), ("", 'token"'), ('password=\\"', "\\'\\x"),
        ("password=", "token=\\'"), ("password=", "token '"), ("", "token "), ("password=", "a.b="), ("password=", "a."), ("x:\\/\\/", "a\\/"),
        ('password=\\"', '\\\\\\"'), ("password='", "''"), ("password=basic ", "basic "), ("", "x:\\/\\/"), ("password=%20", "%27%20"),
    ],
)  # fmt: skip
def test_what_masking_takes_grows_as_the_text_does(before: str, again: str) -> None:
    """Whoever gives a sentence chooses what stands in it, and the event loop waits: four times the length, four times the time."""
    short, long = (took(before + again * (length // len(again))) for length in (30_000, 120_000))
    assert long < 8 * short + 0.001  # were it squared: sixteen times


@pytest.mark.parametrize("begins", ["postgresql://app:", "password='a ", "bearer ", 'password=\\"a '])
@pytest.mark.parametrize("ahead", [0, 10, 1000, 19_000, 19_990])
def test_a_secret_that_a_cut_goes_through_is_not_shown(begins: str, ahead: int) -> None:
    """Also where masking makes short what stood before it."""
    for filled in ("x " * (ahead // 2), f"password={'y' * (ahead + 1)} "):
        assert SECRET not in logs.redact(f"{filled}{begins}{SECRET * 3000}@db' ")
