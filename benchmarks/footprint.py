"""The tables about what the program itself takes: its peak memory and its start.

``wait4`` gives the peak of the largest process below a command, so what stands here as the memory of
``kyb-backup`` is never too low. Its limit is the same for a small database and a large one.
"""

import sys
from datetime import timedelta

from benchmarks.measure import Contender, run
from benchmarks.stage import ENVIRONMENT, Ours, Plan
from benchmarks.table import Ratio, Table, judge, within
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    parse_manifest,
    write_json,
)
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.store import Repository

_SMALL = 100 << 20
_PEAK_LIMIT = 150.0
_SAME = 1.1
"""Two peaks are the same within this ratio: the allocator does not repeat itself to the page."""

_FEW, _MANY = 3, 1000
_START_LIMIT = 0.3
_MANY_LIMIT = 1.0
_STARTS_A_ROUND = 5


def memory(plan: Plan) -> Table:
    """Peak memory of a backup with evidence, at 100 MB and at the chosen sizes."""
    sizes = sorted({_SMALL, plan.size, *plan.memory_sizes})
    contenders = []
    for size in sizes:
        ours = plan.stage.ours(f"memory-{size}", plan.stage.database(size))
        contenders.append(_peak(ours, _megabytes(size)))
    rounds = plan.run(contenders)
    small = _megabytes(_SMALL)
    outcomes = []
    for name in map(_megabytes, sizes):
        same = Ratio(f"{name} : {small}", over=(name,), under=(small,), limit=_SAME)
        outcomes.append(within(same, rounds, limit=_PEAK_LIMIT, unit="MB"))
        if name != small:
            outcomes.append(judge(same, rounds, unit="MB"))
    return Table(title="peak memory of a backup", outcomes=tuple(outcomes), rounds=rounds)


def _megabytes(size: int) -> str:
    return f"database of {size >> 20} MB"


def _peak(ours: Ours, name: str) -> Contender:
    return lambda number: {name: ours.backup(number).peak / 1e6}


def startup(plan: Plan) -> Table:
    """The time until the program answers, against a Python that does nothing."""
    few = plan.stage.ours("list-few", plan.stage.database(_SMALL), evidence="none")
    many = plan.stage.ours("list-many", plan.stage.database(_SMALL), evidence="none")
    for ours, count in ((few, _FEW), (many, _MANY)):
        ours.backup(0)
        ours.verify(0)
        ours.drill(0)
        _multiply(Repository(ours.repository), "b0", count)
    contenders: list[Contender] = [
        lambda number: {"python": run([sys.executable, "-c", ""], env=ENVIRONMENT).seconds},
        lambda number: {"--help": few.call("--help").seconds},
        lambda number: {f"list, {_FEW} backups": few.call("list").seconds},
        lambda number: {f"list, {_MANY} backups": many.call("list").seconds},
    ]
    rounds = plan.run(contenders, times=_STARTS_A_ROUND)
    lines = (
        ("--help", _START_LIMIT),
        (f"list, {_FEW} backups", _START_LIMIT),
        (f"list, {_MANY} backups", _MANY_LIMIT),
    )
    outcomes = tuple(
        within(
            Ratio(f"{name} : bare Python", over=(name,), under=("python",)),
            rounds,
            limit=limit,
            unit="s",
        )
        for name, limit in lines
    )
    return Table(title="start", outcomes=outcomes, rounds=rounds)


def _multiply(repository: Repository, backup_id: str, count: int) -> None:
    """Make ``count`` backups of one, without their dumps: manifests and records of proofs."""
    original = repository.find(backup_id)
    manifest = parse_manifest((original.folder / MANIFEST).read_bytes(), where=MANIFEST)
    proofs = repository.records.of(backup_id)
    for number in range(1, count):
        later = timedelta(hours=number)
        copy = manifest.model_copy(
            update={
                "backup_id": f"{backup_id}_{number}",
                "timestamp": manifest.timestamp + later,
                "finished_at": manifest.completed_at + later,
            }
        )
        folder = original.folder.with_name(copy.backup_id)
        folder.mkdir(mode=0o700)
        content = write_json(copy)
        (folder / MANIFEST).write_bytes(content)
        (folder / MANIFEST_CHECKSUM).write_bytes(checksum_line(content))
        for proof in proofs:
            repository.records.keep(proof.model_copy(update={"backup_id": copy.backup_id}))
