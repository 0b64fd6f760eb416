"""What `make audit` makes of what pip-audit and npm say: real programs, asking a service of the test's own."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy import audit
from deploy.audit import Verdict, ask_npm, ask_pip, of_npm, of_pip

ROOT = Path(__file__).parents[2]
PIP_AUDIT = ROOT / ".uv" / "audit" / "bin" / "pip-audit"
LOCK = "h11==0.16.0 --hash=sha256:4e35b956cf45792e4caa5885e69fba00bdbc6ffafbfa020300e549b208ee5ff1\n"


class Service(BaseHTTPRequestHandler):
    """Knows of one thing, or of nothing: what each address is answered with."""

    answers: dict[str, Any]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        found = next((answer for end, answer in self.answers.items() if self.path.endswith(end)), None)
        body = json.dumps(found).encode()
        self.send_response(200 if found is not None else 405)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, dict[str, Any]]]:
    """Its address, and what it answers."""
    answers: dict[str, Any] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Told", (Service,), {"answers": answers}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_pip_audits_verdict(service: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Vulnerable, nothing known, no such service: three answers, three verdicts."""
    if not PIP_AUDIT.exists():
        pytest.skip("pip-audit is not in .uv/audit: `make audit` fetches it")
    address, answers = service
    (lock := tmp_path / "requirements.lock").write_text(LOCK)
    how = ("--vulnerability-service", "osv", "--osv-url", f"{address}/query", "--timeout", "5")
    answers["/query"] = {"vulns": [vulnerability()]}
    (one,) = ask_pip(PIP_AUDIT, lock, *how).found
    assert one.startswith("h11 0.16.0: ")
    assert "99.0.0" in one
    answers["/query"] = {}
    assert ask_pip(PIP_AUDIT, lock, *how) == Verdict()
    answers.clear()
    assert (ask_pip(PIP_AUDIT, lock, *how).unknown or "").startswith("pip-audit could not ask: ")


def vulnerability() -> dict[str, Any]:
    """As OSV writes one down."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0.0"}]}]
    return {
        "id": "PYSEC-2026-0", "aliases": ["CVE-2026-0"], "summary": "made up", "details": "made up",
        "modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z",
        "affected": [{"package": {"name": "h11", "ecosystem": "PyPI"}, "ranges": ranges, "versions": ["0.16.0"]}],
    }  # fmt: skip


def test_npms_verdict(service: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm was not found: install Node.js (Debian: apt-get install npm)")
    address, answers = service
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "tests" / "clients" / name, tmp_path)
    how = ("--registry", address, "--fetch-retries", "0", "--cache", str(tmp_path / "cache"))
    advisory = {
        "id": 1, "url": "https://example.invalid/1", "title": "made up", "severity": "high", "vulnerable_versions": "*",
        "cwe": [], "cvss": {"score": 7, "vectorString": None},
    }  # fmt: skip
    answers["/advisories/bulk"] = {"tslib": [advisory]}
    answers["/tslib"] = {"name": "tslib", "dist-tags": {"latest": "2.8.1"}, "versions": {"2.8.1": {"name": "tslib"}}}
    assert [one for one in ask_npm(tmp_path, *how).found if one.startswith("tslib *: high")]
    answers["/advisories/bulk"] = {}
    assert ask_npm(tmp_path, *how) == Verdict()
    answers.clear()
    assert "405 Method Not Allowed" in (ask_npm(tmp_path, *how).unknown or "")


def test_what_could_not_be_asked_about_is_no_pass() -> None:
    """pip-audit ends with 0 for packages that a mirror's index knows nothing of; npm with a message in place of a verdict."""
    skipped = {"dependencies": [{"name": "h11", "skip_reason": "Dependency not found on PyPI"}], "fixes": []}
    assert of_pip(0, json.dumps(skipped), "").unknown == "the service knows nothing of 1 of 1 packages"
    assert of_pip(0, '{"dependencies": []}', "").unknown
    assert of_pip(1, "", "Traceback\n  …\nConnectionError: no such host\n").unknown == (
        "pip-audit could not ask: ConnectionError: no such host"
    )
    assert of_pip(0, "", "").unknown
    assert of_npm(1, '{"message": "405"}', "").unknown == "npm could not ask: 405"
    assert of_npm(1, "nonsense", "ENOTFOUND").unknown == "npm could not ask: ENOTFOUND"
    assert of_npm(1, '{"vulnerabilities": {}}', "").unknown


def test_what_is_found_fails_and_a_skip_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = [("a.lock", Verdict(("h11 1: X",))), ("b.lock", Verdict(unknown="no such host")), ("c.lock", Verdict())]
    monkeypatch.setattr(audit, "asked", lambda _: iter(verdicts))
    assert audit.main(Path("/nowhere")) == 1
    assert re.split(r" {2,}|\n", capsys.readouterr().out.strip()) == [
        "VULNERABLE", "a.lock: h11 1: X", "SKIPPED", "b.lock: no such host", "ok", "c.lock: nothing is known"
    ]  # fmt: skip
    monkeypatch.setattr(audit, "asked", lambda _: iter(verdicts[1:]))
    assert audit.main(Path("/nowhere")) == 0


def test_all_that_is_locked_is_asked_about() -> None:
    """Every lock is among those that are, or a part of one: test_image.py says so of the image's."""
    locks = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.lock"), *ROOT.glob("deploy/*.lock"))}
    assert locks == {*audit.LOCKS, "deploy/requirements.lock", "deploy/build.lock"}
    for folder in audit.FOLDERS:
        assert (ROOT / folder / "package-lock.json").exists()
    assert all(reason for reason in audit.IGNORED.values())
    assert "part audit make audit" in (ROOT / ".ci" / "run").read_text()
