"""Recovery from the copy alone: the address, the key, and nothing that was on the machine before."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.comparison import compare
from kyb_backup_pipeline.engine.errors import RestoreFailed
from kyb_backup_pipeline.engine.evidence import (
    EVIDENCE_FILE,
    Evidence,
    take_evidence_parallel,
)
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.offsite_backup import backup_from
from kyb_backup_pipeline.engine.offsite_copy import COMMIT
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_push import push
from kyb_backup_pipeline.engine.postgres import client_programs
from kyb_backup_pipeline.engine.progress import silent
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore import load_dump
from kyb_backup_pipeline.engine.restore_drill import drill_copy
from kyb_backup_pipeline.engine.restore_source import evidence_of, source_of
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.breaking_proxy import Answer, Cut, Fault, Passage, proxy_to, slowly
from kyb_backup_pipeline_tests.conftest import create_database, drop_database, execute
from kyb_backup_pipeline_tests.keys import Keys, keys_in
from kyb_backup_pipeline_tests.offsite_sites import PART, content
from kyb_backup_pipeline_tests.platforms import Platform
from kyb_backup_pipeline_tests.running import Cli, children_of, none_alive, wait_until
from kyb_backup_pipeline_tests.s3_server import KEY, SECRET, Bucket, S3Server
from kyb_backup_pipeline_tests.test_database_restore import Live, living
from kyb_backup_pipeline_tests.test_offsite_document import signed
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster

_DUMP = "database.sql.zst/"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys_in(tmp_path_factory.mktemp("keys") / "here")


@dataclass(frozen=True)
class Site:
    """A live database whose backups have copies in a bucket; ``environment`` is that of an empty machine."""

    live: Live
    bucket: Bucket
    keys: Keys
    empty: Path
    sealed: str = "age"

    def push(self, backup_id: str = "good", **changes: str) -> Evidence:
        """Take a backup and push it; then nothing of it is left at home."""
        here = self.environment(self.bucket, KYB_BACKUP__LEVEL="1", **changes)
        settings = config.load(environment=here | {"BACKUP_DIR": str(self.home)})
        backup = take_full_backup(settings, Request(backup_id=backup_id), now=utc_now())
        with opened(settings, "offsite", utc_now()) as place:
            push(settings, place, backup, now=utc_now())
        evidence = evidence_of(source_of(backup, settings.encryption))
        assert evidence is not None
        shutil.rmtree(self.home)
        return evidence

    @property
    def home(self) -> Path:
        return self.live.settings.repository

    def environment(self, bucket: Bucket, **changes: str) -> dict[str, str]:
        opens = {} if self.sealed == "none" else self.keys.opens(self.sealed)
        opens |= {} if self.sealed == "none" else {"KYB_ENCRYPTION__DATABASE": "offsite"}
        place = bucket.environment(part_size=str(PART), retries="1")
        return {**self.live.environment, **opens, **place, "BACKUP_DIR": str(self.empty), **changes}

    def cli(self, bucket: Bucket | None = None, **changes: str) -> Cli:
        """The command line of the empty machine."""
        return Cli(None, self.environment(bucket or self.bucket, **changes))

    def equals(self, evidence: Evidence, name: str | None = None) -> bool:
        target = self.live.server.target(name or self.live.name)
        there = take_evidence_parallel(target, like=evidence, jobs=2, report=silent)
        return not compare(evidence, there).differences

    def stands(self, before: int) -> bool:
        """Whether the live database is as it was, and nothing beside it."""
        return (self.live.users(), self.live.databases()) == (before, [])

    def parts(self, file: str = _DUMP) -> list[str]:
        return [key for key in self.bucket.objects() if file in key and "/file-" not in key]

    def drill(self, bucket: Bucket) -> Proof:
        """A restore test of the newest copy, seen through ``bucket``."""
        settings = config.load(environment=self.environment(bucket))
        with opened(settings, "offsite", utc_now()) as place:
            return drill_copy(settings, place, now=utc_now(), run_id="a-run")


@pytest.fixture
def site(
    settings: Settings, server: Cluster, tmp_path: Path, drills: Path, keys: Keys, bucket: Bucket
) -> Iterator[Site]:
    with living(settings, server, tmp_path, drills) as live:
        yield Site(live, bucket, keys, tmp_path / "empty")


def test_a_dropped_database_comes_back_from_the_address_and_the_key_alone(
    site: Site, server: Cluster
) -> None:
    evidence = site.push()
    assert len(site.parts()) > 2
    drop_database(server.target(), site.live.name)
    cli = site.cli()
    listed = cli.run("restore", "database", "--from", "offsite")
    assert (listed.returncode, "good  20" in listed.stderr) == (2, True)
    plan = cli.run("restore", "database", "good", "--from", "offsite", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "streamed" in plan.stdout
    back = cli.run("restore", "database", "good", "--from", "offsite", "--yes", "--json")
    assert back.returncode == 0, back.stderr
    assert site.equals(evidence)
    (journal,) = (site.empty / "database/recovery").glob("restore_*.json")
    assert json.loads(journal.read_text())["place"] == "offsite"
    left = [path for path in site.empty.rglob("*") if path.is_file() and "zst" in path.name]
    assert left == [], "no second copy on this disk"


def test_a_place_that_does_not_answer_is_passed_over(site: Site) -> None:
    site.push()
    own = site.bucket.environment()
    variables = site.environment(site.bucket, KYB_OFFSITE__URL="/nowhere/at/all")
    other = {"url": own["KYB_OFFSITE__URL"], "endpoint": own["KYB_OFFSITE__ENDPOINT"], "allow_http": True,
             "access_key_id": KEY, "secret_access_key": SECRET}  # fmt: skip
    cli = Cli(None, variables | {"KYB_OFFSITE__TARGETS": json.dumps({"second": other})})
    arguments = ("restore", "database", "good", "--dry-run", "--from")
    found = cli.run(*arguments, "offsite")
    assert (found.returncode, "the copy in second" in found.stdout) == (0, True), found.stderr
    assert "/nowhere/at/all" in found.stderr
    assert cli.run(*arguments, "offsite:offsite").returncode == 4
    assert cli.run(*arguments, "elsewhere").returncode == 2


def test_single_tables_come_back_beside_the_live_database(site: Site) -> None:
    site.push()
    before, into = site.live.users(), f"{site.live.name}_look"
    run = site.cli().run("restore", "database", "good", "--from", "offsite:offsite",
                         "--into", into, "--table", "users")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (site.live.users(into), site.live.users()) == (before, before)
    rows = execute(site.live.server.target(into), "SELECT relname FROM pg_class WHERE relname = 'documents'")  # fmt: skip
    assert rows == []


def test_directory_format_is_fetched_first_and_leaves_no_trace(site: Site, drills: Path) -> None:
    evidence = site.push(KYB_BACKUP__FORMAT="directory")
    plan = site.cli().run("restore", "database", "good", "--from", "offsite", "--dry-run")
    assert f"temporary folder in {drills}" in plan.stdout, plan.stderr
    into = f"{site.live.name}_look"
    run = site.cli().run("restore", "database", "good", "--from", "offsite", "--into", into)
    assert run.returncode == 0, run.stderr
    assert site.equals(evidence, into)
    assert site.drill(site.bucket).verdict == "passed"


def test_directory_format_is_not_begun_where_there_is_no_room_for_it(
    site: Site, tmp_path: Path
) -> None:
    site.push(KYB_BACKUP__FORMAT="directory")
    before, disk = site.live.users(), tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        cli = site.cli(KYB_RESTORE_TEST__DIRECTORY=str(disk))
        run = cli.run("restore", "database", "good", "--from", "offsite", "--yes")
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert (run.returncode, "restore_test.directory" in run.stderr, left) == (11, True, [])
    assert site.stands(before)


def test_what_is_encrypted_at_home_already_streams_too(site: Site) -> None:
    site = replace(site, sealed="gpg")
    site.push(KYB_ENCRYPTION__DATABASE="true")
    assert site.parts("database.sql.zst.gpg/")
    before, into = site.live.users(), f"{site.live.name}_look"
    run = site.cli().run("restore", "database", "good", "--from", "offsite", "--into", into)
    assert run.returncode == 0, run.stderr
    assert site.live.users(into) == before


# Without, or with another key


@pytest.mark.parametrize("which", ["none", "wrong"])
def test_without_the_key_nothing_is_begun(site: Site, which: str) -> None:
    site.push()
    before = site.live.users()
    variables = site.environment(site.bucket)
    del variables["KYB_ENCRYPTION__IDENTITY_FILE"]
    if which == "wrong":
        variables["KYB_ENCRYPTION__IDENTITY_FILE"] = str(site.keys.other.file)
    cli = Cli(None, variables)
    run = cli.run("restore", "database", "good", "--from", "offsite", "--yes")
    assert run.returncode == 10, run.stderr
    assert ("no identity is set" if which == "none" else "another key") in run.stderr
    assert not list((site.empty / "database/recovery").glob("*.json"))
    assert site.stands(before)
    assert cli.run("drill", "--from", "offsite").returncode == 10


# What happens behind our back, and on the way


def altered(passage: Passage) -> Answer | None:
    """One bit of what comes back."""
    if passage.answer is None:
        return None
    body = bytearray(passage.answer.body)
    body[len(body) // 2] ^= 4
    return Answer(passage.answer.status, passage.answer.headers, bytes(body))


def missing(passage: Passage) -> Answer | None:
    return Answer(
        404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchKey</Code></Error>"
    )


def gone(passage: Passage) -> Answer | None:
    raise Cut


def reading(key: str, fault: Fault, *, behind: bool = False) -> Fault:
    """The fault for whoever reads this object; with ``behind`` for all that is asked after that, too."""
    met = False

    def act(passage: Passage) -> Answer | None:
        nonlocal met
        ours = passage.method == "GET" and passage.path.endswith(key.rpartition("/")[2])
        met = met or ours
        return fault(passage) if ours or (behind and met) else None

    return act


@pytest.mark.parametrize(
    ("sealed", "fault", "behind", "status", "said"),
    [
        ("none", altered, False, 7, "has another content than was pushed"),
        ("gpg", missing, False, 7, "is missing in"),
        ("none", gone, True, 4, "tried 2 times"),
    ],
    ids=["altered", "missing", "gone"],
)
def test_what_breaks_in_mid_load_changes_nothing(
    site: Site, s3: S3Server, sealed: str, fault: Fault, behind: bool, status: int, said: str
) -> None:
    """Plain and through a filter the first megabytes are in psql by then; judged is what came last."""
    site = replace(site, sealed=sealed)
    site.push()
    before = site.live.users()
    with proxy_to(s3) as proxy:
        proxy.fault = reading(site.parts()[-1], fault, behind=behind)
        cli = site.cli(proxy.bucket(site.bucket))
        run = cli.run("restore", "database", "good", "--from", "offsite", "--yes")
        assert run.returncode == status, run.stderr
        assert said in run.stderr
        assert "is as it was" in run.stderr
        assert "• load" in run.stdout, "not before the load"
        assert site.stands(before)
        assert "nothing" in site.cli().run("restore", "repair").stdout
        proxy.fault = reading(site.parts()[-1], fault, behind=behind)
        proof = site.drill(proxy.bucket(site.bucket))
    assert proof.verdict == ("could_not_verify" if fault is gone else "failed"), proof.summary
    assert said in proof.summary


@pytest.mark.parametrize("sealed", ["none", "gpg"])
def test_psql_is_not_told_the_end_of_what_was_altered(site: Site, sealed: str) -> None:
    """In one transaction: had it been told, all that came before would be committed."""
    site = replace(site, sealed=sealed)
    site.push()
    key = site.parts()[-1]
    site.bucket.write(key, site.bucket.read(key)[:-1] + b"?")
    settings = config.load(environment=site.environment(site.bucket))
    programs = client_programs(settings.postgres, 18)
    into = site.live.server.target(f"{site.live.name}_look")
    create_database(site.live.server.target(), into.dbname)
    with backup_from(settings, "offsite", "good", utc_now()) as backup:
        source = source_of(backup, settings.encryption)
        with pytest.raises(RestoreFailed, match="has another content than was pushed"):
            load_dump(source, programs, into, jobs=1, stall_timeout=60, single_transaction=True,
                      report=silent)  # fmt: skip
    assert execute(into, "SELECT FROM pg_class WHERE relname = 'users'") == []


def test_a_part_that_was_deleted_or_altered_before_is_found_before_anything_is_done(
    site: Site,
) -> None:
    site.push()
    before, key = site.live.users(), site.parts()[1]
    whole = site.bucket.read(key)
    damaged = bytearray(whole)
    damaged[100] ^= 4
    for harmed in (bytes(damaged), None):
        if harmed is None:
            site.bucket.delete(key)
        else:
            site.bucket.write(key, harmed)
        run = site.cli().run("restore", "database", "good", "--from", "offsite", "--yes")
        assert run.returncode == 6, run.stderr
        assert key.rpartition("/")[2] in run.stderr
        assert "• check" not in run.stdout
        assert site.stands(before)


def test_a_commit_object_that_contradicts_its_manifest_is_found(site: Site) -> None:
    """Its parts may all fit: what it says of a file must be what the manifest says, too."""
    site = replace(site, sealed="none")
    site.push()
    before = site.live.users()
    (key,) = (key for key in site.bucket.objects() if key.endswith(COMMIT))
    document = json.loads(site.bucket.read(key))
    (dump,) = (file for file in document["files"] if file["path"] == "database.sql.zst")
    dump["sha256"] = dump["stored_sha256"] = "ab" * 32
    site.bucket.write(key, signed(document))
    run = site.cli().run("restore", "database", "good", "--from", "offsite", "--yes")
    assert (run.returncode, "• check" in run.stdout) == (6, False), run.stderr
    assert "database.sql.zst is not in it as the manifest says" in run.stderr
    assert site.stands(before)


def test_a_small_file_with_other_content_is_found_though_the_place_calls_it_the_same(
    site: Site, s3: S3Server
) -> None:
    site.push()
    before = site.live.users()
    (key,) = (k for k in site.bucket.objects() if f"{EVIDENCE_FILE}/0" in k)
    with proxy_to(s3) as proxy:
        proxy.fault = reading(key, altered)
        run = site.cli(proxy.bucket(site.bucket)).run("restore", "database", "good", "--from", "offsite", "--yes")  # fmt: skip
    assert (run.returncode, "• check" in run.stdout) == (6, False), run.stderr
    assert site.stands(before)


def test_killed_in_mid_load_it_leaves_what_repair_takes_away(
    site: Site, s3: S3Server, drills: Path
) -> None:
    site = replace(site, sealed="none")
    evidence = site.push()
    before = site.live.users()
    with proxy_to(s3) as proxy:

        def hold(passage: Passage) -> Answer | None:
            slowly(20)
            return None

        proxy.fault = reading(site.parts()[-1], hold)
        cli = site.cli(proxy.bucket(site.bucket))
        run = cli.start("restore", "database", "good", "--from", "offsite", "--yes")
        wait_until(lambda: bool(site.live.databases()), "a database that is being restored")
        wait_until(lambda: "• load" in run.stdout, "the load")
        children = children_of(run.pid)
        run.kill()
        run.wait()
        wait_until(lambda: none_alive(children), "its children are gone")
    assert site.live.users() == before
    repaired = site.cli().run("restore", "repair")
    assert (repaired.returncode, "was not finished" in repaired.stdout) == (0, True)
    assert site.stands(before)
    assert list(drills.iterdir()), "its private folder, which the next one sweeps"
    again = site.cli().run("restore", "database", "good", "--from", "offsite", "--yes")
    assert again.returncode == 0, again.stderr
    assert site.equals(evidence)


# The restore test of the copy


def test_a_drill_host_needs_the_address_and_the_key_only(site: Site, drills: Path) -> None:
    site.push()
    cli = Cli(None, {**site.bucket.environment(), "KYB_ENCRYPTION__IDENTITY_FILE": str(site.keys.pair.file),
                     "BACKUP_DIR": str(site.empty), "DB_PORT": str(free_port()),
                     "KYB_RESTORE_TEST__DIRECTORY": str(drills)})  # fmt: skip
    assert "good" in cli.run("offsite", "list").stdout
    run = cli.run("drill", "--from", "offsite", "--json")
    assert run.returncode == 0, run.stderr + run.stdout
    proof = Proof.model_validate_json(run.stdout)
    assert (proof.verdict, proof.place, proof.backup_id) == ("passed", "offsite", "good")
    assert proof.summary.startswith("from the copy in offsite: ")
    assert proof.figures["rows"] > 1000
    assert Repository(site.empty).records.latest("good") == {"restore_test": proof}


def test_the_engine_tests_the_newest_copy(site: Site) -> None:
    site.push("older")
    site.push("newer")
    proof = site.drill(site.bucket)
    assert (proof.backup_id, proof.verdict, proof.run_id) == ("newer", "passed", "a-run")


# A moment


@dataclass(frozen=True)
class Log:
    """A cluster whose base backup and two increments have copies; home is lost."""

    primary: Primary
    keys: Keys
    variables: Mapping[str, str]
    empty: Path
    ids: tuple[str, str, str]
    first_marker: str

    def cli(self, **changes: str) -> Cli:
        return Cli(None, {**self.variables, "BACKUP_DIR": str(self.empty), **changes})

    def environment(self) -> dict[str, str]:
        return dict(self.variables)


@pytest.fixture(params=["offsite"])
def log(
    request: pytest.FixtureRequest,
    place: Path,
    tmp_path: Path,
    drills: Path,
    keys: Keys,
    bucket: Bucket,
) -> Iterator[Log]:
    sealing = keys.opens() | {"KYB_ENCRYPTION__DATABASE": request.param}
    away = bucket.environment(part_size=str(1 << 20), retries="1") | sealing
    with running_cluster(place, 18) as cluster:
        primary = primary_of(cluster, tmp_path / "home", drills, **away)
        primary.sql("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
        taken = [primary.base(), primary.increment()]
        primary.sql("INSERT INTO kept SELECT generate_series(101, 200)")
        taken.append(primary.increment())
        target = primary.target
        variables = away | {
            "DB_HOST": target.host, "DB_PORT": str(target.port), "DB_NAME": target.dbname,
            "DB_USER": target.user, "KYB_RESTORE_TEST__DIRECTORY": str(drills),
            "KYB_BACKUP__MINIMUM_FREE": "0",
        }  # fmt: skip
        home = Cli(None, {**variables, "BACKUP_DIR": str(tmp_path / "home")})
        run = home.run("offsite", "push", "--all")
        assert run.returncode == 0, run.stderr
        shutil.rmtree(tmp_path / "home")
        first, second, third = (manifest.backup_id for manifest in taken)
        yield Log(primary, keys, variables, tmp_path / "empty", (first, second, third),
                  taken[1].require_wal().markers[-1].lsn)  # fmt: skip


def test_the_last_moment_comes_back_from_the_copies_alone(log: Log, place: Path) -> None:
    into = place / f"from-copies-{free_port()}"
    arguments = ("restore", "point-in-time", "--at", "latest", "--into", str(into), "--from", "offsite")  # fmt: skip
    plan = log.cli().run(*arguments, "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    document = json.loads(plan.stdout)
    assert document["fetch"] == list(log.ids)
    assert 0 < document["fetch_bytes"] < document["room"]
    assert not log.empty.exists(), "a dry run fetches nothing"
    assert log.cli().run("offsite", "fetch", log.ids[0]).returncode == 0
    plan = log.cli().run(*arguments, "--dry-run")
    assert f"fetched       {log.ids[1]}, {log.ids[2]}: " in plan.stdout, plan.stderr
    log.primary.cluster.stop()
    shutil.rmtree(log.primary.cluster.data)
    done = log.cli().run(*arguments, "--yes")
    assert done.returncode == 0, done.stderr
    shutil.move(into, log.primary.cluster.data)
    log.primary.cluster.start()
    assert execute(log.primary.target, "SELECT count(*) FROM kept") == [(200,)]
    (journal,) = (log.empty / "database/recovery").glob("recovery_*.json")
    assert json.loads(journal.read_text())["place"] == "offsite"


@pytest.mark.parametrize("log", ["true"], indirect=True, ids=["sealed-at-home"])
def test_an_earlier_moment_takes_no_more_than_it_needs(
    log: Log, place: Path, tmp_path: Path
) -> None:
    into, work = place / f"earlier-{free_port()}", tmp_path / "work"
    arguments = ("restore", "point-in-time", "--at", log.first_marker, "--into", str(into),
                 "--from", "offsite", "--work", str(work))  # fmt: skip
    done = log.cli().run(*arguments, "--yes")
    assert done.returncode == 0, done.stderr
    fetched = {path.name for path in (work / "database/incremental").iterdir()}
    assert fetched == {*log.ids[:2], "wal"}
    assert list((log.empty / "database/recovery").glob("recovery_*.json")), "for restore repair"
    beyond = log.cli().run("restore", "point-in-time", "--at", "2999-01-01", "--into", str(into), "--from", "offsite")  # fmt: skip
    assert (beyond.returncode, "it covers" in beyond.stderr) == (12, True)
    shutil.rmtree(into)


def test_nothing_is_fetched_without_the_key_nor_into_the_repository_of_another_cluster(
    log: Log, place: Path, drills: Path
) -> None:
    arguments = ("restore", "point-in-time", "--at", "latest", "--into", str(place / "never"),
                 "--from", "offsite", "--yes")  # fmt: skip
    wrong = log.cli(KYB_ENCRYPTION__IDENTITY_FILE=str(log.keys.other.file)).run(*arguments)
    assert (wrong.returncode, "another key" in wrong.stderr) == (10, True)
    variables = log.environment() | {"BACKUP_DIR": str(log.empty)}
    del variables["KYB_ENCRYPTION__IDENTITY_FILE"]
    assert Cli(None, variables).run(*arguments).returncode == 10
    assert not log.empty.exists()
    with running_cluster(place, 18) as other:
        primary_of(other, log.empty, drills).base()
    foreign = log.cli().run(*arguments)
    assert (foreign.returncode, "another cluster" in foreign.stderr) == (12, True)
    assert not (place / "never").exists()


def test_a_chain_with_a_damaged_part_is_not_recovered_from(
    log: Log, bucket: Bucket, place: Path
) -> None:
    key = next(k for k in bucket.objects() if f"{log.ids[0]}/base.tar" in k and "/file-" not in k)
    bucket.write(key, bucket.read(key)[:-1] + b"?")
    run = log.cli().run("restore", "point-in-time", "--at", "latest", "--into", str(place / "never"),
                        "--from", "offsite", "--yes")  # fmt: skip
    assert (run.returncode, "another content" in run.stderr) == (6, True), run.stderr
    assert not (place / "never").exists()
    assert Repository(log.empty).ids("base") == set()


# Files


def test_archives_come_back_from_their_copies(
    platform: Platform, bucket: Bucket, tmp_path: Path, drills: Path
) -> None:
    environment = platform.environment | bucket.environment() | {"KYB_RESTORE_TEST__DIRECTORY": str(drills)}  # fmt: skip
    cli = Cli(None, environment)
    for verb in (("backup", "configuration", "--id", "config_1"),
                 ("backup", "application", "--deployment", "v1", "--id", "app_1"),
                 ("offsite", "push", "config_1", "app_1")):  # fmt: skip
        run = cli.run(*verb)
        assert run.returncode == 0, run.stderr
    empty = Cli(None, environment | {"BACKUP_DIR": str(tmp_path / "empty")})
    for kind, backup_id in (("configuration", "config_1"), ("application", "app_1")):
        here, there = tmp_path / f"{kind}-here", tmp_path / f"{kind}-there"
        assert cli.run("restore", kind, backup_id, "--into", str(here)).returncode == 0
        run = empty.run("restore", kind, backup_id, "--into", str(there), "--from", "offsite")
        assert run.returncode == 0, run.stderr
        assert content(here) == content(there) != {}
