"""serve, service and doctor: settings as flags, the unit, and what is said of a machine."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from server.cli.app import build, main
from server.cli.offline import daemon, doctor
from server.daemon import systemd
from server.settings import Settings

OTHER: dict[str, Any] = {
    "data_dir": "/data/my runs", "host": "::1", "port": 9000, "auth": "always",
    "allow_hosts": ["box", "box.lan"], "allow_remote": True, "token_file": "/run/secret",
    "trainer_python": "/opt/py 3/bin/python", "stop_trainers": True, "max_body_bytes": 4096,
    "tick_seconds": 0.5, "pause_deadline_seconds": 60.0, "stall_seconds": 30.0,
    "token_cache_bytes": 10, "keep_jobs_days": 7.0, "log_format": "json", "log_level": "debug",
    "energy_price_per_kwh": 0.3, "tariff": "/etc/tariff.json",
    "slurm_prologue": "/etc/traind/site.sh",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("TRAIND_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRAIND_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NO_COLOR", "1")


def serve_command() -> Any:
    return typer.main.get_command(build()).commands["serve"]  # type: ignore[attr-defined]


def test_every_setting_is_a_flag_of_serve():
    assert {param.name for param in serve_command().params} >= set(Settings.model_fields)


@pytest.mark.parametrize("name", [None, *OTHER])
def test_flags_of_settings_give_the_same_settings(name: str | None):
    """What `service install` writes into the unit is what the daemon then reads."""
    assert OTHER.keys() == Settings.model_fields.keys()
    given = OTHER if name is None else {name: OTHER[name]}
    settings = Settings(**given)
    context = serve_command().make_context("serve", daemon.flags_of(settings))
    assert daemon.read_settings(**context.params).model_dump() == {
        **settings.model_dump(), "data_dir": settings.paths.root,
    }  # fmt: skip


def test_a_setting_that_cannot_be_is_wrong_usage(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--auth", "never"])
    assert ended.value.code == 2
    assert "auth" in capsys.readouterr().err


def test_what_serve_announces_holds_no_token(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    token = tmp_path / "data" / "token"
    token.parent.mkdir()
    token.write_text("very-secret-token-000")
    daemon.announce(Settings(auth="always", port=1234))
    said = capsys.readouterr()
    assert "http://127.0.0.1:1234" in said.err
    assert str(token) in said.err.replace("\n", "")
    assert "very-secret" not in said.out + said.err
    main_output(capsys, "token", "show-path")


def main_output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    assert not ended.value.code, said.err
    assert "very-secret" not in said.out + said.err
    return said.out


def test_rebuild_is_refused_while_a_daemon_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from trainer.contract.rundir import acquire

    root = tmp_path / "data"
    root.mkdir()
    fd = acquire(root / "daemon.lock", "pid 1, since ever")
    try:
        with pytest.raises(SystemExit) as ended:
            main(["rebuild", "--yes"])
    finally:
        os.close(fd)
    assert ended.value.code == 1
    assert "Stop the daemon first" in capsys.readouterr().err
    assert not (root / "traind.db").exists()
    main_output(capsys, "rebuild", "--yes")
    assert (root / "traind.db").exists()


# --- the unit ------------------------------------------------------------------------------------


def test_the_unit_lets_trainers_live():
    text = systemd.unit(["--port", "9000"], python="/usr/bin/python3")
    assert "ExecStart=/usr/bin/python3 -P -m server.cli.app serve --port 9000\n" in text
    for line in ("KillMode=process", "OOMPolicy=continue", "WantedBy=default.target"):
        assert line in text.splitlines()


def test_the_unit_is_notified_watched_and_private():
    text = systemd.unit([]).splitlines()
    wanted = ("Type=notify", "NotifyAccess=main", "WatchdogSec=120", "UMask=0077")
    for line in (*wanted, "NoNewPrivileges=yes", "LimitNOFILE=65536"):
        assert line in text
    section = text[text.index("[Service]") + 1 : text.index("[Install]") - 1]
    assert all("=" in line and "#" not in line for line in section)
    for forbids_training in ("PrivateDevices", "MemoryDenyWriteExecute", "ProtectHome"):
        assert not any(line.startswith(forbids_training) for line in section)


def test_the_unit_quotes_what_systemd_would_read():
    flags = ["--data-dir", '/my runs/100%/$HOME/"x"\\']
    text = systemd.unit(flags, python="/py")
    assert '"/my runs/100%%/$$HOME/\\"x\\"\\\\"' in text


def test_a_line_break_never_reaches_the_unit():
    with pytest.raises(systemd.ServiceError, match="control character"):
        systemd.unit(["--data-dir", "/a\nExecStartPost=/bin/evil"])


def test_stop_trainers_gives_them_time():
    assert "TimeoutStopSec=3min" in systemd.unit([], stop_trainers=True).splitlines()


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it is asked; returns that record."""
    record, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    fake = folder / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {record}\n[ ! -e {tmp_path}/refuses ]\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return record


def test_install_writes_enables_and_starts(systemctl: Path, capsys: pytest.CaptureFixture[str]):
    said = main_output(capsys, "service", "install", "--port", "9001")
    text = systemd.unit_path().read_text()
    assert "--port 9001" in text
    assert str(systemd.unit_path()) in said
    asked = [line.removeprefix("--user --no-pager ") for line in systemctl.read_text().splitlines()]
    assert asked == [
        "show-environment", "daemon-reload", "enable traind.service", "restart traind.service",
    ]  # fmt: skip


def test_install_again_replaces_the_unit(systemctl: Path, capsys: pytest.CaptureFixture[str]):
    main_output(capsys, "service", "install", "--port", "9001")
    main_output(capsys, "service", "install", "--port", "9002")
    assert "9001" not in systemd.unit_path().read_text()


def test_uninstall_stops_and_removes(systemctl: Path, capsys: pytest.CaptureFixture[str]):
    main_output(capsys, "service", "install")
    main_output(capsys, "service", "uninstall")
    assert not systemd.unit_path().exists()
    assert "disable --now traind.service" in systemctl.read_text()
    assert "does not exist" in main_output(capsys, "service", "uninstall")


def test_without_systemd_the_unit_is_written_and_the_rest_is_said(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "refuses").touch()
    with pytest.raises(SystemExit) as ended:
        main(["service", "install"])
    assert not ended.value.code
    assert "systemctl --user daemon-reload" in capsys.readouterr().err.replace("\n", " ")
    assert systemd.unit_path().exists()


def test_show_prints_the_unit_and_installs_nothing(capsys: pytest.CaptureFixture[str]):
    assert "[Service]" in main_output(capsys, "service", "show")
    assert not systemd.unit_path().exists()


# --- doctor --------------------------------------------------------------------------------------


def fake_python(tmp_path: Path, script: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


def test_the_trainer_is_asked_and_torch_stays_out(tmp_path: Path):
    loaded_before = set(sys.modules)
    answer = doctor.ask_trainer(sys.executable, 60)
    assert isinstance(answer, dict)
    assert answer["trainer"] is True
    findings = list(doctor.trainer_findings(answer))
    assert all(finding.level == "ok" for finding in findings if finding.name != "trainer")
    assert "torch" not in set(sys.modules) - loaded_before


@pytest.mark.parametrize(
    ("script", "said"),
    [("sleep 30", "did not answer"), ("exit 3", "exit status 3"), ("echo '{'", "python")],
)
def test_a_trainer_that_does_not_answer_is_a_problem(tmp_path: Path, script: str, said: str):
    finding = doctor.ask_trainer(fake_python(tmp_path, script), 1)
    assert isinstance(finding, doctor.Finding)
    assert finding.level == "problem"
    assert said in finding.detail
    assert finding.advice


def test_an_interpreter_that_is_not_there_is_a_problem(tmp_path: Path):
    finding = doctor.ask_trainer(str(tmp_path / "nothing"), 1)
    assert isinstance(finding, doctor.Finding)
    assert "TRAIND_TRAINER_PYTHON" in finding.advice


def test_missing_packages_are_named():
    packages = {"torch": None, "numpy": "2.0"}
    answer = {"python": "3.12", "executable": "/p", "packages": packages, "trainer": "no module"}
    findings = list(doctor.trainer_findings(answer))
    assert [finding.level for finding in findings] == ["problem", "problem"]
    assert "torch" in findings[0].advice


def test_doctor_exits_1_when_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import json

    monkeypatch.setenv("TRAIND_TRAINER_PYTHON", fake_python(tmp_path, "exit 1"))
    monkeypatch.setenv("TRAIND_URL", "http://127.0.0.1:1")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert ended.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    levels = {f["name"]: f["level"] for f in found["findings"]}
    assert levels["trainer"] == "problem"
    assert levels["daemon"] == "warning"
    assert {"python", "packages", "sqlite", "disk", "data directory", "compiler"} <= levels.keys()


def test_a_second_daemon_is_refused_quickly_and_says_who_holds_it(tmp_path: Path):
    """The command's own part of it: exit 1, one sentence, no traceback."""
    from trainer.contract.rundir import acquire

    root = tmp_path / "data"
    root.mkdir()
    fd = acquire(root / "daemon.lock", "pid 1, since ever")
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "server.cli.app", "serve", "--port", "0"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(fd)
    assert answer.returncode == 1
    assert "pid 1, since ever" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ({"cuda": True, "missing_header": "/usr/include/python3.13/Python.h"}, "warning"),
        ({"cuda": True, "missing_header": None}, "ok"),
        ({"cuda": False, "missing_header": "/usr/include/python3.13/Python.h"}, "ok"),
        (doctor.Finding("trainer", "problem", "no answer"), "ok"),
    ],
)
def test_a_gpu_needs_the_headers_of_the_trainers_python(
    monkeypatch: pytest.MonkeyPatch, answer: Any, level: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = doctor.compiler_finding(answer)
    assert found.level == level
    assert ("Python.h" in found.detail) == (level == "warning")
