"""What stays beyond its days since something is wrong with it is told, with what it costs; nothing else is."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.health import ELSE, look_at
from kyb_backup_pipeline.engine.holds import Hold
from kyb_backup_pipeline.engine.inventory import Inventory
from kyb_backup_pipeline.engine.kept_too_long import kept_too_long
from kyb_backup_pipeline.engine.metrics import exposition
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.engine.trouble import Trouble
from kyb_backup_pipeline.engine.wal import History
from kyb_backup_pipeline_tests.histories import (
    BAD,
    NOW,
    PROVED,
    TESTED,
    backup,
    base,
    damaged,
    held,
    increment,
    inventory,
)
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.shelves import shelf_in

SMOKE = Standing(trouble="its restore test failed")


def told(seen: Inventory) -> dict[str, Trouble]:
    return {t.key: t for t in kept_too_long(seen, RetentionSettings(), NOW)}


def dumps(days: int, standing: Standing) -> Inventory:
    """A dump a day, of which all but the first few stand so."""
    made = [backup("full", f"full_{day}", day + 0.2) for day in range(days)]
    standings = {b.backup_id: standing for b in made} | {f"full_{days - 1}": TESTED}
    return inventory(*made, standings=standings)


def test_dumps_that_a_bad_smoke_query_keeps_are_told_when_they_are_overdue() -> None:
    assert told(dumps(30, SMOKE)) == {}
    few, many = (told(dumps(days, SMOKE))["kept:full"] for days in (33, 40))
    assert few.severity == "info" and few.title.startswith("2 full backups are kept")
    assert many.severity == "warning" and many.title.startswith("9 full backups are kept")
    assert "full_38, 38 days old: its restore test failed" in many.text
    assert many.hint is not None and "kyb-backup show full_38" in many.hint


def test_what_passed_and_what_a_person_holds_until_a_day_is_not_told() -> None:
    assert told(dumps(60, TESTED)) == {}
    seen = dumps(60, SMOKE)
    holds = {f"full_{day}": held(f"full_{day}", 5) for day in range(60)}
    assert told(replace(seen, holds=holds)) == {}
    passed = {day: held(f"full_{day}", -1) for day in range(60)}
    assert told(replace(seen, holds={h.backup_id: h for h in passed.values()}))


def test_a_hold_that_cannot_be_read_is_told() -> None:
    seen = dumps(60, TESTED)
    hold = Hold(backup_id="full_50", why="its hold full_50.json cannot be read: look at it")
    trouble = told(replace(seen, holds={"full_50": hold}))["kept:full"]
    assert trouble.title.startswith("1 full backup is kept") and "full_50.json" in trouble.text


def test_states_go_by_deployments_and_archives_by_days() -> None:
    made = [backup("application_state", f"app_{n}", n, f"v{n}") for n in range(20)]
    made += [backup("configuration", f"config_{n}", n * 10) for n in range(20)]
    standings = {"app_3": BAD, "app_15": BAD, "config_5": BAD, "config_12": BAD}
    found = told(inventory(*made, standings=standings))
    assert set(found) == {"kept:application_state", "kept:configuration"}
    assert found["kept:application_state"].backup_id == "app_15"
    assert found["kept:configuration"].backup_id == "config_12"


def chains(count: int) -> Inventory:
    """A chain a week with an increment a day, all proved, the newest of today."""
    made = []
    for week in range(count):
        age, start = 7 * (count - week), week * 70
        made.append(base(f"base_{week}", age, start))
        made += [
            increment(f"incr_{week}{day}", age - day - 0.9, f"base_{week}",
                      range(start + day * 10, start + day * 10 + 10))
            for day in range(7)
        ]  # fmt: skip
    return inventory(*made, standings={b.backup_id: PROVED for b in made})


def test_chains_that_are_well_are_not_told() -> None:
    for count in range(1, 10):
        assert told(chains(count)) == {}


@pytest.mark.parametrize("bad", ["incr_23", "base_2"])
def test_a_failed_proof_in_a_chain_is_told_with_the_log_that_it_keeps(bad: str) -> None:
    seen = chains(9)
    trouble = told(replace(seen, standings={**seen.standings, bad: BAD}))["kept:log"]
    assert trouble.severity == "warning"
    assert f"{bad}: its verification failed" in trouble.text
    assert trouble.title.startswith("the WAL since base_2 is kept beyond its days, with 8 ")


def test_a_failed_increment_of_this_week_is_not_told_yet() -> None:
    seen = chains(9)
    assert told(replace(seen, standings={**seen.standings, "incr_85": BAD})) == {}


def test_what_cannot_be_read_is_told_with_all_that_it_keeps() -> None:
    seen = chains(9)
    lost = damaged("incremental", "incr_lost")
    trouble = told(replace(seen, backups=[*seen.backups, lost]))["kept:log"]
    assert "incr_lost: it cannot be read" in trouble.text
    assert trouble.title.startswith("the WAL since base_0 is kept")


def test_a_lost_history_file_is_told() -> None:
    seen = chains(6)
    later = [base("base_9", 1.5, 500, timeline=2), increment("incr_9", 1, "base_9", range(500, 503), timeline=2)]  # fmt: skip
    made = inventory(
        *later, *seen.backups, standings=seen.standings, histories={1: History(1), 2: None}
    )
    assert "the history file of timeline 2 is lost" in told(made)["kept:log"].text


def test_bases_that_nobody_could_verify_for_weeks_are_told() -> None:
    seen = chains(9)
    standings = {k: v for k, v in seen.standings.items() if k <= "base_3" or k[0] == "i"}
    trouble = told(replace(seen, standings=standings))["kept:log"]
    assert "no newer base backup was verified" in trouble.text
    assert trouble.backup_id == "base_3"


def test_status_and_metrics_tell_it_and_no_more_when_the_proofs_pass(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path / "repository")
    for day in range(28, 40):
        shelf.put("full", f"full_{day}", day + 0.1)
        shelf.prove(f"full_{day}", "failed", "restore_test")
    settings = config.load(environment={"BACKUP_DIR": str(shelf.root)})
    survey = Survey(shelf.repository)
    health = look_at(settings, survey, now=shelf.now)
    (kept,) = [t for t in health.troubles if t.key == "kept:full"]
    warnings = sum(t.severity == "warning" for t in health.troubles)
    assert f'kyb_backup_troubles{{severity="warning"}} {warnings}.0' in exposition(health).decode()
    assert kept.key.startswith(ELSE)  # so that a look says when it is over
    cli = Cli(None, {"BACKUP_DIR": str(shelf.root)})
    assert kept.title in cli.run("status").stdout
    later = replace(shelf, now=shelf.now + timedelta(minutes=1))
    for day in range(30, 40):
        later.prove(f"full_{day}", "passed", "restore_test")
    after = look_at(settings, survey, now=later.now)
    assert "kept:full" not in {t.key for t in after.troubles}
    assert kept.title not in cli.run("status").stdout
