"""Marker transactions on a recovered server: the proof that it stands where it was asked to.

Each increment commits one (``incremental``). Its position and time are known as a span, so a target
inside of the span proves nothing of that marker, and it is left out.
"""

from dataclasses import dataclass

import psycopg

from kyb_backup_pipeline.engine.manifest import Finding, Marker
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.recovery import Recovered
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan
from kyb_backup_pipeline.engine.wal import parse_lsn


@dataclass(frozen=True)
class Markers:
    """How many markers lie before and behind the target, and what contradicts that."""

    committed: int
    still_open: int
    findings: tuple[Finding, ...]


def check_markers(plan: RecoveryPlan, recovered: Recovered) -> Markers:
    """Those before the target must be committed, those behind it must not."""
    committed = still_open = 0
    findings = []
    with connect(recovered.target) as connection:
        for increment in plan.coverage.increments:
            for marker in increment.require_wal().markers:
                wanted = _before(plan, marker)
                if wanted is None:
                    continue
                found = _committed(connection, marker)
                if found is None:
                    continue
                committed += wanted
                still_open += not wanted
                if found != wanted:
                    what = (
                        "is not committed" if wanted else "is committed, but lies behind the target"
                    )
                    name = f"marker {marker.xid} of {increment.backup_id}"
                    findings.append(Finding(object=name, message=what))
    return Markers(committed, still_open, tuple(findings))


def _before(plan: RecoveryPlan, marker: Marker) -> bool | None:
    """Whether a marker was committed before the target; None where its commit may be on either side."""
    if plan.immediate:
        return False
    if plan.stop is not None:
        if plan.stop >= parse_lsn(marker.lsn):
            return True
        return False if plan.stop <= parse_lsn(marker.begun_lsn) else None
    if plan.moment.time is not None:
        if plan.moment.time >= marker.done_at:
            return True
        return False if plan.moment.time < marker.at else None
    return True


def _committed(connection: psycopg.Connection, marker: Marker) -> bool | None:
    """Whether it is committed; None where it is so old that the server has forgotten it.

    An id of the future raises an error, which counts as not committed.
    """
    try:
        (status,) = connection.execute(
            "SELECT pg_xact_status(%s::text::xid8)", (str(marker.xid),)
        ).fetchone() or (None,)
    except psycopg.errors.InvalidParameterValue:
        return False
    return None if status is None else bool(status == "committed")
