"""The table about bringing the database back on the same server.

Ours counts as the steps ``create`` and ``load`` of the restore's own journal: what the commands by hand do
too. What it does beyond them (verification, ANALYZE, comparison) is in the time of the whole command.
"""

import json
from datetime import datetime

from benchmarks.measure import Contender, Figures, run
from benchmarks.proofs import old_restore
from benchmarks.stage import Ours, Plan, Procedures, Stage
from benchmarks.table import Ratio, Table, judged

_PLAIN_LIMIT, _DIRECTORY_LIMIT = 1.05, 0.6
_INTO = "kyb_restored"


def restore(plan: Plan) -> Table:
    """``restore database --into`` against ``zstd -dc | psql`` by hand and the procedures' restore."""
    stage, database = plan.stage, plan.stage.database(plan.size)
    procedures = Procedures(stage, database)
    procedures.dump()
    contenders: list[Contender] = []
    for layout in ("plain", "directory"):
        ours = stage.ours(f"restore-{layout}", database, format=layout)
        ours.backup(0)
        if layout == "plain":
            contenders.append(_by_hand(stage, ours, database))
        contenders.append(_ours(stage, ours, database, layout))
    contenders.append(old_restore(procedures))
    rounds = plan.run(contenders)
    lines = [
        Ratio("plain : zstd -dc | psql by hand", over=("plain",), under=("by hand",),
              limit=_PLAIN_LIMIT),
        Ratio("directory : procedures", over=("directory",), under=("procedures",),
              limit=_DIRECTORY_LIMIT),
        Ratio("plain, whole command : procedures", over=("plain, whole",), under=("procedures",)),
        Ratio("directory, whole command : procedures", over=("directory, whole",),
              under=("procedures",)),
    ]  # fmt: skip
    return Table(title="restore of the database", outcomes=judged(lines, rounds), rounds=rounds)


def _by_hand(stage: Stage, ours: Ours, database: str) -> Contender:
    file = next(ours.repository.rglob("database.sql.zst"))
    createdb, psql = stage.program("createdb"), stage.program("psql")
    quiet = "-X -q -o /dev/null -v ON_ERROR_STOP=1"
    line = f"{createdb} -T template0 {_INTO} && zstd -dc {file} | {psql} {quiet} -d {_INTO}"

    def contender(number: int) -> Figures:
        seconds = run(["sh", "-c", line], env=stage.environment(database), chatty=True).seconds
        _drop(stage, database)
        return {"by hand": seconds}

    return contender


def _ours(stage: Stage, ours: Ours, database: str, name: str) -> Contender:
    def contender(number: int) -> Figures:
        sample = ours.call("restore", "database", "b0", "--into", _INTO, "--yes")
        journals = (ours.repository / "database" / "recovery").glob("restore_*.json")
        steps = json.loads(max(journals).read_bytes())["steps"]
        seconds = {step["name"]: _seconds(step) for step in steps}
        _drop(stage, database)
        return {name: seconds["create"] + seconds["load"], f"{name}, whole": sample.seconds}

    return contender


def _seconds(step: dict[str, str]) -> float:
    began, ended = (datetime.fromisoformat(step[key]) for key in ("began_at", "finished_at"))
    return (ended - began).total_seconds()


def _drop(stage: Stage, database: str) -> None:
    run([stage.program("dropdb"), _INTO], env=stage.environment(database))
