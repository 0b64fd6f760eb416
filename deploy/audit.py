"""Is anything that the locks name known to be vulnerable? `make audit` asks pip-audit and npm, and says what they know.

Knows what the two say, above all when they say nothing: pip-audit ends with 0 for packages that it could not ask about.
A service that cannot be reached is a skip with its name, never a pass. Exit code 1: something is known.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "deploy/audit.lock")  # the image's own locks are parts of the first
FOLDERS = ("daemon/demo", "tests/clients")
# An identifier that does not matter here, with the reason why.
IGNORED: Mapping[str, str] = {}
_PATIENCE = 300.0  # seconds for one of them


@dataclass(frozen=True, slots=True)
class Verdict:
    """`unknown`: why there is none; it does not matter then that nothing was found."""

    found: tuple[str, ...] = ()
    unknown: str | None = None


def of_pip(code: int, out: str, err: str) -> Verdict:
    """What `pip-audit --format json` ended with."""
    told = _document(out)
    if not isinstance(told, dict) or not isinstance(told.get("dependencies"), list):
        return Verdict(unknown=f"pip-audit could not ask: {_last_line(err) or f'it ended with {code}'}")
    parts: list[Any] = told["dependencies"]
    found = [
        f"{one['name']} {one['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version'}"
        for one in parts
        for each in one.get("vulns", ())
        if not {each["id"], *each.get("aliases", ())} & IGNORED.keys()
    ]
    unasked = [one["name"] for one in parts if "skip_reason" in one]
    if unasked or not parts:
        return Verdict(tuple(found), f"the service knows nothing of {len(unasked)} of {len(parts)} packages")
    if code != 0 and not found and not IGNORED:
        return Verdict(unknown=f"pip-audit ended with {code}: {_last_line(err)}")
    return Verdict(tuple(found))


def of_npm(code: int, out: str, err: str) -> Verdict:
    """What `npm audit --json` ended with."""
    told = _document(out)
    if not isinstance(told, dict) or not isinstance(told.get("vulnerabilities"), dict):
        said = told.get("message") if isinstance(told, dict) else None
        return Verdict(unknown=f"npm could not ask: {said or _last_line(err) or f'it ended with {code}'}")
    found = [f"{name} {one['range']}: {one['severity']}" for name, one in told["vulnerabilities"].items()]
    if code != 0 and not found:
        return Verdict(unknown=f"npm ended with {code}: {_last_line(err)}")
    return Verdict(tuple(found))


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


def ask_pip(program: Path, lock: Path, *more: str) -> Verdict:
    if not program.exists():
        return Verdict(unknown="pip-audit is not installed: `make audit` fetches it")
    command = [str(program), "--requirement", str(lock), "--require-hashes", "--disable-pip", "--format", "json"]
    return of_pip(*_ran([*command, "--progress-spinner", "off", *more], lock.parent))


def ask_npm(folder: Path, *more: str) -> Verdict:
    if shutil.which("npm") is None:
        return Verdict(unknown="npm is not installed")
    return of_npm(*_ran(["npm", "audit", "--json", *more], folder))


def _ran(command: Sequence[str], folder: Path) -> tuple[int, str, str]:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {_PATIENCE:g} s"
    return done.returncode, done.stdout, done.stderr


def asked(program: Path) -> Iterator[tuple[str, Verdict]]:
    """Each lock with what is known of it: by OSV, and where that cannot be reached by the index itself."""
    for name in LOCKS:
        verdict = ask_pip(program, ROOT / name, "--vulnerability-service", "osv")
        if verdict.unknown and not verdict.found:
            other = ask_pip(program, ROOT / name, "--vulnerability-service", "pypi")
            verdict = verdict if other.unknown and not other.found else other
        yield name, verdict
    for name in FOLDERS:
        yield f"{name}/package-lock.json", ask_npm(ROOT / name)


def main(program: Path) -> int:
    vulnerable = False
    for name, verdict in asked(program):
        for one in verdict.found:
            print(f"VULNERABLE  {name}: {one}")
        if verdict.unknown:
            print(f"SKIPPED     {name}: {verdict.unknown}")
        elif not verdict.found:
            print(f"ok          {name}: nothing is known")
        vulnerable = vulnerable or bool(verdict.found)
    return int(vulnerable)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
