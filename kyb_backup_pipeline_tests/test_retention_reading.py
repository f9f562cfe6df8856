"""What retention reads: the files as they are now, whatever was read before, and again before each deletion."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings

from kyb_backup_pipeline.engine.errors import Refused
from kyb_backup_pipeline.engine.inventory import Inventory, read_inventory, surveyed
from kyb_backup_pipeline.engine.manifest import MANIFEST, Proof, Verdict, write_json
from kyb_backup_pipeline.engine.prune import look
from kyb_backup_pipeline.engine.retention import Plan, plan_retention
from kyb_backup_pipeline.engine.second_look import SecondLook
from kyb_backup_pipeline.engine.settings import RetentionSettings
from kyb_backup_pipeline.engine.standing import Standing
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.engine.wal import History, format_lsn, history_name
from kyb_backup_pipeline_tests.histories import NOW
from kyb_backup_pipeline_tests.shelves import Shelf, retention, shelf_in, three_chains
from kyb_backup_pipeline_tests.test_retention_properties import POLICY, inventories


@settings(max_examples=60, deadline=None)
@given(inventories(), POLICY)
def test_the_plan_of_a_repository_is_the_plan_of_what_is_in_it(
    seen: Inventory, policy: RetentionSettings
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder))
        _write(seen, repository)
        found = plan_retention(read_inventory(repository), policy, NOW)
    histories = [history_name(h.timeline) for h in seen.histories.values() if h and h.switches]
    stored = replace(seen, wal=[*seen.wal, *histories])
    assert _said(found) == _said(plan_retention(stored, policy, NOW))


def _said(plan: Plan) -> tuple[object, ...]:
    return (
        sorted((d.backup.backup_id, d.keep, d.why, d.bytes) for d in plan.decisions),
        plan.wal,
        plan.refusal,
    )


def _write(seen: Inventory, repository: Repository) -> None:
    """A history as files. Not durable: it lives for a moment."""
    repository.create()
    for backup in seen.backups:
        folder = repository.folder(backup.kind) / backup.backup_id
        folder.mkdir()
        content = write_json(backup.manifest) if backup.manifest else b"{"
        (folder / MANIFEST).write_bytes(content)
    for backup_id, standing in seen.standings.items():
        _prove(repository, backup_id, standing)
    for hold in seen.holds.values():
        (repository.root / "holds" / f"{hold.backup_id}.json").write_bytes(write_json(hold))
    for name in seen.wal:
        place = repository.wal.root / name[:8]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}-{'0' * 64}.zst").touch()
    for history in seen.histories.values():
        _write_history(repository, history)


def _prove(repository: Repository, backup_id: str, standing: Standing) -> None:
    verdicts: dict[str, Verdict] = {}
    if standing.verified or standing.trouble:
        verdicts["verification"] = "failed" if standing.trouble else "passed"
    if standing.restore_tested:
        verdicts["restore_test"] = "passed"
    for proof, verdict in verdicts.items():
        record = Proof.model_validate(
            {"backup_id": backup_id, "proof": proof, "verdict": verdict, "summary": "",
             "started_at": NOW, "finished_at": NOW}
        )  # fmt: skip
        folder = repository.records.root / backup_id
        folder.mkdir(exist_ok=True)
        (folder / f"{proof}_20260601T000000.000000Z.json").write_bytes(write_json(record))


def _write_history(repository: Repository, history: History | None) -> None:
    if history is None or not history.switches:
        return
    text = "".join(
        f"{tli}\t{format_lsn(lsn)}\tno recovery target\n" for tli, lsn in history.switches
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    place = repository.wal.root / f"{history.timeline:08X}"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{history_name(history.timeline)}-{digest}.zst").write_bytes(
        zstd.compress(text.encode())
    )


def _segment(**changes: Any) -> dict[str, Any]:
    return {"name": "0" * 24, "sha256": "0" * 64, "size": 1, **changes}


@pytest.mark.parametrize(
    "segments",
    [
        [_segment()],
        [_segment(comment="of a later version")],
        [_segment(sha256="0" * 63)],
        [_segment(sha256="G" * 64)],
        [_segment(size=-1)],
        [_segment(size="many")],
        [_segment(size="7")],
        [_segment(name=None)],
        [{"name": "0" * 24}],
        ["0" * 24],
        "0" * 24,
        {},
    ],
    ids=str,
)
def test_a_survey_refuses_the_manifests_that_everybody_refuses(
    tmp_path: Path, segments: object
) -> None:
    shelf = shelf_in(tmp_path)
    shelf.base("base_1", 2, 0)
    made = shelf.increment("incr_1", 1, "base_1", range(4))
    document = json.loads((made.folder / MANIFEST).read_text())
    document["wal"]["segments"] = segments
    (made.folder / MANIFEST).write_text(json.dumps(document))
    read = shelf.repository.find("incr_1")
    (found,) = [b for b in read_inventory(shelf.repository).backups if b.backup_id == "incr_1"]
    assert (found.manifest is None) == (read.manifest is None)
    assert found.problem == read.problem


def _same_size(shelf: Shelf) -> None:
    """In place, with the times put back: what only the time of the entry betrays."""
    path = shelf.root / "database/full/full_20" / MANIFEST
    status, text = path.stat(), path.read_text()
    later = text.replace(f"{shelf.now - timedelta(days=20.3):%Y-%m-%d}", f"{shelf.now:%Y-%m-%d}")
    assert later != text and len(later) == len(text)
    path.write_text(later)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replaced(shelf: Shelf) -> None:
    """Another file by a rename, with the times of the one before."""
    path = shelf.root / "database/full/full_21" / MANIFEST
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"{".ljust(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.rename(other, path)


def _exchanged(shelf: Shelf) -> None:
    one, two = (shelf.root / "database/full" / name for name in ("full_22", "full_23"))
    aside = shelf.root / "aside"
    os.rename(one, aside)
    os.rename(two, one)
    os.rename(aside, two)


def _failed(shelf: Shelf) -> None:
    shelf.prove("full_01", "failed")


def _gone(shelf: Shelf) -> None:
    os.rename(shelf.root / "database/incremental/incr_20", shelf.root / "incr_20")


def _old_state(shelf: Shelf) -> None:
    folder = shelf.root / "application/state/old"
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir()))
    (folder / f"file{number}").write_bytes(b"content")
    text = {"backup_id": "old", "timestamp": "2026-01-01T00:00:00Z", "type": "application_state",
            "version": f"v{number}"}  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(text))


_CHANGES = (_same_size, _replaced, _exchanged, _failed, _gone, _old_state, _old_state)


def test_a_survey_that_lived_through_changes_says_what_a_new_one_says(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    three_chains(shelf)
    survey = Survey(shelf.repository)
    survey.refresh()
    for change in _CHANGES:
        before = surveyed(survey)
        change(shelf)
        survey.refresh()
        new = Survey(shelf.repository, once=True)
        new.refresh()
        assert surveyed(survey) == surveyed(new), change.__name__
        assert surveyed(survey) != before, change.__name__


def test_looking_leaves_nothing_that_a_later_plan_could_believe(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    three_chains(shelf)
    before = sorted(tmp_path.rglob("*"))
    first = look(shelf.repository, retention(), shelf.now)
    assert first.doomed
    Survey(shelf.repository).refresh()
    assert sorted(tmp_path.rglob("*")) == before
    assert look(shelf.repository, retention(), shelf.now) == first


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Shelf, Inventory, Plan, SecondLook]:
    shelf = shelf_in(tmp_path)
    three_chains(shelf)
    shelf.prove("full_02")
    inventory = read_inventory(shelf.repository)
    plan = plan_retention(inventory, retention(), shelf.now)
    return shelf, inventory, plan, SecondLook(shelf.repository, inventory, plan)


def _move_away(shelf: Shelf, name: str) -> None:
    os.rename(shelf.root / name, shelf.root / "elsewhere")


@pytest.mark.parametrize(
    ("change", "doomed", "said"),
    [
        (lambda s: s.prove("full_40", "failed"), "full_40", "its verification failed"),
        (lambda s: s.prove("full_40", "passed"), "full_40", "a new proof"),
        (lambda s: s.prove("full_02", "failed"), "full_40", "full_02 stands otherwise"),
        (lambda s: _move_away(s, "database/full/full_02"), "full_40", "full_02 is not as it was"),
        (lambda s: _move_away(s, "database/full/full_00"), "full_40", "full_00 is not as it was"),
        (lambda s: _move_away(s, "database/incremental/base_1"), "incr_00", "base_1 is not as it was"),
        (lambda s: s.prove("base_1", "failed"), "base_0", "base_1 stands otherwise"),
    ],
)  # fmt: skip
def test_what_a_deletion_rests_on_is_looked_at_once_more(
    planned: tuple[Shelf, Inventory, Plan, SecondLook],
    change: Callable[[Shelf], None],
    doomed: str,
    said: str,
) -> None:
    shelf, _, plan, again = planned
    (backup,) = [d.backup for d in plan.doomed if d.backup.backup_id == doomed]
    again.at(backup)
    change(shelf)
    with pytest.raises(Refused, match=said):
        again.at(backup)


def test_an_increment_that_came_since_the_plan_keeps_the_log(
    planned: tuple[Shelf, Inventory, Plan, SecondLook],
) -> None:
    shelf, _, _, again = planned
    again.at_log()
    shelf.increment("incr_late", 0, "base_2", range(36, 37))
    with pytest.raises(Refused, match="incr_late came since"):
        again.at_log()


def test_a_proof_that_fails_while_backups_are_deleted_stops_the_rest(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    for day in range(40):
        shelf.put("full", f"full_{day:02}", day + 0.3)
    shelf.prove("full_02")

    class Nightly(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("deleted full_35"):
                shelf.prove("full_02", "failed")

    log = logging.getLogger("kyb_backup_pipeline.engine.prune")
    nightly, level = Nightly(), log.level
    log.addHandler(nightly)
    log.setLevel(logging.INFO)
    try:
        record, plan = shelf.prune()
    finally:
        log.removeHandler(nightly)
        log.setLevel(level)
    assert [d.backup.backup_id for d in plan.doomed] == [f"full_{n}" for n in range(30, 40)]
    assert [gone.id for gone in record.deleted] == ["full_39", "full_38", "full_37", "full_36", "full_35"]  # fmt: skip
    assert len(record.skipped) == 5
    assert all("full_02 stands otherwise" in gone.why for gone in record.skipped)
