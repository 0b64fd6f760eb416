"""The settings, from wherever they may stand, and everything that is wrong with them at once.

Knows environment variables, `.env`, secret files and TOML, and which of them wins. Must not know what a setting is
used for: values leave as plain arguments, and only the edges (cli, main) import this. No message made here repeats a
value.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from daemon import private
from daemon.private import Opened
from daemon.provenance import Found, Layer, Problem, beats, dotenv, exposed, foreign, torn_apart
from daemon.settings import (
    ALIASES,
    NAMES,
    SECRETS,
    TARGET_SIDE,
    Name,
    Settings,
    as_variable,
    dotted,
    example_of,
    variables_of,
)
from daemon.tables import TableSettings, parts

# Where a runtime mounts secrets for this process alone, and often with mode 0444: their mode says nothing.
SECRETS_FOLDER = Path("/run/secrets")
Need = Literal["source", "target"]
_NOT_SETTINGS = {"outboxd_config", "outboxd_failpoint", *(f"outboxd_{secret}_file" for secret in SECRETS)}


class ConfigError(Exception):
    """All that is wrong with the configuration, as one block for the operator."""

    def __init__(self, problems: Collection[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"the configuration has {len(problems)} problem{'s' * (len(problems) > 1)}:"]
        for one in self.problems:
            lines.append(f"  {one.setting} {one.what}")
            lines += [f"      from: {one.origin}"] * bool(one.origin)
            lines += [f"      example: {one.example}"] * bool(one.example)
        self.lines = tuple(lines)
        super().__init__("\n".join(lines))


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
    """What is set of the admin pages, and whose they are, whatever else is wrong or missing: a daemon that lacks it runs
    all the same."""
    found, _ = _gather(config, {})
    settings, wrong = _made(
        {
            name: one
            for name, one in found.items()
            if (name[0].startswith("admin") or name == ("relay",)) and not (one.file and one.file.foreign)
        }
    )
    if settings is None:
        raise ConfigError(wrong)
    return settings


def _made(found: Layer) -> tuple[Settings | None, list[Problem]]:
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
            problems.append(Problem(dotted(name), what, example_of(name), origin))
        return None, problems
    settings._origins = {name: one.origin for name, one in found.items()}  # noqa: SLF001
    settings._places = {name: one.place for name, one in found.items()}  # noqa: SLF001
    return settings, []


def _gather(config: Path | None, overrides: Mapping[str, Any]) -> tuple[Layer, list[Problem]]:
    """Every value with where it is from, the strongest source winning; and what is odd about the sources."""
    problems: list[Problem] = []
    environment = EnvSettingsSource(BaseSettings).env_vars
    told, file = dotenv(problems)
    command_line = {name: Found(value, "the command line") for name, value in _leaves(overrides) if value is not None}
    # What the environment says holds under whatever name it says it: a folder that somebody is in must not beat it.
    of_file = {**_aliased(told, "{} in .env", file), **_prefixed(told, "{} in .env", problems, file)}
    of_process = {
        **_aliased(environment, "environment variable {}"),
        **_prefixed(environment, "environment variable {}", problems),
    }
    variables = {**of_file, **{name: beats(one, of_file.get(name)) for name, one in of_process.items()}}
    mounts = [Path(environment.get("credentials_directory") or "/nonexistent"), SECRETS_FOLDER]
    files = _secret_files(environment, mounts, problems)
    for secret in SECRETS:
        here, there = variables.get((secret,)), files.get((secret,))
        if here and there and here.value != there.value:
            what = f"is set twice, differently: in {here.origin} and in {there.origin}; remove one"
            problems.append(Problem(secret, what))
    toml = _toml(config, environment.get("outboxd_config"), problems)
    found = {**toml, **files, **variables, **command_line}
    problems += [*foreign(found), *exposed(found), *torn_apart(found, environment)]
    return found, problems


def _leaves(table: Mapping[str, Any], above: Name = ()) -> Iterator[tuple[Name, Any]]:
    """Each setting; that of a table may be a mapping itself."""
    of_a_table = above[:1] == ("tables",) and len(above) == 2
    for key, value in table.items():
        if isinstance(value, Mapping) and not of_a_table:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _prefixed(
    variables: Mapping[str, str | None], where: str, problems: list[Problem], file: Opened | None = None
) -> Layer:
    layer: Layer = {}
    for variable, value in variables.items():
        name = tuple(variable.removeprefix("outboxd_").split("__"))
        if not variable.startswith("outboxd_") or variable in _NOT_SETTINGS or not (value or "").strip():
            continue
        if name in NAMES:
            layer[name] = Found((value or "").strip(), where.format(variable.upper()), file)
        else:
            meant = [as_variable(one) for one in NAMES]
            problems.append(_unknown(variable.upper(), meant, where.format(variable.upper())))
    return layer


def _aliased(variables: Mapping[str, str | None], where: str, file: Opened | None = None) -> Layer:
    layer: Layer = {}
    for alias, setting in ALIASES.items():
        if value := (variables.get(alias.lower()) or "").strip():
            layer.setdefault((setting,), Found(value, where.format(alias), file))
    return layer


def _secret_files(environment: Mapping[str, str | None], folders: Collection[Path], problems: list[Problem]) -> Layer:
    """`<NAME>_FILE` variables, then systemd's credentials, then a container's secrets."""
    layer: Layer = {}
    for secret in SECRETS:
        names = variables_of(secret)
        told = [Path(named) for name in names if (named := environment.get(f"{name.lower()}_file"))]
        spelled = [spelling for name in (*names, secret) for spelling in (name, name.lower())]
        usual = [folder / name for folder in folders for name in spelled]
        for path in (*told, *usual):
            try:
                if path in told or path.is_file():
                    file = private.read(path, folders)
                    layer[(secret,)] = Found(file.text.strip(), f"the file {path}", file)
                    break
            except (OSError, ValueError):
                problems.append(Problem(secret, "cannot be read", origin=f"the file {path}"))
                break
    return layer


def _toml(told: Path | None, variable: str | None, problems: list[Problem]) -> Layer:
    path = told or Path(variable or "outboxd.toml")
    try:
        file = private.read(path)
        table = tomllib.loads(file.text)
    except FileNotFoundError:
        if told or variable:
            problems.append(Problem("--config", "names a file that does not exist", origin=str(path)))
        return {}
    except (OSError, ValueError) as error:
        what = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "cannot be read"
        problems.append(Problem("--config", f"is not TOML in UTF-8: {what}", origin=str(path)))
        return {}
    layer = {name: Found(value, str(path), file) for name, value in _leaves(table)}
    known = [".".join(name) for name in NAMES]
    for name in layer:
        if name[0] == "tables":
            problems += _table_problems(name, layer, str(path))
        elif name not in NAMES:
            problems.append(_unknown(".".join(name), known, str(path)))
    return {name: one for name, one in layer.items() if name in NAMES or _is_of_table(name)}


def _is_of_table(name: Name) -> bool:
    return name[0] == "tables" and len(name) == 3 and name[2] in TableSettings.model_fields


def _table_problems(name: Name, layer: Layer, origin: str) -> Iterator[Problem]:
    """What is wrong with the name of a table's setting, or with that of the table."""
    if len(name) < 3:
        yield Problem(dotted(name), 'is to be a table of settings: [tables."public.story"]', origin=origin)
        return
    if name[2] not in TableSettings.model_fields:
        yield _unknown(dotted(name), [dotted((*name[:2], one)) for one in TableSettings.model_fields], origin)
    if parts(name[1]) is None:
        yield Problem(dotted(name[:2]), "is no name of a table", 'public.story, or public."Story"', origin)
    elif (first := next(one[1] for one in layer if len(one) == 3 and parts(one[1]) == parts(name[1]))) != name[1]:
        yield Problem(dotted(name[:2]), f"is the same table as {dotted(('tables', first))}", origin=origin)


def _missing(found: Layer, needs: Collection[Need], known: Collection[Problem]) -> list[Problem]:
    transport = found.get(("transport",))
    direct = transport is not None and transport.value == "postgres"
    wanted = ["source_dsn"] * ("source" in needs)
    if "target" in needs:
        wanted += ["target_dsn"] if direct else ["supabase_url", "supabase_key"]
    problems = []
    for setting in wanted:
        if (setting,) not in found and setting not in {one.setting for one in known}:
            what = f"is missing: set {' or '.join(variables_of(setting))}"
            problems.append(Problem(setting, what, example_of((setting,))))
    return problems


def _unknown(name: str, known: Collection[str], origin: str) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    return Problem(name, f"is no setting{f'; did you mean {near[0]}?' if near else ''}", origin=origin)
