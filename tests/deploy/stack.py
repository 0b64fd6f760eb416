"""The services of compose.yaml as plain processes: what `docker compose up` starts, where there is no engine for it.

Reads images, commands, environment, mounts and dependencies from the file itself, in namespaces of its own:
    unshare --mount --net --pid --fork --kill-child --mount-proc python -m tests.deploy.stack FOLDER
Each service has an address on the loopback and its name in /etc/hosts; the volume `secrets` lies in /run/secrets. Says on
stdout, as JSON, what became of it. Prometheus and Grafana are left out. Not shown that way: the images themselves.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from daemon.demo.binaries import binaries, postgrest_binary, readable_copy
from tests.deploy.dockerfile import ROOT, last_stage
from tests.deploy.nginx import nginx
from tests.waiting import wait_until

COMPOSE = ROOT / "deploy" / "compose.yaml"
LEFT_OUT = {"prometheus", "grafana"}
PATIENCE = 90.0
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
Service = Mapping[str, Any]


@dataclass
class Stack:
    """What runs. `addresses` are the services' own, as each container has one."""

    folder: Path
    services: Mapping[str, Service]
    postgres: Path
    addresses: Mapping[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    began: set[str] = field(default_factory=set)

    def up(self) -> None:
        for name in self.services:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a service after those it waits for, as Compose does."""
        if name in self.began:
            return
        self.began.add(name)
        one = self.services[name]
        for other, need in one.get("depends_on", {}).items():
            self.start(other)
            self.await_(other, need["condition"])
        image = one["image"].partition(":")[0]
        if image == "postgres" and "entrypoint" not in one:
            self.start_postgres(name, one)
        else:
            user, group = one["user"].split(":") if "user" in one else (0, 0)
            becoming = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--"]
            self.run(name, [*becoming, *self.command(image, one)], one.get("environment", {}))

    def await_(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            code = self.running[name].wait(PATIENCE)
            assert code == 0, f"{name} ended with {code}: {self.log(name)}"
        elif condition == "service_healthy":
            _, *test = self.services[name]["healthcheck"]["test"]
            asked = [self.postgres / test[0], *(part.replace("127.0.0.1", self.addresses[name]) for part in test[1:])]
            wait_until(lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, PATIENCE)

    def command(self, image: str, one: Service) -> Sequence[str | Path]:
        """What the container would run, with this machine's programs and files."""
        mounts = dict(self.mounts(one))
        if image == "nginxinc/nginx-unprivileged":
            conf = self.folder / "nginx.conf"
            text = mounts["/etc/nginx/nginx.conf"].read_text("utf-8").replace("/tmp/", f"{self.folder}/")  # noqa: S108
            conf.write_text(text, "utf-8")
            return [*nginx(), "-c", conf, "-g", "daemon off;"]
        if image == "postgrest/postgrest":
            return [str(postgrest_binary())]
        stage = {word: yaml.safe_load(last_stage()[word]) for word in ("ENTRYPOINT", "CMD") if image == "outboxd"}
        argv = [*one.get("entrypoint", stage.get("ENTRYPOINT", ())), *one.get("command", stage.get("CMD", ()))]
        known = {"outboxd": Path(sys.executable).with_name("outboxd"), "python": Path(sys.executable)}
        return [known.get(argv[0], self.postgres / argv[0]), *(self.here(one, mounts) for one in argv[1:])]

    def here(self, argument: str, mounts: Mapping[str, Path]) -> str:
        flag, equals, path = argument.rpartition("=")
        return f"{flag}{equals}{mounts[path]}" if path in mounts else argument

    def mounts(self, one: Service) -> Sequence[tuple[str, Path]]:
        """(path in the container, a copy of the file here that every user can read)."""
        split = [volume.split(":") for volume in one.get("volumes", ())]
        return [(there, self.copied(COMPOSE.parent / here)) for here, there, *_ in split if here.startswith(".")]

    def copied(self, file: Path) -> Path:
        copy = self.folder / "mounted" / file.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
        return copy

    def run(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        work = self.folder / name
        work.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(part) for part in command], cwd=work, env={**kept, **environment}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip

    def start_postgres(self, name: str, one: Service) -> None:
        """As the image does it: a new cluster, its superuser and database, then the files of its folder."""
        told = one["environment"]
        user, data = told.get("POSTGRES_USER", "postgres"), self.folder / name
        data.mkdir()
        os.chown(data, 65534, 65534)
        options = [f"--pgdata={data}/data", f"--username={user}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={told['POSTGRES_PASSWORD_FILE']}"]
        done([*NOBODY, self.postgres / "initdb", *options, *access])
        where = [f"--host={data}", f"--username={user}"]
        own = {"listen_addresses": self.addresses[name], "unix_socket_directories": data, "fsync": "off", "port": 5432}
        settings = [part for key, value in own.items() for part in ("-c", f"{key}={value}")]
        self.run(name, [*NOBODY, self.postgres / "postgres", "-D", data / "data", *settings], {})
        asked: list[str | Path] = [self.postgres / "pg_isready", *where]
        wait_until(lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, PATIENCE)
        database = told.get("POSTGRES_DB", user)
        if database != "postgres":
            done([self.postgres / "createdb", *where, "--maintenance-db=postgres", database])
        for there, here in sorted(self.mounts(one)):
            if there.startswith("/docker-entrypoint-initdb.d/"):
                psql = [
                    "--no-psqlrc",
                    "--no-password",
                    "-v",
                    "ON_ERROR_STOP=1",
                    f"--dbname={database}",
                    f"--file={here}",
                ]
                done([self.postgres / "psql", *where, *psql])

    def ask(self, name: str, statement: str) -> str:
        """One value, as the superuser of one of the two databases."""
        told = self.services[name]["environment"]
        user = told.get("POSTGRES_USER", "postgres")
        where = [f"--host={self.folder / name}", f"--username={user}", f"--dbname={told.get('POSTGRES_DB', user)}"]
        return done([self.postgres / "psql", *where, "--no-psqlrc", "-At", "-c", statement])

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]


def done(command: Sequence[str | Path]) -> str:
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout.strip()


def answered(url: str, **headers: str) -> tuple[int, str]:
    """Status and body of one request; 0 while nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as response:  # noqa: S310
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def furnish(folder: Path, services: Mapping[str, Service]) -> dict[str, str]:
    """Names, addresses and the volume of secrets, for the processes of these namespaces alone."""
    addresses = {name: f"127.0.1.{number}" for number, name in enumerate(services, 1)}
    aliases = {name: one.get("networks", {}).get("default", {}).get("aliases", ()) for name, one in services.items()}
    lines = ["127.0.0.1 localhost", *(f"{addresses[name]} {' '.join([name, *aliases[name]])}" for name in services)]
    lines = [
        line for line in lines if line.split()[1:] != ["outboxd"]
    ]  # that is a name of the one whose network it shares
    (folder / "hosts").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "secrets").mkdir()
    done(["ip", "link", "set", "lo", "up"])
    done(["mount", "--bind", folder / "hosts", "/etc/hosts"])
    done(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    Path("/run/secrets").mkdir()
    done(["mount", "--bind", folder / "secrets", "/run/secrets"])
    return addresses


def main(folder: Path) -> dict[str, Any]:
    """Bring it up, look at it as an operator would, take the project away and bring it back."""
    services = {
        name: one
        for name, one in yaml.safe_load(COMPOSE.read_text("utf-8"))["services"].items()
        if name not in LEFT_OUT
    }
    addresses = furnish(folder, services)
    stack = Stack(folder, services, readable_copy(binaries(17)), addresses)
    count = "select count(*) from story"
    try:
        stack.up()
        wait_until(lambda: stack.ask("project", "select to_regclass('public.story') is not null") == "t", PATIENCE)
        wait_until(lambda: int(stack.ask("project", count)) >= 3, PATIENCE)
        keys = Path("/run/secrets/gateway_keys.conf").read_text("utf-8").split('"')
        api = "http://localhost:8000/rest/v1/story?limit=1"
        probe = stack.command("outboxd", {"command": ["status", "--probe"]})
        address = services["outboxd"]["environment"]["OUTBOXD_ADMIN_HOST"]
        seen = {
            "secret": answered(api, apikey=keys[1]),
            "publishable": answered(api, apikey=keys[5]),
            "no key": answered(api),
            "probe": subprocess.run(
                [str(p) for p in probe], env={"OUTBOXD_ADMIN_HOST": address}, check=False
            ).returncode,
            "metrics": answered("http://outboxd:9631/metrics")[0],
            "status": json.loads(answered("http://outboxd:9631/api/status")[1]),
            "superuser": stack.ask("source", "select rolsuper from pg_roles where rolname = 'outboxd'"),
        }
        stack.running["app"].terminate()
        stack.running["app"].wait(PATIENCE)
        wait_until(lambda: stack.ask("source", count) == stack.ask("project", count), PATIENCE)
        return seen | {"rows": [int(stack.ask(one, count)) for one in ("source", "project")]}
    except (AssertionError, subprocess.TimeoutExpired) as exc:
        return {"failed": str(exc), "logs": {name: stack.log(name) for name in stack.running}}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
