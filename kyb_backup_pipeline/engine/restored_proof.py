"""Is the restored database what the source held? Asked before anything live is touched."""

from kyb_backup_pipeline.engine.comparison import compare
from kyb_backup_pipeline.engine.errors import RestoreFailed
from kyb_backup_pipeline.engine.evidence import Evidence, take_evidence_parallel
from kyb_backup_pipeline.engine.postgres import Target
from kyb_backup_pipeline.engine.progress import Reporter
from kyb_backup_pipeline.engine.quiet_session import login_triggers


def prove_restored(
    restored: Target, evidence: Evidence, *, jobs: int, report: Reporter, untouched: Target
) -> tuple[str, list[str]]:
    """Compare a restored database with the evidence; return what was compared, and notes.

    Raises RestoreFailed where they differ; ``untouched`` is the live database, for the hint.
    """
    there = take_evidence_parallel(restored, like=evidence, jobs=jobs, report=report)
    result = compare(evidence, there)
    # roles belong to the whole server: those that existed were left as they are
    bad = [f for f in result.differences if not f.object.startswith("role ")]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        hint = f"{untouched.dbname!r} was not touched; look at {restored.dbname!r}"
        if login_triggers(restored):
            hint += (
                "; it has event triggers on login, which fired in our sessions: GRANT SET ON "
                f"PARAMETER event_triggers TO {untouched.user}, or restore as a superuser"
            )
        raise RestoreFailed(
            f"the restored database is not what the source held: {bad[0].object} "
            f"{bad[0].message}{more}",
            hint=hint,
        )
    notes = [f"{f.object} {f.message}" for f in result.differences]
    return f"{result.rows} rows in {result.tables} tables equal the source's", notes
