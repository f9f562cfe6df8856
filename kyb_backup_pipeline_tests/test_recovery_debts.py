"""What a restore owes when it does not come to its end: the service, the old database, and a way on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.recovery import AtWork
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine.database_restore import STEPS, DatabaseRestore
from kyb_backup_pipeline.engine.database_settle import is_swapped, repair_database
from kyb_backup_pipeline.engine.errors import Locked, RestoreFailed
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.recovery_journal import Journal, maintenance
from kyb_backup_pipeline.engine.restore_outlook import Wish
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import settings_file
from kyb_backup_pipeline_tests.platforms import Platform
from kyb_backup_pipeline_tests.running import wait_until
from kyb_backup_pipeline_tests.test_dagster import failure, new_instance
from kyb_backup_pipeline_tests.test_database_restore import Live, change, living

QUICK = Wish(safety_backup=False)


@pytest.fixture
def live(settings: Settings, server: Cluster, tmp_path: Path, drills: Path) -> Iterator[Live]:
    with living(settings, server, tmp_path, drills) as live:
        yield live


def begun(live: Live, until: str, wish: Wish = QUICK) -> DatabaseRestore:
    """A restore that has come to a step, which it has not begun."""
    restore = DatabaseRestore.begin(live.settings, live.find("good"), wish, now=utc_now())
    for name in STEPS[: STEPS.index(until)]:
        restore.step(name)
    return restore


def slow(live: Live, what: str) -> dict[str, str]:
    """Settings with a service command that takes its time, and says so."""
    script = f"echo {what} >> {live.place}/service.log; touch {live.place}/{what}ing; sleep 2"
    return {f"APPLICATION__{what.upper()}_COMMAND": f"sh -c '{script}'"}


def journal_of(live: Live) -> Journal:
    return live.journals().all(live.target)[0]


def test_an_error_between_two_steps_is_settled_too(live: Live) -> None:
    live.backup()
    after = change(live)
    with pytest.raises(ValueError, match="nobody knows why"), begun(live, "swap"):
        raise ValueError("nobody knows why")
    assert (live.users(), live.databases(), live.calls()) == (after, [], ["stop", "start"])
    assert journal_of(live).state == "failed"
    with pytest.raises(ValueError, match="behind"), begun(live, "start"):
        raise ValueError("behind the swap")
    assert live.users() == after - 7  # the restored one was proved, and is in place
    assert live.calls() == ["stop", "start"] * 2
    assert (journal_of(live).state, journal_of(live).settled) == ("done", True)


def test_a_reader_that_goes_away_does_not_stop_a_restore(live: Live) -> None:
    live.backup()
    after = change(live)
    argv = [sys.executable, "-m", "kyb_backup_pipeline", "restore", "database", "good", "--yes",
            "--without-safety-backup"]  # fmt: skip
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**live.environment, "PATH": os.environ["PATH"]}) as run:  # fmt: skip
        assert run.stdout is not None
        while run.stdout.read(1) != b"\xe2":  # the first step's line begins with a dot
            assert run.poll() is None
        run.stdout.close()
        run.wait(60)
    assert live.users() == after - 7
    assert live.calls() == ["stop", "start"]
    assert journal_of(live).state == "done"


@pytest.mark.parametrize("at", ["stop", "start"])
def test_a_second_interrupt_does_not_keep_the_service_down(live: Live, at: str) -> None:
    live.backup()
    after = change(live)
    run = live.cli(**slow(live, at)).start(
        "restore", "database", "good", "--yes", "--without-safety-backup"
    )
    wait_until((live.place / f"{at}ing").exists, f"it is at {at}")
    for _ in range(4):
        run.kill(signal.SIGINT)
        time.sleep(0.1)
    assert run.wait() in (130, -signal.SIGINT)  # the last one may come at the very end
    assert live.users() == (after if at == "stop" else after - 7)
    assert live.calls()[-1] == "start"
    assert journal_of(live).settled, run.stderr


def test_what_could_not_be_settled_is_finished_by_repair(live: Live) -> None:
    live.backup()
    after = change(live)
    unwell = {"RECOVERY__HEALTH_URL": "http://127.0.0.1:1/"}
    (live.place / "closed").touch()
    start = f"sh -c 'test ! -e {live.place}/back || exit 1; {live.place}/service.sh start; touch {live.place}/back'"
    with pytest.raises(RestoreFailed, match=r"swapped back.*did not start.*restore repair"):
        live.restore(live.find("good"), QUICK, **unwell, APPLICATION__START_COMMAND=start)
    assert (live.users(), journal_of(live).settled) == (after, False)
    assert live.calls()[-1] == "stop"
    (said,) = repair_database(live.settings)
    assert "service runs again" in said
    assert live.calls()[-1] == "start"
    assert journal_of(live).state == "swapped back"
    assert repair_database(live.settings) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_rollback_that_is_ended_halfway_leaves_a_service_that_runs(
    live: Live, how: signal.Signals
) -> None:
    backup = live.backup()
    after = change(live)
    live.restore(backup, QUICK)
    calls = len(live.calls())
    run = live.cli(**slow(live, "stop")).start("restore", "rollback", "--yes")
    wait_until((live.place / "stoping").exists, "the service is being stopped")
    run.kill(how)
    run.wait()
    repaired = live.cli().run("restore", "repair")
    assert repaired.returncode == 0, repaired.stderr
    assert live.calls()[calls:] == ["stop", "start"]
    assert live.users() == after - 7
    done = live.cli().run("restore", "rollback", "--yes")
    assert done.returncode == 0, done.stderr
    assert live.users() == after
    again = live.cli().run("restore", "rollback", "--yes")
    assert again.returncode == 9


def test_journals_that_cannot_be_read_are_passed_over(live: Live) -> None:
    backup = live.backup()
    after = change(live)
    folder = live.journals().folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(("", "{", '{"state": "of the future"}')):
        (folder / f"restore_20990101_00000{number}_000000.json").write_text(text)
    run = live.cli().run("restore", "database", "good", "--yes")
    assert run.returncode == 0, run.stderr
    assert "restore_20990101_000000_000000.json cannot be read" in run.stderr
    for command in (
        ["restore", "repair"],
        ["restore", "replaced"],
        ["restore", "rollback", "--yes"],
    ):
        again = live.cli().run(*command)
        assert again.returncode == 0, again.stderr
    assert live.users() == after
    assert backup.folder.exists()


def test_a_debt_is_not_forgotten_by_who_must_not_touch_the_service(live: Live) -> None:
    live.backup()
    change(live)
    left = begun(live, "swap")
    left.journal.given_up = True  # as after a kill
    live.journals().keep(left.journal)
    left.held.close()
    beside = Wish(into=f"{live.name}_look", service=False)
    DatabaseRestore.begin(live.settings, live.find("good"), beside, now=utc_now()).run()
    assert live.calls() == ["stop"]
    (said,) = repair_database(live.settings)
    assert "service runs again" in said
    assert live.calls() == ["stop", "start"]


def test_repair_leaves_a_restore_alone_that_is_at_work_and_what_is_anothers(live: Live) -> None:
    live.backup()
    change(live)
    restore = begun(live, "swap")
    with pytest.raises(Locked):
        repair_database(live.settings)
    restore.journal.given_up = True
    live.journals().keep(restore.journal)
    restore.held.close()
    path = live.journals().folder / f"{restore.journal.restore_id}.json"
    text = path.read_text()
    path.write_text(text.replace(f'"{socket.gethostname()}"', '"another-host"'))
    (said,) = repair_database(live.settings)
    assert "left open" in said
    assert live.calls() == ["stop"]
    (said,) = repair_database(live.settings, machines=("another-host",))
    assert live.calls() == ["stop", "start"]


def test_archives_that_cannot_be_repaired_do_not_stop_the_service_nor_the_database(
    platform: Platform,
) -> None:
    left = platform.root / ".kyb-restore-x-1"
    (left / "new").mkdir(parents=True)
    left.chmod(0o700)
    (left / "journal.json").write_text("{")
    file = platform.file(platform.place / "kyb.toml")
    argv = [sys.executable, "-m", "kyb_backup_pipeline", "--config", str(file), "restore", "repair"]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert run.returncode == 7
    assert "cannot be read" in run.stderr
    assert platform.calls() == []


def test_no_op_swaps_a_database_that_was_not_its_own_runs_to_swap(
    live: Live, tmp_path: Path
) -> None:
    """A graph can be entered anywhere from the UI, with any restore as its input."""
    live.backup()
    after = change(live)
    restore = begun(live, "stop")
    try:
        closed = settings_file(live.settings, tmp_path / "closed.toml")
        opened = tmp_path / "opened.toml"
        opened.write_text(closed.read_text() + "[recovery]\nallow_from_ui = true\n")
        job = defs.resolve_job_def("restore_database")
        names = [f"restore_{name}" for name in ("stop", "swap", "start", "health")]
        for file, said in ((closed, "switched off"), (opened, "went with the run")):
            with new_instance() as instance:
                result = job.execute_in_process(
                    instance=instance, op_selection=names, raise_on_error=False,
                    run_config={
                        "resources": {"engine": {"config": {"config_file": str(file)}}},
                        "ops": {"restore_stop": {"inputs": {"restore_id": {"value": restore.journal.restore_id}}}},
                    },
                )  # fmt: skip
            assert said in failure(result, "restore_stop").description
        assert not is_swapped(maintenance(live.target), restore.journal)
        swap = job.graph.node_named("restore_swap").definition
        context = dg.build_op_context(
            resources={"engine": EngineResource(config_file=str(opened)), "at_work": AtWork()}
        )
        with pytest.raises(dg.Failure, match="there is no restore"):
            swap(context, restore_id="../recovery/" + restore.journal.restore_id)
    finally:
        restore.close()
    assert (live.users(), live.calls(), live.databases()) == (after, [], [])
