"""Encrypted archives: what goes in comes out, nothing is readable on the way, every fault is found."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kyb_backup_pipeline.engine.archive_reader import read_tar
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import NoKeys, new_key_pair, public_keys
from kyb_backup_pipeline.engine.errors import BackupFailed, NotEnoughSpace, Refused
from kyb_backup_pipeline.engine.file_unpacking import Options, restore_into
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, utc_now
from kyb_backup_pipeline.engine.member import ArchiveDamaged
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline_tests.platforms import PASSPHRASE, SECRET, Platform, gpg_home
from kyb_backup_pipeline_tests.running import Cli, children_of, none_alive, wait_until

METHODS = ["age", "gpg"]


def archive_of(backup: Backup) -> Path:
    return backup.folder / backup.require_manifest().archives[0].path


def ugly(root: Path) -> None:
    """A tree with everything that a configuration folder should not have."""
    configs = root / "configs"
    (configs / "deep" / ("d" * 150)).mkdir(parents=True)
    (configs / "deep" / ("d" * 150) / ("f" * 160)).write_text("a path of more than 300 characters")
    (configs / "empty").mkdir()
    (configs / "nothing").write_bytes(b"")
    os.link(configs / "application.yaml", configs / "hard.yaml")
    os.symlink("application.yaml", configs / "soft.yaml")
    os.symlink("../configs/deep", configs / "deeper")
    os.symlink("nowhere", configs / "dangling")
    with open(configs / "sparse", "wb") as file:
        file.seek(20_000_000)
        file.write(b"end")
    (configs / "two\nlines").write_text("a name of two lines")
    with open(os.fsencode(configs) + b"/not \xff\xfe utf8", "wb") as file:
        file.write(b"a name that is no text")
    (configs / "umlaut ä ☃").write_text("a name that is")
    (configs / "executable").write_text("#!/bin/sh\n")
    (configs / "executable").chmod(0o755)
    (configs / "unwritable").write_text("read only")
    (configs / "unwritable").chmod(0o400)
    (root / "services" / "api").mkdir(parents=True)
    (root / "services" / "api" / "local.env").write_text("A=1\n")
    (root / "services" / "api" / "main.py").write_text("no configuration\n")
    os.utime(configs / "application.yaml", ns=(1, 1_600_000_000_123_456_789))


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_an_ugly_tree_comes_back_as_it_was(platform: Platform, method: str, tmp_path: Path) -> None:
    ugly(platform.root)
    wanted = platform.tree()
    settings = platform.with_settings(ENCRYPTION__METHOD=method)
    backup = platform.configuration(settings)
    proof = platform.verify(backup)
    assert (proof.verdict, proof.notes) == ("passed", ()), proof.summary
    restored = tmp_path / "restored"
    restore_into(platform.settings, backup, restored, Options())
    found = platform.tree(restored)
    left_out = {"VERSION", "feature-flags.json", "logs", "logs/api.log", "services/api/main.py"}
    assert found == {path: seen for path, seen in wanted.items() if path not in left_out}
    there = restored / "configs"
    assert (there / "hard.yaml").stat().st_ino == (there / "application.yaml").stat().st_ino
    assert (there / "sparse").stat().st_blocks * 512 < 5_000_000


def test_sockets_fifos_and_targets_outside_are_left_out_with_a_note(
    platform: Platform, tmp_path: Path
) -> None:
    configs = platform.root / "configs"
    os.mkfifo(configs / "queue")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        here = os.getcwd()
        os.chdir(configs)  # a socket's path is short
        listening.bind("control")
        os.chdir(here)
        os.symlink("/etc/hostname", configs / "outside")
        backup = platform.configuration()
    notes = "\n".join(backup.require_manifest().notes)
    assert "configs/queue was left out: it is a FIFO" in notes
    assert "configs/control was left out: it is a socket" in notes
    assert "configs/outside is a link out of the folder" in notes
    assert platform.verify(backup).verdict == "passed"
    with pytest.raises(Refused, match="is a link out of the folder, to /etc/hostname"):
        restore_into(platform.settings, backup, tmp_path / "r", Options())
    assert not (tmp_path / "r").exists()
    restore_into(platform.settings, backup, tmp_path / "r", Options(skip_unsafe=True))
    assert not os.path.lexists(tmp_path / "r" / "configs" / "outside")


@pytest.mark.parametrize("method", METHODS)
def test_an_operator_opens_it_without_this_software(
    platform: Platform, method: str, tmp_path: Path
) -> None:
    """With the very lines of the runbook."""
    ugly(platform.root)
    backup = platform.configuration(platform.with_settings(ENCRYPTION__METHOD=method))
    runbook = (Path(__file__).parent.parent / "docs" / "runbook.md").read_text()
    (line,) = re.findall(rf"^{method} -d .* configuration.tar.*$", runbook, re.M)
    (tmp_path / "out").mkdir()
    (tmp_path / "pass").write_text(PASSPHRASE)
    shutil.copy(platform.identity, backup.folder)
    line = line.replace("-C DIR", f"-C {tmp_path / 'out'}").replace(
        " FILE ", f" {tmp_path / 'pass'} "
    )
    with gpg_home() as home:
        subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            cwd=backup.folder, check=True, env={**os.environ, "GNUPGHOME": home},
        )  # fmt: skip
    found = platform.tree(tmp_path / "out")
    assert set(found) >= {"configs/soft.yaml", "configs/two\nlines", "services/api/local.env"}
    secret = Path("configs", "secrets.env")
    assert (tmp_path / "out" / secret).read_bytes() == (platform.root / secret).read_bytes()
    listed = (tmp_path / "out" / ".kyb-members.jsonl").read_text()
    assert '"path": "configs/secrets.env"' in listed


@examples(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.dictionaries(
        st.binary(min_size=1, max_size=120).filter(
            lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
        ),
        st.binary(max_size=3000),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_names_and_contents_come_back(
    platform: Platform, files: dict[bytes, bytes]
) -> None:
    folder = os.fsencode(platform.root) + b"/secrets"
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    for name, content in files.items():
        with open(folder + b"/" + name, "wb") as file:
            file.write(content)
    backup = platform.configuration(backup_id=f"c{time.monotonic_ns()}")
    assert platform.verify(backup).verdict == "passed"
    into = platform.place / f"r{time.monotonic_ns()}"
    restore_into(platform.settings, backup, into, Options())
    found = os.fsencode(into) + b"/secrets"
    assert {
        name: Path(os.fsdecode(found + b"/" + name)).read_bytes() for name in os.listdir(found)
    } == files


# Nothing readable on the way


def test_no_plaintext_is_anywhere_on_the_disk_at_any_moment(platform: Platform) -> None:
    """The process is stopped again and again, and everything it or its children can write is searched."""
    needle = b"KYB-PLAINTEXT-" + os.urandom(12).hex().encode()
    for number in range(60):
        content = (needle + b"\n") * 3 + random.Random(number).randbytes(400_000)
        (platform.root / "configs" / f"secret{number}.env").write_bytes(content)
    cli = Cli(platform.file(platform.place / "kyb.toml"), {"TMPDIR": str(platform.place / "tmp")})
    (platform.place / "tmp").mkdir()
    run = cli.start("backup", "configuration", "--id", "searched")
    looks = 0
    while run.popen.poll() is None:
        pids = [run.pid, *children_of(run.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            places = [platform.place / "backups", platform.place / "tmp"]
            found = [str(path) for place in places for path in place.rglob("*")
                     if path.is_file() and needle in path.read_bytes()]  # fmt: skip
            assert not found
            assert not [path for pid in pids for path in _writable_files(pid, platform.root)
                        if needle in path.read_bytes()]  # fmt: skip
            looks += 1
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    assert run.wait() == 0, run.stderr
    assert looks > 5
    assert needle not in b"".join(
        p.read_bytes() for p in (platform.place / "backups").rglob("*") if p.is_file()
    )
    assert needle.decode() not in run.stdout + run.stderr


def _writable_files(pid: int, source: Path) -> Iterator[Path]:
    """Regular files that a process has open, deleted ones too, but for what is backed up."""
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(entry)
                if stat.S_ISREG(entry.stat().st_mode) and not target.startswith(str(source)):
                    yield entry


@pytest.mark.parametrize("method", METHODS)
def test_manifest_log_and_arguments_hold_no_secret(platform: Platform, method: str) -> None:
    big = platform.root / "configs" / "big.bin"
    big.write_bytes(random.Random(1).randbytes(30_000_000))
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for pid in children_of(os.getpid()):
                with contextlib.suppress(OSError):
                    seen.add(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
                    seen.add(Path(f"/proc/{pid}/environ").read_text(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        settings = platform.with_settings(ENCRYPTION__METHOD=method)
        backup = platform.configuration(settings)
        assert platform.verify(backup).verdict == "passed"
    finally:
        done.set()
        watcher.join()
    assert any("age_pipe.py" in line if method == "age" else "gpg" in line for line in seen)
    private = platform.identity.read_text().splitlines()[-1]
    for secret in (PASSPHRASE, private, SECRET.decode()):
        assert not any(secret in line for line in seen)
        assert secret not in (backup.folder / MANIFEST).read_text()
    assert "secrets.env" not in (backup.folder / MANIFEST).read_text()
    assert backup.folder.stat().st_mode & 0o777 == 0o700
    assert archive_of(backup).stat().st_mode & 0o777 == 0o600


def test_gpg_leaves_no_agent_and_no_files(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = platform.place / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    settings = platform.with_settings(ENCRYPTION__METHOD="gpg")
    assert platform.verify(platform.configuration(settings)).verdict == "passed"
    assert not list(home.iterdir())
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit()
                and str(home) in _environment(pid)]  # fmt: skip


def _environment(pid: str) -> str:
    try:
        return (
            Path(f"/proc/{pid}/environ").read_text(errors="replace")
            if pid != str(os.getpid())
            else ""
        )
    except OSError:
        return ""


# What happens while it is read


_AS_NOBODY = """
import os, pwd, sys
from kyb_backup_pipeline.cli import main, backup
from kyb_backup_pipeline.engine import config, file_backup
import pyrage, encodings.idna, concurrent.futures.thread
if os.geteuid() == 0:
    account = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
main()
"""
"""The interpreter may lie where only root reads, so it gives its rights up once it runs; gpg is everybody's."""


def test_an_unreadable_file_is_named_and_nothing_is_published(
    platform: Platform, place: Path
) -> None:
    home = place / f"unreadable-{time.monotonic_ns()}"
    shutil.copytree(platform.root, home / "app")
    locked = home / "app" / "configs" / "locked.yaml"
    locked.write_text("x")
    locked.chmod(0)
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, 65534, 65534)
        os.chown(locked, 0, 0)
    environment = {
        "PATH": os.environ["PATH"],
        "BACKUP_DIR": str(home / "backups"),
        "KYB_BACKUP__MINIMUM_FREE": "0",
        "KYB_APPLICATION__ROOT": str(home / "app"),
        "KYB_ENCRYPTION__METHOD": "gpg",
        "KYB_ENCRYPTION__PASSPHRASE": PASSPHRASE,
    }
    argv = [sys.executable, "-c", _AS_NOBODY, "backup", "configuration"]
    run = subprocess.run(
        argv, env=environment, cwd=home, capture_output=True, text=True, check=False
    )
    assert run.returncode == 5, run.stderr
    assert "configs/locked.yaml cannot be read: Permission denied" in run.stderr
    assert not list((home / "backups" / "application" / "config").iterdir())
    locked.unlink()
    run = subprocess.run(
        argv, env=environment, cwd=home, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_a_file_that_is_written_once_while_it_is_read_is_read_again(platform: Platform) -> None:
    big = platform.root / "configs" / "big.bin"
    big.write_bytes(bytes(40_000_000))
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    run = cli.start("backup", "configuration", "--id", "again")
    partial = platform.place / "backups" / "application" / "config" / ".again.partial"
    wait_until(partial.exists, "the backup has begun")
    with open(big, "r+b") as file:
        file.write(b"new content")
    assert run.wait() == 0, run.stderr
    into = platform.place / "into"
    restore_into(platform.settings, platform.repository.find("again"), into, Options())
    assert (into / "configs" / "big.bin").read_bytes() == big.read_bytes()


def test_a_file_that_never_rests_is_an_error_that_names_it(platform: Platform) -> None:
    restless = platform.root / "configs" / "aa-restless.yaml"
    restless.write_bytes(bytes(20_000_000))
    with writing(lambda: _append(restless)):
        with pytest.raises(BackupFailed) as failed:
            platform.configuration()
    assert "aa-restless.yaml changed while it was read, 5 times in a row" in failed.value.message
    assert not platform.repository.backups(("configuration",))


def test_a_file_that_comes_and_goes_is_whole_or_not_there(
    platform: Platform, tmp_path: Path
) -> None:
    restless = platform.root / "configs" / "aa-restless.yaml"

    def come_and_go() -> None:
        restless.unlink(missing_ok=True)
        (platform.root / "next").write_bytes(b"x" * 200_000)
        os.rename(platform.root / "next", restless)

    taken = 0
    with writing(come_and_go):
        for number in range(8):
            with contextlib.suppress(BackupFailed):
                platform.configuration(backup_id=f"c{number}")
                taken += 1
    for number, backup in enumerate(platform.repository.backups(("configuration",))):
        assert platform.verify(backup).verdict == "passed"
        restore_into(platform.settings, backup, tmp_path / f"{number}", Options())
        found = tmp_path / f"{number}" / "configs" / "aa-restless.yaml"
        assert not found.exists() or found.read_bytes() == b"x" * 200_000
    assert len(platform.repository.backups(("configuration",))) == taken


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more\n")


@contextlib.contextmanager
def writing(once: Callable[[], None]) -> Iterator[None]:
    """Do it again and again beside the block."""
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            once()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


def test_a_file_that_is_gone_is_not_there(platform: Platform) -> None:
    """Gone between the look into the folder and the reading: the second try knows nothing of it."""
    victim = platform.root / "configs" / "zz-victim.yaml"
    victim.write_text("x")
    big = platform.root / "configs" / "aa.bin"
    big.write_bytes(bytes(60_000_000))
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    run = cli.start("backup", "configuration", "--id", "gone")
    wait_until((platform.place / "backups/application/config/.gone.partial").exists, "it has begun")
    victim.unlink()
    assert run.wait() == 0, run.stderr
    into = platform.place / "into"
    restore_into(platform.settings, platform.repository.find("gone"), into, Options())
    assert not (into / "configs" / "zz-victim.yaml").exists()


def test_logs_may_grow_and_shrink(platform: Platform) -> None:
    log = platform.place / "logs" / "api.log"
    log.write_bytes(b"line\n" * 2_000_000)

    def write() -> None:
        with open(log, "ab") as file:
            file.write(b"more\n" * 1000)
        if log.stat().st_size > 11_000_000:
            os.truncate(log, 9_000_000)

    with writing(write):
        backups = [platform.application(backup_id=f"a{n}") for n in range(5)]
    assert [platform.verify(backup).verdict for backup in backups] == ["passed"] * 5


def test_too_much_and_nothing_are_refused(platform: Platform) -> None:
    (platform.root / "configs" / "big").write_bytes(bytes(2_000_000))
    with pytest.raises(BackupFailed, match="there is more than 1 MB") as failed:
        platform.configuration(platform.with_settings(CONFIGURATION__SIZE_LIMIT="1000000"))
    assert "configuration.size_limit" in (failed.value.hint or "")
    with pytest.raises(BackupFailed, match=r"nothing in .* is taken"):
        platform.configuration(platform.with_settings(CONFIGURATION__INCLUDE="/nowhere/"))
    with pytest.raises(BackupFailed, match="there is no folder"):
        platform.configuration(platform.with_settings(CONFIGURATION__ROOT="/nowhere"))
    assert not platform.repository.backups(("configuration",))


def test_a_full_disk_leaves_nothing(platform: Platform, tmp_path: Path) -> None:
    (platform.root / "configs" / "big").write_bytes(random.Random(2).randbytes(8_000_000))
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "from kyb_backup_pipeline.cli.program import main\nmain()\n"
    )
    file = platform.file(platform.place / "kyb.toml")
    run = subprocess.run(
        [sys.executable, "-c", script, "--config", str(file), "backup", "configuration"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == NotEnoughSpace.exit_code, run.stderr
    assert not list((platform.place / "backups/application/config").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_backup_leaves_nothing_that_counts(platform: Platform, method: str) -> None:
    (platform.root / "configs" / "big").write_bytes(random.Random(3).randbytes(40_000_000))
    file = platform.file(platform.place / "kyb.toml")
    environment = {"KYB_ENCRYPTION__METHOD": method, "KYB_ENCRYPTION__PASSPHRASE": PASSPHRASE}
    cli = Cli(file, environment)
    chance = random.Random(4)
    for number in range(12):
        run = cli.start("backup", "configuration", "--id", f"k{number}")
        time.sleep(chance.uniform(0.05, 0.6))
        children = children_of(run.pid)
        run.kill()
        code = run.wait()
        wait_until(partial(none_alive, children), "its children are gone")
        for backup in platform.repository.backups(("configuration",)):
            assert platform.verify(backup).verdict == "passed", (number, code)
    run_again = cli.run("backup", "configuration", "--id", "after")
    assert run_again.returncode == 0, run_again.stderr
    assert platform.verify(platform.repository.find("after")).verdict == "passed"


# Faults in what was written


@pytest.mark.parametrize("method", METHODS)
def test_every_flipped_byte_and_every_cut_is_found(platform: Platform, method: str) -> None:
    (platform.root / "configs" / "some.bin").write_bytes(random.Random(5).randbytes(3000))
    backup = platform.configuration(platform.with_settings(ENCRYPTION__METHOD=method))
    path = archive_of(backup)
    whole = path.read_bytes()
    chance = random.Random(6)
    places = sorted(chance.sample(range(len(whole)), 60 if method == "age" else 20))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        assert platform.verify(backup).verdict == "failed", place
        with pytest.raises(Exception) as failed:
            restore_into(platform.settings, backup, platform.place / "into", Options())
        assert type(failed.value).__name__ in ("RestoreFailed", "Refused"), place
        assert not (platform.place / "into").exists()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert platform.verify(backup).verdict == "failed", length
    path.write_bytes(whole + b"x")
    assert platform.verify(backup).verdict == "failed"
    path.write_bytes(whole)
    assert platform.verify(backup).verdict == "passed"
    path.unlink()
    assert platform.verify(backup).verdict == "failed"


@pytest.mark.parametrize("method", METHODS)
def test_damage_is_found_though_somebody_sealed_it_anew(platform: Platform, method: str) -> None:
    """File, manifest and its checksum all fit each other: the encryption itself must tell."""
    (platform.root / "configs" / "some.bin").write_bytes(random.Random(7).randbytes(200_000))
    backup = platform.configuration(platform.with_settings(ENCRYPTION__METHOD=method))
    path = archive_of(backup)
    whole = path.read_bytes()
    for place in (len(whole) // 3, len(whole) // 2, len(whole) - 5):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        seal_anew(backup)
        proof = platform.verify(backup)
        assert proof.verdict == "failed", place
    path.write_bytes(whole[: len(whole) // 2])
    seal_anew(backup)
    assert platform.verify(backup).verdict == "failed"


def seal_anew(backup: Backup) -> None:
    """Make manifest and checksum fit the files, as they are now."""
    import hashlib

    manifest = backup.require_manifest()
    content = (backup.folder / MANIFEST).read_text()
    for file in manifest.files:
        now = (backup.folder / file.path).read_bytes()
        content = content.replace(file.sha256, hashlib.sha256(now).hexdigest())
        content = content.replace(f'"size": {file.size}', f'"size": {len(now)}')
        content = content.replace(f'"file_size": {file.size}', f'"file_size": {len(now)}')
    (backup.folder / MANIFEST).write_text(content)
    (backup.folder / MANIFEST_CHECKSUM).write_bytes(checksum_line(content.encode()))


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_of_another_backup_is_not_this_one(platform: Platform, method: str) -> None:
    settings = platform.with_settings(ENCRYPTION__METHOD=method)
    first = platform.configuration(settings, backup_id="first")
    (platform.root / "configs" / "application.yaml").write_text("other: true\n")
    second = platform.configuration(settings, backup_id="second")
    shutil.copy(archive_of(second), archive_of(first))
    seal_anew(first)
    proof = platform.verify(first)
    assert proof.verdict == "failed"
    assert "another list of members" in proof.summary


def test_without_the_key_the_checksum_counts_and_the_content_could_not_be_verified(
    platform: Platform, tmp_path: Path
) -> None:
    backup = platform.configuration()
    no_key = platform.with_settings(ENCRYPTION__IDENTITY_FILE=str(tmp_path / "gone"))
    other = new_key_pair(tmp_path / "other", utc_now())
    wrong_key = platform.with_settings(ENCRYPTION__IDENTITY_FILE=str(other.file))
    for settings, said in ((no_key, "cannot be used"), (wrong_key, "for another key")):
        proof = platform.verify(backup, settings)
        assert proof.verdict == "could_not_verify"
        assert "checksum passed" in proof.summary
        assert said in proof.summary
    path = archive_of(backup)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    for settings in (no_key, wrong_key):
        assert platform.verify(backup, settings).verdict == "failed"


def test_a_wrong_passphrase_and_a_missing_gpg_say_so(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpg = platform.with_settings(ENCRYPTION__METHOD="gpg")
    backup = platform.configuration(gpg)
    wrong = platform.with_settings(ENCRYPTION__PASSPHRASE="something else")
    proof = platform.verify(backup, wrong)
    assert (proof.verdict, "the passphrase is another" in proof.summary) == (
        "could_not_verify",
        True,
    )
    for passphrase, said in (("", "no passphrase is set"), ("two\nlines", "a line break")):
        with pytest.raises(NoKeys, match=said):
            platform.configuration(platform.with_settings(
                ENCRYPTION__METHOD="gpg", ENCRYPTION__PASSPHRASE=passphrase))  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoKeys, match="gpg is not installed"):
        platform.configuration(gpg)
    proof = platform.verify(backup)
    assert (proof.verdict, "gpg is not installed" in proof.summary) == ("could_not_verify", True)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'gpg: cannot open /dev/tty' >&2; read answer; exit 2", "cannot open /dev/tty"),
        ("exit 0", "passphrase|ended before|no output|encryption"),
        ("cat >/dev/null; exit 2", "ended with status 2"),
    ],
)
def test_a_gpg_that_asks_or_lies_makes_no_backup(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    program = tmp_path / "gpg"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (platform.root / "configs" / "big").write_bytes(random.Random(8).randbytes(9_000_000))
    with pytest.raises(BackupFailed, match=said):
        platform.configuration(platform.with_settings(ENCRYPTION__METHOD="gpg"))
    assert not platform.repository.backups(("configuration",))


def test_recipients_that_are_none_are_refused_by_name(platform: Platform) -> None:
    for recipients, said in (
        ("", "recipients is empty"),
        ("age1nonsense", "no public key of age"),
        (platform.identity.read_text().splitlines()[-1], "a private key"),
    ):
        with pytest.raises(NoKeys, match=said) as refused:
            platform.configuration(platform.with_settings(ENCRYPTION__RECIPIENTS=recipients))
        assert "AGE-SECRET-KEY" not in str(refused.value)


def test_two_recipients_can_both_open_it(platform: Platform, tmp_path: Path) -> None:
    other = new_key_pair(tmp_path / "other", utc_now())
    both = f"{public_keys(platform.identity)[0]},{other.recipient}"
    backup = platform.configuration(platform.with_settings(ENCRYPTION__RECIPIENTS=both))
    second = platform.with_settings(ENCRYPTION__IDENTITY_FILE=str(other.file))
    assert platform.verify(backup).verdict == platform.verify(backup, second).verdict == "passed"


@examples(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=3000), seed=st.integers(0, 2**32))
def test_whatever_bytes_come_the_reader_ends_with_members_or_with_damage(
    data: bytes, seed: int
) -> None:
    import io
    import tarfile

    stream = io.BytesIO()
    formats = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    with tarfile.open(fileobj=stream, mode="w", format=formats[seed % 2]) as tar:
        info = tarfile.TarInfo("a" * (seed % 300 + 1))
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    whole = bytearray(stream.getvalue())
    chance = random.Random(seed)
    for _ in range(seed % 4):
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    pieces = (bytes(whole[n : n + 700]) for n in range(0, len(whole), 700))
    with contextlib.suppress(ArchiveDamaged):
        for entry in read_tar(pieces):
            assert sum(map(len, entry.blocks)) == entry.member.size
