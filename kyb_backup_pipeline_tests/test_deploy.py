"""The systemd units: read by systemd itself, and the workspace that they hand to Dagster."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.conftest import create_database, settings_file
from kyb_backup_pipeline_tests.mail_server import mail_server
from kyb_backup_pipeline_tests.running import wait_until
from kyb_backup_pipeline_tests.test_sandbox import LAUNCH, RUN, ask

_DEPLOY = Path(__file__).parent.parent / "deploy"
_UNITS = sorted(_DEPLOY.glob("*.service"))


def test_there_is_a_unit_for_each_part_of_dagster() -> None:
    assert [path.stem for path in _UNITS] == [
        "kyb-dagster-code", "kyb-dagster-daemon", "kyb-dagster-webserver",
    ]  # fmt: skip


@pytest.mark.parametrize("unit", _UNITS, ids=lambda path: path.stem)
def test_systemd_finds_nothing_wrong_with_it(unit: Path, tmp_path: Path) -> None:
    for each in _UNITS:  # what does not exist on this machine stands in for what does on theirs
        text = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", each.read_text())
        text = text.replace("User=kyb-backup", "User=daemon").replace("Group=kyb-backup\n", "")
        (tmp_path / each.name).write_text(text)
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True, text=True, check=False, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    complaints = [
        line for line in run.stderr.splitlines() if str(tmp_path) in line or unit.name in line
    ]
    assert (run.returncode, complaints) == (0, []), run.stderr


def test_the_programs_are_those_that_are_installed_and_listen_on_loopback_only() -> None:
    programs = {}
    for unit in _UNITS:
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.M)
        programs[Path(line.split()[0]).name] = line
    assert set(programs) == {"dagster", "dagster-daemon", "dagster-webserver"}
    for name in ("dagster", "dagster-webserver"):
        assert "-h 127.0.0.1" in programs[name]
    workspace = yaml.safe_load((_DEPLOY / "workspace.yaml").read_text())
    (server,) = (entry["grpc_server"] for entry in workspace["load_from"])
    assert f"-p {server['port']}" in programs["dagster"]
    assert server["location_name"] == "kyb_backup_pipeline"


def test_the_three_run_together_and_a_backup_is_launched_through_them(
    server: Cluster, settings: Settings, place: Path, tmp_path: Path
) -> None:
    """With the very commands and files of the deployment, but for ports and folders."""
    storage = f"dagster_{os.getpid()}"
    create_database(server.target(), storage)
    home = place / "dagster_home"
    home.mkdir()
    shutil.copy(_DEPLOY.parent / "dagster.yaml", home)
    code, ui = free_port(), free_port()
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text((_DEPLOY / "workspace.yaml").read_text().replace("4266", str(code)))
    target = server.target(storage)
    (variables,) = [
        dict(re.findall(r"^([A-Z_]+)=(.*)$", (_DEPLOY / "dagster.env.example").read_text(), re.M))
    ]
    assert set(variables) == {"DAGSTER_HOME", "DAGSTER_POSTGRES_URL", "KYB_CONFIG"}
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "DAGSTER_HOME": str(home),
        "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://{target.user}@/{storage}?host={target.host}&port={target.port}",
        "KYB_CONFIG": str(settings_file(settings, tmp_path / "kyb_backup.toml")),
    }  # fmt: skip
    running = []
    try:
        for unit in ("kyb-dagster-code", "kyb-dagster-daemon", "kyb-dagster-webserver"):
            (line,) = re.findall(
                r"^ExecStart=(.*)$", (_DEPLOY / f"{unit}.service").read_text(), re.M
            )
            program, *arguments = line.split()
            argv = [str(Path(sys.executable).with_name(Path(program).name))]
            ours = {"4266": str(code), "3000": str(ui), "/etc/kyb/workspace.yaml": str(workspace)}
            argv += [ours.get(word, word) for word in arguments]
            with open(tmp_path / f"{unit}.log", "wb") as log:
                running.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log,
                                                cwd=home, start_new_session=True))  # fmt: skip
            if unit == "kyb-dagster-code":
                wait_until(partial(_listens, code), "the code server listens", 60)
        wait_until(partial(_listens, ui), "the UI listens", 60)
        selector = {"repositoryLocationName": "kyb_backup_pipeline", "repositoryName": "__repository__",
                    "jobName": "full_backup_job"}  # fmt: skip
        tags = [{"key": "dagster/partition", "value": "by_the_units"}]
        params = {"selector": selector, "executionMetadata": {"tags": tags}}
        launched = ask(ui, LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched

        def status() -> str:
            return str(ask(ui, RUN, id=launched["run"]["runId"])["runOrError"]["status"])

        wait_until(lambda: status() in ("SUCCESS", "FAILURE", "CANCELED"), "the run ends", 180)
        assert status() == "SUCCESS"
        records = Repository(settings.repository).records.latest("by_the_units")
        assert {name: proof.verdict for name, proof in records.items()} == {
            "verification": "passed", "restore_test": "passed",
        }  # fmt: skip
    finally:
        for each in reversed(running):
            each.terminate()  # as systemd does: to the main process
        for each in running:
            try:
                each.wait(60)
            except (
                subprocess.TimeoutExpired
            ):  # on a busy machine; systemd waits longer, then does this
                os.killpg(each.pid, signal.SIGKILL)
                each.wait()


def test_the_cron_line_tells_of_a_stale_backup_without_dagster(
    settings: Settings, tmp_path: Path
) -> None:
    lines = (_DEPLOY / "kyb-backup.cron").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("*/15 ")]
    user, command = line.split(" ", 5)[5].split(" ", 1)
    assert user == "kyb-backup"
    with mail_server() as mail:
        file = settings_file(settings, tmp_path / "kyb_backup.toml")
        alerts = f'[alerts]\nemail = ["ops@example.org"]\nsmtp = "{mail.address}"\n'
        file.write_text(file.read_text() + alerts)
        Repository(settings.repository).create()
        command = command.replace("/opt/kyb-backup/bin", str(Path(sys.executable).parent))
        command = command.replace("/etc/kyb/kyb_backup.toml", str(file))
        for _ in range(2):
            run = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True,
                                 env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})  # fmt: skip
            assert (run.returncode, run.stdout, run.stderr) == (6, "", "")
        (told,) = mail.to("ops@example.org")
        assert "never been a full backup" in str(told["Subject"])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
