"""compose.yaml comes up and does what it promises, its services run as processes: see stack.py for how."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from daemon.demo.binaries import MissingPostgres, MissingPostgrest, binaries, postgrest_binary, shared_folder
from tests.deploy.dockerfile import ROOT
from tests.deploy.nginx import NoNginx, nginx


def test_compose_yaml_comes_up_and_a_row_of_the_application_arrives_in_the_project() -> None:
    """One test, because bringing it up is what takes the time."""
    seen = brought_up()
    source, project = seen["rows"]
    assert source == project >= 3
    # The daemon is alive, leads, is rung, and can be scraped.
    assert (seen["probe"], seen["metrics"]) == (0, 200)
    status = seen["status"]
    assert (status["leads"], status["mode"], status["problem"]) == (True, "full", None)
    assert status["listener"]["connected"]
    # It is nobody special on the source, and the gateway wants a key and tells them apart.
    assert seen["superuser"] == "f"
    assert seen["secret"][0] == 200
    assert seen["publishable"][0] == 401
    assert json.loads(seen["publishable"][1])["code"] == "42501"
    assert seen["no key"] == [401, '{"message":"No API key found in request"}']


def brought_up() -> dict[str, Any]:
    """What the stack said of itself; nothing of it is left, because its processes and mounts end with its namespaces."""
    needed = ("unshare", "setpriv", "mount", "ip")
    if os.geteuid() != 0 or not all(map(shutil.which, needed)):
        pytest.skip("only root can make the namespaces that stand in for containers, with iproute2 and util-linux")
    try:
        nginx()
        binaries(17)
        postgrest_binary()
    except (NoNginx, MissingPostgres, MissingPostgrest) as missing:
        pytest.skip(str(missing))
    folder = shared_folder("outboxd-stack-")
    try:
        spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        ran = subprocess.run(
            [*spaces, sys.executable, "-m", "tests.deploy.stack", folder],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if "unshare failed" in ran.stderr:
            pytest.skip("this kernel, or this container, lets nobody make namespaces")
        assert ran.returncode == 0, ran.stderr
        told: dict[str, Any] = json.loads(ran.stdout)
        assert "failed" not in told, told
        return told
    finally:
        shutil.rmtree(folder, ignore_errors=True)
