"""A recovered cluster in the place of the running one: real servers, stopped and started by real commands."""

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import psycopg
import pytest

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.cluster_journal import ClusterJournals
from kyb_backup_pipeline.engine.cluster_restore import STEPS, switch_by_hand
from kyb_backup_pipeline.engine.cluster_settle import repair_cluster
from kyb_backup_pipeline.engine.data_folder import server_runs
from kyb_backup_pipeline.engine.errors import KybError, Refused, RestoreFailed
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.throwaway import sweep
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.plants import Plant, moment_of, plant_in
from kyb_backup_pipeline_tests.running import children_of, none_alive, wait_until


@pytest.fixture
def plant(place: Path, tmp_path: Path, drills: Path) -> Iterator[Plant]:
    with plant_in(place, tmp_path, drills) as plant:
        yield plant


@pytest.fixture
def moment(plant: Plant) -> str:
    return moment_of(plant)


def test_a_moment_takes_the_place_of_the_running_cluster(plant: Plant, moment: str) -> None:
    cli = plant.cli()
    dry = cli.run("restore", "point-in-time", "--at", moment, "--switch", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert f"then in place of {plant.data}" in dry.stdout
    assert (plant.rows(), plant.calls(), plant.beside()) == (0, [], [])
    refused = cli.run("restore", "point-in-time", "--at", moment, "--switch")
    assert refused.returncode == 12
    assert plant.beside() == []
    done = cli.run("restore", "point-in-time", "--at", moment, "--switch", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert plant.rows() == 1500
    assert plant.calls() == ["stop", "server-stop", "server-start", "start"]
    (old,) = plant.beside()
    journal = json.loads(done.stdout)["journal"]
    assert journal["replaced"] == str(plant.cluster.folder / old)
    assert 0 < journal["interruption_seconds"] < 30
    began = {step["name"]: datetime.fromisoformat(step["began_at"]) for step in journal["steps"]}
    away = (began["health"] - began["stop"]).total_seconds()
    assert journal["interruption_seconds"] <= away  # the recovery before it interrupted nobody
    assert journal["state"] == "done"
    # the configuration in force before the switch, not that of the base
    assert execute(plant.cluster.target(), "SHOW work_mem") == [("5MB",)]
    # life goes on, and so do backups
    plant.primary.sql("INSERT INTO t VALUES (1)")
    plant.primary.increment()
    assert plant.primary.drill().verdict == "passed"
    # and the old folder is whole
    assert (plant.cluster.folder / old / "global" / "pg_control").exists()


def test_a_moment_out_of_the_copies_takes_the_place_of_the_running_cluster(
    plant: Plant, moment: str, tmp_path: Path
) -> None:
    """The repository is gone; the server still runs, with what was deleted by mistake."""
    disk = tmp_path / "disk"
    disk.mkdir()
    cli = plant.cli(KYB_OFFSITE__URL=str(disk))
    pushed = cli.run("offsite", "push", "--all")
    assert pushed.returncode == 0, pushed.stderr
    shutil.rmtree(plant.environment["BACKUP_DIR"])
    arguments = ("restore", "point-in-time", "--at", moment, "--switch", "--from", "offsite")
    dry = cli.run(*arguments, "--dry-run")
    assert (dry.returncode, f"then in place of {plant.data}" in dry.stdout) == (0, True), dry.stderr
    assert (plant.rows(), plant.calls(), plant.beside()) == (0, [], [])
    done = cli.run(*arguments, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert plant.rows() == 1500
    assert plant.calls() == ["stop", "server-stop", "server-start", "start"]
    journal = json.loads(done.stdout)["journal"]
    assert (journal["state"], journal["place"]) == ("done", "offsite")


def test_latest_brings_the_last_of_the_log_in_first(plant: Plant) -> None:
    plant.primary.base()
    plant.primary.increment()
    plant.primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 7) AS n")
    journal = plant.restore("latest")
    assert plant.rows() == 1007
    collected = next(step for step in journal.steps if step.name == "collect")
    assert collected.detail.startswith("incr_")
    assert plant.calls() == ["stop", "server-stop", "server-start", "start"]


def test_a_data_folder_that_is_gone_comes_back(plant: Plant) -> None:
    plant.primary.base()
    plant.primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 7) AS n",
                      "ALTER SYSTEM SET work_mem = '5MB'")  # fmt: skip
    plant.primary.increment()
    plant.cluster.stop()
    shutil.rmtree(plant.data)
    with pytest.raises(Refused, match="is not known"):
        plant.restore("latest")
    journal = plant.restore("latest", KYB_RECOVERY__DATA_DIRECTORY=str(plant.data))
    assert plant.rows() == 1007
    assert journal.old_inode is None
    assert plant.beside() == []


def test_a_server_that_is_down_is_restored_all_the_same(plant: Plant, moment: str) -> None:
    plant.cluster.stop()
    plant.restore(moment, KYB_RECOVERY__DATA_DIRECTORY=str(plant.data))
    assert plant.rows() == 1500
    assert plant.calls() == ["stop", "server-start", "start"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"KYB_RECOVERY__HEALTH_URL": "http://127.0.0.1:1/", "KYB_RECOVERY__HEALTH_TIMEOUT": "0.5"},
         "is not well"),
        ({"KYB_APPLICATION__START_COMMAND": "false"}, "service did not start"),
        ({"KYB_RECOVERY__STOP_SERVER_COMMAND": "false"}, "server did not stop"),
        ({"KYB_RECOVERY__STOP_SERVER_COMMAND": "true"}, "still runs on"),
        ({"KYB_APPLICATION__STOP_COMMAND": "false"}, "service did not stop"),
    ],
)  # fmt: skip
def test_what_fails_leaves_the_old_cluster_in_place(
    plant: Plant, moment: str, changes: dict[str, str], said: str
) -> None:
    inode = plant.data.stat().st_ino
    with pytest.raises(RestoreFailed, match=said) as failed:
        plant.restore(moment, **changes)
    wait_until(lambda: server_runs(plant.data), "the old server runs")
    assert (plant.rows(), plant.data.stat().st_ino) == (0, inode)
    if "START_COMMAND" not in " ".join(changes):
        assert "is as it was; the recovered cluster is in" in failed.value.message
        assert plant.calls()[-1:] in ([], ["start"])
    (kept,) = plant.beside()
    assert "_recovered_" in kept
    plant.restore(moment)
    assert plant.rows() == 1500


def test_a_recovered_server_that_does_not_start_is_switched_back(plant: Plant, moment: str) -> None:
    plant.primary.sql("ALTER SYSTEM SET restart_after_crash = off")
    start = plant.environment["KYB_RECOVERY__START_SERVER_COMMAND"]
    only_old = f"test $(stat -c %i {plant.data}) = {plant.data.stat().st_ino} && {start}"
    with pytest.raises(RestoreFailed, match=r"did not start.*is as it was.*the server runs"):
        plant.restore(moment, KYB_RECOVERY__START_SERVER_COMMAND=shlex.join(["sh", "-c", only_old]))
    assert plant.rows() == 0
    assert plant.journals()[0].state == "swapped back"


def test_what_cannot_be_switched_is_refused_before_anything_is_done(
    plant: Plant, moment: str, place: Path
) -> None:
    other = place / "other"
    for changes, said in (
        ({"KYB_RECOVERY__START_SERVER_COMMAND": ""}, "start_server_command is not set"),
        ({"KYB_RECOVERY__DATA_DIRECTORY": str(other)}, "which of the two|the server says"),
    ):  # fmt: skip
        (other / "global").mkdir(parents=True, exist_ok=True)
        (other / "global" / "pg_control").write_bytes(bytes(8192))
        with pytest.raises(Refused, match=said):
            plant.restore(moment, **changes)
    assert (plant.rows(), plant.calls(), plant.beside()) == (0, [], [])
    plant.cluster.stop()
    with pytest.raises(Refused, match="is of another cluster"):
        plant.restore(moment, KYB_RECOVERY__DATA_DIRECTORY=str(other))


def test_the_printed_commands_do_the_switch(plant: Plant, moment: str) -> None:
    primary = plant.with_settings(KYB_RECOVERY__DATA_DIRECTORY=str(plant.data))
    into = plant.cluster.folder / "data_by_hand"
    cli = plant.cli(KYB_RECOVERY__DATA_DIRECTORY=str(plant.data))
    done = cli.run("restore", "point-in-time", "--at", moment, "--into", str(into), "--yes")
    assert done.returncode == 0, done.stderr
    (journal,) = plant.journals()
    lines = switch_by_hand(primary.settings, journal)
    for line in lines:
        assert line in done.stdout
        process.run(["sh", "-c", line], deadline=60)
    assert plant.rows() == 1500
    assert plant.calls() == ["stop", "server-stop", "server-start", "start"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_old_cluster_or_the_new_one_is_in_place(
    plant: Plant, moment: str, step: str
) -> None:
    chance = random.Random(step)
    run = plant.cli().start("restore", "point-in-time", "--at", moment, "--switch", "--yes")
    wait_until(
        lambda: (
            run.popen.poll() is not None
            or any(s.name == step for j in plant.journals() for s in j.steps)
        ),
        f"it is at {step}",
    )
    time.sleep(chance.uniform(0, 0.3 if step == "recover" else 0.05))
    children = children_of(run.pid)
    run.kill()
    run.wait()
    wait_until(partial(_gone_but_the_server, plant, children), "its children are gone")
    again = plant.cli(KYB_RECOVERY__DATA_DIRECTORY=str(plant.data)).run("restore", "repair")
    assert again.returncode == 0, again.stderr
    wait_until(partial(_answers, plant), "the server answers")
    (journal,) = plant.journals()
    assert plant.rows() == (1500 if journal.state == "done" else 0)
    assert journal.state in ("done", "failed")
    if journal.state == "done":
        assert Path(journal.replaced or "").exists()
    if journal.began("stop"):
        assert plant.calls()[-1] == "start"
    assert repair_cluster(plant.primary.settings) == []
    assert not [p for p in plant.cluster.folder.iterdir() if p.name.endswith(".partial")]
    sweep(plant.primary.settings.restore_test.directory)


def _gone_but_the_server(plant: Plant, children: list[int]) -> bool:
    return none_alive([pid for pid in children if not _is_server(plant, pid)])


def _is_server(plant: Plant, pid: int) -> bool:
    try:
        return os.path.realpath(f"/proc/{pid}/cwd") == str(plant.data)
    except OSError:
        return False


def _answers(plant: Plant) -> bool:
    try:
        plant.rows()
    except (KybError, psycopg.Error):
        return False
    return True


# What must not be lost, and what is owed


def test_latest_loses_nothing_that_was_acknowledged_or_is_refused(plant: Plant) -> None:
    plant.primary.base()
    plant.primary.increment()
    plant.primary.sql("INSERT INTO t SELECT generate_series(1, 7)",
                      "CREATE ROLE few LOGIN SUPERUSER CONNECTION LIMIT 0")  # fmt: skip
    data = {"KYB_RECOVERY__DATA_DIRECTORY": str(plant.data)}
    with pytest.raises(Refused, match="cannot be brought in"):
        plant.restore("latest", DB_USER="nobody_of_this_name", **data)
    assert plant.rows() == 1007
    assert plant.calls()[-1:] == ["start"]
    plant.cluster.stop(signal.SIGQUIT)  # it crashed; its folder and its WAL are there
    with pytest.raises(Refused, match="is down: what it wrote last"):
        plant.restore("latest", **data)
    plant.cluster.start()
    assert plant.rows() == 1007


def test_a_server_that_is_cut_off_cannot_say_what_it_wrote_last(plant: Plant) -> None:
    plant.primary.base()
    pid_file = plant.data / "postmaster.pid"
    cut = f"kill -QUIT $(head -1 {pid_file}); while test -e {pid_file}; do sleep 0.05; done"
    with pytest.raises(RestoreFailed, match=r"cut off.*is as it was"):
        plant.restore("latest", KYB_RECOVERY__STOP_SERVER_COMMAND=shlex.join(["sh", "-c", cut]))
    wait_until(partial(_answers, plant), "the old server answers")
    assert plant.rows() == 1000


def test_what_others_write_while_the_service_is_stopped_is_not_lost(plant: Plant) -> None:
    plant.primary.base()
    done = threading.Event()
    acknowledged = [0]

    def write() -> None:  # not the service: nobody stops it
        while not done.is_set():
            with contextlib.suppress(psycopg.Error, KybError), connect(plant.cluster.target()) as c:
                while not done.is_set():
                    c.execute("INSERT INTO t VALUES (0)")
                    acknowledged[0] += 1
                    time.sleep(0.3)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        try:
            plant.restore("latest")
        except RestoreFailed as error:  # it never found a quiet moment, and said so
            assert "were written behind the last increment" in error.message
    finally:
        done.set()
        writer.join()
    assert plant.rows() >= 1000 + acknowledged[0]


def test_a_put_back_that_could_not_start_is_finished_by_repair(plant: Plant, moment: str) -> None:
    place = plant.said.parent
    start = plant.environment["KYB_RECOVERY__START_SERVER_COMMAND"]
    closed = shlex.join(["sh", "-c", f"test -e {place}/open && {start}"])
    with pytest.raises(RestoreFailed, match=r"did not start.*restore repair"):
        plant.restore(moment, KYB_RECOVERY__START_SERVER_COMMAND=closed)
    assert not server_runs(plant.data)
    assert not plant.journals()[0].settled
    again = plant.cli(KYB_RECOVERY__DATA_DIRECTORY=str(plant.data)).run("restore", "repair")
    assert again.returncode == 0, again.stderr
    assert (plant.rows(), plant.calls()[-1]) == (0, "start")
    assert plant.journals()[0].state == "swapped back"
    assert plant.cli().run("restore", "repair").stdout == "there is nothing to repair\n"


def test_a_server_that_goes_down_late_is_started_again(plant: Plant, moment: str) -> None:
    pid_file = plant.data / "postmaster.pid"
    slow = f"(sleep 1; kill -INT $(head -1 {pid_file})) >/dev/null 2>&1 & exit 1"
    with pytest.raises(RestoreFailed, match="did not stop"):
        plant.restore(moment, KYB_RECOVERY__STOP_SERVER_COMMAND=shlex.join(["sh", "-c", slow]))
    wait_until(partial(_answers, plant), "a server answers")
    assert plant.rows() == 0


def test_a_broken_journal_of_another_keeps_nobody_from_recovering(
    plant: Plant, moment: str
) -> None:
    folder = ClusterJournals.of(plant.primary.settings).folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(("", "{", '{"state": "of the future"}')):
        (folder / f"recovery_20260101_00000{number}_000000.json").write_text(text)
        (folder / f"restore_20260101_00000{number}_000000.json").write_text(text)
    run = plant.cli().run("restore", "point-in-time", "--at", moment, "--switch", "--yes")
    assert run.returncode == 0, run.stderr
    assert plant.rows() == 1500
    assert plant.cli().run("restore", "repair").returncode == 0


def test_what_another_machine_began_is_left_to_it(plant: Plant, moment: str) -> None:
    plant.restore(moment)
    journals = ClusterJournals.of(plant.primary.settings)
    (journal,) = journals.all()
    left = journal.model_copy(update={"state": "running", "given_up": True, "server_stopped": True,
                                      "stopped": True, "steps": []})  # fmt: skip
    journals.keep(left)
    path = journals.folder / f"{left.restore_id}.json"
    path.write_text(path.read_text().replace(f'"{socket.gethostname()}"', '"another-host"'))
    before = plant.calls()
    plant.cli().run("restore", "repair")
    assert plant.calls() == before
    run = plant.cli().run("restore", "repair", "--of-machine", "another-host")
    assert run.returncode == 0, run.stderr
    assert plant.calls()[len(before) :] == ["start"]  # the server runs
