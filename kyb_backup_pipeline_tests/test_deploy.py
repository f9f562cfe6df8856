"""The systemd units: read by systemd itself, and the workspace that they hand to Dagster."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

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
