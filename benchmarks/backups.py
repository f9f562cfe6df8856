"""The tables about taking a backup: plain format, directory format, levels of compression.

The procedures' backup ends with its verification (one more ``sha256sum``, ``gunzip -t``), so ours is
held against it together with ``kyb-backup verify``.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Contender, Figures, run
from benchmarks.stage import Ours, Plan, Procedures, Stage
from benchmarks.table import Ratio, Table, judge, judged
from kyb_backup_pipeline.engine.compression import DEFAULT_LEVEL

_EVIDENCE = ("none", "content")
_PROCEDURES = ("pg_dump -Z9", "sha256sum, metadata", "sha256sum, verification", "gunzip -t")
_PIPE_LIMIT: Mapping[str, float | None] = {"plain": 1.05, "directory": None}
_EVIDENCE_LIMIT = 1.4
_ENCRYPTION_LIMITS: Mapping[str, float | None] = {"age": 1.4, "gpg": None}
_PROCEDURES_LIMITS = {"none": 3.5, "content": 2.5}


def plain(plan: Plan) -> Table:
    """A backup in plain format against the bare dump, the shell pipe and the procedures."""
    return _backup(plan, "plain")


def directory(plan: Plan) -> Table:
    """The same in directory format."""
    return _backup(plan, "directory")


def _backup(plan: Plan, layout: str) -> Table:
    stage, database = plan.stage, plan.stage.database(plan.size)
    contenders = [_bare_dump(stage, database)]
    notes = []
    if shutil.which("zstd"):
        contenders += [_pipe(stage, database, flush=flush) for flush in (False, True)]
    else:
        notes.append("THERE IS NO zstd PROGRAM HERE: the lines with the shell pipe are missing")
    for evidence in _EVIDENCE:
        ours = stage.ours(f"{layout}-{evidence}", database, format=layout, evidence=evidence)
        contenders.append(_ours(ours, evidence))
    for method in _ENCRYPTION_LIMITS if layout == "plain" else ():
        ours = stage.ours(f"{layout}-{method}", database, encrypted=method, format=layout)
        contenders.append(_ours(ours, method))
    contenders.append(_procedures(Procedures(stage, database)))
    rounds = plan.run(contenders)
    last = rounds.figures[-1]
    for name in ("pipe", *_EVIDENCE):
        if f"{name}, bytes" in last:
            share = last[f"{name}, bytes"] / last["procedures, bytes"]
            notes.append(f"size, {name}: {share:.2f} of the procedures' file")
    return Table(
        title=f"backup in {layout} format",
        outcomes=judged(_backup_lines(layout), rounds),
        rounds=rounds,
        notes=tuple(notes),
    )


def _backup_lines(layout: str) -> list[Ratio]:
    lines = [
        Ratio("shell pipe : bare pg_dump", over=("pipe",), under=("bare pg_dump",)),
        Ratio("evidence none : bare pg_dump", over=("none",), under=("bare pg_dump",)),
        Ratio(
            "evidence none : shell pipe",
            over=("none",),
            under=("pipe",),
            limit=_PIPE_LIMIT[layout],
        ),
        Ratio("evidence none : shell pipe && sync", over=("none",), under=("pipe && sync",)),
        Ratio("evidence content : none", over=("content",), under=("none",), limit=_EVIDENCE_LIMIT),
    ]
    for method, limit in _ENCRYPTION_LIMITS.items() if layout == "plain" else ():
        name = f"encrypted with {method} : not"
        lines += [
            Ratio(name, over=(method,), under=("content",), limit=limit),
            Ratio(f"{name}, verification", over=(f"{method}, verification",),
                  under=("content, verification",)),
        ]  # fmt: skip
    for evidence in _EVIDENCE:
        lines.append(
            Ratio(
                f"procedures : evidence {evidence}, with verification",
                over=_PROCEDURES,
                under=(evidence, f"{evidence}, verification"),
                limit=_PROCEDURES_LIMITS[evidence],
                sense="at least",
            )
        )
    return lines


def _bare_dump(stage: Stage, database: str) -> Contender:
    argv: list[str | Path] = [stage.program("pg_dump"), "--no-password", "--format=plain"]
    return lambda number: {"bare pg_dump": run(argv, env=stage.environment(database)).seconds}


def _pipe(stage: Stage, database: str, *, flush: bool) -> Contender:
    file = stage.folder / "pipe.sql.zst"
    script = f"{stage.program('pg_dump')} | zstd -{DEFAULT_LEVEL['zstd']} -T2 -q -o {file}"
    name = "pipe"
    if flush:
        script, name = f"{script} && sync {file}", "pipe && sync"

    def contender(number: int) -> Figures:
        file.unlink(missing_ok=True)
        sample = run(["sh", "-c", script], env=stage.environment(database))
        return {name: sample.seconds, f"{name}, bytes": file.stat().st_size}

    return contender


def _ours(ours: Ours, name: str) -> Contender:
    def contender(number: int) -> Figures:
        figures = {name: ours.backup(number).seconds}
        figures[f"{name}, verification"] = ours.verify(number).seconds
        return figures | {f"{name}, bytes": ours.dump_bytes(number)}

    return contender


def _procedures(procedures: Procedures) -> Contender:
    def contender(number: int) -> Figures:
        steps = (procedures.dump, procedures.checksum, procedures.checksum, procedures.gunzip_test)
        figures = {name: step().seconds for name, step in zip(_PROCEDURES, steps, strict=True)}
        return figures | {"procedures, bytes": procedures.file.stat().st_size}

    return contender


def levels(plan: Plan) -> Table:
    """The levels of compression in whole backups of one database: time and size."""
    stage, database = plan.stage, plan.stage.database(plan.size)
    wanted = {
        f"{method} {level}": (method, level) for method in ("zstd", "gzip") for level in (1, 2, 3)
    }
    contenders = []
    for name, (method, level) in wanted.items():
        settings = {"compression": method, "level": level, "evidence": "none"}
        ours = stage.ours(name.replace(" ", "-"), database, **settings)
        contenders.append(_level(ours, name))
    rounds = plan.run(contenders)
    default = f"zstd {DEFAULT_LEVEL['zstd']}"
    outcomes = []
    for name in wanted:
        if name != default:
            time = Ratio(f"{name} : {default}, time", over=(name,), under=(default,))
            size = Ratio(
                f"{name} : {default}, size", over=(f"{name}, MB",), under=(f"{default}, MB",)
            )
            outcomes += [judge(time, rounds), judge(size, rounds, unit="MB")]
    return Table(title="levels of compression", outcomes=tuple(outcomes), rounds=rounds)


def _level(ours: Ours, name: str) -> Contender:
    def contender(number: int) -> Figures:
        seconds = ours.backup(number).seconds
        return {name: seconds, f"{name}, MB": ours.dump_bytes(number) / 1e6}

    return contender
