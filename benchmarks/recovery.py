"""The tables about bringing the database back on the same server.

Ours counts as the steps ``create`` and ``load`` of the restore's own journal: what the commands by hand do
too. What it does beyond them (verification, ANALYZE, comparison) is in the time of the whole command.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import datetime

import psycopg

from benchmarks.measure import Contender, Figures, run
from benchmarks.proofs import old_restore
from benchmarks.stage import Ours, Plan, Procedures, Stage
from benchmarks.table import Ratio, Table, judged, within

_PLAIN_LIMIT, _DIRECTORY_LIMIT = 1.05, 0.6
_INTERRUPTION_LIMIT = 2.0
_INTO = "kyb_restored"
_SMALL = 16 << 20
_CLIENTS = 8


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


def switch(plan: Plan) -> Table:
    """How long the database is away while a restored one takes its place, under clients that reconnect."""
    stage = plan.stage
    contenders, names = [], []
    for size in (_SMALL, plan.size):
        name = f"{size >> 20} MB"
        ours = stage.ours(f"switch-{size >> 20}", stage.database(size))
        ours.backup(0)
        contenders.append(_switched(stage, ours, stage.database(size), name))
        names.append(name)
    small, large = names
    rounds = plan.run(contenders)
    line = Ratio(f"{large} : {small}", over=(large,), under=(small,))
    outcome = within(line, rounds, limit=_INTERRUPTION_LIMIT, unit="s")
    note = f"{_CLIENTS} clients query without a pause, and connect again when they are cut off"
    return Table(title="interruption by a restore in place", outcomes=(outcome,), rounds=rounds,
                 notes=(note,))  # fmt: skip


def _switched(stage: Stage, ours: Ours, database: str, name: str) -> Contender:
    def contender(number: int) -> Figures:
        with _clients(stage, database):
            ours.call("restore", "database", "b0", "--yes", "--without-safety-backup",
                      "--without-service")  # fmt: skip
        journals = (ours.repository / "database" / "recovery").glob("restore_*.json")
        journal = json.loads(max(journals).read_bytes())
        ours.call("restore", "replaced", "--drop", journal["replaced_name"], "--yes")
        return {name: journal["interruption_seconds"]}

    return contender


@contextlib.contextmanager
def _clients(stage: Stage, database: str) -> Iterator[None]:
    done = threading.Event()
    target = stage.cluster.target(database)

    def client() -> None:
        while not done.is_set():
            with contextlib.suppress(psycopg.Error), psycopg.connect(
                host=target.host, port=target.port, dbname=target.dbname, user=target.user,
                autocommit=True,
            ) as connection:  # fmt: skip
                while not done.is_set():
                    connection.execute("SELECT pg_sleep(0.01)")

    clients = [threading.Thread(target=client) for _ in range(_CLIENTS)]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        done.set()
        for each in clients:
            each.join()
