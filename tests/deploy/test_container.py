"""The image, the compose file and the manifests, read by their own checkers and held against the settings.

What only a container engine could show is in deploy/README.md; the rest of it is run for real in test_image.py and
test_stack.py.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from daemon import configuration, main, settings
from daemon.cli import main as cli
from outbox import __version__
from tests.deploy.dockerfile import DOCKERFILE, ROOT, instructions, last_stage

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
MANIFESTS = sorted(set((DEPLOY / "kubernetes").glob("*.yaml")) - {DEPLOY / "kubernetes" / "kustomization.yaml"})
PORT = settings.Settings.model_fields["admin_port"].default
IMAGE = f"outboxd:{__version__}"

STACK: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("outboxd:")}
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text("utf-8"))
OBJECTS: dict[str, dict[str, Any]] = {
    made["kind"]: made for file in MANIFESTS for made in yaml.safe_load_all(file.read_text("utf-8"))
}

Check = Callable[..., subprocess.CompletedProcess[str]]


def tool(name: str, *arguments: str) -> Check:
    """One of the checkers that the dev group brings."""

    def check(*files: Path) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name(name)
        return subprocess.run([program, *arguments, *files], capture_output=True, text=True, check=False, timeout=120)

    return check


YAML_RULES = "{extends: default, rules: {line-length: {max: 130}, document-start: disable}}"
hadolint = tool("hadolint")
compose_schema = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
kubernetes_schema = tool("kubernetes-validate", "--strict", "--kubernetes-version", "1.31")
yamllint = tool("yamllint", "--strict", "--config-data", YAML_RULES)


@pytest.mark.parametrize(
    ("check", "files"),
    [
        (hadolint, [DOCKERFILE]),
        (compose_schema, [COMPOSE]),
        (kubernetes_schema, MANIFESTS),
        (yamllint, [COMPOSE, DEPLOY / "kubernetes"]),
    ],
    ids=["hadolint", "compose-spec", "kubernetes-validate", "yamllint"],
)
def test_the_checker_finds_nothing(check: Check, files: list[Path]) -> None:
    found = check(*files)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("check", "file", "right", "wrong"),
    [
        (hadolint, DOCKERFILE, "--require-hashes --no-deps --only-binary :all: -r deploy/build.lock", "hatchling"),
        (hadolint, DOCKERFILE, 'CMD ["run"]', "CMD run"),
        (compose_schema, COMPOSE, "stop_grace_period:", "stop_graceperiod:"),
        (compose_schema, COMPOSE, "service_completed_successfully", "service_completed"),
        (kubernetes_schema, DEPLOY / "kubernetes" / "deployment.yaml", "livenessProbe:", "livenesProbe:"),
        (kubernetes_schema, DEPLOY / "kubernetes" / "pdb.yaml", "minAvailable: 1", "minAvailable: [1]"),
        (yamllint, COMPOSE, "  project:\n    <<: *postgres\n", "  source:\n    <<: *postgres\n"),
    ],
)
def test_the_checker_finds_a_mistake(tmp_path: Path, check: Check, file: Path, right: str, wrong: str) -> None:
    """Otherwise it would prove nothing that it finds none."""
    text = file.read_text("utf-8")
    assert right in text
    (tmp_path / file.name).write_text(text.replace(right, wrong, 1), "utf-8")
    found = check(tmp_path / file.name)
    assert found.returncode != 0
    assert found.stdout + found.stderr


# -- the image


def test_the_image_runs_unprivileged_without_a_shell_and_probes_itself() -> None:
    stage = last_stage()
    user, _, group = stage["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert {"RUN", "ADD", "SHELL"}.isdisjoint(stage)
    assert stage["EXPOSE"] == str(PORT)
    start = [*yaml.safe_load(stage["ENTRYPOINT"]), *yaml.safe_load(stage["CMD"])]
    probe = yaml.safe_load(stage["HEALTHCHECK"].partition(" CMD ")[2])
    for command in (start, probe):
        assert command[0] == "outboxd"
        understood(command[1:])
    assert probe[-1] == "--probe"
    pause, patience = (
        float(re.findall(rf"--{one}=(\d+)s", stage["HEALTHCHECK"])[0]) for one in ("interval", "timeout")
    )
    assert pause > patience


def understood(command: list[str]) -> None:
    """Is this a command of outboxd, with options it has?"""
    said = CliRunner().invoke(cli, [*command, "--help"])
    assert said.exit_code == 0, said.output


def test_nothing_is_installed_that_a_lock_does_not_hash() -> None:
    installs = re.findall(r"pip [^&]*?install [^&]*", " && ".join(rest for _, rest in instructions()[0]))
    assert len(installs) == 3
    for one in installs:
        assert "--no-deps" in one
        assert ("--require-hashes" in one and re.search(r"-r deploy/\w+\.lock", one)) or "--no-index" in one, one


def test_both_stages_are_of_one_base_and_it_is_pinned() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in chain(*instructions()) if word == "ARG")
    assert [rest.split()[0] for word, rest in chain(*instructions()) if word == "FROM"] == ["${BASE}", "${BASE}"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", arguments["BASE"])
    for one in SERVICES.values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", one["image"]), one["image"]


def test_what_is_copied_into_the_image_is_sent_and_exists() -> None:
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert next(line for line in sent if not line.startswith("#")) == "*"
    copied = {
        name
        for word, rest in chain(*instructions())
        if word == "COPY" and "--from" not in rest
        for name in rest.split()[:-1]
    }
    assert {line[1:] for line in sent if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


# -- compose.yaml


def test_one_version_is_named_everywhere() -> None:
    assert {one["image"] for one in OURS.values()} == {IMAGE}
    assert f"-t {IMAGE} " in DOCKERFILE.read_text("utf-8")
    assert [one["newTag"] for one in KUSTOMIZATION["images"]] == [__version__]


def test_our_services_have_no_right_they_do_not_need() -> None:
    for name, one in {**OURS, **{other: SERVICES[other] for other in ("gateway", "prometheus")}}.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert "user" not in one or name == "secrets", name


def test_no_port_is_open_to_others() -> None:
    published = [port for one in SERVICES.values() for port in one.get("ports", ())]
    assert f"127.0.0.1:{PORT}:{PORT}" in published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_compose_refers_to_exists() -> None:
    """What the schema cannot see: services, volumes and files that are named."""
    for name, one in SERVICES.items():
        for other, need in one.get("depends_on", {}).items():
            assert other in SERVICES, name
            assert need["condition"] != "service_healthy" or "healthcheck" in SERVICES[other], name
            finishes = SERVICES[other].get("restart", "no").startswith(("no", "on-failure"))
            assert (need["condition"] == "service_completed_successfully") == finishes, name
        assert one.get("network_mode", "none").removeprefix("service:") in {"none", *SERVICES}, name
        for volume in one.get("volumes", ()):
            there = volume.split(":")[0]
            assert there in STACK["volumes"] or (DEPLOY / there).exists(), volume


def test_prometheus_finds_outboxd_and_grafana_finds_prometheus() -> None:
    """By the addresses that their own files name."""
    scraped, looked_up = DEPLOY / "prometheus" / "prometheus.yml", DEPLOY / "grafana" / "provisioning"
    (job,) = yaml.safe_load(scraped.read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{PORT}"]}]
    assert SERVICES["prometheus"]["network_mode"] == SERVICES["outboxd"]["network_mode"] == "service:gateway"
    files = [yaml.safe_load(file.read_text("utf-8")) for file in sorted(looked_up.rglob("*.yaml"))]
    ((source,),) = (file["datasources"] for file in files if "datasources" in file)
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES["gateway"]["networks"]["default"]["aliases"]
    assert "127.0.0.1:9090:9090" in SERVICES["gateway"]["ports"]
    ((provider,),) = (file["providers"] for file in files if "providers" in file)
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert any(Path(there).parent == Path(provider["options"]["path"]) for there in mounted)


@pytest.mark.parametrize("name", sorted(set(OURS) - {"secrets"}))
def test_every_setting_in_compose_is_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings load, from the files that the stack makes for itself, and the command exists."""
    make_secrets(tmp_path)
    monkeypatch.setattr(configuration, "SECRETS_FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    for variable, value in OURS[name].get("environment", {}).items():
        monkeypatch.setenv(variable, value.replace("/run/secrets", str(tmp_path)))
    for file in tmp_path.iterdir():  # a …_FILE is none that everybody may read
        file.chmod(0o440)
    needs: list[configuration.Need] = ["source", "target"] if name == "outboxd" else ["source"]
    loaded = configuration.load(needs=needs)
    assert loaded.source_dsn is not None
    assert (loaded.target_dsn is None) == (name == "outboxd")
    understood(OURS[name].get("command", []))


def make_secrets(folder: Path) -> None:
    script = str(DEPLOY / "compose" / "make_secrets.py")
    subprocess.run([sys.executable, "-P", script, str(folder)], check=True, cwd=ROOT)


def test_the_secrets_are_made_once(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    first = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    make_secrets(tmp_path)
    assert {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()} == first
    used = set(re.findall(r"/run/secrets/([\w.]+)", "".join(file.read_text("utf-8") for file in compose_files())))
    assert used <= set(first)
    assert set(first) - used == {
        "source_dsn",
        "supabase_key",
        "complete",
    }  # those outboxd finds by itself, and the mark


def compose_files() -> list[Path]:
    return [COMPOSE, *(DEPLOY / "compose").iterdir()]


# -- Kubernetes


def pod() -> dict[str, Any]:
    return dict(OBJECTS["Deployment"]["spec"]["template"]["spec"])


def container() -> dict[str, Any]:
    (one,) = pod()["containers"]
    return dict(one)


def test_kustomize_names_every_manifest() -> None:
    assert set(KUSTOMIZATION["resources"]) == {file.name for file in MANIFESTS}
    assert [file for made in KUSTOMIZATION["configMapGenerator"] for file in made["files"]] == ["outboxd.toml"]
    assert OBJECTS["Namespace"]["metadata"]["name"] == KUSTOMIZATION["namespace"]


def test_what_kustomize_builds_fits_together(tmp_path: Path) -> None:
    built = {made["kind"]: made for made in yaml.safe_load_all(kustomized())}
    assert set(built) == {*OBJECTS, "ConfigMap"}
    spec = built["Deployment"]["spec"]["template"]["spec"]
    (volume,) = (one for one in spec["volumes"] if "configMap" in one)
    assert volume["configMap"]["name"] == built["ConfigMap"]["metadata"]["name"]
    assert spec["containers"][0]["image"] == f"registry.example/{IMAGE}"
    for kind, made in built.items():
        assert kind == "Namespace" or made["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(made), "utf-8")
    checked = kubernetes_schema(*tmp_path.iterdir())
    assert checked.returncode == 0, checked.stdout + checked.stderr


def kustomized() -> str:
    program = [
        [path, *how]
        for name, *how in (("kustomize", "build"), ("kubectl", "kustomize"))
        if (path := shutil.which(name))
    ]
    if not program:
        pytest.skip("neither kustomize nor kubectl is on this machine")
    command = [*program[0], str(DEPLOY / "kubernetes")]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert built.returncode == 0, built.stderr
    return built.stdout


def test_the_pods_are_restricted() -> None:
    """As Kubernetes' own profile "restricted" wants it, which the namespace enforces; and more."""
    assert OBJECTS["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    whole, one = pod()["securityContext"], container()["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert f"{whole['runAsUser']}:{whole['runAsGroup']}" == last_stage()["USER"]
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert pod()["automountServiceAccountToken"] is False
    # A service called outboxd would otherwise put OUTBOXD_PORT and more into the environment, which are no settings.
    assert pod()["enableServiceLinks"] is False


def test_secrets_are_files_where_outboxd_looks() -> None:
    mounts = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    volumes = {one["name"]: one for one in pod()["volumes"]}
    assert mounts["secrets"] == str(configuration.SECRETS_FOLDER)
    assert volumes["secrets"]["secret"]["defaultMode"] == 0o440
    assert pod()["securityContext"]["fsGroup"] == pod()["securityContext"]["runAsGroup"]
    assert "env" not in container()
    assert mounts["configuration"] == last_stage()["WORKDIR"]


def test_every_setting_in_the_configuration_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = DEPLOY / "kubernetes" / "outboxd.toml"
    monkeypatch.chdir(tmp_path)
    loaded = configuration.load(file, needs=())
    assert loaded.admin_host == "0.0.0.0"  # noqa: S104
    assert loaded.admin_port == PORT
    assert set(tomllib.loads(file.read_text("utf-8"))).isdisjoint(settings.SECRETS)


def test_the_probes_ask_pages_that_exist_on_the_port_that_is_open() -> None:
    (port,) = container()["ports"]
    assert (port["name"], port["containerPort"]) == ("admin", PORT)
    pages = {probe: container()[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {one["port"] for one in pages.values()} == {"admin"}
    assert {probe: one["path"] for probe, one in pages.items()} == {
        "startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"
    }  # fmt: skip
    (service,) = OBJECTS["Service"]["spec"]["ports"]
    assert (service["port"], service["targetPort"]) == (PORT, "admin")
    annotations = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORT)
    (rule,) = OBJECTS["NetworkPolicy"]["spec"]["ingress"]
    assert [one["port"] for one in rule["ports"]] == ["admin"]


def test_one_of_two_may_be_away_and_both_are_meant() -> None:
    spec = OBJECTS["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["replicas"] == 2
    assert OBJECTS["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    selectors: list[Mapping[str, str]] = [
        spec["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in pod()["topologySpreadConstraints"]),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_everybody_waits_longer_than_the_last_turn_takes() -> None:
    patience = [pod()["terminationGracePeriodSeconds"], int(OURS["outboxd"]["stop_grace_period"].removesuffix("s"))]
    assert all(seconds > main._LAST_TURN + 10 for seconds in patience)


# -- README.md


PAGE = (DEPLOY / "README.md").read_text("utf-8")


def test_each_way_to_alerts_has_ten_lines_at_most() -> None:
    ways = {
        part.partition("\n")[0]: re.findall(r"```sh\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")[1:]
    }
    assert {"systemd", "Containers", "Kubernetes"} <= set(ways)
    for name in ("systemd", "Containers", "Kubernetes"):
        assert 0 < len(ways[name][0].splitlines()) <= 10, name
        assert "outboxd_lag_seconds" in ways[name][0] or "alerts" in ways[name][0], name


def test_what_the_page_tells_to_type_exists() -> None:
    code = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) + re.findall(r"`([^`\n]+)`", PAGE))
    for command in re.findall(r"(?:^|bin/|-- |exec outboxd )outboxd ([a-z][^#\n]*)", code, re.MULTILINE):
        understood(command.split())
    compose = re.findall(r"docker compose -f (\S+) (\w+) (\w*)", code)
    assert {path for path, *_ in compose} == {"deploy/compose.yaml"}
    assert {service for _, verb, service in compose if verb in {"exec", "stop", "start"}} <= set(SERVICES)
    for path in set(re.findall(r"\b(?:deploy|tests)/[\w./-]*\w", code)):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (DEPLOY / link).exists(), link
