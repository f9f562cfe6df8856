"""The same done at every place, and what is written down of it at home while several are at work."""

import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.offsite_listing import look_over
from kyb_backup_pipeline.engine.offsite_opening import opened
from kyb_backup_pipeline.engine.offsite_push import push
from kyb_backup_pipeline.engine.offsite_rounds import (
    catch_up,
    copy_everywhere,
    prune_everywhere,
    verify_everywhere,
)
from kyb_backup_pipeline.engine.offsite_verify import verify_copies
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, View, Views, views_of
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline_tests.offsite_sites import Disk, Machine


@pytest.fixture
def two(machine: Machine, tmp_path: Path) -> Machine:
    """With a second place, which is not there."""
    return machine.with_settings(targets=f'{{"second": {{"url": "{tmp_path}/second"}}}}')


def known(machine: Machine) -> View:
    return views_of(machine.root, machine.settings.offsite)[0]


def test_one_that_looks_long_does_not_overwrite_what_another_saw_meanwhile(
    machine: Machine,
) -> None:
    """A verification of an hour began before an increment was pushed."""
    for name in ("full_1", "full_2"):
        machine.backup(name, seed=len(name))
    machine.push("full_1")
    settings = machine.settings
    with opened(settings, "offsite", utc_now()) as slow:
        machine.push("full_2")
        slow.see(looked_at=utc_now())
    assert set(known(machine).copies) == {"full_1", "full_2"}
    with opened(settings, "offsite", utc_now()) as slow:
        folders_of = slow.target.folders

        def folders(prefix: str) -> Sequence[str]:
            slow.views.change("offsite", slow.target.url, lambda view: view.model_copy(
                update={"copies": {**view.copies, "full_3": view.copies["full_1"]}}))  # fmt: skip
            return folders_of(prefix)

        slow.target.folders = folders  # type: ignore[method-assign]
        look_over(slow, utc_now())
    assert set(known(machine).copies) == {"full_1", "full_2", "full_3"}


def test_many_who_write_at_once_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    now = utc_now()

    def write(name: str) -> None:
        views = Views(tmp_path / "r")
        for number in range(20):
            seen = SeenCopy(kind="full", finished_at=now, pushed_at=now)
            views.change("offsite", "/x", lambda view, key=f"{name}_{number}", seen=seen: view.model_copy(  # type: ignore[misc]
                update={"copies": {**view.copies, key: seen}}))  # fmt: skip

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Views(tmp_path / "r").read("offsite", "/x").copies) == 80


def test_what_could_not_be_tried_of_a_place_is_no_reason_to_forget_the_place(
    machine: Machine, disk: Disk
) -> None:
    """As with Azure and Google, which look at no SHA-256 of ours."""
    machine.backup()
    machine.push()
    with opened(machine.settings, "offsite", utc_now()) as place:
        found = place.require_probe(utc_now()).model_copy(update={"honest_checksums": None})
        place.see(probe=found)
    again = known(machine)
    assert (again.probe, set(again.copies)) == (found, {"full_1"})
    assert not found.honest


def test_what_has_no_copy_is_brought_but_for_what_is_bad(machine: Machine, disk: Disk) -> None:
    machine.backup("full_1")
    machine.backup("full_2", seed=2)
    bad = machine.backup("full_bad", seed=3)
    dump = bad.folder / "database.sql.zst"
    dump.write_bytes(dump.read_bytes()[:-1])
    verify_backup(machine.repository, bad, settings=machine.settings, now=utc_now())
    machine.push("full_1")
    unsure = Proof(backup_id="full_2", proof="verification", verdict="could_not_verify", summary="no key",
                   started_at=utc_now(), finished_at=utc_now())  # fmt: skip
    machine.repository.records.keep(unsure)  # as on a host that has public keys only
    before = disk.objects()
    assert catch_up(machine.settings, utc_now()) == []
    assert sorted(machine.ids()) == ["full_1", "full_2"]
    assert set(before) <= set(disk.objects())
    damaged = machine.backup("full_3", seed=4)  # and nobody has verified it
    (damaged.folder / "database.sql.zst").write_bytes(b"short")
    (failed,) = catch_up(machine.settings, utc_now())
    assert (failed.backup_id, failed.target) == ("full_3", "offsite")
    assert "is not what the manifest says" in str(failed)


def test_a_place_that_fails_hides_no_other(two: Machine) -> None:
    backup = two.backup()
    copied, failed = copy_everywhere(two.settings, backup, run_id="run_1")
    assert [one.proof.verdict for one in copied] == ["passed"]
    assert [one.target for one in failed] == ["second"]
    assert known(two).copies["full_1"].run_id == "run_1"
    proofs, lost = verify_everywhere(two.settings, utc_now())
    assert ([p.verdict for p in proofs], [one.target for one in lost]) == (["passed"], ["second"])
    assert known(two).copies["full_1"].run_id == "run_1", "who looks does not become its maker"
    (pruned,), lost = prune_everywhere(two.settings, utc_now())
    assert ([d.keep for d in pruned.plan.decisions], len(lost)) == ([True], 1)
    second = views_of(two.root, two.settings.offsite)[1]
    assert second.trouble is not None


def test_a_night_over_many_copies_writes_a_few_times_and_one_that_ends_early_loses_little(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        machine.backup(f"full_{number}", size=10, seed=number)
        machine.push(f"full_{number}")
    written: list[View] = []
    keep = Views.keep

    def keeping(views: Views, view: View) -> None:
        written.append(view)
        keep(views, view)

    monkeypatch.setattr(Views, "keep", keeping)
    with opened(machine.settings, "offsite", utc_now()) as place:
        copies = look_over(place, utc_now())
        written.clear()
        proofs = [*verify_copies(place, copies, deep=False)]
        assert (len(proofs), len(written)) == (6, 1)
        assert {seen.verdict for seen in known(machine).copies.values()} == {"passed"}
        looking = verify_copies(place, copies, deep=True)
        first, second = next(looking), next(looking)
        looking.close()  # as an error of whoever asked would
    deep = {i for i, seen in known(machine).copies.items() if seen.deep}
    assert deep == {first.backup_id, second.backup_id}


def test_one_object_that_cannot_be_read_hides_no_other_copy(machine: Machine, disk: Disk) -> None:
    """A bad sector, say: the place itself answers."""
    for number in range(3):
        machine.backup(f"full_{number}", size=10, seed=number)
        machine.push(f"full_{number}")
    key = next(key for key in disk.objects() if "full_1/database.sql.zst" in key)
    disk.delete(key)
    (disk.root / key).symlink_to(disk.root / key)  # whoever opens it gets an error of the disk
    (proofs, failed) = verify_everywhere(machine.settings, utc_now(), deep=True)
    assert failed == []
    verdicts = {proof.backup_id: proof.verdict for proof in proofs}
    assert verdicts == {"full_0": "passed", "full_1": "could_not_verify", "full_2": "passed"}
    assert known(machine).trouble is None
    assert known(machine).copies["full_1"].verdict == "could_not_verify"


def test_a_place_that_goes_away_is_left_after_the_first_copy_that_it_hides(
    machine: Machine, disk: Disk
) -> None:
    for number in range(3):
        machine.backup(f"full_{number}", size=10, seed=number)
        machine.push(f"full_{number}")
    with opened(machine.settings, "offsite", utc_now()) as place:
        copies = look_over(place, utc_now())
        looking = verify_copies(place, copies, deep=False)
        first = next(looking)
        (disk.root / "kyb").rename(disk.root / "elsewhere")
        (second,) = [*looking]
    assert (first.verdict, second.verdict) == ("passed", "could_not_verify")
    assert known(machine).copies[first.backup_id].verdict == "passed"
    trouble = known(machine).trouble
    assert trouble is not None and "is it mounted?" in str(trouble.hint)


def test_a_copy_that_a_prune_takes_meanwhile_is_no_bad_copy(machine: Machine, disk: Disk) -> None:
    for number in range(2):
        machine.backup(f"full_{number}", size=10, seed=number)
        machine.push(f"full_{number}")
    with opened(machine.settings, "offsite", utc_now()) as place:
        copies = look_over(place, utc_now())
        disk.delete(*(key for key in disk.objects() if "/full_0/" in key))
        proofs = [*verify_copies(place, copies, deep=True)]
    assert [(proof.backup_id, proof.verdict) for proof in proofs] == [("full_1", "passed")]
    assert known(machine).copies["full_0"].verdict is None


def test_what_a_listing_leaves_out_is_asked_for_before_it_is_called_missing(
    machine: Machine, disk: Disk
) -> None:
    machine.backup()
    machine.push()
    with opened(machine.settings, "offsite", utc_now()) as place:
        (listed,) = look_over(place, utc_now())
        whole = place.target.list
        place.target.list = lambda prefix, between=None: whole(prefix, between)[1:]  # type: ignore[method-assign]
        (proof,) = verify_copies(place, [listed], deep=False)
        assert (proof.verdict, proof.read > 0) == ("passed", True)
        disk.delete(next(key for key in disk.objects() if "database.sql.zst" in key))
        (proof,) = verify_copies(place, [listed], deep=False)
        assert proof.verdict == "failed"
        assert "is missing" in proof.summary


def test_how_long_a_place_is_out_of_sight_is_counted_from_the_first_time(two: Machine) -> None:
    copy_everywhere(two.settings, two.backup())
    first = views_of(two.root, two.settings.offsite)[1].trouble
    verify_everywhere(two.settings, utc_now() + timedelta(hours=3))
    again = views_of(two.root, two.settings.offsite)[1].trouble
    assert first is not None and again is not None
    assert first.since == again.since


def test_a_copy_that_was_mended_is_not_bad_until_somebody_looks_again(
    machine: Machine, disk: Disk
) -> None:
    machine.backup()
    machine.push()
    (part, *_) = [o for o in disk.objects() if "/database.sql.zst/" in o]
    disk.delete(part)
    assert machine.verify().verdict == "failed"
    assert machine.push().already
    assert known(machine).copies["full_1"].verdict == "failed", (
        "a push that did nothing mends nothing"
    )
    machine.push(again=True)
    assert known(machine).copies["full_1"].verdict is None
    with opened(machine.settings, "offsite", utc_now()) as place:
        done = push(machine.settings, place, machine.repository.find("full_1"), now=utc_now())
    assert done.already
    assert machine.verify().verdict == "passed"


def test_a_commit_object_that_was_damaged_is_remembered_until_it_is_whole(
    machine: Machine, disk: Disk
) -> None:
    machine.backup()
    machine.push()
    disk.write("kyb/database/full/full_1/offsite_copy.json", b"{")
    assert machine.verify().verdict == "failed"
    view = known(machine)
    assert (list(view.damaged), list(view.copies)) == (["full_1"], [])
    machine.push(again=True)
    view = known(machine)
    assert (list(view.damaged), list(view.copies)) == ([], ["full_1"])


def test_a_view_that_an_older_version_wrote_is_read(machine: Machine) -> None:
    machine.backup()
    machine.push()
    path = machine.root / "offsite" / "offsite.json"
    text = path.read_text()
    path.write_text(text.replace('"damaged": {}', '"unknown": 1').replace('"run_id"', '"other"'))
    assert list(known(machine).copies) == ["full_1"]
