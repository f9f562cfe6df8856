"""The tables about proving a backup: its verification and its restore test."""

from benchmarks.measure import CommandFailed, Contender, Figures
from benchmarks.stage import Ours, Plan, Procedures
from benchmarks.table import Ratio, Table, judged

_LAYOUTS = ("plain", "directory")
_VERIFICATION_LIMIT = 4.0
_RESTORE_LIMITS = {"plain": 0.9, "directory": 0.5}
_COMPARISON_LIMIT = 0.3
_TEST_DATABASE = "kyb_backup_test"


def verification(plan: Plan) -> Table:
    """Checking a backup against ``sha256sum`` and ``gunzip -t`` on the procedures' file."""
    stage, database = plan.stage, plan.stage.database(plan.size)
    procedures = Procedures(stage, database)
    procedures.dump()
    contenders = [_old_verification(procedures)]
    for layout in _LAYOUTS:
        ours = stage.ours(f"verify-{layout}", database, format=layout)
        ours.backup(0)
        contenders.append(_verification(ours, layout))
    rounds = plan.run(contenders)
    old = ("sha256sum", "gunzip -t")
    lines = [
        Ratio(
            f"procedures : {layout} format",
            over=old,
            under=(layout,),
            limit=_VERIFICATION_LIMIT if layout == "plain" else None,
            sense="at least",
        )
        for layout in _LAYOUTS
    ]
    return Table(title="verification", outcomes=judged(lines, rounds), rounds=rounds)


def _old_verification(procedures: Procedures) -> Contender:
    return lambda number: {
        "sha256sum": procedures.checksum().seconds,
        "gunzip -t": procedures.gunzip_test().seconds,
    }


def _verification(ours: Ours, name: str) -> Contender:
    return lambda number: {name: ours.verify(0).seconds}


def restore_test(plan: Plan) -> Table:
    """A restore test against the procedures' restore into a new database of the same server.

    Ours counts as the time of recovery in the test's own record; the comparison stands apart.
    """
    stage, database = plan.stage, plan.stage.database(plan.size)
    procedures = Procedures(stage, database)
    procedures.dump()
    contenders = [old_restore(procedures)]
    for layout in _LAYOUTS:
        ours = stage.ours(f"drill-{layout}", database, format=layout)
        ours.backup(0)
        contenders.append(_drill(ours, layout))
    rounds = plan.run(contenders)
    lines = []
    for layout in _LAYOUTS:
        lines += [
            Ratio(
                f"{layout} format, restore : procedures",
                over=(layout,),
                under=("procedures",),
                limit=_RESTORE_LIMITS[layout],
            ),
            Ratio(
                f"{layout} format, comparison : restore",
                over=(f"{layout}, comparison",),
                under=(layout,),
                limit=_COMPARISON_LIMIT,
            ),
            Ratio(
                f"{layout} format, whole command : procedures",
                over=(f"{layout}, whole",),
                under=("procedures",),
            ),
        ]
    return Table(title="restore test", outcomes=judged(lines, rounds), rounds=rounds)


def old_restore(procedures: Procedures) -> Contender:
    """The procedures' restore into a new database of the same server."""

    def contender(number: int) -> Figures:
        seconds = procedures.restore(_TEST_DATABASE).seconds
        procedures.drop(_TEST_DATABASE)
        return {"procedures": seconds}

    return contender


def _drill(ours: Ours, name: str) -> Contender:
    def contender(number: int) -> Figures:
        sample, record = ours.drill(0)
        if record["verdict"] != "passed":
            raise CommandFailed(f"the restore test did not pass: {record['summary']}")
        return {
            name: record["figures"]["recovery_seconds"],
            f"{name}, comparison": record["steps"]["comparison"],
            f"{name}, whole": sample.seconds,
        }

    return contender
