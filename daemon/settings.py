"""Every setting of the daemon: its name, its default, and what it may be.

Knows the looks of keys and addresses, and the names that other tools use. Must not know where a value is from
(daemon/configuration.py), nor what a setting is used for. No message made here repeats a value: somebody may have
pasted the key into the wrong variable.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr

from daemon.breaker import Thresholds
from daemon.credentials import (
    check_dsn,
    check_hosts,
    check_key,
    check_url,
    for_libpq,
    kind_of_key,
    listed,
    looks_pooled,
    masked,
    project_of,
)
from daemon.tables import SchemaSettings, TableSettings

# Names other tools already use. The OUTBOXD_ form wins over these, and an earlier one over a later one.
ALIASES = {
    "DATABASE_URL": "source_dsn",
    "SUPABASE_URL": "supabase_url",
    "SUPABASE_SECRET_KEY": "supabase_key",
    "SUPABASE_SERVICE_ROLE_KEY": "supabase_key",
    "SUPABASE_DB_URL": "target_dsn",
}
SECRETS = ("source_dsn", "supabase_key", "target_dsn")
# The Supabase side: without it, `outboxd run` starts all the same.
TARGET_SIDE = ("supabase_url", "supabase_key", "target_dsn")

_Dsn = Annotated[SecretStr, AfterValidator(check_dsn)]
_default = Thresholds()


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


class Settings(BaseModel):
    """What daemon/configuration.py has found: one value each."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

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
    request_interval: float = Field(default=0.0, ge=0, le=10)  # while up to date; 0: as soon as there is something
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
    # Names under which /api/status is told, beside localhost, addresses and admin_host: those of a container, a service.
    admin_hosts: Annotated[list[str], BeforeValidator(listed), AfterValidator(check_hosts)] = []
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    _origins: dict["Name", str] = PrivateAttr(default_factory=dict)
    _places: dict["Name", str] = PrivateAttr(default_factory=dict)

    @property
    def key_kind(self) -> Literal["secret", "jwt"] | None:
        return kind_of_key(self.supabase_key.get_secret_value()) if self.supabase_key else None

    def admin_url(self, port: int) -> str:
        """Where the daemon's own pages are."""
        host = f"[{self.admin_host}]" if ":" in self.admin_host else self.admin_host
        return f"http://{host}:{port}"

    @property
    def source_conninfo(self) -> str:
        """The source's address in a form that libpq takes."""
        return for_libpq(self.source_dsn)

    @property
    def target_conninfo(self) -> str:
        return for_libpq(self.target_dsn)

    @property
    def projects(self) -> tuple[str, str] | None:
        """Two projects that the target's addresses name, where they do not name one."""
        if self.supabase_url is None or self.target_dsn is None:
            return None
        api, database = project_of(self.supabase_url), project_of(self.target_dsn.get_secret_value())
        return (api, database) if api and database and api != database else None

    @property
    def looks_pooled(self) -> bool:
        return self.source_dsn is not None and looks_pooled(self.source_dsn.get_secret_value())


Name = tuple[str, ...]  # ("relay",), ("breaker", "window") or ("tables", "public.story", "owner")
_GROUPS: dict[str, type[BaseModel]] = {"breaker": BreakerSettings, "schema": SchemaSettings}
NAMES: tuple[Name, ...] = tuple(
    (name, inner) if inner else (name,)
    for name in (field.alias or name for name, field in Settings.model_fields.items())
    for inner in (_GROUPS[name].model_fields if name in _GROUPS else ("",))
    if name != "tables"
)


def dotted(name: Name) -> str:
    """As TOML has it; a table's own name holds a dot."""
    return ".".join(repr(part) if i == 1 and name[0] == "tables" else part for i, part in enumerate(name))


def as_variable(name: Name) -> str:
    return "OUTBOXD_" + "__".join(name).upper()


def variables_of(setting: str) -> list[str]:
    return [as_variable((setting,)), *(alias for alias, name in ALIASES.items() if name == setting)]


def example_of(name: Name) -> str:
    if name[0] == "tables":
        return ""
    fields = _GROUPS[name[0]].model_fields if name[0] in _GROUPS and len(name) > 1 else Settings.model_fields
    field = fields.get(name[-1])
    return str(field.examples[0] if field.examples else field.default) if field else ""


def places(settings: Settings) -> dict[str, list[str]]:
    """The environment and each file, with the settings it gave."""
    given: dict[str, list[str]] = {}
    for name, place in settings._places.items():  # noqa: SLF001
        given.setdefault(place, []).append(dotted(name))
    return {place: sorted(names) for place, names in given.items()}


def overruled(settings: Settings) -> list[str]:
    """Where a value holds that another one would be expected to beat."""
    return [f"{dotted(name)} is {said}" for name, said in settings._origins.items() if said.endswith("differs)")]  # noqa: SLF001


def redacted(settings: Settings) -> dict[str, dict[str, object]]:
    """Each setting's value and where it is from, fit to be masked."""
    shown: dict[str, dict[str, object]] = {}
    of_tables = [name for name in settings._origins if name[0] == "tables"]  # noqa: SLF001
    for name in (*NAMES, *of_tables):
        value: Any = settings
        for part in name:
            value = value[part] if isinstance(value, dict) else getattr(value, "schema_" if part == "schema" else part)
        if isinstance(value, SecretStr):
            value = masked(name[0], value.get_secret_value())
        origin = settings._origins.get(name, "default")  # noqa: SLF001
        shown[dotted(name)] = {"value": value, "from": origin}
    return shown
