"""`outboxd status --probe`: one question to the daemon on this machine, whatever else is wrong. The rest is in test_image.py."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daemon.admin import Admin, Views
from daemon.cli import main
from daemon.demo.process import free_port
from daemon.probe import unwell
from tests.waiting import wait_until_async


def probed(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> Result:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(
        main, ["status", "--probe"], env={f"OUTBOXD_{key.upper()}": settings[key] for key in settings}
    )


async def test_a_loop_that_does_not_turn_is_not_alive() -> None:
    """A server of the daemon's own kind, told first that the loop turns and then that it does not."""
    turns = True

    async def alive() -> bool:
        return await asyncio.to_thread(unwell, "127.0.0.1", admin.port, "main") is None

    admin = Admin(Views(lambda: turns, lambda: (True, {}), dict, lambda: (b"", "")), "127.0.0.1", 0)
    serving = asyncio.create_task(admin.run())
    try:
        await wait_until_async(alive)
        turns = False
        assert (
            await asyncio.to_thread(unwell, "127.0.0.1", admin.port, "main") == "says that its loop does not turn (503)"
        )
    finally:
        serving.cancel()
        await asyncio.wait([serving])


def test_what_else_is_wrong_with_the_settings_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon runs on when a file it was started with has gone bad since: it must not be killed for that."""
    said = probed(
        tmp_path, monkeypatch, admin_port=str(free_port()), supabase_key="nonsense", supabase_key_file="/gone"
    )
    assert said.exit_code == 1
    assert "does not answer" in said.stderr


@pytest.mark.parametrize("settings", [{"admin": "false"}, {"admin_port": "0"}, {"admin_port": "many"}])
def test_without_a_page_to_ask_the_settings_are_to_blame(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = probed(tmp_path, monkeypatch, **settings)
    assert said.exit_code == 78
    assert "admin" in said.stderr.lower()
