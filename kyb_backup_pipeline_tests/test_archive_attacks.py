"""What an independent attack on archives and restores found, each on the real thing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import BackupFailed, KybError, RestoreFailed
from kyb_backup_pipeline.engine.file_preview import preview
from kyb_backup_pipeline.engine.file_repair import repair_all
from kyb_backup_pipeline.engine.file_restore import restore_in_place
from kyb_backup_pipeline.engine.file_unpacking import Options, Restored, restore_into
from kyb_backup_pipeline.engine.manifest import Proof, Verdict, utc_now
from kyb_backup_pipeline.engine.member import ArchiveDamaged, Member
from kyb_backup_pipeline.engine.standing import Standing, standing
from kyb_backup_pipeline.engine.swap import Work, undo, unfinished
from kyb_backup_pipeline_tests.platforms import Platform, answer, answering
from kyb_backup_pipeline_tests.running import Cli, wait_until

QUIET = Options(service=False, flags=False, safety_backup=False)


def restore(
    platform: Platform, backup: Backup, options: Options = QUIET, **changes: str
) -> Restored:
    settings = platform.with_settings(**changes)
    return restore_in_place(settings, backup, options, now=utc_now())


def killed_at_its_start(platform: Platform, backup: Backup) -> None:
    """A restore of configuration that is killed behind the swap, before the service is started."""
    script = (
        "import os, signal\n"
        "from kyb_backup_pipeline.engine import file_restore\n"
        "from kyb_backup_pipeline.cli.program import main\n"
        "file_restore.start_service = lambda how: os.kill(os.getpid(), signal.SIGKILL)\nmain()\n"
    )
    file = platform.file(platform.place / "kyb.toml")
    argv = [sys.executable, "-c", script, "--config", str(file), "restore", "configuration"]
    subprocess.run([*argv, backup.backup_id, "--into", str(platform.root), "--yes"], check=False,
                   capture_output=True)  # fmt: skip


def kept(platform: Platform) -> Path:
    (folder,) = platform.root.glob(".kyb-replaced-*")
    return folder / "old"


# Nothing that was there is lost


def test_what_a_restore_replaces_lies_beside_whatever_the_patterns_say(platform: Platform) -> None:
    """An archive made with other patterns replaces what today's do not take."""
    (platform.root / "data").mkdir()
    (platform.root / "data" / "y").write_text("then")
    wide = platform.with_settings(CONFIGURATION__INCLUDE="/configs/,/data/,*.conf")
    backup = platform.configuration(wide)
    (platform.root / "data" / "y").write_text("only here, and now")
    done = restore(platform, backup)
    assert (platform.root / "data" / "y").read_text() == "then"
    assert done.kept is not None
    assert (done.kept / "old" / "data" / "y").read_text() == "only here, and now"
    assert not platform.configuration(backup_id="next").require_manifest().notes
    into = platform.place / "into"
    restore_into(platform.settings, platform.repository.find("next"), into, Options())
    assert not list(into.rglob("*only here*"))
    assert not list(into.glob(".kyb-*"))


def test_what_is_excluded_now_stays_though_the_backup_has_something_there(
    platform: Platform,
) -> None:
    cache = platform.root / "configs" / "cache"
    cache.mkdir()
    (cache / "db").write_text("then")
    backup = platform.configuration()
    (cache / "db").write_text("now")
    (cache / "more").write_text("now too")
    restore(platform, backup, CONFIGURATION__EXCLUDE="cache/")
    assert (cache / "db").read_text() == "now"
    assert (cache / "more").read_text() == "now too"


def test_what_the_service_writes_when_it_stops_is_kept(platform: Platform) -> None:
    configs = platform.root / "configs"
    (configs / "cache").mkdir()
    backup = platform.configuration()
    stop = platform.place / "stop.sh"
    stop.write_text(
        f"#!/bin/sh\necho last > {configs}/state.yaml\necho last > {configs}/cache/new.db\n"
    )
    stop.chmod(0o755)
    restore(platform, backup, Options(flags=False), CONFIGURATION__EXCLUDE="cache/",
            APPLICATION__STOP_COMMAND=str(stop))  # fmt: skip
    assert (configs / "cache" / "new.db").read_text() == "last\n"
    assert (kept(platform) / "configs" / "state.yaml").read_text() == "last\n"


def test_what_was_done_after_a_kill_is_not_thrown_away_by_the_repair(platform: Platform) -> None:
    backup = platform.configuration()
    (platform.root / "configs" / "application.yaml").write_text("old\n")
    killed_at_its_start(platform, backup)
    (platform.root / "configs" / "application.yaml").write_text("edited since\n")
    (said,) = repair_all(platform.settings)
    assert "what was in place lies in" in said
    assert (platform.root / "configs" / "application.yaml").read_text() == "old\n"
    (aside,) = platform.root.glob(".kyb-undone-*")
    assert (aside / "old" / "configs" / "application.yaml").read_text() == "edited since\n"


def test_a_mount_point_is_never_swapped_away(platform: Platform) -> None:
    (platform.root / "configs" / "mnt").mkdir()
    share = platform.place / "share"
    share.mkdir()
    (share / "precious").write_text("of others")
    backup = platform.configuration()
    file = platform.file(platform.place / "kyb.toml")
    script = (
        f"mount --bind {share} {platform.root}/configs/mnt && "
        f"{sys.executable} -m kyb_backup_pipeline --config {file} restore configuration "
        f"{backup.backup_id} --into {platform.root} --yes"
    )
    unshare = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    )
    run = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 7, run.stdout + run.stderr
    assert "is a mount point" in run.stderr
    assert (share / "precious").read_text() == "of others"
    assert platform.calls() == []


# Whose folder it is


def test_a_journal_that_somebody_else_planted_is_not_followed(platform: Platform) -> None:
    planted = platform.root / ".kyb-restore-x"
    (planted / "new").mkdir(parents=True)
    (planted / "journal.json").write_text(json.dumps({"units": [["../outside", [0, 0], None]]}))
    planted.chmod(0o755)
    assert unfinished(platform.root) == []
    planted.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(planted, 65534, 65534)
        assert unfinished(platform.root) == []
        os.chown(planted, 0, 0)
    with pytest.raises(RestoreFailed, match="cannot be read"):
        undo(Work(platform.root, planted))


# One moment


def test_a_tree_that_changes_between_two_files_is_read_again(platform: Platform) -> None:
    configs = platform.root / "configs"
    for name in ("a.yaml", "z.yaml"):
        (configs / name).write_text("generation 1")
    (configs / "m.bin").write_bytes(os.urandom(60_000_000))
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    run = cli.start("backup", "configuration", "--id", "one")
    wait_until((platform.place / "backups/application/config/.one.partial").exists, "it has begun")
    time.sleep(0.1)
    for name in ("a.yaml", "z.yaml", "b.yaml"):
        (configs / f".{name}").write_text("generation 2")
        os.rename(configs / f".{name}", configs / name)
    assert run.wait() == 0, run.stderr
    into = platform.place / "into"
    restore_into(platform.settings, platform.repository.find("one"), into, Options())
    found = {n: (into / "configs" / n).read_text() for n in ("a.yaml", "z.yaml")}
    assert len(set(found.values())) == 1
    assert (into / "configs" / "b.yaml").exists() == ("generation 2" in found.values())


# Interrupted


def test_a_second_signal_does_not_keep_the_old_state_from_coming_back(platform: Platform) -> None:
    backup = platform.configuration()
    stop = platform.place / "stop.sh"
    real = " ".join(platform.command("stop"))
    stop.write_text(f"#!/bin/sh\n{real}\ntouch {platform.place}/stopped\nsleep 3\n")
    stop.chmod(0o755)
    platform.environment["KYB_APPLICATION__STOP_COMMAND"] = str(stop)
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    run = cli.start("restore", "configuration", backup.backup_id, "--into", str(platform.root), "--yes",
                    "--without-safety-backup")  # fmt: skip
    wait_until((platform.place / "stopped").exists, "the service is stopped")
    run.kill(signal.SIGTERM)
    time.sleep(0.05)
    run.kill(signal.SIGTERM)
    run.wait()
    wait_until(lambda: bool(platform.flags()), "the service runs again")
    assert not unfinished(platform.root)


def test_a_repair_whose_start_fails_is_tried_again(platform: Platform) -> None:
    backup = platform.configuration()
    before = platform.tree()
    (platform.root / "configs" / "application.yaml").write_text("now\n")
    now = platform.tree()
    killed_at_its_start(platform, backup)
    assert platform.tree() != now
    with pytest.raises(RestoreFailed, match="did not start"):
        repair_all(platform.with_settings(APPLICATION__START_COMMAND="false"))
    assert unfinished(platform.root)
    repair_all(platform.settings)
    assert {k: v for k, v in platform.tree().items() if v != "folder"} == {
        k: v for k, v in now.items() if v != "folder"
    }
    assert platform.flags()
    assert before != now


def test_a_service_that_went_on_with_the_new_state_is_stopped_before_the_old_one_returns(
    platform: Platform,
) -> None:
    """Else "start" finds it running, and it goes on with what is not there any more."""
    backup = platform.application()
    changes = {
        "APPLICATION__FLAGS_URL": "http://127.0.0.1:1/flags",
        "APPLICATION__SERVICE_TIMEOUT": "2",
    }
    with pytest.raises(RestoreFailed, match="does not answer after its start"):
        restore(platform, backup, Options(safety_backup=False), **changes)
    assert platform.calls() == ["stop", "start", "stop", "start"]


def test_a_repair_where_there_is_no_service(platform: Platform) -> None:
    backup = platform.configuration()
    (platform.root / "configs" / "application.yaml").write_text("now\n")
    killed_at_its_start(platform, backup)
    assert unfinished(platform.root)
    platform.environment["KYB_APPLICATION__START_COMMAND"] = "false"
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    assert cli.run("restore", "repair").returncode == 7
    run = cli.run("restore", "repair", "--without-service")
    assert run.returncode == 0, run.stderr
    assert (platform.root / "configs" / "application.yaml").read_text() == "now\n"


def test_flags_that_cannot_be_taken_back_are_not_said_to_be(platform: Platform) -> None:
    backup = platform.application()

    def mood(request: BaseHTTPRequestHandler, number: int) -> None:
        answer(request, 200 if request.command == "POST" or 0 < number < 3 else 404, b"{}")

    with answering(mood) as answers:
        settings = platform.with_settings(
            APPLICATION__FLAGS_URL=answers.url,
            APPLICATION__RETRIES="0",
            APPLICATION__SERVICE_TIMEOUT="2",
        )
        with pytest.raises(RestoreFailed) as failed:
            restore_in_place(settings, backup, Options(safety_backup=False), now=utc_now())
    assert "those of before are not known" in failed.value.message


def test_flags_that_no_service_takes_are_found_before_it_is_stopped(platform: Platform) -> None:
    from kyb_backup_pipeline_tests.test_legacy_files import _STATE, run_script

    run_script(platform, _STATE)
    (backup,) = platform.repository.backups(("application_state",))
    (backup.folder / "feature_flags.json").write_text("<html>502</html>")
    with pytest.raises(RestoreFailed, match="is not JSON"):
        restore_in_place(platform.settings, backup, Options(), now=utc_now())
    assert platform.calls() == []


# What is said


@pytest.mark.parametrize(
    ("status", "body"),
    [(206, b"{}"), (202, b'{"status": "starting"}'), (200, b"null"), (200, b'"maintenance"'),
     (200, b'{"a": NaN}'), (200, b'{"a": true, "a": false}')],
)  # fmt: skip
def test_an_answer_that_holds_no_flags_is_none(
    platform: Platform, status: int, body: bytes
) -> None:
    with answering(lambda request, number: answer(request, status, body)) as answers:
        with pytest.raises(BackupFailed):
            platform.application(platform.with_settings(
                APPLICATION__FLAGS_URL=answers.url, APPLICATION__RETRIES="0"))  # fmt: skip


def test_headers_that_drip_do_not_hold_a_deployment_for_hours(platform: Platform) -> None:
    def mood(request: BaseHTTPRequestHandler, number: int) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for n in range(40):
            request.wfile.write(f"X-{n}: ".encode())
            request.wfile.flush()
            time.sleep(0.4)

    with answering(mood) as answers:
        settings = platform.with_settings(
            APPLICATION__FLAGS_URL=answers.url, APPLICATION__TIMEOUT="1", APPLICATION__RETRIES="0"
        )
        began = time.monotonic()
        with pytest.raises(BackupFailed, match="in time"):
            platform.application(settings)
        assert time.monotonic() - began < 10


def test_an_identity_that_the_child_cannot_read_is_no_bad_backup(platform: Platform) -> None:
    backup = platform.configuration()
    run = Cli(
        platform.file(platform.place / "kyb.toml"), {"KYB_ENCRYPTION__IDENTITY_FILE": "/dev/stdin"}
    ).run("verify", backup.backup_id, input=platform.identity.read_text())
    assert run.returncode == 10, run.stdout


def test_gpg_files_of_another_kind_are_not_called_bad(platform: Platform) -> None:
    from kyb_backup_pipeline_tests.platforms import PASSPHRASE, gpg_home

    place = platform.repository.folder("configuration")
    platform.repository.create()
    target = place / "config_backup_20260101_030000.tar.gz.gpg"
    with gpg_home() as home:
        gpg = [
            "gpg",
            "--homedir",
            home,
            "--batch",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            PASSPHRASE,
        ]
        subprocess.run(
            [*gpg, "--quick-gen-key", "a@b", "default", "default"], check=True, capture_output=True
        )
        subprocess.run([*gpg, "--trust-model", "always", "-r", "a@b", "-o", str(target), "--encrypt",
                        str(platform.root / "VERSION")], check=True, capture_output=True)  # fmt: skip
        (backup,) = platform.repository.backups(("configuration",))
        proof = platform.verify(backup)
    assert (proof.verdict, "private key" in proof.summary) == ("could_not_verify", True), (
        proof.summary
    )


def test_the_preview_hides_no_change(platform: Platform) -> None:
    configs = platform.root / "configs"
    os.link(configs / "application.yaml", configs / "hard.yaml")
    backup = platform.configuration()
    (configs / "hard.yaml").unlink()
    (configs / "hard.yaml").write_text("other")
    (configs / "providers.yaml").chmod(0o600)
    (configs / "link").symlink_to("..")
    (configs / "empty").mkdir()
    plan = preview(platform.settings, backup)
    assert set(plan.changed) == {"configs/hard.yaml", "configs/providers.yaml"}
    assert set(plan.extra) == {"configs/link", "configs/empty"}


def test_a_lost_version_and_other_trees_do_not_stop_a_deployment(platform: Platform) -> None:
    (platform.root / "VERSION").unlink()
    os.mkfifo(platform.root / "VERSION")
    (platform.root / "pgdata").mkdir(mode=0)
    manifest = platform.application().require_manifest()
    assert manifest.version is None
    (platform.root / "VERSION").unlink()
    (platform.root / "VERSION").write_text("\x1b[31m4.2\x1b[0m\n")
    assert platform.application(backup_id="x").require_manifest().version == "[31m4.2[0m"
    os.link(platform.root / "VERSION", platform.root / "configs" / "VERSION")
    restore(platform, platform.application(backup_id="linked"))
    assert (platform.root / "configs" / "VERSION").exists()


def test_negated_patterns_hold_inside_of_whole_folders(platform: Platform) -> None:
    (platform.root / "configs" / "huge.yaml").write_text("huge")
    settings = platform.with_settings(CONFIGURATION__INCLUDE="/configs/,!/configs/huge.yaml")
    into = platform.place / "into"
    restore_into(settings, platform.configuration(settings), into, Options())
    assert not (into / "configs" / "huge.yaml").exists()
    assert (into / "configs" / "application.yaml").exists()


def test_links_that_a_restore_refuses_are_noted_and_attributes_too(platform: Platform) -> None:
    configs = platform.root / "configs"
    (configs / "absolute").symlink_to(configs / "application.yaml")
    (configs / "round").symlink_to("sub/../application.yaml")
    notes = "\n".join(platform.configuration().require_manifest().notes)
    assert "configs/absolute is a link out" in notes
    assert "configs/round is a link out" in notes


def test_folders_come_back_as_they_were_also_above_single_files(platform: Platform) -> None:
    nested = platform.root / "services" / "api"
    nested.mkdir(parents=True)
    (nested / "local.env").write_text("A=1")
    nested.chmod(0o700)
    nested.parent.chmod(0o750)
    if os.geteuid() == 0:
        os.chown(nested, 1234, 1234)
    backup = platform.configuration()
    shutil.rmtree(nested.parent)
    restore(platform, backup)
    assert (nested.stat().st_mode & 0o777, nested.parent.stat().st_mode & 0o777) == (0o700, 0o750)
    if os.geteuid() == 0:
        assert nested.stat().st_uid == 1234


def test_present_things_of_another_shape_are_no_traceback(platform: Platform) -> None:
    configs = platform.root / "configs"
    (configs / "shape").write_text("a file")
    backup = platform.configuration()
    (configs / "shape").unlink()
    (configs / "shape").mkdir()
    (configs / "shape" / "run.pid").write_text("1")
    restore(platform, backup, CONFIGURATION__EXCLUDE="*.pid")
    assert (configs / "shape").read_text() == "a file"
    assert (kept(platform) / "configs" / "shape" / "run.pid").read_text() == "1"


def test_a_closed_folder_and_too_deep_a_tree_are_errors_with_a_name(platform: Platform) -> None:
    deep = platform.root / "configs"
    for _ in range(600):
        deep = deep / "d"
    os.makedirs(deep)
    with pytest.raises(BackupFailed, match="deeper than 500 folders"):
        platform.configuration()


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"path": 1, "kind": "file", "mode": 1}', b'{"path": "x", "kind": "file", "mode": "1"}',
     b'{"path": "x", "kind": "file", "mode": 1, "mtime_ns": 1e400}',
     b'{"path": "x", "kind": "file", "mode": 1, "mtime_ns": 99999999999999999999999}', b"null", b"[]"],
)  # fmt: skip
def test_a_forged_list_is_damage_and_no_crash(line: bytes) -> None:
    with pytest.raises(ArchiveDamaged):
        Member.from_line(line)


def test_restoring_into_here_and_two_at_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = platform.configuration()
    place = platform.place / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    restore_into(platform.settings, backup, Path("."), Options())
    assert (place / "configs").is_dir()
    (platform.place / ".both.partial").mkdir()
    outcomes: list[bool] = []

    def one() -> None:
        try:
            restore_into(platform.settings, backup, platform.place / "both", Options())
            outcomes.append(True)
        except KybError:
            outcomes.append(False)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) in ([False, True], [True, True])
    assert (platform.place / "both" / "configs").is_dir()
    assert (platform.place / ".both.partial").exists()


def test_a_renamed_old_archive_comes_back_whole(platform: Platform) -> None:
    from kyb_backup_pipeline_tests.test_legacy_files import _CONFIGURATION, run_script

    platform.repository.create()
    run_script(platform, _CONFIGURATION)
    (backup,) = platform.repository.backups(("configuration",))
    backup.folder.rename(backup.folder.with_name("before_migration.tar.gz.gpg"))
    done = restore_into(
        platform.settings,
        platform.repository.find("before_migration"),
        platform.place / "into",
        Options(),
    )
    assert done.files > 3
    assert (platform.place / "into" / "configs" / "application.yaml").exists()


# What is kept


def test_a_pass_stands_until_a_failure(platform: Platform) -> None:
    backup = platform.configuration()
    records = platform.repository.records

    def verdict(what: Verdict, day: int) -> Standing:
        when = datetime(2026, 1, day, tzinfo=UTC)
        records.keep(Proof(backup_id=backup.backup_id, proof="verification", verdict=what,
                           summary="", started_at=when, finished_at=when))  # fmt: skip
        return standing(records, backup.backup_id)

    assert standing(records, backup.backup_id) == Standing()
    assert verdict("could_not_verify", 1) == Standing()
    assert verdict("passed", 2) == Standing(verified=True)
    assert verdict("could_not_verify", 3) == Standing(verified=True)
    assert verdict("failed", 4) == Standing(trouble="its verification failed")
