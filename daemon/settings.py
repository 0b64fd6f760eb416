"""Every setting of the daemon: its name, its default, where it may come from, and what is wrong with it.

Knows environment variables, `.env`, secret files and TOML, and the looks of keys and addresses. Must not know
what a setting is used for: values leave as plain arguments, and only the edges (cli, main) import this. No
message made here repeats a value: somebody may have pasted the key into the wrong variable.
"""

import difflib
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from daemon.breaker import Thresholds
from daemon.credentials import (
    carries_secret,
    check_dsn,
    check_key,
    check_url,
    for_libpq,
    kind_of_key,
    looks_pooled,
    masked,
)
from daemon.private import world_may_read
from daemon.tables import SchemaSettings, TableSettings, parts

# Names other tools already use. The OUTBOXD_ form wins over these, and an earlier one over a later one.
ALIASES = {
    "DATABASE_URL": "source_dsn",
    "SUPABASE_URL": "supabase_url",
    "SUPABASE_SECRET_KEY": "supabase_key",
    "SUPABASE_SERVICE_ROLE_KEY": "supabase_key",
    "SUPABASE_DB_URL": "target_dsn",
}
SECRETS = ("source_dsn", "supabase_key", "target_dsn")
# Where a runtime mounts secrets for this process alone, and often with mode 0444: their mode says nothing.
SECRETS_FOLDER = Path("/run/secrets")
# The Supabase side: without it, `outboxd run` starts all the same.
TARGET_SIDE = ("supabase_url", "supabase_key", "target_dsn")
Need = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class Problem:
    setting: str
    what: str
    example: str = ""
    origin: str = ""


class ConfigError(Exception):
    """All that is wrong with the configuration, as one block for the operator."""

    def __init__(self, problems: Collection[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"the configuration has {len(problems)} problem{'s' * (len(problems) > 1)}:"]
        for one in self.problems:
            lines.append(f"  {one.setting} {one.what}")
            lines += [f"      from: {one.origin}"] * bool(one.origin)
            lines += [f"      example: {one.example}"] * bool(one.example)
        super().__init__("\n".join(lines))


_Dsn = Annotated[SecretStr, AfterValidator(check_dsn)]
_default = Thresholds()
_NOT_SETTINGS = {"outboxd_config", "outboxd_failpoint", *(f"outboxd_{secret}_file" for secret in SECRETS)}


class BreakerSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    consecutive_failures: Annotated[int, Field(ge=1)] = _default.consecutive_failures
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = _default.failure_ratio
    minimum_calls: Annotated[int, Field(ge=1, le=1000)] = _default.minimum_calls
    window: Annotated[float, Field(gt=0)] = _default.window
    slow_call: Annotated[float, Field(gt=0)] = _default.slow_call
    open_first: Annotated[float, Field(gt=0)] = _default.open_first
    open_cap: Annotated[float, Field(gt=0)] = _default.open_cap

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(**self.model_dump())


class Settings(BaseSettings):
    """What `load` found. Made directly, it reads nothing but its arguments."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # The application's Postgres, and the Supabase project: its API, its secret key, its Postgres.
    source_dsn: _Dsn | None = Field(default=None, examples=["postgresql://outboxd:…@db.example/app"])
    supabase_url: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None, examples=["https://<project-ref>.supabase.co"]
    )
    supabase_key: Annotated[SecretStr, AfterValidator(check_key)] | None = Field(default=None, examples=["sb_secret_…"])
    target_dsn: _Dsn | None = Field(
        default=None, examples=["postgresql://postgres:…@db.<project-ref>.supabase.co:5432/postgres"]
    )
    transport: Literal["rest", "postgres"] = "rest"
    relay: str = Field(default="main", pattern=r"^[a-z][a-z0-9_]{0,30}$")
    exposed_schema: str = Field(default="public", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    batch_changes: int = Field(default=5000, ge=1, le=10_000)
    batch_bytes: int = Field(default=4 * 1024**2, ge=64 * 1024, le=64 * 1024**2)
    row_bytes: int = Field(default=16 * 1024**2, ge=64 * 1024, le=128 * 1024**2)
    retention: float = Field(default=86_400.0, ge=1)
    heartbeat_interval: float = Field(default=10.0, ge=0, le=3600)  # 0: none
    copy_rows_per_second: float = Field(default=0.0, ge=0, le=1e7)  # 0: as many as there are
    verify_interval: float = Field(default=86_400.0, ge=0)  # 0: only when somebody asks
    verify_rows_per_second: float = Field(default=2000.0, ge=0, le=1e7)  # of a pass nobody asked for; 0: no limit
    wake: Literal["auto", "notify", "poll"] = "auto"
    poll_interval: float = Field(default=1.0, gt=0, le=30)  # the seat belt while asleep
    # Above the 12 s that the target's function gives itself, below the 60 s of the gateway in front. A target that
    # hangs is known after it. Were PostgREST to wait for a connection first (up to 10 s), the request may still commit
    # after we gave up: harmless, because the target is asked where it stands before anything is sent again.
    request_timeout: float = Field(default=20.0, ge=15, lt=60)
    breaker: BreakerSettings = BreakerSettings()
    tables: dict[str, TableSettings] = {}
    schema_: SchemaSettings = Field(default=SchemaSettings(), alias="schema")  # pydantic has a `schema` of its own
    admin: bool = True
    admin_host: str = Field(default="127.0.0.1", min_length=1)
    admin_port: int = Field(default=9631, ge=0, le=65_535)  # 0: any free one
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    _origins: dict["_Name", str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` reads the sources: merged in here, nobody could say which of them a value is from."""
        return (init_settings,)

    @property
    def key_kind(self) -> Literal["secret", "jwt"] | None:
        return kind_of_key(self.supabase_key.get_secret_value()) if self.supabase_key else None

    @property
    def source_conninfo(self) -> str:
        """The source's address in a form that libpq takes."""
        return for_libpq(self.source_dsn)

    @property
    def target_conninfo(self) -> str:
        return for_libpq(self.target_dsn)

    @property
    def looks_pooled(self) -> bool:
        return self.source_dsn is not None and looks_pooled(self.source_dsn.get_secret_value())


_Name = tuple[str, ...]  # ("relay",), ("breaker", "window") or ("tables", "public.story", "owner")
_GROUPS: dict[str, type[BaseModel]] = {"breaker": BreakerSettings, "schema": SchemaSettings}
_NAMES: tuple[_Name, ...] = tuple(
    (name, inner) if inner else (name,)
    for name in (field.alias or name for name, field in Settings.model_fields.items())
    for inner in (_GROUPS[name].model_fields if name in _GROUPS else ("",))
    if name != "tables"
)


@dataclass(frozen=True, slots=True)
class _Found:
    """`file`: the one it stands in."""

    value: Any
    origin: str
    file: Path | None = None


_Layer = dict[_Name, _Found]


@dataclass(frozen=True, slots=True)
class Loaded:
    """`lacking`: what keeps the Supabase side from being used. `settings` has none of it then."""

    settings: Settings
    lacking: tuple[Problem, ...] = ()


def load_without_target(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """The settings, also when the Supabase side is missing or wrong. A ConfigError is about anything else, and names
    both."""
    found, problems = _gather(config, overrides or {})
    problems += _missing(found, ("source", "target"), problems)
    settings, wrong = _made(found)
    problems += wrong
    if problems and all(one.setting in TARGET_SIDE for one in problems):
        settings, wrong = _made({name: one for name, one in found.items() if name[0] not in TARGET_SIDE})
    if settings is None or any(one.setting not in TARGET_SIDE for one in problems):
        raise ConfigError(problems)
    return Loaded(settings, tuple(problems))


def load(
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    needs: Collection[Need] = ("source", "target"),
) -> Settings:
    """The settings from every place they may come from, or a ConfigError with all that is wrong at once.

    What is set must be right; what is missing matters only when `needs` names it.
    """
    found, problems = _gather(config, overrides or {})
    problems += _missing(found, needs, problems)
    settings, wrong = _made(found)
    if problems or settings is None:
        raise ConfigError([*problems, *wrong])
    return settings


def load_admin(config: Path | None = None) -> Settings:
    """What is set of the admin pages alone, whatever else is wrong or missing: a daemon that lacks it runs all the same."""
    found, _ = _gather(config, {})
    settings, wrong = _made({name: one for name, one in found.items() if name[0].startswith("admin")})
    if settings is None:
        raise ConfigError(wrong)
    return settings


def _made(found: _Layer) -> tuple[Settings | None, list[Problem]]:
    """The settings, or what is wrong with their values."""
    values: dict[str, Any] = {}
    for name, one in found.items():
        place = values
        for part in name[:-1]:
            place = place.setdefault(part, {})
        place[name[-1]] = one.value
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems = []
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            name = tuple(str(part) for part in each["loc"])
            what = re.sub(r"^(?:Value error, |Input |String )", "", each["msg"])
            # What is wrong with a whole table is from where any of its settings is.
            origin = next(
                (one.origin for known, one in found.items() if known[:3] == name[:3] or known[: len(name)] == name), ""
            )
            problems.append(Problem(_dotted(name), what, _example(name), origin))
        return None, problems
    settings._origins = {name: one.origin for name, one in found.items()}  # noqa: SLF001
    return settings, []


def _gather(config: Path | None, overrides: Mapping[str, Any]) -> tuple[_Layer, list[Problem]]:
    """Every value with where it is from, the strongest source winning; and what is odd about the sources."""
    problems: list[Problem] = []
    environment = EnvSettingsSource(Settings).env_vars
    try:
        dotenv = DotEnvSettingsSource(Settings, env_file=Path(".env")).env_vars
    except (OSError, ValueError):
        problems.append(Problem(".env", "cannot be read"))
        dotenv = {}
    command_line = {name: _Found(value, "the command line") for name, value in _leaves(overrides) if value is not None}
    variables = {
        **_aliased(dotenv, "{} in .env", Path(".env")),
        **_aliased(environment, "environment variable {}"),
        **_prefixed(dotenv, "{} in .env", problems, Path(".env")),
        **_prefixed(environment, "environment variable {}", problems),
    }
    everywhere = {**dotenv, **environment}
    mounts = [Path(everywhere.get("credentials_directory") or "/nonexistent"), SECRETS_FOLDER]
    files = _secret_files(everywhere, mounts, problems)
    for secret in SECRETS:
        here, there = variables.get((secret,)), files.get((secret,))
        if here and there and here.value != there.value:
            what = f"is set twice, differently: in {here.origin} and in {there.origin}; remove one"
            problems.append(Problem(secret, what))
    toml = _toml(config, everywhere.get("outboxd_config"), problems)
    found = {**toml, **files, **variables, **command_line}
    problems += _exposed(found, mounts)
    return found, problems


def _exposed(found: _Layer, mounts: Collection[Path]) -> Iterator[Problem]:
    """Secrets in use that every user of this machine may read."""
    for secret in SECRETS:
        one = found.get((secret,))
        if one and one.file and carries_secret(secret, str(one.value)) and world_may_read(one.file, mounts):
            fix = f"chmod o-r {shlex.quote(str(one.file))}"
            yield Problem(secret, f"stands in a file that every user of this machine may read: {fix}", "", one.origin)


def _leaves(table: Mapping[str, Any], above: _Name = ()) -> Iterator[tuple[_Name, Any]]:
    """Each setting; that of a table may be a mapping itself."""
    of_a_table = above[:1] == ("tables",) and len(above) == 2
    for key, value in table.items():
        if isinstance(value, Mapping) and not of_a_table:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _prefixed(
    variables: Mapping[str, str | None], where: str, problems: list[Problem], file: Path | None = None
) -> _Layer:
    layer: _Layer = {}
    for variable, value in variables.items():
        name = tuple(variable.removeprefix("outboxd_").split("__"))
        if not variable.startswith("outboxd_") or variable in _NOT_SETTINGS or not (value or "").strip():
            continue
        if name in _NAMES:
            layer[name] = _Found((value or "").strip(), where.format(variable.upper()), file)
        else:
            meant = [_variable(one) for one in _NAMES]
            problems.append(_unknown(variable.upper(), meant, where.format(variable.upper())))
    return layer


def _aliased(variables: Mapping[str, str | None], where: str, file: Path | None = None) -> _Layer:
    layer: _Layer = {}
    for alias, setting in ALIASES.items():
        if value := (variables.get(alias.lower()) or "").strip():
            layer.setdefault((setting,), _Found(value, where.format(alias), file))
    return layer


def _secret_files(environment: Mapping[str, str | None], folders: Collection[Path], problems: list[Problem]) -> _Layer:
    """`<NAME>_FILE` variables, then systemd's credentials, then a container's secrets."""
    layer: _Layer = {}
    for secret in SECRETS:
        names = _variables(secret)
        told = [Path(file) for name in names if (file := environment.get(f"{name.lower()}_file"))]
        spelled = [spelling for name in (*names, secret) for spelling in (name, name.lower())]
        usual = [folder / name for folder in folders for name in spelled]
        for path in (*told, *usual):
            try:
                if path in told or path.is_file():
                    layer[(secret,)] = _Found(path.read_text("utf-8").strip(), f"the file {path}", path)
                    break
            except (OSError, ValueError):
                problems.append(Problem(secret, "cannot be read", origin=f"the file {path}"))
                break
    return layer


def _toml(told: Path | None, variable: str | None, problems: list[Problem]) -> _Layer:
    path = told or Path(variable or "outboxd.toml")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if told or variable:
            problems.append(Problem("--config", "names a file that does not exist", origin=str(path)))
        return {}
    except (OSError, ValueError) as error:
        what = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "cannot be read"
        problems.append(Problem("--config", f"is not TOML in UTF-8: {what}", origin=str(path)))
        return {}
    layer = {name: _Found(value, str(path), path) for name, value in _leaves(table)}
    known = [".".join(name) for name in _NAMES]
    for name in layer:
        if name[0] == "tables":
            problems += _table_problems(name, layer, str(path))
        elif name not in _NAMES:
            problems.append(_unknown(".".join(name), known, str(path)))
    return {name: one for name, one in layer.items() if name in _NAMES or _is_of_table(name)}


def _is_of_table(name: _Name) -> bool:
    return name[0] == "tables" and len(name) == 3 and name[2] in TableSettings.model_fields


def _table_problems(name: _Name, layer: _Layer, origin: str) -> Iterator[Problem]:
    """What is wrong with the name of a table's setting, or with that of the table."""
    if len(name) < 3:
        yield Problem(_dotted(name), 'is to be a table of settings: [tables."public.story"]', origin=origin)
        return
    if name[2] not in TableSettings.model_fields:
        yield _unknown(_dotted(name), [_dotted((*name[:2], one)) for one in TableSettings.model_fields], origin)
    if parts(name[1]) is None:
        yield Problem(_dotted(name[:2]), "is no name of a table", 'public.story, or public."Story"', origin)
    elif (first := next(one[1] for one in layer if len(one) == 3 and parts(one[1]) == parts(name[1]))) != name[1]:
        yield Problem(_dotted(name[:2]), f"is the same table as {_dotted(('tables', first))}", origin=origin)


def _missing(found: _Layer, needs: Collection[Need], known: Collection[Problem]) -> list[Problem]:
    transport = found.get(("transport",))
    direct = transport is not None and transport.value == "postgres"
    wanted = ["source_dsn"] * ("source" in needs)
    if "target" in needs:
        wanted += ["target_dsn"] if direct else ["supabase_url", "supabase_key"]
    problems = []
    for setting in wanted:
        if (setting,) not in found and setting not in {one.setting for one in known}:
            what = f"is missing: set {' or '.join(_variables(setting))}"
            problems.append(Problem(setting, what, _example((setting,))))
    return problems


def _unknown(name: str, known: Collection[str], origin: str) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    return Problem(name, f"is no setting{f'; did you mean {near[0]}?' if near else ''}", origin=origin)


def _dotted(name: _Name) -> str:
    """As TOML has it; a table's own name holds a dot."""
    return ".".join(repr(part) if i == 1 and name[0] == "tables" else part for i, part in enumerate(name))


def _variable(name: _Name) -> str:
    return "OUTBOXD_" + "__".join(name).upper()


def _variables(setting: str) -> list[str]:
    return [_variable((setting,)), *(alias for alias, name in ALIASES.items() if name == setting)]


def _example(name: _Name) -> str:
    if name[0] == "tables":
        return ""
    fields = _GROUPS[name[0]].model_fields if name[0] in _GROUPS and len(name) > 1 else Settings.model_fields
    field = fields.get(name[-1])
    return str(field.examples[0] if field.examples else field.default) if field else ""


def redacted(settings: Settings) -> dict[str, dict[str, object]]:
    """Each setting's value and where it is from, fit to be masked."""
    shown: dict[str, dict[str, object]] = {}
    of_tables = [name for name in settings._origins if name[0] == "tables"]  # noqa: SLF001
    for name in (*_NAMES, *of_tables):
        value: Any = settings
        for part in name:
            value = value[part] if isinstance(value, dict) else getattr(value, "schema_" if part == "schema" else part)
        if isinstance(value, SecretStr):
            value = masked(name[0], value.get_secret_value())
        origin = settings._origins.get(name, "default")  # noqa: SLF001
        shown[_dotted(name)] = {"value": value, "from": origin}
    return shown
