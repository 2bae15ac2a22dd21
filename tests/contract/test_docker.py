"""The container files without a container engine: what they refer to exists, and what a linter of
Dockerfiles and compose files would say.
"""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli.offline.daemon import read_settings
from server.settings import Settings
from tests.e2e.dockerfile import Instruction, instructions

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
STEPS = instructions(DOCKER / "Dockerfile")
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")
SECRET = re.compile(r"token|password|secret|key", re.IGNORECASE)


def of(name: str) -> list[Instruction]:
    return [step for step in STEPS if step.name == name]


# --- the Dockerfile ------------------------------------------------------------------------------


def test_bases_are_pinned_to_a_patch_release():
    assert of("FROM")
    for step in of("FROM"):
        assert PINNED.fullmatch(step.words[0]), step


def test_what_is_copied_is_there_and_reaches_the_build():
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copied = [word for step in of("COPY") for word in step.words[:-1]]
    assert not of("ADD")
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in let_in), name
    assert "*" in ignored
    assert sorted(let_in) == sorted(copied), "nothing else is sent to the engine"


def test_what_the_package_is_built_from_is_copied():
    copied = {word for step in of("COPY") for word in step.words[:-1]}
    project = (ROOT / "pyproject.toml").read_text()
    readme = re.search(r'^readme = "(.+)"', project, re.MULTILINE)
    assert readme is not None
    assert {"pyproject.toml", "constraints.txt", readme[1], "alembic.ini"} <= copied
    assert {"server", "trainer", "migrations", "docker/install.sh"} <= copied


def test_it_ends_as_a_user_without_rights_who_owns_the_data():
    assert of("USER")[-1].text == "1000:1000", "a number: others can see that it is not root"
    assert any("useradd --uid 1000 --gid 1000" in step.text for step in of("RUN"))
    assert any("--owner=traind" in step.text and "/data" in step.text for step in of("RUN"))
    names = [step.name for step in STEPS]
    made = next(i for i, step in enumerate(STEPS) if "--owner=traind" in step.text)
    assert names.index("VOLUME") > made, "a volume takes over owner and content of the folder"
    assert of("VOLUME")[0].text == "/data"
    assert "TRAIND_DATA_DIR=/data" in of("ENV")[0].text


def test_an_init_is_pid_1_and_signals_reach_the_daemon():
    start = json.loads(of("ENTRYPOINT")[0].text)
    assert start[:2] == ["/usr/bin/tini", "--"]
    assert any(re.search(r"apt-get install .*\btini\b", step.text) for step in of("RUN"))
    assert of("STOPSIGNAL")[0].text == "SIGTERM"
    assert json.loads(of("CMD")[0].text)[0] == "serve"


def test_the_command_asks_for_a_token_and_takes_its_trainers_along(tmp_path: Path):
    import typer.main

    from server.cli.app import build

    command = typer.main.get_command(build()).commands["serve"]  # type: ignore[attr-defined]
    given = command.make_context("serve", json.loads(of("CMD")[0].text)[1:]).params
    settings = read_settings(**{**given, "data_dir": tmp_path})
    assert settings.stop_trainers
    assert not settings.is_loopback
    assert settings.allow_remote
    assert str(settings.port) == of("EXPOSE")[0].text


def test_the_health_check_asks_whether_requests_can_be_served():
    (check,) = of("HEALTHCHECK")
    assert "/readyz" in check.text
    assert f"'127.0.0.1', {of('EXPOSE')[0].text}" in check.text
    probe = json.loads(check.text.partition("CMD ")[2])
    compile(probe[-1], "healthcheck", "exec")
    assert {"--interval", "--timeout", "--start-period", "--retries"} <= {
        flag.partition("=")[0] for flag in check.text.split() if flag.startswith("--")
    }


def test_what_a_linter_of_dockerfiles_says():
    for step in of("RUN"):
        text = step.text
        assert not re.search(r"\bsudo\b|\bcd /|apt-get (dist-)?upgrade|\bapt install", text), step
        if "apt-get install" in text:
            assert "apt-get update &&" in text
            assert "--yes" in text
            assert "--no-install-recommends" in text
            assert text.endswith("rm -rf /var/lib/apt/lists/*")
        assert "|" not in text.replace("||", ""), f"a pipe hides a failure: {step}"
        if "install.sh" in text:
            assert "type=cache,target=/root/.cache/pip" in text, "no pip cache in a layer"
    for name in ("CMD", "ENTRYPOINT", "HEALTHCHECK", "STOPSIGNAL"):
        assert len(of(name)) == 1, name
    for step in [*of("CMD"), *of("ENTRYPOINT")]:
        assert isinstance(json.loads(step.text), list), "the exec form"
    for step in of("WORKDIR"):
        assert step.text.startswith("/"), step


def test_no_secret_is_in_a_layer():
    for step in [*of("ARG"), *of("ENV")]:
        assert not SECRET.search(step.text), step


# --- compose -------------------------------------------------------------------------------------


def test_images_are_pinned_and_ours_is_of_this_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert SERVICES["traind"]["image"] == f"traind:{version[1]}"
    for service in SERVICES.values():
        assert PINNED.fullmatch(service["image"])


def test_ports_are_published_on_loopback_alone():
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == 3
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_the_daemon_gets_time_for_its_last_checkpoints():
    assert SERVICES["traind"]["stop_grace_period"] == "3m"
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}


def test_the_build_is_the_dockerfile_with_its_arguments():
    build = SERVICES["traind"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]) == DOCKER / "Dockerfile"
    declared = {step.text.partition("=")[0] for step in of("ARG")}
    assert set(build["args"]) == declared == {"TORCH_INDEX_URL"}


def test_the_token_comes_from_a_file_and_prometheus_reads_the_same():
    (name,) = COMPOSE["secrets"]
    inside = f"/run/secrets/{name}"
    assert SERVICES["traind"]["environment"]["TRAIND_TOKEN_FILE"] == inside
    assert SERVICES["traind"]["secrets"] == SERVICES["prometheus"]["secrets"] == [name]
    (job,) = _prometheus()["scrape_configs"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": inside}
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().split()
    assert COMPOSE["secrets"][name]["file"].startswith("./secrets/")
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            assert not SECRET.search(key) or key.endswith("_FILE") or value == "true", key


def test_prometheus_calls_the_daemon_by_a_name_it_answers_to(monkeypatch: pytest.MonkeyPatch):
    """And every TRAIND_… variable is a setting, with a value that it takes."""
    for key, value in SERVICES["traind"]["environment"].items():
        assert key.removeprefix("TRAIND_").lower() in Settings.model_fields, key
        monkeypatch.setenv(key, value)
    (target,) = _prometheus()["scrape_configs"][0]["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert name in SERVICES
    assert name in Settings().allow_hosts
    assert port == of("EXPOSE")[0].text


def test_every_mounted_file_and_volume_is_there():
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source, target = mount.split(":")[:2]
            assert target.startswith("/")
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
                assert mount.endswith(":ro"), mount
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        assert set(service.get("depends_on", [])) <= set(SERVICES)
    used = {m.split(":")[0] for s in SERVICES.values() for m in s.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= used


def test_the_gpu_file_only_adds_to_a_service_there_is():
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert set(gpu) == {"traind"}
    (device,) = gpu["traind"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


# --- Prometheus and Grafana ----------------------------------------------------------------------


def _prometheus() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())


def test_prometheus_finds_its_files_where_compose_puts_them():
    command = SERVICES["prometheus"]["command"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in command
    assert "./prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    for name in _prometheus()["rule_files"]:
        assert (DOCKER / "prometheus" / name).exists()


def test_grafana_finds_its_source_and_its_dashboard():
    grafana = DOCKER / "grafana"
    (source,) = _provisioned("datasources/prometheus.yaml")["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert host in SERVICES
    assert SERVICES[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    interval = _prometheus()["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = _provisioned("dashboards/traind.yaml")["providers"]
    mounts = dict(m.split(":")[:2] for m in SERVICES["grafana"]["volumes"])
    folder = provider["options"]["path"]
    assert mounts["./grafana/dashboards"] == folder
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (grafana / "dashboards" / Path(home).relative_to(folder)).exists()
    for path in (grafana / "dashboards").glob("*.json"):
        assert json.loads(path.read_text())["uid"]


def _provisioned(name: str) -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "grafana" / "provisioning" / name).read_text())


# --- the lint sees ------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["python", "python:latest", "python:3.11", "grafana/grafana:12"])
def test_a_loose_image_would_be_seen(image: str):
    assert not PINNED.fullmatch(image)


def test_instructions_of_a_dockerfile_are_joined_and_comments_left_out(tmp_path: Path):
    file = tmp_path / "Dockerfile"
    file.write_text("# a\nFROM a:1.2.3\n\nRUN --mount=type=cache one \\\n    # b\n    && two\n")
    assert instructions(file) == [
        Instruction("FROM", "a:1.2.3", 2),
        Instruction("RUN", "--mount=type=cache one && two", 4),
    ]
    assert instructions(file)[1].words == ["one", "&&", "two"]
