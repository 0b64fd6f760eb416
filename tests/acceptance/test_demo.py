"""`outboxd demo` as a newcomer meets it: it tells the story to its end, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from daemon.demo.binaries import MissingPostgrest, postgrest_binary
from daemon.demo.process import alive, children
from tests.acceptance.conftest import wait_until

EQUAL = re.compile(r'^ +public\."(Story|Scenario|Prompt|VideoAsset)" +\| +(\d+) \| +(\d+) \| yes$', re.MULTILINE)


class Demo:
    """One run, in a folder of its own for whatever it makes."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self._output = folder.with_name(f"{folder.name}.out")
        command = [sys.executable, "-P", "-m", "daemon", "demo", "--seconds", "1", *arguments]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
                env={**os.environ, "TMPDIR": str(folder), **environment},
            )  # fmt: skip

    def told(self) -> str:
        return self._output.read_text()

    def tells(self, what: str) -> None:
        wait_until(lambda: what in self.told() or self._process.poll() is not None, 60)
        assert what in self.told()

    def family(self) -> list[int]:
        """Every process it started, and theirs."""
        found = [self._process.pid]
        for pid in found:
            found += children(pid)
        return found[1:]

    def send(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def ended(self) -> int:
        """Its exit code; nothing of it may be left in its folder."""
        code = self._process.wait(60)
        assert list(self.folder.iterdir()) == []
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def stage(folder: Path) -> Iterator[Path]:
    """A folder that every user can enter, as /tmp is."""
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def _postgrest() -> None:
    try:
        postgrest_binary()
    except MissingPostgrest as missing:
        pytest.skip(str(missing))


@pytest.mark.usefixtures("_postgrest")
def test_the_whole_story_and_what_keep_leaves_running(stage: Path) -> None:
    """Three acts, all rows equal; with --keep its addresses answer until Ctrl-C, which leaves nothing behind."""
    demo = Demo(stage, "--keep")
    try:
        demo.tells("Ctrl-C ends it")
        demo.tells("try ")
        told = demo.told()
        acts = [
            told.index(line)
            for line in ("Act 1 of 3", "Act 2 of 3", "the breaker opens", "Act 3 of 3", "the breaker closes")
        ]
        assert acts == sorted(acts)
        assert sum(int(source) == int(target) > 0 for _, source, target in EQUAL.findall(told)) == 4
        assert re.search(r"waiting +[1-9]\d* +lag +\d+\.\d\d s +breaker open", told)
        assert "Every row is equal." in told
        verified = re.findall(r'^  public\."\w+" +(\d+) +yes +0 ', told[told.index("`outboxd verify`") :], re.MULTILINE)
        assert verified == [source for _, source, _ in sorted(EQUAL.findall(told))]
        assert re.search(r"^  breaker +closed → open → half_open → closed", told, re.MULTILINE)
        assert "\x1b" not in told  # plain lines: this is no terminal
        stories = re.search(r"curl -s '(\S+)' -H 'apikey: (\S+)'", told)
        assert stories
        assert b'"title"' in _get(stories[1], apikey=stories[2])
        for page, content in (("api/status", b'"leads":true'), ("metrics", b"outboxd_changes_applied_total")):
            address = re.search(rf"curl -s (\S+/{page})", told)
            assert address
            assert content in _get(address[1])
        family = demo.family()
        assert len(family) > 10
        demo.send(signal.SIGINT)
        assert demo.ended() == 130
        assert not any(map(alive, family))
    finally:
        demo.kill()


def _get(address: str, **headers: str) -> bytes:
    return httpx.get(address, headers=headers, timeout=10).content


def test_without_npm_and_after_an_interrupted_run(stage: Path) -> None:
    """SIGTERM in the middle of the outage ends everything; the next run starts clean, and needs no PostgREST."""
    nothing = {"POSTGREST_BIN": "/nonexistent"}
    first = Demo(stage, "--transport", "postgres", **nothing)
    try:
        first.tells("Act 2 of 3")
        family = first.family()
        first.send(signal.SIGTERM)
        assert first.ended() == 143
        assert not any(map(alive, family))
    finally:
        first.kill()
    second = Demo(stage, "--transport", "postgres", **nothing)
    try:
        second.tells("The demo clears up.")
        assert second.ended() == 0
        assert len(EQUAL.findall(second.told())) == 4
    finally:
        second.kill()


@pytest.mark.parametrize("moment", ["Everything is real", "target"])
def test_ctrl_c_while_setting_up_leaves_nothing(stage: Path, moment: str) -> None:
    """However early it comes, and twice: no process, no folder, exit code 130."""
    demo = Demo(stage, "--transport", "postgres")
    try:
        demo.tells(moment)
        family = demo.family()
        demo.send(signal.SIGINT)
        demo.send(signal.SIGINT)
        assert demo.ended() == 130
        assert not any(map(alive, family))
        assert "Traceback" not in demo.told()
    finally:
        demo.kill()


def test_missing_postgrest_is_one_sentence_with_the_way_around(stage: Path) -> None:
    """What to install, and what to do without it; exit code 1."""
    demo = Demo(stage, POSTGREST_BIN="/nonexistent")
    assert demo.ended() == 1
    told = demo.told()
    assert 'make demo ARGS="--transport postgres"' in told
    assert "Traceback" not in told
