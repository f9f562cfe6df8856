"""Copies when things go wrong: a real S3 server behind a proxy that breaks, delays, lies; kills; thieves."""

import hashlib
import random
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.encryption import new_key_pair
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.offsite_check import offsite
from kyb_backup_pipeline.engine.offsite_commit import CopyConflict
from kyb_backup_pipeline.engine.offsite_copy import COMMIT
from kyb_backup_pipeline.engine.offsite_parts import PartLost
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged
from kyb_backup_pipeline.engine.offsite_target import (
    TargetFull,
    TargetMisconfigured,
    TargetRefuses,
    TargetUnreachable,
)
from kyb_backup_pipeline.engine.offsite_view import Views
from kyb_backup_pipeline.engine.removal import remove
from kyb_backup_pipeline_tests.breaking_proxy import (
    Answer,
    Cut,
    Fault,
    Passage,
    Proxy,
    proxy_to,
    refused,
    slowly,
)
from kyb_backup_pipeline_tests.offsite_sites import PART, Machine, content, machine_in
from kyb_backup_pipeline_tests.running import wait_until
from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with proxy_to(s3) as proxy:
        yield proxy


@pytest.fixture
def machine(tmp_path: Path, proxy: Proxy, bucket: Bucket) -> Machine:
    """A machine that reaches its bucket through the proxy, and has a backup."""
    machine = machine_in(tmp_path / "backups", proxy.bucket(bucket).environment())
    machine.backup()
    return machine


@pytest.fixture
def sound(tmp_path: Path, machine: Machine, bucket: Bucket) -> Machine:
    """Another machine, which reaches the same bucket directly."""
    return machine_in(tmp_path / "sound", bucket.environment())


def before_data(number: int, fault: Fault) -> Fault:
    """The fault for all data writes from number ``number`` on (counted from 0), before they go through."""
    seen = 0
    lock = threading.Lock()

    def act(passage: Passage) -> Answer | None:
        nonlocal seen
        if not passage.data or passage.answer is not None:
            return None
        with lock:
            seen += 1
            due = seen > number
        return fault(passage) if due else None

    return act


@pytest.mark.parametrize("seed", [1, 2])
def test_cut_at_random_places_a_push_ends_well(
    machine: Machine, sound: Machine, proxy: Proxy, seed: int
) -> None:
    chance = random.Random(seed)

    def cut(passage: Passage) -> Answer | None:
        if (
            chance.random() < 0.15
        ):  # before it went through, or after: then it arrived, and nobody knows
            raise Cut
        return None

    proxy.fault = cut
    machine.with_settings(retries="12").push()
    proxy.fault = lambda passage: None
    assert content(sound.fetch().folder) == content(machine.root / "database/full/full_1")
    assert sound.verify(deep=True).verdict == "passed"


def test_errors_of_the_server_and_requests_to_slow_down_are_waited_out(
    machine: Machine, sound: Machine, proxy: Proxy
) -> None:
    answers = [refused(503, "SlowDown"), refused(500, "InternalError"), refused(503, "ServiceUnavailable"),
               Answer(502), Answer(429)]  # fmt: skip

    def overloaded(passage: Passage) -> Answer | None:
        return (
            answers.pop()
            if answers and passage.answer is None and passage.number % 3 == 0
            else None
        )

    proxy.fault = overloaded
    machine.push()
    assert not answers
    assert sound.verify(deep=True).verdict == "passed"


def test_a_server_that_stays_overloaded_is_given_up_on_and_nothing_is_listed(
    machine: Machine, sound: Machine, proxy: Proxy
) -> None:
    proxy.fault = before_data(3, lambda passage: refused(503, "SlowDown"))
    with pytest.raises(TargetUnreachable, match="tried 2 times, the last time: 503 SlowDown"):
        machine.with_settings(retries="1").push()
    assert sound.ids() == []
    trouble = Views(machine.root).read("offsite", machine.settings.offsite.url or "").trouble
    assert trouble is not None and "SlowDown" in trouble.message


def test_a_server_that_does_not_answer_is_given_up_on(
    machine: Machine, sound: Machine, proxy: Proxy
) -> None:
    def wait(passage: Passage) -> Answer | None:
        slowly(3)
        return None

    proxy.fault = before_data(2, wait)
    with pytest.raises(TargetUnreachable, match="no answer in time"):
        machine.with_settings(retries="0", timeout="1").push()
    assert sound.ids() == []


def test_no_server_at_all_is_said_so_by_check_too(machine: Machine) -> None:
    nowhere = machine.with_settings(endpoint="http://127.0.0.1:9", retries="1")
    with pytest.raises(TargetUnreachable, match="no connection"):
        nowhere.push()
    (line,) = (line for line in offsite(nowhere.settings, utc_now()) if line.level == "error")
    assert "no connection" in line.message


def test_credentials_that_expire_in_mid_push_leave_nothing_listed_and_nothing_is_sent_twice(
    machine: Machine, sound: Machine, proxy: Proxy
) -> None:
    proxy.fault = before_data(5, lambda passage: refused(400, "ExpiredToken"))
    with pytest.raises(TargetMisconfigured, match="credentials have expired"):
        machine.push()
    assert sound.ids() == []
    proxy.fault = lambda passage: None
    arrived = {p.path for p in proxy.passages if p.data and p.answer is not None}
    assert len(arrived) == 5
    proxy.passages.clear()
    pushed = machine.push()
    assert pushed.found > 4 * PART
    assert not arrived & {p.path for p in proxy.passages if p.data}
    assert sound.verify(deep=True).verdict == "passed"


def test_an_encrypted_push_that_was_cut_sends_finished_files_only_once(
    machine: Machine, sound: Machine, proxy: Proxy, tmp_path: Path
) -> None:
    pair = new_key_pair(tmp_path / "keys", utc_now())
    keys = {"KYB_ENCRYPTION__DATABASE": "offsite", "KYB_ENCRYPTION__RECIPIENTS": pair.recipient,
            "KYB_ENCRYPTION__IDENTITY_FILE": str(pair.file)}  # fmt: skip
    machine = Machine(machine.root, {**machine.environment, **keys})

    def stop(passage: Passage) -> Answer | None:
        return refused(403, "AccessDenied") if "globals.sql/" in passage.path else None

    proxy.fault = before_data(0, stop)
    with pytest.raises(TargetRefuses, match="AccessDenied"):
        machine.push()
    assert sound.ids() == []
    proxy.fault = lambda passage: None
    proxy.passages.clear()
    assert machine.push().found > 8 * PART
    assert not [path for path in proxy.sent() if "database.sql.zst" in path]
    fetched = Machine(sound.root, {**sound.environment, **keys}).fetch()
    assert content(fetched.folder) == content(machine.root / "database/full/full_1")


def liar(bucket: Bucket, change: bool = False) -> Fault:
    """A server that takes every body, whatever its checksum, and overwrites what was to be created."""
    seen: set[str] = set()

    def act(passage: Passage) -> Answer | None:
        if not passage.writes or passage.answer is not None:
            return None
        body = passage.body
        if change and passage.data and passage.path not in seen:
            seen.add(passage.path)
            body = bytes([body[0] ^ 1]) + body[1:]
        bucket.write(passage.path.removeprefix(f"/{bucket.name}/"), body)
        return Answer(200, {"ETag": f'"{hashlib.md5(passage.body).hexdigest()}"'})

    return act


def test_a_server_that_lies_is_found_out_and_all_is_read_back(
    machine: Machine, sound: Machine, proxy: Proxy, bucket: Bucket
) -> None:
    proxy.fault = liar(bucket, change=True)
    machine.push()
    probe = Views(machine.root).read("offsite", machine.settings.offsite.url or "").probe
    assert probe is not None
    assert (probe.create_only, probe.honest_checksums) == (False, False)
    assert sound.verify(deep=True).verdict == "passed"
    assert content(sound.fetch().folder) == content(machine.root / "database/full/full_1")
    assert max(proxy.sent().count(path) for path in proxy.sent()) == 2
    warned = [
        line.message for line in offsite(machine.settings, utc_now()) if line.level == "warning"
    ]
    assert any("accepts a wrong checksum" in line and "overwrites" in line for line in warned)


def test_a_server_that_never_keeps_what_it_takes_gets_no_copy(
    machine: Machine, sound: Machine, proxy: Proxy, bucket: Bucket
) -> None:
    honest = liar(bucket)

    def garble(passage: Passage) -> Answer | None:
        if passage.data and passage.answer is None:
            passage.body = b"x" * len(passage.body)
        return honest(passage)

    proxy.fault = garble
    with pytest.raises(PartLost, match="3 times"):
        machine.push()
    assert sound.ids() == []


def test_etags_that_lie_only_cost_a_reading(machine: Machine, proxy: Proxy) -> None:
    def lie(passage: Passage) -> Answer | None:
        if passage.answer is not None:
            for name in [n for n in passage.answer.headers if n.lower() == "etag"]:
                passage.answer.headers[name] = f'"{random.randbytes(16).hex()}"'
            passage.answer.body = re.sub(
                rb"&quot;[0-9a-f]{32}&quot;|\"[0-9a-f]{32}\"", b'"lie"', passage.answer.body
            )
        return None

    proxy.fault = lie
    machine.push()
    proof = machine.verify()
    assert (proof.verdict, proof.read) == ("passed", proof.stored)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"region": "eu-west-1"}, r"the region is wrong: it is us-east-1"),
        ({"url": "s3://no-such-bucket/kyb"}, r"there is no such bucket"),
        ({"secret_access_key": "another"}, r"the key is wrong \(SignatureDoesNotMatch\)"),
        ({"access_key_id": "nobody"}, r"the key is wrong"),
    ],
)
def test_what_is_wrong_in_the_settings_is_said(
    machine: Machine, sound: Machine, changes: dict[str, str], said: str
) -> None:
    wrong = machine.with_settings(**changes)
    with pytest.raises(TargetMisconfigured, match=said) as refusal:
        wrong.push()
    assert refusal.value.hint is not None and "offsite." in refusal.value.hint
    run = wrong.cli.run("offsite", "list")
    assert run.returncode == 3
    assert re.search(said, run.stderr)
    assert sound.ids() == []


def test_a_clock_that_is_off_by_an_hour_is_said_to_be(machine: Machine, proxy: Proxy) -> None:
    """The proxy sends the date of an hour ago; it is the real server that refuses it."""

    def late(passage: Passage) -> Answer | None:
        if passage.answer is None:
            hour_ago = datetime.now(UTC) - timedelta(hours=1)
            name = next(n for n in passage.headers if n.lower() == "x-amz-date")
            passage.headers[name] = f"{hour_ago:%Y%m%dT%H%M%SZ}"
        return None

    proxy.fault = late
    with pytest.raises(TargetMisconfigured, match="the clock of this machine is off") as refusal:
        machine.push()
    assert "timedatectl" in (refusal.value.hint or "")


def test_a_full_bucket_is_no_copy_and_an_exit_code_of_its_own(
    machine: Machine, sound: Machine, bucket: Bucket
) -> None:
    bucket.limit(3 * PART)
    run = machine.cli.run("offsite", "push")
    assert run.returncode == 11, run.stderr
    assert "takes no more" in run.stderr
    assert sound.ids() == []
    bucket.limit(100 * PART)
    assert machine.push().sent > 0


def test_a_full_disk_is_no_copy_either(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        machine = machine_in(tmp_path / "backups", {"KYB_OFFSITE__URL": str(disk)})
        machine.backup()
        with pytest.raises(TargetFull, match="no room left"):
            machine.push()
        assert machine.ids() == []
        machine.backup("small", size=100)
        for path in disk.glob("database/full/full_1/**/0*"):
            path.unlink()
        assert machine.push("small").sent > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_in_mid_push_nothing_is_listed_and_the_next_one_goes_on(
    machine: Machine, sound: Machine, proxy: Proxy
) -> None:
    for number in (1, 4, 9):  # the last one: all data are there, and the commit object is not
        reached, go_on = threading.Event(), threading.Event()
        seen: list[str] = []

        def stop(passage: Passage) -> Answer | None:
            if passage.answer is None and (passage.data or passage.commit):
                if len(seen) >= number or passage.commit:  # noqa: B023
                    reached.set()  # noqa: B023
                    go_on.wait(30)  # noqa: B023
                    raise Cut
                seen.append(passage.path)  # noqa: B023
            return None

        proxy.fault = stop
        run = machine.cli.start("offsite", "push")
        assert reached.wait(30)
        wait_until(lambda: len(seen) >= min(number, 1), "some parts were sent")  # noqa: B023
        run.kill()
        run.wait()
        go_on.set()
        assert sound.ids() == []
    proxy.fault = lambda passage: None
    arrived = {p.path for p in proxy.passages if p.data and p.answer is not None}
    proxy.passages.clear()
    pushed = machine.push()
    assert pushed.found > 8 * PART
    assert not arrived & {p.path for p in proxy.passages if p.data}
    assert content(sound.fetch().folder) == content(machine.root / "database/full/full_1")


def test_two_machines_push_the_same_backup_at_once_and_both_are_content(
    machine: Machine, sound: Machine
) -> None:
    sound.backup()  # the same bytes; the manifest differs by its time
    folder = sound.root / "database/full/full_1"
    for path in folder.glob("backup_metadata*"):
        path.write_bytes((machine.root / "database/full/full_1" / path.name).read_bytes())
    errors = both(machine, sound)
    assert errors == []
    assert sound.ids() == ["full_1"]
    assert sound.verify(deep=True).verdict == "passed"


@pytest.mark.parametrize("lying", [False, True])
def test_two_machines_push_different_backups_under_one_id_and_one_is_told(
    machine: Machine, sound: Machine, proxy: Proxy, bucket: Bucket, lying: bool
) -> None:
    if lying:
        proxy.fault = liar(bucket)
        sound = Machine(sound.root, machine.environment)
    sound.backup(seed=2)
    errors = both(machine, sound)
    assert [type(error) for error in errors] == [CopyConflict]
    assert "with other content" in errors[0].message
    (listed,) = sound.copies()
    assert listed.copy_ is not None
    assert sound.verify(deep=True).verdict == "passed"
    with pytest.raises(CopyConflict):
        both_again = [m for m in (machine, sound) if m.push()]
        assert len(both_again) == 1


def both(*machines: Machine) -> list[KybError]:
    """Let both push at once; the errors of those that fail."""
    errors: list[KybError] = []
    for machine in machines:  # the probes first, so that they begin together
        machine.cli.run("offsite", "list", "--probe")

    def push(machine: Machine) -> None:
        try:
            machine.push()
        except KybError as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_what_was_changed_or_deleted_behind_our_back_is_found_refused_and_mended(
    machine: Machine, sound: Machine, bucket: Bucket
) -> None:
    machine.push()
    parts = [key for key in bucket.objects() if "/database.sql.zst/" in key]
    good = {key: bucket.read(key) for key in parts}
    damages: dict[str, Callable[[], None]] = {
        "is missing": lambda: bucket.delete(parts[2]),
        "bytes": lambda: bucket.write(parts[3], good[parts[3]][:-1]),
        "another content": lambda: bucket.write(parts[4], bytes(PART)),
    }
    for said, damage in damages.items():
        damage()
        for deep in (False, True):
            proof = sound.verify(deep=deep)
            assert proof.verdict == "failed"
            assert said in proof.summary
        with pytest.raises(CopyDamaged, match=said):
            sound.fetch()
        assert not list((sound.root / "database/full").iterdir())
        run = sound.cli.run("offsite", "verify", "--json")
        assert run.returncode == 6
        assert machine.push(again=True).found > 0
        assert sound.verify().verdict == "passed"
    assert {key: bucket.read(key) for key in parts} == good
    bucket.delete(f"kyb/database/full/full_1/{COMMIT}")
    assert sound.ids() == []


def test_what_is_damaged_on_its_way_back_is_refused(
    machine: Machine, proxy: Proxy, tmp_path: Path
) -> None:
    machine.push()
    other = machine_in(tmp_path / "other", machine.environment)

    def damage(passage: Passage) -> Answer | None:
        if passage.answer and passage.method == "GET" and "/00003-" in passage.path:
            body = passage.answer.body
            passage.answer.body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        return None

    proxy.fault = damage
    with pytest.raises(CopyDamaged, match="another content than was pushed"):
        other.fetch()
    into = tmp_path / "into"
    assert other.cli.run("offsite", "fetch", "full_1", "--into", str(into)).returncode == 6
    assert not into.exists()
    assert not list((other.root / "database/full").iterdir())
    proxy.fault = lambda passage: None
    assert content(other.fetch().folder) == content(machine.root / "database/full/full_1")


def test_killed_in_mid_fetch_nothing_is_listed(
    machine: Machine, proxy: Proxy, tmp_path: Path
) -> None:
    machine.push()
    other = machine_in(tmp_path / "other", machine.environment)
    reached, go_on = threading.Event(), threading.Event()

    def stop(passage: Passage) -> Answer | None:
        if passage.method == "GET" and "/00006-" in passage.path and passage.answer is None:
            reached.set()
            go_on.wait(30)
            raise Cut
        return None

    proxy.fault = stop
    run = other.cli.start("offsite", "fetch", "full_1")
    assert reached.wait(30)
    run.kill()
    run.wait()
    go_on.set()
    proxy.fault = lambda passage: None
    assert other.repository.backups() == []
    assert [left.partial for left in other.repository.leftovers()] == [True]
    assert content(other.fetch().folder) == content(machine.root / "database/full/full_1")
    assert other.repository.leftovers() == []


def test_a_rate_limit_holds(machine: Machine) -> None:
    pushed = machine.with_settings(rate_limit=str(4 * PART)).push()
    assert 1.5 < pushed.seconds < 30


def test_a_backup_that_is_pushed_is_not_deleted_meanwhile(machine: Machine, proxy: Proxy) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def stop(passage: Passage) -> Answer | None:
        reached.set()
        go_on.wait(30)
        return None

    proxy.fault = before_data(3, stop)
    pushing = threading.Thread(target=machine.push)
    pushing.start()
    try:
        assert reached.wait(30)
        with pytest.raises(KybError, match="is being read"):
            remove(machine.repository.find("full_1"))
    finally:
        go_on.set()
        pushing.join()
    assert machine.ids() == ["full_1"]
