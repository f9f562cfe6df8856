"""Bringing configuration and application state back: in place, with a way back, and never outside."""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import renames, swap
from kyb_backup_pipeline.engine.archive import Written
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import BackupFailed, KybError, Locked, Refused, RestoreFailed
from kyb_backup_pipeline.engine.file_preview import preview
from kyb_backup_pipeline.engine.file_repair import repair_all
from kyb_backup_pipeline.engine.file_restore import restore_in_place
from kyb_backup_pipeline.engine.file_unpacking import Options, Restored, restore_into
from kyb_backup_pipeline.engine.manifest import Archive, Manifest, utc_now
from kyb_backup_pipeline.engine.sealed import sealing
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline_tests.platforms import Platform, answer, answering
from kyb_backup_pipeline_tests.running import Cli, Run, wait_until

QUIET = Options(service=False, flags=False, safety_backup=False)


def restore(
    platform: Platform,
    backup: Backup,
    options: Options | None = None,
    settings: Settings | None = None,
) -> Restored:
    return restore_in_place(
        settings or platform.settings, backup, options or Options(), now=utc_now()
    )


def spoil(platform: Platform) -> None:
    """What a bad deployment does to the configuration."""
    configs = platform.root / "configs"
    (configs / "application.yaml").write_text("broken: true\n")
    (configs / "providers.yaml").unlink()
    (configs / "override.yaml").write_text("worse: true\n")
    shutil.rmtree(platform.root / "deployments")
    (platform.root / "production.env").write_text("KYB_ENV=lost\n")
    (platform.root / "later.env").write_text("came later\n")


def leftovers(platform: Platform) -> list[Path]:
    return [
        path for base in (platform.root, platform.place) for path in base.glob(".kyb-restore-*")
    ]


# In place


def test_configuration_comes_back_and_what_was_there_is_kept(platform: Platform) -> None:
    wanted = platform.tree()
    backup = platform.configuration(backup_id="good")
    spoil(platform)
    spoiled = platform.tree()
    plan = preview(platform.settings, backup)
    assert plan.changed == ("configs/application.yaml", "production.env")
    assert plan.missing == (
        "configs/providers.yaml",
        "deployments/api.yaml",
        "deployments/worker.yaml",
    )
    assert plan.extra == ("configs/override.yaml",)
    assert platform.tree() == spoiled
    done = restore(platform, backup)
    found = platform.tree()
    assert found.pop("later.env") is not None  # no folder that was archived whole, so it stays
    assert found == wanted
    assert platform.calls() == ["stop", "start"]
    assert not leftovers(platform)
    assert done.saved_as is not None
    restore_into(
        platform.settings,
        platform.repository.find(done.saved_as),
        platform.place / "old",
        Options(),
    )
    saved = platform.tree(platform.place / "old")
    assert saved["configs/override.yaml"] == spoiled["configs/override.yaml"]
    assert saved["production.env"] == spoiled["production.env"]


def test_the_application_comes_back_with_its_flags(platform: Platform) -> None:
    wanted, flags = platform.tree(platform.root / "configs"), platform.flags()
    backup = platform.application(deployment="v2", backup_id="before_v2")
    spoil(platform)
    (platform.root / "feature-flags.json").write_text('{"risky": true}')
    done = restore(platform, backup, Options(logs_into=platform.place / "old-logs"))
    assert platform.tree(platform.root / "configs") == wanted
    assert platform.flags() == flags
    assert (done.flags, done.units) == (True, ("configs",))
    assert (platform.root / "later.env").exists()
    assert (platform.place / "old-logs" / "api.log").read_text() == "a line\n"
    assert platform.calls() == ["stop", "start"]
    assert done.interruption is not None


def test_configuration_that_is_excluded_stays(platform: Platform) -> None:
    settings = platform.with_settings(CONFIGURATION__EXCLUDE="cache/,*.pid")
    backup = platform.configuration(settings)
    configs = platform.root / "configs"
    (configs / "cache" / "deep").mkdir(parents=True)
    (configs / "cache" / "deep" / "kept").write_text("cached")
    (configs / "run.pid").write_text("4711")
    os.mkfifo(configs / "queue")
    (configs / "extra.yaml").write_text("goes")
    restore(platform, backup, settings=settings)
    assert (configs / "cache" / "deep" / "kept").read_text() == "cached"
    assert (configs / "run.pid").read_text() == "4711"
    assert (configs / "queue").is_fifo()
    assert not (configs / "extra.yaml").exists()


def test_a_bare_machine_gets_everything(platform: Platform) -> None:
    wanted = platform.tree(platform.root / "configs")
    configuration, state = platform.configuration(), platform.application()
    platform.service("stop")
    shutil.rmtree(platform.root)
    done = restore(platform, configuration, Options(service=False))
    assert done.saved_as is None
    assert platform.tree(platform.root / "configs") == wanted
    shutil.rmtree(platform.root)
    restore(platform, state)
    assert platform.tree(platform.root / "configs") == wanted
    assert "adverse_media_screening" in platform.flags()


def test_a_service_that_is_down_does_not_keep_a_restore_from_being_made(platform: Platform) -> None:
    backup = platform.application()
    platform.service("stop")
    done = restore(platform, backup)
    assert done.flags
    assert done.saved_as is not None
    saved = platform.repository.find(done.saved_as).require_manifest()
    assert saved.components["feature_flags"] is False
    assert "left out: feature flags" in saved.notes[0]


def test_what_runs_now_is_saved_or_nothing_happens(platform: Platform) -> None:
    backup = platform.configuration()
    spoil(platform)
    spoiled = platform.tree()
    no_keys = platform.with_settings(ENCRYPTION__RECIPIENTS="")
    with pytest.raises(BackupFailed, match="could not be saved"):
        restore(platform, backup, settings=no_keys)
    assert (platform.tree(), platform.calls(), leftovers(platform)) == (spoiled, [], [])
    restore(platform, backup, Options(safety_backup=False), settings=no_keys)
    assert platform.tree() != spoiled


def test_two_restores_at_once_are_one(platform: Platform) -> None:
    backup = platform.configuration()
    with swap.working(platform.root.resolve(), "other", utc_now()):
        with pytest.raises(Locked, match="another restore works in"):
            restore(platform, backup)


# Failures: the old state stands, and the service runs


@pytest.mark.parametrize(
    ("what", "settings", "said"),
    [
        ("does not stop", {"APPLICATION__STOP_COMMAND": "sleep 30",
                           "APPLICATION__SERVICE_TIMEOUT": "1"}, "did not stop"),
        ("fails to stop", {"APPLICATION__STOP_COMMAND": "false"}, "did not stop"),
        ("is not there to stop", {"APPLICATION__STOP_COMMAND": "/nowhere/systemctl"}, "did not stop"),
    ],
)  # fmt: skip
def test_a_service_that_does_not_stop(
    platform: Platform, what: str, settings: dict[str, str], said: str
) -> None:
    backup = platform.application()
    spoil(platform)
    spoiled = platform.tree()
    with pytest.raises(RestoreFailed, match=said) as failed:
        restore(platform, backup, settings=platform.with_settings(**settings))
    assert "everything is as it was before" in failed.value.message
    assert platform.tree() == spoiled
    assert "start" in platform.calls()
    assert platform.flags()
    assert not leftovers(platform)


def test_a_service_that_does_not_start_with_what_was_restored(platform: Platform) -> None:
    backup = platform.application()
    spoil(platform)
    spoiled = platform.tree()
    command = platform.place / "start.sh"
    start = " ".join(platform.command("start"))
    command.write_text(
        f"#!/bin/sh\ntest -e {platform.root}/configs/override.yaml || exit 1\n{start}\n"
    )
    command.chmod(0o755)
    settings = platform.with_settings(APPLICATION__START_COMMAND=str(command))
    with pytest.raises(RestoreFailed, match=r"did not start.*everything is as it was before"):
        restore(platform, backup, settings=settings)
    assert platform.tree() == spoiled
    assert platform.flags()


def test_flags_that_the_service_refuses_after_the_swap(platform: Platform) -> None:
    backup = platform.application()
    spoil(platform)
    spoiled = platform.tree()
    before, posted = platform.flags(), []

    def mood(request: BaseHTTPRequestHandler, number: int) -> None:
        if request.command == "POST":
            posted.append(answers.seen[-1][2])
            answer(request, 500 if len(posted) == 1 else 200, b"{}")
        else:
            answer(request, 200, json.dumps(before).encode())

    with answering(mood) as answers:
        settings = platform.with_settings(
            APPLICATION__FLAGS_URL=answers.url, APPLICATION__RETRIES="0"
        )
        with pytest.raises(RestoreFailed, match=r"POST .* answered 500.*as it was before"):
            restore(platform, backup, settings=settings)
    assert platform.tree() == spoiled
    assert platform.calls() == ["stop", "start", "stop", "start"]
    assert json.loads(posted[-1]) == before  # those of before the attempt are in force again


def test_flags_that_read_otherwise_afterwards_are_told(platform: Platform) -> None:
    backup = platform.application()

    def mood(request: BaseHTTPRequestHandler, number: int) -> None:
        answer(request, 200, b'{"adverse_media_screening": false, "answered_at": 1}')

    with answering(mood) as answers:
        done = restore(
            platform, backup, settings=platform.with_settings(APPLICATION__FLAGS_URL=answers.url)
        )
    assert "adverse_media_screening, answered_at, bulk_onboarding" in done.notes[-1]


def test_a_service_that_never_answers_again(platform: Platform) -> None:
    backup = platform.application()
    spoil(platform)
    spoiled = platform.tree()
    start = f"sh -c '{' '.join(platform.command('start'))} && touch {platform.place}/started'"
    settings = platform.with_settings(
        APPLICATION__FLAGS_URL="http://127.0.0.1:1/flags", APPLICATION__SERVICE_TIMEOUT="2",
        APPLICATION__START_COMMAND=start,
    )  # fmt: skip
    with pytest.raises(RestoreFailed, match=r"does not answer after its start.*as it was before"):
        restore(platform, backup, settings=settings)
    assert platform.tree() == spoiled
    assert (platform.place / "started").exists()


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES])
def test_a_rename_that_fails_in_the_middle_is_undone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    backup = platform.configuration()
    spoil(platform)
    spoiled = platform.tree()
    really, calls = renames._rename, []

    def rename(source: Path, target: Path, flags: int) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        really(source, target, flags)

    monkeypatch.setattr(renames, "_rename", rename)
    with pytest.raises(RestoreFailed, match=r"cannot be replaced.*as it was before"):
        restore(platform, backup)
    assert len(calls) == 3  # the third puts the first back
    assert platform.tree() == spoiled
    assert not leftovers(platform)
    assert platform.flags()


def test_a_file_system_without_exchange_does_it_in_two_renames(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = platform.tree()
    backup = platform.configuration()
    spoil(platform)
    spoiled = platform.tree()

    def rename(source: Path, target: Path, flags: int) -> None:
        number = errno.EINVAL if flags == 2 else errno.EPERM
        raise OSError(number, os.strerror(number))

    really = renames._rename
    monkeypatch.setattr(renames, "_rename", rename)
    with pytest.raises(RestoreFailed, match="as it was before"):
        restore(platform, backup)  # new files cannot be put in place: what was swapped comes back
    assert platform.tree() == spoiled

    def without_exchange(source: Path, target: Path, flags: int) -> None:
        if flags == 2:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        really(source, target, flags)

    monkeypatch.setattr(renames, "_rename", without_exchange)
    restore(platform, backup, QUIET)
    found = platform.tree()
    del found["later.env"]
    assert found == wanted


def test_a_folder_that_became_a_link_is_not_written_through(
    platform: Platform, tmp_path: Path
) -> None:
    nested = platform.root / "services"
    nested.mkdir()
    (nested / "local.env").write_text("A=1\n")
    backup = platform.configuration()
    shutil.rmtree(nested)
    outside = tmp_path / "outside"
    outside.mkdir()
    nested.symlink_to(outside)
    with pytest.raises(RestoreFailed, match=r"services is no folder of .* now"):
        restore(platform, backup)
    assert not list(outside.iterdir())


# Killed


def _files(tree: dict[str, object]) -> dict[str, object]:
    flags = "feature-flags.json"
    return {path: seen for path, seen in tree.items() if seen != "folder" and path != flags}


def _at_work(platform: Platform, run: Run) -> None:
    wait_until(lambda: bool(leftovers(platform)) or run.popen.poll() is not None, "it works")


@pytest.mark.parametrize("kind", ["configuration", "application"])
def test_killed_at_any_moment_every_file_is_old_or_new_and_repair_makes_it_old(
    platform: Platform, kind: str
) -> None:
    for number in range(60):
        (platform.root / "configs" / f"file{number}").write_text(f"good {number}")
        (platform.root / f"top{number}.env").write_text(f"good {number}")
    backup = platform.configuration() if kind == "configuration" else platform.application()
    new = platform.tree()
    for number in range(60):
        (platform.root / "configs" / f"file{number}").write_text(f"bad {number}")
        (platform.root / f"top{number}.env").write_text(f"bad {number}")
    old = platform.tree()
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    into = ["--into", str(platform.root)] if kind == "configuration" else []
    chance, repaired, finished = random.Random(kind), 0, 0
    for _ in range(9):
        run = cli.start(
            "restore", kind, backup.backup_id, "--yes", "--without-safety-backup", *into
        )
        _at_work(platform, run)
        time.sleep(chance.uniform(0, 0.9))
        run.kill()
        killed = run.wait() == -signal.SIGKILL
        found = {
            path: seen for path, seen in platform.tree().items() if ".kyb-restore-" not in path
        }
        assert set(found) == set(old)
        for path, seen in found.items():
            if path == "feature-flags.json":
                continue  # the service writes it
            assert seen in (old[path], new[path]) or seen == "folder", path
        if leftovers(platform):
            assert "kyb-backup restore repair" in cli.run("check").stdout
        run_again = cli.run("restore", "repair")
        assert run_again.returncode == 0, run_again.stderr
        assert not leftovers(platform)
        wait_until(lambda: bool(platform.flags()), "the service runs")
        if _files(platform.tree()) == _files(old):
            repaired += killed
        else:
            finished += 1
            for number in range(60):
                assert (platform.root / "configs" / f"file{number}").read_text() == f"good {number}"
            for number in range(60):
                (platform.root / "configs" / f"file{number}").write_text(f"bad {number}")
                (platform.root / f"top{number}.env").write_text(f"bad {number}")
            old = platform.tree()
    assert repaired > 1


def test_the_next_restore_repairs_too(platform: Platform) -> None:
    backup = platform.configuration()
    wanted = platform.tree()
    spoil(platform)
    spoiled = platform.tree()
    script = (
        "import os, signal, sys\n"
        "from kyb_backup_pipeline.engine import file_restore\n"
        "from kyb_backup_pipeline.cli.program import main\n"
        "file_restore.start_service = lambda how: os.kill(os.getpid(), signal.SIGKILL)\nmain()\n"
    )
    file = platform.file(platform.place / "kyb.toml")
    subprocess.run(
        [sys.executable, "-c", script, "--config", str(file), "restore", "configuration",
         backup.backup_id, "--into", str(platform.root), "--yes"],
        check=False, capture_output=True,
    )  # fmt: skip
    assert platform.calls() == ["stop"]
    assert len(leftovers(platform)) == 1
    assert (platform.root / "configs" / "providers.yaml").exists()  # swapped
    repair_all(platform.settings)
    assert platform.tree() == spoiled
    assert platform.calls() == [
        "stop",
        "stop",
        "start",
    ]  # it could have been running on the new state
    restore(platform, backup)
    found = platform.tree()
    del found["later.env"]
    assert found == wanted


def test_flags_that_a_killed_restore_had_posted_are_taken_back(platform: Platform) -> None:
    backup = platform.application()
    flags = platform.flags()
    spoil(platform)
    old = _files(platform.tree())
    (platform.root / "feature-flags.json").write_text('{"of_now": true}')
    script = (
        "import os, signal, sys\n"
        "from kyb_backup_pipeline.engine import file_restore\n"
        "from kyb_backup_pipeline.cli.program import main\n"
        "post = file_restore.restore_flags\n"
        "def restore_flags(how, flags):\n"
        "    post(how, flags)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "file_restore.restore_flags = restore_flags\nmain()\n"
    )
    file = platform.file(platform.place / "kyb.toml")
    argv = [sys.executable, "-c", script, "--config", str(file), "restore", "application"]
    subprocess.run([*argv, backup.backup_id, "--yes"], check=False, capture_output=True)
    assert platform.flags() == flags
    run = Cli(file).run("restore", "repair")
    assert run.returncode == 0, run.stderr
    assert platform.flags() == {"of_now": True}
    assert _files(platform.tree()) == old


# Hostile archives


def hostile(
    platform: Platform, add: Callable[[tarfile.TarFile], object], name: str = "hostile"
) -> Backup:
    """A backup whose archive somebody else made, for our public key, with a manifest that fits."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar)
    repository = platform.repository
    encryption = platform.settings.encryption
    with repository.writing("configuration", name, now=utc_now()) as staging:
        with sealing(staging.folder / "configuration.tar.zst.age", encryption) as sealed:
            sealed.sealer.write(stream.getvalue())
        written = Written(members=1, content_bytes=1, members_sha256="0" * 64)
        file = sealed.require_file()
        staging.publish(
            Manifest(
                backup_id=name, timestamp=utc_now(), type="configuration", format_version=1,
                backup_file=file.path, file_size=file.size, checksum=file.sha256, files=(file,),
                archives=(
                    Archive(
                        path=file.path, encryption="age", members=written.members,
                        content_bytes=written.content_bytes,
                        members_sha256=written.members_sha256,
                    ),
                ),
            )
        )  # fmt: skip
    return repository.find(name)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **more: int
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.mode, info.uid, info.gid = 0o644, os.geteuid(), os.getegid()
    for key, value in more.items():
        setattr(info, key, value)
    return info


def _file(tar: tarfile.TarFile, name: str) -> None:
    info = member(name)
    info.size = 5
    tar.addfile(info, io.BytesIO(b"owned"))


def _through(tar: tarfile.TarFile, target: str) -> None:
    tar.addfile(member("way", tarfile.SYMTYPE, target))
    _file(tar, "way/owned")


def _twice(tar: tarfile.TarFile) -> None:
    _file(tar, "same")
    _file(tar, "same")


def _with_false_list(tar: tarfile.TarFile) -> None:
    _file(tar, "a")
    _file(tar, ".kyb-members.jsonl")


def _over_a_link(tar: tarfile.TarFile) -> None:
    tar.addfile(member("x", tarfile.SYMTYPE, "y"))
    _file(tar, "x")


def _chain(tar: tarfile.TarFile) -> None:
    tar.addfile(member("a", tarfile.DIRTYPE, mode=0o755))
    tar.addfile(member("a/up", tarfile.SYMTYPE, ".."))
    tar.addfile(member("way", tarfile.SYMTYPE, "a/up/.."))
    _file(tar, "way/owned")


def _hardlink(tar: tarfile.TarFile, target: str) -> None:
    tar.addfile(member("link", tarfile.LNKTYPE, target))


def _hardlink_through(tar: tarfile.TarFile) -> None:
    tar.addfile(member("soft", tarfile.SYMTYPE, "../outside"))
    tar.addfile(member("link", tarfile.LNKTYPE, "soft"))


@pytest.mark.parametrize(
    ("name", "add"),
    [
        ("dots", lambda tar: _file(tar, "../owned")),
        ("dots within", lambda tar: _file(tar, "configs/../../owned")),
        ("absolute", lambda tar: _file(tar, f"{os.environ['KYB_TEST_OUTSIDE']}/owned")),
        ("symlink out", lambda tar: _through(tar, "..")),
        ("absolute symlink", lambda tar: _through(tar, os.environ["KYB_TEST_OUTSIDE"])),
        ("symlink within, and a file through it", lambda tar: _through(tar, ".")),
        ("chain of links", _chain),
        ("hard link out", lambda tar: _hardlink(tar, "../outside/secret")),
        ("absolute hard link", lambda tar: _hardlink(tar, "/etc/hostname")),
        ("hard link to what is not there", lambda tar: _hardlink(tar, "nothing")),
        ("hard link through a link", _hardlink_through),
        ("device", lambda tar: tar.addfile(member("null", tarfile.CHRTYPE, devmajor=1, devminor=3))),
        ("block device", lambda tar: tar.addfile(member("disk", tarfile.BLKTYPE, devmajor=8))),
        ("fifo", lambda tar: tar.addfile(member("queue", tarfile.FIFOTYPE))),
        ("twice", _twice),
        ("file over a link", _over_a_link),
        ("no list of members", lambda tar: _file(tar, "configs/application.yaml")),
        ("a list that lies", _with_false_list),
        ("a huge header", lambda tar: tar.addfile(member("x" * 3_000_000))),
        ("a name with a null", lambda tar: _file(tar, "configs\0/x/../../../owned")),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_nothing_outside_is_ever_written(
    platform: Platform, name: str, add: Callable[[tarfile.TarFile], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    outside = platform.place / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not yours")
    monkeypatch.setenv("KYB_TEST_OUTSIDE", str(outside))
    backup = hostile(platform, add)
    before = platform.tree(platform.place)
    for into in (platform.place / "into", None):
        with pytest.raises((Refused, RestoreFailed)):
            if into is not None:
                restore_into(platform.settings, backup, into, Options())
            else:
                restore(platform, backup)
        assert platform.tree(platform.place) == before
    assert (outside / "secret").stat().st_nlink == 1
    assert platform.verify(backup).verdict == "failed"
    assert platform.calls() == []


def test_owners_it_may_not_set_and_rights_it_must_not_give(platform: Platform) -> None:
    configs = platform.root / "configs"
    (configs / "tool").write_text("#!/bin/sh\n")
    (configs / "tool").chmod(0o4755)
    if os.geteuid() == 0:
        os.chown(configs / "providers.yaml", 65534, 65534)
    backup = platform.configuration()
    done = restore_into(platform.settings, backup, platform.place / "into", Options())
    there = platform.place / "into" / "configs"
    assert (there / "tool").stat().st_mode & 0o7777 == 0o755
    assert done.notes == ["setuid and setgid were dropped from configs/tool"]
    if os.geteuid() == 0:
        assert (there / "providers.yaml").stat().st_uid == 65534
        script = (
            "import os\nfrom pathlib import Path\n"
            "from kyb_backup_pipeline.engine.archive_reader import Entry, MemberCheck\n"
            "from kyb_backup_pipeline.engine.member import Member\n"
            "from kyb_backup_pipeline.engine.extraction import Rules, unpack\n"
            "from kyb_backup_pipeline.engine.errors import Refused\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"place = Path({str(platform.place)!r}); member = Member(path='x', kind='file', mode=0o644)\n"
            "place = Path('/tmp') / f'kyb-owner-{os.getpid()}'; place.mkdir()\n"
            "for owners in (True, False):\n"
            "    try:\n"
            "        unpack(iter([Entry(member, iter(()))]), place, Rules(take=str, owners=owners), MemberCheck())\n"
            "        print('done')\n"
            "    except Refused as error:\n"
            "        print(error); (place / 'x').unlink()\n"
            "(place / 'x').unlink(); place.rmdir()\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert "belongs to user 0 and group 0, which this user may not set" in run.stdout, (
            run.stderr
        )
        assert run.stdout.endswith("done\n")


# The command line


def test_the_command_line_asks_shows_and_refuses(platform: Platform) -> None:
    backup = platform.application(backup_id="state")
    archive = platform.configuration(backup_id="archive")
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    spoil(platform)
    spoiled = platform.tree()
    run = cli.run("restore", "application")
    assert (run.returncode, "state  " in run.stderr) == (2, True)
    run = cli.run("restore", "application", "state", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "1 come back:\n  configs/providers.yaml" in run.stdout
    assert "1 removed:\n  configs/override.yaml" in run.stdout
    run = cli.run("restore", "application", "state")
    assert (run.returncode, "not confirmed" in run.stderr) == (12, True)
    assert cli.run("restore", "application", "archive").returncode == 2
    assert cli.run("restore", "application", "nothing").returncode == 9
    assert cli.run("restore", "configuration", "archive").returncode == 2
    run = cli.run("restore", "configuration", "archive", "--into", str(platform.place / "logs"))
    assert (run.returncode, "is not empty" in run.stderr) == (12, True)
    assert (platform.tree(), platform.calls()) == (spoiled, [])
    run = cli.run("restore", "application", "state", "--yes", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["flags_restored"] is True
    run = cli.run("restore", "configuration", "archive", "--into", str(platform.root), "--yes")
    assert run.returncode == 0, run.stderr
    assert "what was there before is in pre_restore_" in run.stdout
    (platform.place / "keys").rename(platform.place / "away")
    run = cli.run("restore", "application", "state", "--dry-run")
    assert (run.returncode, "encryption.identity_file" in run.stderr) == (7, True)
    assert backup.backup_id == "state"
    assert archive.kind == "configuration"


def test_every_error_of_a_restore_is_one_of_ours(platform: Platform) -> None:
    backup = platform.configuration()
    platform.root.rename(platform.place / "elsewhere")
    (platform.root).write_text("a file where a folder was")
    with pytest.raises(KybError):
        restore(platform, backup)
