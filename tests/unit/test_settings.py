"""Where settings come from, what is refused and in which words, and that no secret is ever repeated."""

import base64
import json
import os

import pytest
from pydantic import ValidationError

from daemon import configuration as module
from daemon.breaker import Thresholds
from daemon.configuration import ConfigError, load, load_without_target
from daemon.credentials import looks_pooled
from daemon.provenance import Problem
from daemon.settings import ALIASES, Settings, redacted

SECRET = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"
DSN = "postgresql://app:hunter2@db.example/shop"
URL = "https://abcdefghijklmnopqrst.supabase.co"


def jwt(**claims: object) -> str:
    parts = ({"alg": "HS256"}, claims, "signature")
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path, monkeypatch):
    """An empty environment, an empty working directory and no container secrets."""
    known = {"credentials_directory", *(alias.lower() for alias in ALIASES)}
    for variable in list(os.environ):
        if variable.lower() in known or variable.lower().startswith("outboxd_"):
            monkeypatch.delenv(variable)
    (tmp_path / "secrets").mkdir()
    monkeypatch.setattr(module, "SECRETS_FOLDER", tmp_path / "secrets")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def complete(monkeypatch):
    """The three values without which nothing runs."""
    monkeypatch.setenv("OUTBOXD_SOURCE_DSN", DSN)
    monkeypatch.setenv("OUTBOXD_SUPABASE_URL", URL)
    monkeypatch.setenv("OUTBOXD_SUPABASE_KEY", SECRET)


def problems(*args, **kwargs) -> list[Problem]:
    with pytest.raises(ConfigError) as refused:
        load(*args, **kwargs)
    assert "hunter2" not in str(refused.value)
    assert "N7UND0" not in str(refused.value)
    return list(refused.value.problems)


def says(setting: str, value: object) -> str:
    """What is said about one value that is given for one setting."""
    (problem,) = problems(overrides={setting: value}, needs=())
    assert problem.setting == setting
    return problem.what


def reveal(settings: Settings) -> tuple[str, str | None, str]:
    assert settings.supabase_key is not None
    return settings.source_conninfo, settings.supabase_url, settings.supabase_key.get_secret_value()


def test_defaults_work(complete):
    """With the three addresses set, everything else has a value that works."""
    settings = load()
    assert reveal(settings) == (DSN, URL, SECRET)
    assert settings.breaker.thresholds == Thresholds()
    assert (settings.transport, settings.relay, settings.exposed_schema) == ("rest", "main", "public")
    assert (settings.batch_changes, settings.batch_bytes) == (5000, 4_194_304)
    assert (settings.wake, settings.poll_interval, settings.request_timeout) == ("auto", 1.0, 20.0)
    assert (settings.admin, settings.admin_host, settings.admin_port) == (True, "127.0.0.1", 9631)
    assert (settings.log_level, settings.log_format) == ("info", "auto")


def test_the_order_of_sources(complete, monkeypatch, tmp_path):
    """Command line, environment, .env, TOML, default: each beats the ones after it."""
    (tmp_path / "outboxd.toml").write_text('relay = "toml"\nlog_level = "error"\nwake = "poll"\nadmin_port = 1\n')
    (tmp_path / ".env").write_text("OUTBOXD_RELAY=dotenv\nOUTBOXD_LOG_LEVEL=debug\nOUTBOXD_WAKE=notify\n")
    monkeypatch.setenv("OUTBOXD_RELAY", "environment")
    monkeypatch.setenv("OUTBOXD_LOG_LEVEL", "warning")
    settings = load(overrides={"relay": "cli", "log_level": None})
    assert (settings.relay, settings.log_level, settings.wake, settings.admin_port, settings.log_format) == (
        "cli", "warning", "notify", 1, "auto",
    )  # fmt: skip


def test_secret_files_stand_between_dotenv_and_toml(tmp_path):
    """A secret mounted as a file beats the one in the TOML file."""
    (tmp_path / "outboxd.toml").write_text(f'source_dsn = "{DSN}"\n')
    (tmp_path / "secrets" / "source_dsn").write_text("postgresql://file/shop\n")
    assert load(needs={"source"}).source_conninfo == "postgresql://file/shop"
    assert load(overrides={"source_dsn": DSN}, needs={"source"}).source_conninfo == DSN


def test_well_known_names(monkeypatch):
    """The names a project already has are enough to start."""
    monkeypatch.setenv("DATABASE_URL", DSN)
    monkeypatch.setenv("SUPABASE_URL", URL)
    monkeypatch.setenv("SUPABASE_SECRET_KEY", SECRET)
    monkeypatch.setenv("SUPABASE_DB_URL", "postgresql://target/postgres")
    settings = load()
    assert reveal(settings) == (DSN, URL, SECRET)
    assert settings.target_conninfo == "postgresql://target/postgres"


def test_the_newer_key_wins_over_the_legacy_one(monkeypatch):
    """Both are set while a project moves from one kind of key to the other."""
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", jwt(role="service_role"))
    assert load(needs=()).key_kind == "jwt"
    monkeypatch.setenv("SUPABASE_SECRET_KEY", SECRET)
    assert load(needs=()).key_kind == "secret"


@pytest.mark.parametrize("place", ["environment", "dotenv"])
def test_our_own_name_wins_over_a_well_known_one(monkeypatch, tmp_path, place):
    """DATABASE_URL belongs to the application; OUTBOXD_SOURCE_DSN is about us, in the same place."""
    if place == "environment":
        monkeypatch.setenv("DATABASE_URL", DSN)
        monkeypatch.setenv("OUTBOXD_SOURCE_DSN", "postgresql://ours/shop")
    else:
        (tmp_path / ".env").touch(0o600)
        (tmp_path / ".env").write_text(f"DATABASE_URL={DSN}\nOUTBOXD_SOURCE_DSN=postgresql://ours/shop\n")
    assert load(needs={"source"}).source_conninfo == "postgresql://ours/shop"


def test_well_known_names_in_dotenv(tmp_path):
    """A project's .env is read as it is, its other variables included."""
    (tmp_path / ".env").touch(0o600)
    (tmp_path / ".env").write_text(f'DATABASE_URL="{DSN}"\nNODE_ENV=production\n')
    assert load(needs={"source"}).source_conninfo == DSN


def test_an_empty_variable_is_not_set(complete, monkeypatch):
    """Compose files pass empty variables on for everything that is not set outside."""
    monkeypatch.setenv("OUTBOXD_RELAY", "")
    monkeypatch.setenv("OUTBOXD_SOURCE_DSN", "")
    monkeypatch.setenv("DATABASE_URL", f" {DSN}\n")
    assert load().relay == "main"
    assert load().source_conninfo == DSN


def test_nested_settings(complete, monkeypatch, tmp_path):
    """The breaker is a table in TOML and has a double underscore in the environment; both add up."""
    (tmp_path / "outboxd.toml").write_text("[breaker]\nwindow = 60\nopen_cap = 30\n")
    monkeypatch.setenv("OUTBOXD_BREAKER__WINDOW", "120")
    settings = load(overrides={"breaker": {"consecutive_failures": 5}})
    assert settings.breaker.thresholds == Thresholds(consecutive_failures=5, window=120.0, open_cap=30.0)


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_the_config_file_can_be_named(complete, monkeypatch, tmp_path, how):
    """--config and OUTBOXD_CONFIG replace ./outboxd.toml."""
    (tmp_path / "outboxd.toml").write_text('relay = "wrong"')
    (tmp_path / "other.toml").write_text('relay = "right"')
    monkeypatch.setenv("OUTBOXD_CONFIG", str(tmp_path / ("other.toml" if how == "variable" else "none.toml")))
    assert load(tmp_path / "other.toml" if how == "argument" else None).relay == "right"


def test_a_named_config_file_must_exist(complete, tmp_path):
    """Only the default file may be absent."""
    (problem,) = problems(tmp_path / "absent.toml")
    assert problem == Problem("--config", "names a file that does not exist", origin=str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("content", [b"relay = ", b"relay = 'a'\nrelay = 'b'", b"\xff\xfe"])
def test_a_broken_config_file_is_named(complete, tmp_path, content):
    """With the line when TOML can tell it, and never as a traceback."""
    (tmp_path / "outboxd.toml").write_bytes(content)
    (problem,) = problems()
    assert problem.what.startswith("is not TOML in UTF-8: ")
    assert problem.origin == "outboxd.toml"


@pytest.mark.parametrize("name", ["OUTBOXD_SOURCE_DSN", "outboxd_source_dsn", "source_dsn", "DATABASE_URL"])
@pytest.mark.parametrize("folder", ["secrets", "credentials"])
def test_secrets_of_containers_and_systemd(monkeypatch, tmp_path, folder, name):
    """A file in /run/secrets or in systemd's credentials, under any sensible name, without its last newline."""
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / folder / name).write_text(f"{DSN}\n")
    assert load(needs={"source"}).source_conninfo == DSN


@pytest.mark.parametrize("variable", ["OUTBOXD_SUPABASE_KEY_FILE", "SUPABASE_SECRET_KEY_FILE"])
def test_a_variable_may_name_the_file(monkeypatch, tmp_path, variable):
    """The habit of container images: NAME_FILE instead of NAME."""
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(SECRET)
    monkeypatch.setenv(variable, str(tmp_path / "key"))
    assert load(needs=()).key_kind == "secret"


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch, tmp_path, content):
    """A typo in the path must not look like a missing key."""
    if content:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", str(tmp_path / "key"))
    (problem,) = problems(needs=())
    assert problem == Problem("supabase_key", "cannot be read", origin=f"the file {tmp_path / 'key'}")


def test_a_secret_set_twice_must_be_the_same(monkeypatch, tmp_path):
    """After half a key rotation nobody should have to guess which of the two is in use."""
    monkeypatch.setenv("SUPABASE_SECRET_KEY", SECRET)
    file = tmp_path / "secrets" / "supabase_secret_key"
    file.write_text(SECRET)
    assert load(needs=()).key_kind == "secret"
    file.write_text("sb_secret_another")
    (problem,) = problems(needs=())
    assert problem.what == (
        f"is set twice, differently: in environment variable SUPABASE_SECRET_KEY and in the file {file}; remove one"
    )


def test_everything_missing_is_said_at_once():
    """One block names each setting, where to put it and what it looks like."""
    with pytest.raises(ConfigError) as refused:
        load()
    assert str(refused.value) == (
        "the configuration has 3 problems:\n"
        "  source_dsn is missing: set OUTBOXD_SOURCE_DSN or DATABASE_URL\n"
        "      example: postgresql://outboxd:…@db.example/app\n"
        "  supabase_url is missing: set OUTBOXD_SUPABASE_URL or SUPABASE_URL\n"
        "      example: https://<project-ref>.supabase.co\n"
        "  supabase_key is missing: set OUTBOXD_SUPABASE_KEY or SUPABASE_SECRET_KEY or SUPABASE_SERVICE_ROLE_KEY\n"
        "      example: sb_secret_…"
    )


@pytest.mark.parametrize(
    ("needs", "transport", "missing"),
    [
        ((), "rest", []),
        ({"source"}, "rest", ["source_dsn"]),
        ({"target"}, "rest", ["supabase_url", "supabase_key"]),
        ({"target"}, "postgres", ["target_dsn"]),
        ({"source", "target"}, "postgres", ["source_dsn", "target_dsn"]),
    ],
)
def test_only_what_is_needed_may_be_missing(needs, transport, missing):
    """`watch` needs no target, and the direct transport needs no API key."""
    if missing:
        assert [p.setting for p in problems(overrides={"transport": transport}, needs=needs)] == missing
    else:
        assert load(overrides={"transport": transport}, needs=needs).source_dsn is None


def test_an_address_that_was_not_needed_is_not_handed_out():
    """Asking for it anyway is a bug in the command, and is told apart from a bad address."""
    settings = load(needs=())
    with pytest.raises(LookupError):
        _ = settings.source_conninfo
    with pytest.raises(LookupError):
        _ = settings.target_conninfo
    assert settings.key_kind is None
    assert not settings.looks_pooled


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [
        ("batch_changes", "0", "should be greater than or equal to 1"),
        ("batch_changes", "10001", "should be less than or equal to 10000"),
        ("batch_changes", "many", "should be a valid integer, unable to parse string as an integer"),
        ("request_timeout", "14.9", "should be greater than or equal to 15"),
        ("request_timeout", "60", "should be less than 60"),
        ("relay", "Main", "should match pattern '^[a-z][a-z0-9_]{0,30}$'"),
        ("relay", "a" * 32, "should match pattern '^[a-z][a-z0-9_]{0,30}$'"),
        ("transport", "grpc", "should be 'rest' or 'postgres'"),
        ("wake", "never", "should be 'auto', 'notify' or 'poll'"),
        ("admin_port", "65536", "should be less than or equal to 65535"),
        ("poll_interval", "nan", "should be less than or equal to 30"),
        ("request_interval", "-0.1", "should be greater than or equal to 0"),
        ("request_interval", "11", "should be less than or equal to 10"),
        ("batch_bytes", 65_535, "should be greater than or equal to 65536"),
        ("batch_bytes", 2**26 + 1, "should be less than or equal to 67108864"),
        ("admin_host", "", "should have at least 1 character"),
        ("exposed_schema", "a b", "should match pattern '^[A-Za-z_][A-Za-z0-9_]{0,62}$'"),
    ],
)
def test_a_value_out_of_bounds(setting, value, what):
    """The bound is said, the value is not repeated."""
    assert says(setting, value) == what


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("consecutive_failures", 0, 1),
        ("failure_ratio", 0, 0.01),
        ("failure_ratio", 1.1, 1),
        ("minimum_calls", 0, 1),
        ("minimum_calls", 1001, 1000),
        ("window", 0, 0.5),
        ("slow_call", 0, 0.5),
        ("open_first", 0, 0.5),
        ("open_cap", 0, 0.5),
        ("open_cap", float("inf"), 3600),
    ],
)
def test_bounds_of_the_breaker(name, wrong, right):
    """A breaker that can never open, or never close, is no breaker."""
    (problem,) = problems(overrides={"breaker": {name: wrong}}, needs=())
    assert problem.setting == f"breaker.{name}"
    settings = load(overrides={"breaker": {name: right}}, needs=())
    assert getattr(settings.breaker.thresholds, name) == right


def test_one_problem_reads_well(monkeypatch):
    """Singular, what, from where, example."""
    monkeypatch.setenv("OUTBOXD_WAKE", "never")
    with pytest.raises(ConfigError) as refused:
        load(needs=())
    assert str(refused.value) == (
        "the configuration has 1 problem:\n"
        "  wake should be 'auto', 'notify' or 'poll'\n"
        "      from: environment variable OUTBOXD_WAKE\n"
        "      example: auto"
    )


def test_a_problem_names_source_and_example(monkeypatch):
    """What to change, where it stands, and what it should look like."""
    monkeypatch.setenv("OUTBOXD_BREAKER__WINDOW", "-1")
    monkeypatch.setenv("OUTBOXD_LOG_LEVEL", "loud")
    assert problems(needs=()) == [
        Problem("breaker.window", "should be greater than 0", "300.0", "environment variable OUTBOXD_BREAKER__WINDOW"),
        Problem(
            "log_level",
            "should be 'debug', 'info', 'warning' or 'error'",
            "info",
            "environment variable OUTBOXD_LOG_LEVEL",
        ),
    ]


def test_unknown_names_are_problems_with_a_guess(monkeypatch, tmp_path):
    """A typo must not silently leave the default in force."""
    (tmp_path / "outboxd.toml").write_text("batch_change = 5\n[breaker]\nwindows = 5\n[xyz]\nq = 1\n")
    (tmp_path / ".env").write_text("OUTBOXD_REALY=x\n")
    monkeypatch.setenv("OUTBOXD_BREAKER__OPENCAP", "5")
    assert sorted((p.setting, p.what, p.origin) for p in problems(needs=())) == [
        ("OUTBOXD_BREAKER__OPENCAP", "is no setting; did you mean OUTBOXD_BREAKER__OPEN_CAP?",
         "environment variable OUTBOXD_BREAKER__OPENCAP"),
        ("OUTBOXD_REALY", "is no setting; did you mean OUTBOXD_RELAY?", "OUTBOXD_REALY in .env"),
        ("batch_change", "is no setting; did you mean batch_changes?", "outboxd.toml"),
        ("breaker.windows", "is no setting; did you mean breaker.window?", "outboxd.toml"),
        ("xyz.q", "is no setting", "outboxd.toml"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "dsn",
    [
        DSN,
        "postgres://db",
        "postgresql:///shop",
        "postgresql://app@/shop?host=/run/postgresql",
        "postgresql://a:5432,b:5432/shop",
        "postgresql://?host=/tmp",
        "host=db dbname=shop",
        r"dbname = 'my shop' password='it\'s'",
        r"host=db password=a\ b",
        "host=db password=a://b",
        "service=shop",
        "postgresql://app:100%25sure%20p%40ss@db/shop?sslmode=verify-full&connect_timeout=3",
        "postgresql://a:1,b:2/shop?target_session_attrs=read-write",
        "host=@abstract dbname=shop keepalives=0",
    ],
)
def test_addresses_libpq_takes(dsn):
    """A URL or keywords, as long as they say where to."""
    assert load(overrides={"source_dsn": dsn}, needs=()).source_conninfo == dsn


UNREADABLE = "cannot be read as an address: in a user's name or a password % is written %25, a space %20, @ %40, / %2F, : %3A, [ %5B"
NO_PORT = "has a port that is no number up to 65535 (in a password / is written %2F, : %3A)"


@pytest.mark.parametrize(
    ("dsn", "what"),
    [
        ("db.example", "is neither a postgresql:// address nor a list of key=value pairs"),
        ("host=db password=", "is neither a postgresql:// address nor a list of key=value pairs"),
        ("user=app password=hunter2", "names neither a host nor a database"),
        ("postgresql://", "names neither a host nor a database"),
        ("postgresql://app:hunter2@", "names neither a host nor a database"),
        ("mysql://app:hunter2@db/shop", "must begin with postgresql://"),
        ("https://app:hunter2@db/shop", "must begin with postgresql://"),
        (
            "postgresql+asyncpg://app:hunter2@db/shop",
            "is an SQLAlchemy address: write postgresql:// without the driver's name",
        ),
        ("postgresql://app:hunter2[@db/shop", UNREADABLE),
        ("postgresql://app:100%hunter2@db/shop", UNREADABLE),
        ("postgresql://app:hunter2 x@db/shop", UNREADABLE),
        ("postgresql://app:hunter2@x@db/shop", UNREADABLE),
        ("postgresql://app:hunter2\udcff@db/shop", UNREADABLE),
        ("host=db\0 password=hunter2", UNREADABLE),
        ("postgresql://app:hunter2/x@db/shop", NO_PORT),
        ("postgresql://app:hunter2@db:99999/shop", NO_PORT),
        ("postgresql://app:hunter2@db:5432x/shop", NO_PORT),
        ("host=db password=hunter2 port=0", NO_PORT),
        ("postgresql://app:hunter2@/shop?host=a,b,c&port=1,2", "has not as many ports as hosts"),
        ("postgresql://app:hunter2@db/shop?sslmod=require", "has an option that libpq does not know"),
        ("host=db password=hunter2 hunter2=x", "has an option that libpq does not know"),
        (
            "postgresql://app:hunter2@db/shop?sslmode=no-verify",
            "has a value of sslmode that is none of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        ("host=db password=hunter2 connect_timeout=hunter2", "has a value of connect_timeout that is no number"),
    ],
)
@pytest.mark.parametrize("setting", ["source_dsn", "target_dsn"])
def test_addresses_libpq_would_refuse(setting, dsn, what):
    """Each common mistake has its sentence, and the password is in none."""
    assert says(setting, dsn) == what


@pytest.mark.parametrize(
    ("dsn", "taken"),
    [
        ("postgresql://db/shop?schema=public", "postgresql://db/shop"),
        (
            "postgresql://db/shop?pgbouncer=true&sslmode=require&connection_limit=1",
            "postgresql://db/shop?sslmode=require",
        ),
        ("postgresql://db/shop?sslmode=require", "postgresql://db/shop?sslmode=require"),
        ("host=db password=a?schema=b", "host=db password=a?schema=b"),
    ],
)
def test_parameters_of_prisma_are_left_out(dsn, taken):
    """libpq refuses a URL with schema=…, and Prisma writes it into every DATABASE_URL."""
    settings = load(overrides={"source_dsn": dsn, "target_dsn": dsn}, needs=())
    assert (settings.source_conninfo, settings.target_conninfo) == (taken, taken)


@pytest.mark.parametrize(
    ("dsn", "pooled"),
    [
        ("postgresql://app:x@aws-0-eu.pooler.supabase.com:6543/postgres", True),
        ("postgresql://app:x@aws-0-eu.pooler.supabase.com:5432/postgres", False),
        ("postgresql://app:x@ep-cool-night-123-pooler.eu-central-1.aws.neon.tech/shop", True),
        ("postgresql://db/shop?pgbouncer=true", True),
        ("host=db port=6543 dbname=shop", True),
        ("host=db port = '6543'", True),
        ("host=db port=65432", False),
        ("postgresql://app:6543@db/shop", False),
        ("postgresql://db:65430/shop", False),
    ],
)
def test_transaction_poolers_are_recognised(dsn, pooled):
    """Port, host or flag gives them away; the session pooler on 5432 is fine."""
    assert looks_pooled(dsn) is pooled
    assert load(overrides={"source_dsn": dsn}, needs=()).looks_pooled is pooled


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        (URL, URL),
        (URL + "/", URL),
        ("HTTPS://Api.Example.com:8443", "https://api.example.com:8443"),
        ("http://localhost:54321/", "http://localhost:54321"),
        ("http://127.0.0.1:54321", "http://127.0.0.1:54321"),
        ("http://[::1]:54321", "http://[::1]:54321"),
        ("http://api.localhost", "http://api.localhost"),
    ],
)
def test_addresses_of_a_project(url, taken):
    """https anywhere, plain http only to this machine; a trailing slash does not matter."""
    assert load(overrides={"supabase_url": url}, needs=()).supabase_url == taken


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (
            "https://supabase.com/dashboard/project/abcdefghijklmnopqrst/settings/api",
            f"is the dashboard's address; the API's is {URL}",
        ),
        (
            "https://supabase.com/dashboard",
            "is the dashboard's address; the API's is https://<project-ref>.supabase.co",
        ),
        (
            "http://api.example.com",
            "must begin with https:// (http:// only to this machine): requests carry the key",
        ),
        ("https://app:hunter2@api.example.com", "must not carry a user or a password"),
        ("abcdefghijklmnopqrst.supabase.co", "must begin with https://"),
        ("https://", "must begin with https://"),
        ("postgresql://db.example/postgres", "must begin with https://"),
        (SECRET, "must begin with https://"),
        (f"{URL}/rest/v1", "must be the bare address: what comes after the host is added by outboxd"),
        (f"{URL}?apikey=x", "must be the bare address: what comes after the host is added by outboxd"),
        ("https://api.example.com:port", "has a port that is no number"),
        ("https://169.254.169.254", "is a link-local address"),
        ("https://[::1", "cannot be read as an address"),
    ],
)
def test_addresses_that_are_no_project(url, what):
    """Each common mistake has its sentence."""
    assert says("supabase_url", url) == what


@pytest.mark.parametrize(
    ("key", "kind"), [(SECRET, "secret"), (jwt(role="service_role"), "jwt"), ("sb_secret_x", "secret")]
)
def test_kinds_of_key(key, kind):
    """The new secret keys, and the legacy token of service_role."""
    assert load(overrides={"supabase_key": key}, needs=()).key_kind == kind


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("sb_publishable_abc", "is the publishable (anon) key; outboxd needs the secret key"),
        (jwt(role="anon"), "is the publishable (anon) key; outboxd needs the secret key"),
        (
            jwt(role="authenticated"),
            "is a token for another role; outboxd needs the secret key or that of service_role",
        ),
        (jwt(), "is neither a secret key (sb_secret_…) nor a service_role token"),
        ("hunter2", "is neither a secret key (sb_secret_…) nor a service_role token"),
        ("a.b.c", "is neither a secret key (sb_secret_…) nor a service_role token"),
        ("sb_secret_", "is neither a secret key (sb_secret_…) nor a service_role token"),
        ("sb_secret_a\r\nx-evil: 1", "is neither a secret key (sb_secret_…) nor a service_role token"),
        (
            jwt(role="service_role") + "\nx-evil: 1",
            "is neither a secret key (sb_secret_…) nor a service_role token",
        ),
    ],
)
def test_keys_that_would_not_work(key, what):
    """The anon key is the likeliest mistake; a newline would be a header of its own."""
    assert says("supabase_key", key) == what


def test_no_secret_in_any_representation(complete):
    """Not in repr, not in a dump, not in pydantic's own error."""
    settings = load(overrides={"target_dsn": DSN})
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hunter2" not in shown
    assert "N7UND0" not in shown
    with pytest.raises(ValidationError) as refused:
        Settings(source_dsn="hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


def test_made_directly_it_reads_nothing(complete):
    """Only `load` looks around: a test or an embedding sees what it passes."""
    assert Settings().source_dsn is None


def test_settings_cannot_be_changed(complete):
    """They are read once; a reload makes new ones."""
    with pytest.raises(ValidationError):
        load().relay = "other"


def test_shown_with_source_and_without_secret(complete, monkeypatch):
    """`config show` says what is in force and who said so."""
    monkeypatch.setenv("OUTBOXD_BREAKER__WINDOW", "60")
    shown = redacted(load(overrides={"relay": "main"}))
    assert shown["source_dsn"] == {
        "value": "postgresql://app:***@db.example/shop",
        "from": "environment variable OUTBOXD_SOURCE_DSN",
    }
    assert shown["supabase_key"] == {
        "value": "set (secret, sb_secret_N7UND0…)",
        "from": "environment variable OUTBOXD_SUPABASE_KEY",
    }
    assert shown["relay"] == {"value": "main", "from": "the command line"}
    assert shown["breaker.window"] == {
        "value": 60.0,
        "from": "environment variable OUTBOXD_BREAKER__WINDOW",
    }
    assert shown["wake"] == {"value": "auto", "from": "default"}
    assert shown["target_dsn"] == {"value": None, "from": "default"}
    assert json.loads(json.dumps(shown)) == shown


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://app:p@ss/hunter2@db/shop", "postgresql://app:***@db/shop"),
        ("postgresql://app@db/shop", "postgresql://app@db/shop"),
        ("postgresql://db:5432/shop?password=hun@ter2&sslmode=require",
         "postgresql://db:5432/shop?password=***&sslmode=require"),
        ("host=db password=hunter2&x dbname=shop", "host=db password=*** dbname=shop"),
        ("host=db password = 'hun ter2' dbname=shop", "host=db password = *** dbname=shop"),
        ("host=db sslpassword=hunter2", "host=db sslpassword=***"),
    ],
)  # fmt: skip
def test_a_shown_address_has_no_password(dsn, shown):
    """Host, user and database stay: they are what one wants to see."""
    settings = load(overrides={"source_dsn": dsn}, needs=())
    assert redacted(settings)["source_dsn"] == {"value": shown, "from": "the command line"}


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (jwt(role="service_role"), "set (jwt)"),
        ("sb_secret_" + "x" * 19, "set (secret)"),
        ("sb_secret_" + "x" * 20, "set (secret, sb_secret_xxxxxx…)"),
    ],
)
def test_a_shown_key_gives_nothing_away(key, shown):
    """A prefix only where enough stays hidden behind it."""
    assert redacted(load(overrides={"supabase_key": key}, needs=()))["supabase_key"] == {
        "value": shown,
        "from": "the command line",
    }


def test_an_unreadable_dotenv_is_a_problem(tmp_path):
    """A folder or a binary called .env is said, not raised."""
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00")
    assert problems(needs=()) == [Problem(".env", "cannot be read")]


PLACES = {
    "named by a variable": ("key", SECRET, "supabase_key"),
    ".env": (".env", f"OUTBOXD_SUPABASE_KEY={SECRET}\n", "supabase_key"),
    "a well-known name in .env": (".env", f"DATABASE_URL={DSN}\n", "source_dsn"),
    "outboxd.toml": ("outboxd.toml", f'target_dsn = "{DSN}"\n', "target_dsn"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_that_everybody_may_read_is_refused(monkeypatch, tmp_path, place):
    """With the command that mends it. The owner's group may read it: that is how a daemon's user gets it."""
    name, content, setting = PLACES[place]
    file = tmp_path / name
    file.write_text(content)
    if name == "key":
        monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", str(file))
    for allowed in (0o600, 0o640, 0o400):
        file.chmod(allowed)
        assert load(needs=()).transport == "rest"
    for refused in (0o644, 0o604, 0o444):
        file.chmod(refused)
        (problem,) = problems(needs=())
        assert problem.setting == setting
        shown = file if name == "key" else name
        assert problem.what == f"stands in a file that every user of this machine may read: chmod o-r {shown}"


def test_what_is_no_secret_may_be_read(tmp_path):
    """An address without a password, and files that hold no secret in use."""
    (tmp_path / ".env").write_text("OUTBOXD_SOURCE_DSN=postgresql://app@db/shop\n")
    (tmp_path / ".env").chmod(0o644)
    (tmp_path / "outboxd.toml").write_text(f'source_dsn = "{DSN}"\nsupabase_url = "{URL}"\n')
    (tmp_path / "outboxd.toml").chmod(0o644)
    assert load(needs={"source"}).source_conninfo == "postgresql://app@db/shop"


@pytest.mark.parametrize("folder", ["secrets", "credentials"])
@pytest.mark.parametrize("how", ["found", "named"])
def test_a_runtimes_secrets_have_whatever_mode_it_gives_them(monkeypatch, tmp_path, folder, how):
    """Docker mounts secrets with 0444, for this container alone: no chmod could change that."""
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    file = tmp_path / folder / ("supabase_key" if how == "found" else "whatever")
    file.write_text(SECRET)
    file.chmod(0o444)
    if how == "named":
        monkeypatch.setenv("OUTBOXD_SUPABASE_KEY_FILE", str(file))
    assert load(needs=()).key_kind == "secret"


@pytest.mark.parametrize(
    ("name", "value", "lacking"),
    [
        ("OUTBOXD_SUPABASE_KEY", "", "supabase_key is missing"),
        ("OUTBOXD_SUPABASE_KEY", "sb_publishable_x", "supabase_key is the publishable (anon) key"),
        ("OUTBOXD_SUPABASE_URL", "https://supabase.com/dashboard", "supabase_url is the dashboard's address"),
        ("OUTBOXD_TARGET_DSN", "mysql://db", "target_dsn must begin with postgresql://"),
        ("OUTBOXD_TRANSPORT", "postgres", "target_dsn is missing"),
        ("OUTBOXD_SUPABASE_KEY_FILE", "/nonexistent/key", "supabase_key cannot be read"),
    ],
)
def test_the_daemon_starts_without_the_supabase_side(complete, monkeypatch, name, value, lacking):
    """What is missing or wrong there is said; nothing of that side is used, the rest is as it is set."""
    monkeypatch.setenv(name, value)
    if name.endswith("_FILE"):
        monkeypatch.delenv("OUTBOXD_SUPABASE_KEY")
    loaded = load_without_target()
    assert f"{loaded.lacking[0].setting} {loaded.lacking[0].what}".startswith(lacking)
    assert loaded.settings.source_conninfo == DSN
    assert (loaded.settings.supabase_url, loaded.settings.supabase_key, loaded.settings.target_dsn) == (None,) * 3
    with pytest.raises(ConfigError):
        load()


def test_with_everything_there_nothing_is_lacking(complete):
    loaded = load_without_target()
    assert loaded.lacking == ()
    assert reveal(loaded.settings) == (DSN, URL, SECRET)


@pytest.mark.parametrize(
    ("name", "value"), [("SOURCE_DSN", ""), ("SOURCE_DSN", "db"), ("RELAY", "Main!"), ("REALY", "x")]
)
def test_what_is_not_the_supabase_side_is_never_forgiven(complete, monkeypatch, name, value):
    """The message then names what is wrong on either side."""
    monkeypatch.setenv(f"OUTBOXD_{name}", value)
    monkeypatch.delenv("OUTBOXD_SUPABASE_KEY")
    with pytest.raises(ConfigError) as refused:
        load_without_target()
    assert {"supabase_key"} < {problem.setting for problem in refused.value.problems}


def test_the_documented_names_exist():
    """Each setting has the name that the environment and the TOML file use; none was renamed unnoticed."""
    assert list(Settings.model_fields) == [
        "source_dsn", "supabase_url", "supabase_key", "target_dsn", "transport", "relay", "exposed_schema",
        "batch_changes", "batch_bytes", "row_bytes", "retention", "heartbeat_interval", "copy_rows_per_second", "verify_interval", "verify_rows_per_second", "wake", "poll_interval", "request_interval", "request_timeout", "breaker", "tables", "schema_", "admin",
        "admin_host", "admin_port", "admin_hosts", "log_level", "log_format",
    ]  # fmt: skip
