"""Recovery from the copy alone: the address, the key, and nothing that was on the machine before."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.comparison import compare
from kyb_backup_pipeline.engine.evidence import (
    EVIDENCE_FILE,
    Evidence,
    parse_evidence,
    take_evidence_parallel,
)
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.progress import silent
from kyb_backup_pipeline.engine.restore_drill import drill_copy
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster, free_port
from kyb_backup_pipeline_tests.breaking_proxy import Answer, Cut, Fault, Passage, proxy_to, slowly
from kyb_backup_pipeline_tests.conftest import drop_database, execute
from kyb_backup_pipeline_tests.keys import Keys, keys_in
from kyb_backup_pipeline_tests.offsite_sites import PART
from kyb_backup_pipeline_tests.running import Cli, children_of, none_alive, wait_until
from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server
from kyb_backup_pipeline_tests.test_database_restore import Live, living

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

    def push(self, backup_id: str = "good", **changes: str) -> Evidence:
        """Take a backup and push it; then nothing of it is left at home."""
        here = self.live.environment | self.environment(self.bucket) | changes
        here |= {"BACKUP_DIR": str(self.live.settings.repository)}
        cli = Cli(None, here | {"KYB_BACKUP__LEVEL": "1"})
        for verb in (("backup", "full", "--id", backup_id), ("offsite", "push", backup_id)):
            run = cli.run(*verb)
            assert run.returncode == 0, run.stderr
        folder = Repository(self.live.settings.repository).find(backup_id).folder
        evidence = parse_evidence((folder / EVIDENCE_FILE).read_bytes())
        shutil.rmtree(self.live.settings.repository)
        return evidence

    def environment(self, bucket: Bucket, **changes: str) -> dict[str, str]:
        opens = self.keys.opens() | {"KYB_ENCRYPTION__DATABASE": "offsite"}
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

    def parts(self) -> list[str]:
        return [key for key in self.bucket.objects() if _DUMP in key and "/file-" not in key]


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
    listed = cli.run("offsite", "list")
    assert (listed.returncode, "good" in listed.stdout) == (0, True)
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
    proof = site.cli().run("drill", "good", "--from", "offsite")
    assert proof.returncode == 0, proof.stdout


def test_what_is_encrypted_at_home_already_streams_too(site: Site) -> None:
    here = site.live.environment | site.environment(site.bucket) | site.keys.opens()
    cli = Cli(None, here | {"BACKUP_DIR": str(site.live.settings.repository)})
    for verb in (("backup", "full", "--id", "good"), ("offsite", "push", "good")):
        assert cli.run(*verb).returncode == 0
    shutil.rmtree(site.live.settings.repository)
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
    for arguments in (("--dry-run",), ("--yes",)):
        run = cli.run("restore", "database", "good", "--from", "offsite", *arguments)
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
    ("fault", "behind", "status", "said"),
    [
        (altered, False, 7, "has another content than was pushed"),
        (missing, False, 7, "is missing in"),
        (gone, True, 4, "tried 2 times"),
    ],
    ids=["altered", "missing", "gone"],
)
def test_what_breaks_in_mid_load_changes_nothing(
    site: Site, s3: S3Server, fault: Fault, behind: bool, status: int, said: str
) -> None:
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
        proof = cli.run("drill", "--from", "offsite", "--json")
        assert proof.returncode == (10 if fault is gone else 6), proof.stdout


def test_a_part_that_was_deleted_or_altered_before_is_found_before_anything_is_done(
    site: Site,
) -> None:
    site.push()
    before, key = site.live.users(), site.parts()[1]
    whole = site.bucket.read(key)
    damaged = bytearray(whole)
    damaged[100] ^= 4
    for content in (bytes(damaged), None):
        if content is None:
            site.bucket.delete(key)
        else:
            site.bucket.write(key, content)
        run = site.cli().run("restore", "database", "good", "--from", "offsite", "--yes")
        assert run.returncode == 6, run.stderr
        assert key.rpartition("/")[2] in run.stderr
        assert "• check" not in run.stdout
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


def test_the_engine_tests_the_newest_copy(site: Site, drills: Path) -> None:
    site.push("older")
    site.push("newer")
    settings = config.load(environment=site.environment(site.bucket))
    with opened(settings, "offsite", utc_now()) as place:
        proof = drill_copy(settings, place, now=utc_now(), run_id="a-run")
    assert (proof.backup_id, proof.verdict, proof.run_id) == ("newer", "passed", "a-run")
