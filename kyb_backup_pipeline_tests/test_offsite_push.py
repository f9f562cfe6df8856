"""Pushes that meet somebody: another host with the same id, a prune that clears up, a disk that rots."""

import json
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.offsite_commit import CopyConflict
from kyb_backup_pipeline.engine.offsite_rounds import catch_up, copy_everywhere, verify_everywhere
from kyb_backup_pipeline.engine.offsite_view import View, views_of
from kyb_backup_pipeline_tests.offsite_sites import Disk, Machine, machine_in


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk" / "kyb").mkdir(parents=True)
    return Disk(tmp_path / "disk")


@pytest.fixture
def machine(tmp_path: Path, disk: Disk) -> Machine:
    return machine_in(tmp_path / "backups", disk.environment())


def known(machine: Machine) -> View:
    return views_of(machine.root, machine.settings.offsite)[0]


@pytest.fixture
def host_b(machine: Machine, tmp_path: Path) -> Machine:
    """Another host, with another backup of the id of which ``machine`` has pushed one to the same prefix."""
    host_b = machine_in(tmp_path / "b" / "backups", machine.environment)
    for seed, host in enumerate((machine, host_b)):
        host.backup(seed=seed)
        host.shelf.prove("full_1")
    assert machine.cli.run("offsite", "push", "--all").returncode == 0
    return host_b


def test_a_copy_of_another_backup_of_the_same_id_is_no_copy_of_ours(
    machine: Machine, host_b: Machine, disk: Disk
) -> None:
    before = disk.objects()
    host_b.backup("full_2", seed=5)
    run = host_b.cli.run("offsite", "push", "--all")
    assert run.returncode == CopyConflict.exit_code
    assert "full_1: " in run.stderr and "Give each its own" in run.stderr
    assert set(host_b.ids()) == {"full_1", "full_2"}, "the others are brought all the same"
    new = set(disk.objects()) - set(before)
    assert new and all("/full_2/" in key for key in new), "no record went beside a copy of others"
    assert "pushed by" in known(host_b).damaged["full_1"]
    assert set(known(host_b).copies) == {"full_2"}
    troubles = json.loads(host_b.cli.run("status", "--json").stdout)["troubles"]
    assert "offsite:offsite:bad:full_1" in {one["key"] for one in troubles}
    run = host_b.cli.run("offsite", "verify", "--all")
    assert run.returncode == 6 and "of another backup of this id" in run.stdout
    assert "full_1" in known(host_b).damaged, "who looked took it for a sound one"
    assert machine.cli.run("offsite", "verify", "--all").returncode == 0
    assert machine.cli.run("offsite", "push", "--all").returncode == 0


def test_the_nightly_round_tells_of_a_copy_of_another_backup(
    machine: Machine, host_b: Machine, disk: Disk
) -> None:
    before = disk.objects()
    (failed,) = catch_up(host_b.settings, utc_now())
    assert isinstance(failed.error, CopyConflict) and failed.backup_id == "full_1"
    (proof,), _ = verify_everywhere(host_b.settings, utc_now())
    assert (proof.backup_id, proof.verdict) == ("full_1", "failed")
    copied, lost = copy_everywhere(host_b.settings, host_b.repository.find("full_1"))
    assert not copied and isinstance(lost[0].error, CopyConflict)
    assert "full_1" in known(host_b).damaged
    assert disk.objects() == before
    assert catch_up(machine.settings, utc_now()) == []


def test_a_single_push_that_meets_a_copy_of_another_backup_writes_it_down(host_b: Machine) -> None:
    for again in (False, True):
        with pytest.raises(CopyConflict):
            host_b.push(again=again)
        assert "full_1" in known(host_b).damaged and not known(host_b).copies


def test_a_machine_without_the_backup_takes_every_copy_for_what_it_is(
    machine: Machine, tmp_path: Path
) -> None:
    machine.backup()
    machine.push()
    bare = Machine(tmp_path / "nothing" / "backups", machine.environment)
    assert bare.cli.run("offsite", "verify", "--all").returncode == 0
    empty = machine_in(tmp_path / "empty" / "backups", machine.environment)
    assert empty.cli.run("offsite", "verify", "--all").returncode == 0
    assert set(known(empty).copies) == {"full_1"}


def test_a_dry_run_says_what_is_there_and_what_is_of_another(
    machine: Machine, host_b: Machine
) -> None:
    def said(host: Machine, *arguments: str) -> str:
        run = host.cli.run("offsite", "push", "--dry-run", *arguments)
        assert run.returncode == 0
        return run.stdout

    machine.backup("full_2", seed=3)
    assert said(machine, "full_1").startswith("full_1 is in ")
    assert said(machine, "full_1", "--again").strip().endswith("held against the backup")
    everything = said(machine, "--all")
    assert "full_1 is in " in everything and "would copy full_2, " in everything
    lines = json.loads(said(machine, "--all", "--json"))
    assert {line["id"]: line["there"] for line in lines} == {"full_1": True, "full_2": False}
    assert "of another backup" in said(host_b, "--all")
