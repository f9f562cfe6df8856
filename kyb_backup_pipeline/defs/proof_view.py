"""How Dagster shows a proof: its numbers, its checks, and its failure.

    passed              materialization; checks passed
    failed              ``dg.Failure``; checks failed (ERROR); the partition is not green
    could not verify    ``dg.Failure`` that says so; checks failed (WARN); not green either

A check passes only where somebody looked. One that had nothing to compare with, or was not reached,
is recorded as not passed and says why: green for a question that nobody asked would be a verifier
that sleeps. Where the restore test itself passed (a backup taken without evidence, say) that is a
warning, and fails nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from kyb_backup_pipeline.defs.backup_view import FILE_KINDS
from kyb_backup_pipeline.defs.card import bullets, findings_table, restore_test_card
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.manifest import Finding, Kind, Proof

PASSED = "passed"
"""The data version of every proof that passed: a backup that is verified again is what it was, so what
was proved of it before does not become "unsynced"."""


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn an error of the engine into a failure of the step, with its hint; it is not retried."""
    try:
        yield
    except KybError as error:
        metadata: dict[str, Any] = {
            "error": type(error).__name__,
            "exit_code": error.exit_code,
        }
        if error.hint:
            metadata["hint"] = error.hint
        raise dg.Failure(str(error), metadata=metadata, allow_retries=False) from error


def outcome(
    proof: Proof, kind: Kind = "full"
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """What the step of a proof yields. Raises dg.Failure after the checks unless it passed."""
    if proof.verdict == "passed":
        yield dg.MaterializeResult(
            metadata=proof_metadata(proof),
            check_results=proof_checks(proof, kind),
            data_version=dg.DataVersion(PASSED),
        )
        return
    yield from proof_checks(proof, kind)
    raise bad_proofs([proof])


def bad_proofs(proofs: Sequence[Proof]) -> dg.Failure:
    """The failure that names bad proofs: those that failed before those that could not verify."""
    ordered = sorted(proofs, key=lambda proof: proof.verdict != "failed")
    if len(ordered) == 1:
        metadata = proof_metadata(ordered[0])
    else:
        metadata = {f"{proof.backup_id} ({proof.proof})": proof.summary for proof in ordered}
        metadata["verdict"] = ordered[0].verdict
    lines = [f"{proof.backup_id}: {_name(proof)}: {proof.summary}" for proof in ordered]
    return dg.Failure("\n".join(lines), metadata=metadata, allow_retries=False)


def _name(proof: Proof) -> str:
    what = proof.proof.replace("_", " ")
    return f"{what} failed" if proof.verdict == "failed" else f"{what} could not verify"


def proof_metadata(proof: Proof) -> dict[str, Any]:
    """The figures of a verification or a restore test, the same for good and bad ones."""
    metadata: dict[str, Any] = {"verdict": proof.verdict, "summary": proof.summary}
    if proof.proof == "restore_test":
        metadata["card"] = dg.MetadataValue.md(restore_test_card(proof))
    metadata["seconds"] = proof.seconds
    metadata["finished_at"] = dg.MetadataValue.timestamp(proof.finished_at)
    metadata |= {name: _number(value) for name, value in proof.figures.items()}
    metadata |= {f"{step}_seconds": seconds for step, seconds in proof.steps.items()}
    if "rows" in proof.figures:
        metadata["dagster/row_count"] = int(proof.figures["rows"])
    if "postgres" in proof.tool_versions:
        metadata["restored_on"] = f"PostgreSQL {proof.tool_versions['postgres']}"
    if proof.hint:
        metadata["hint"] = proof.hint
    if proof.findings:
        metadata["findings"] = dg.MetadataValue.md(findings_table(proof.findings))
    if proof.notes:
        metadata["notes"] = dg.MetadataValue.md(bullets(proof.notes))
    return metadata


def proof_checks(proof: Proof, kind: Kind) -> list[dg.AssetCheckResult]:
    """The checks that a proof of a backup of this kind answers."""
    figures = proof.figures
    if kind in FILE_KINDS:
        return _archive_checks(proof)
    if proof.proof == "verification":
        asked = proof.verdict != "could_not_verify"
        return [_check(proof, "files_as_written", proof.findings, asked, "all files as written",
                       numbers=("files", "bytes", "seconds"))]  # fmt: skip
    if kind != "full":
        return _recovery_checks(proof)
    data, objects, smoke = _by_question(proof.findings)
    compared = "rows" in figures
    rows = f"{figures.get('rows', 0):,.0f} rows in {figures.get('tables', 0):,.0f} tables"
    no_evidence = "restored, but the backup has no evidence to compare with"
    return [
        _check(proof, "rows_equal_source", data, compared, f"{rows} equal the source's",
               otherwise=no_evidence, numbers=("tables", "rows", "differences")),
        _check(proof, "objects_present", objects, compared,
               f"{figures.get('objects', 0):,.0f} objects as in the source",
               otherwise=no_evidence, numbers=("objects", "differences")),
        _check(proof, "smoke_queries_answer", smoke, bool(figures.get("smoke_queries")),
               "every smoke query was answered",
               otherwise="no smoke query is set: restore_test.smoke_queries",
               numbers=("smoke_queries",)),
        _check(proof, "recovery_time", (), "recovery_seconds" in figures,
               f"{figures.get('recovery_seconds', 0):,.1f} s from the first role to the last index",
               numbers=("recovery_seconds",)),
    ]  # fmt: skip


def _archive_checks(proof: Proof) -> list[dg.AssetCheckResult]:
    """The checks of encrypted archives: the files, and with the key what is in them."""
    figures = proof.figures
    content = [f for f in proof.findings if f.object.startswith("member ")]
    files = [f for f in proof.findings if f not in content]
    looked = figures.get("checksums") == figures.get("files") or proof.verdict != "could_not_verify"
    return [
        _check(proof, "files_as_written", files, looked, "all files as written",
               numbers=("files", "bytes", "seconds")),
        _check(proof, "content_as_recorded", content, "members" in figures,
               f"{figures.get('members', 0):,.0f} members as recorded",
               numbers=("members", "content_bytes")),
    ]  # fmt: skip


def _recovery_checks(proof: Proof) -> list[dg.AssetCheckResult]:
    """The checks of a point-in-time restore test."""
    figures = proof.figures
    markers = [f for f in proof.findings if f.object.startswith("marker ")]
    others = [f for f in proof.findings if f not in markers]
    rows = f"{figures.get('rows', 0):,.0f} rows in {figures.get('tables', 0):,.0f} tables"
    return [
        _check(proof, "markers_as_expected", markers, "markers_committed" in figures,
               f"{figures.get('markers_committed', 0):,.0f} markers before the target are committed, "
               f"{figures.get('markers_open', 0):,.0f} behind it are not",
               numbers=("markers_committed", "markers_open")),
        _check(proof, "tables_readable", others, "rows" in figures, f"{rows} read to the last",
               numbers=("tables", "rows", "databases_checked")),
        _check(proof, "recovery_time", (), "recovery_seconds" in figures,
               f"{figures.get('recovery_seconds', 0):,.1f} s from the first file to the target",
               numbers=("recovery_seconds", "segments")),
    ]  # fmt: skip


def _check(
    proof: Proof,
    name: str,
    findings: Sequence[Finding],
    asked: bool,
    good: str,
    *,
    otherwise: str = "",
    numbers: Sequence[str] = (),
) -> dg.AssetCheckResult:
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        description = f"{findings[0].object} {findings[0].message}{more}"
    elif asked:
        description = good
    else:
        description = otherwise if proof.verdict == "passed" else f"not reached: {proof.summary}"
    metadata: dict[str, Any] = {
        number: _number(proof.figures[number]) for number in numbers if number in proof.figures
    }
    metadata["verdict"] = proof.verdict
    if findings:
        metadata["findings"] = dg.MetadataValue.md(findings_table(findings))
    unanswered = not asked and not findings and proof.verdict != "failed"
    return dg.AssetCheckResult(
        check_name=name,
        passed=asked and not findings,
        severity=dg.AssetCheckSeverity.WARN if unanswered else dg.AssetCheckSeverity.ERROR,
        description=description,
        metadata=metadata,
    )


def _by_question(findings: Iterable[Finding]) -> tuple[list[Finding], ...]:
    """Findings about rows, about all else that was compared, and about smoke queries."""
    data: list[Finding] = []
    objects: list[Finding] = []
    smoke: list[Finding] = []
    for finding in findings:
        if finding.object.startswith("smoke query "):
            smoke.append(finding)
        elif finding.object.startswith("table ") or finding.object == "large objects":
            data.append(finding)
        else:
            objects.append(finding)
    return data, objects, smoke


def _number(value: float) -> float:
    return int(value) if value == int(value) else value
