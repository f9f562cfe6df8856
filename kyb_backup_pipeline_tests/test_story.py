"""The story of the demo: told alike each time, found bad where it is to be, and never mixed with what is real."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.figures import KINDS
from kyb_backup_pipeline.engine.health import look_at
from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.inventory import Inventory, segments_of
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.prune import look
from kyb_backup_pipeline.engine.prune_records import PruneRecords
from kyb_backup_pipeline.engine.report import as_document, make_report
from kyb_backup_pipeline.engine.report_page import html_page
from kyb_backup_pipeline.engine.retention import plan_retention
from kyb_backup_pipeline.engine.settings import RetentionSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.engine.wal import History, parse_lsn
from kyb_backup_pipeline.sandbox.invented import MB, listed, manifest_of, names, publish
from kyb_backup_pipeline.sandbox.story import Story, tell
from kyb_backup_pipeline.sandbox.story_shelf import write_story
from kyb_backup_pipeline_tests.running import Cli

NOW = datetime(2026, 3, 4, 7, 0, tzinfo=UTC)
"""A Wednesday, after every schedule of the night."""
TROUBLES = {
    "stale:incremental": "critical", "gap:1": "critical",
    "restore_test:backup_20260125_020000": "warning", "kept:full": "info", "retention": "warning", "anomaly:size:full": "warning",
    "anomaly:rows:full": "warning", "leftovers": "info",
    "offsite:offsite:bad:backup_20260301_020000": "critical", "offsite:offsite:missing:full": "warning",
}  # fmt: skip


@pytest.fixture(scope="module")
def story() -> Story:
    return tell(NOW)


@pytest.fixture(scope="module")
def told(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The story written down; the settings that came with it."""
    file = write_story(story, tmp_path_factory.mktemp("kyb") / "story")
    return config.load(file, environment={})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}  # fmt: skip


def test_the_same_seed_and_time_tell_the_same_story(story: Story, tmp_path: Path) -> None:
    assert tell(NOW) == story
    assert tell(NOW, seed=2).backups != story.backups
    assert tell(NOW + timedelta(days=1)).backups != story.backups
    few = [write_story(last_days(told), tmp_path / name).parent
           for name, told in (("a", story), ("b", tell(NOW)))]  # fmt: skip
    assert content(few[0]) == content(few[1])
    assert len(content(few[0])) > 100


def last_days(story: Story) -> Story:
    """The end of the story alone."""
    return replace(story, backups=story.backups[-60:], proofs=story.proofs[-50:])


def test_all_of_it_says_that_it_is_a_story(told: Settings) -> None:
    files = content(told.repository.parent)
    assert sum(map(len, files.values())) < 4_000_000
    repository = Repository(told.repository)
    backups = repository.backups(tuple(FOLDERS))
    assert {b.kind for b in backups} == set(KINDS)
    unnamed = [b.backup_id for b in backups if not (b.require_manifest().label or "").startswith("story")]  # fmt: skip
    assert len(unnamed) == 2  # of the old scripts, which have no manifest: their names say it
    assert all(name.startswith("story_config") for name in unnamed)
    for path in repository.records.files():
        proof = repository.records.read(path)
        assert proof.summary.startswith("story: ")
        assert "nothing was proved" in proof.notes[0]
    (record,) = PruneRecords(told.repository).newest(9)
    assert (record.state, record.by) == ("done", "story")
    assert {gone.kind for gone in record.deleted} == {"full", "base", "incremental", "wal"}


def found(settings: Settings, now: datetime) -> dict[str, str]:
    health = look_at(settings, Survey(Repository(settings.repository)), now=now)
    return {trouble.key: trouble.severity for trouble in health.troubles}


def test_it_ends_with_troubles(told: Settings) -> None:
    assert found(told, NOW) == TROUBLES


def test_a_story_told_on_a_sunday_has_a_base_backup_that_failed(tmp_path: Path) -> None:
    sunday = NOW + timedelta(days=4)
    settings = config.load(write_story(last_days(tell(sunday)), tmp_path / "s"), environment={})
    keys = found(settings, sunday)
    assert {"failed:base", "missed:base", "stale:incremental"} <= set(keys)
    assert "stale:base" not in keys


def test_retention_has_something_to_decide_about_and_decides_rightly(told: Settings) -> None:
    plan = look(Repository(told.repository), told.retention, NOW)
    assert plan.refusal is None
    lines: dict[tuple[Kind, bool], set[str]] = {}
    for decision in plan.decisions:
        reason = re.sub(r"base_\d+_\d+", "ID", decision.why)
        reason = re.sub(r"\d[\d:. -]*", "N ", reason)
        lines.setdefault((decision.backup.kind, decision.keep), set()).add(reason)
    assert lines == {
        ("full", True): {"N days old, not older than N ", "its restore test failed: look at it",
                         "held until N UTC: story: the audit asks for it"},
        ("full", False): {"N days old, older than N "},
        ("application_state", True): {"deployment vN is among the newest N "},
        ("application_state", False): {"deployment vN is older than the newest N "},
        ("configuration", True): {"N days old, not older than N "},
        ("configuration", False): {"N days old, older than N "},
        ("base", True): {"N days old, not older than N ",
                         "the newest from which every moment since N UTC can be reached"},
        ("base", False): {"N days old, older than N , and nothing needs it"},
        ("incremental", True): {"N days old, not older than N ", "its base ID stays"},
        ("incremental", False): {"N days old, older than N , and goes with ID"},
    }  # fmt: skip
    deleted = {d.backup.backup_id for d in plan.doomed}
    assert {"pre_restore_20260128_142000", "story_old_script_20260122_210000"} <= deleted
    assert "pre_restore_20260223_142000" not in deleted
    assert {d.keep for d in plan.wal} == {True, False}
    oldest = min(d.backup.require_manifest().completed_at for d in plan.decisions
                 if d.keep and d.backup.kind == "base")  # fmt: skip
    assert timedelta(days=7) < NOW - oldest < timedelta(days=14)


def test_the_plan_is_never_refused_whenever_the_story_is_told() -> None:
    for hours in range(0, 8 * 24, 5):
        now = NOW + timedelta(hours=hours, minutes=7 * hours)
        story = tell(now)
        newest_first = [listed(manifest) for manifest in reversed(story.backups)]
        holds: dict[str, Hold] = {hold.backup_id: hold for hold in story.holds}
        inventory = Inventory(backups=newest_first, standings={}, holds=holds,
                              histories={1: History(1)}, listed=segments_of(newest_first), wal=())  # fmt: skip
        plan = plan_retention(inventory, RetentionSettings(), now)
        assert plan.refusal is None, now
        assert {d.backup.kind for d in plan.doomed} == {"full", "base", "incremental", "application_state"}  # fmt: skip
        newest = max(m.completed_at for m in story.backups if m.type == "incremental")
        base = [m for m in story.backups if m.type == "base"][-1].require_wal()
        assert story.lost > names([parse_lsn(base.start_lsn) // MB])[0]  # which the base has itself
        assert timedelta(hours=7) < now - newest < timedelta(hours=15)


def test_the_report_of_it_keeps_its_limits(told: Settings) -> None:
    report = make_report(told, Survey(Repository(told.repository)), now=NOW)
    page = html_page(report)
    assert "invented_backups</p>" in page  # at its top
    assert len(page.encode()) < 2_000_000
    tests = as_document(report)["restore_tests"]
    assert {test["verdict"] for test in tests} == {"passed", "failed", "could_not_verify"}
    assert min(test["at"] for test in tests) < (NOW - timedelta(days=57)).isoformat()


def test_the_command_replaces_the_one_before_and_status_finds_what_is_wrong(
    story: Story, tmp_path: Path
) -> None:
    before = write_story(last_days(story), tmp_path / "story").parent
    (before / "old").touch()
    run = Cli(None).run("demo", "--story", "--seed", "7", "--folder", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "invented" in run.stdout
    assert not (before / "old").exists()
    commands = re.findall(r"^  kyb-backup (--config \S+ .*)$", run.stdout, re.M)
    assert [c.split(maxsplit=2)[2] for c in commands] == [
        "status", "report", "report --html story.html", "prune --dry-run", "list", "hold",
    ]  # fmt: skip
    exits = [Cli(None).run(*c.split(), cwd=tmp_path).returncode for c in commands]
    assert exits == [6, 0, 0, 0, 0, 0]
    told = Cli(tmp_path / "story" / "kyb_backup.toml")
    keys = {t["key"] for t in json.loads(told.run("status", "--json").stdout)["troubles"]}
    assert {"stale:incremental", "gap:1", "anomaly:size:full"} <= keys
    refused = told.run("backup", "full")
    assert (refused.returncode, "story.invalid" in refused.stderr) == (4, True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["story", "story.html"]


def test_what_is_no_story_is_not_replaced(story: Story, tmp_path: Path) -> None:
    folder = tmp_path / "story"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    with pytest.raises(Refused, match="is no story"):
        write_story(story, folder)
    assert (folder / "precious").read_text() == "mine"
    mixed = write_story(last_days(story), tmp_path / "mixed").parent
    real = manifest_of("full", "backup_of_mine", NOW)
    publish(Repository(mixed / "invented_backups"), real, {"content": b"mine"})
    with pytest.raises(Refused, match="backup_of_mine is no story"):
        write_story(story, mixed)
    assert (mixed / "invented_backups/database/full/backup_of_mine/content").read_bytes() == b"mine"
