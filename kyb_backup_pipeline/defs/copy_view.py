"""How Dagster shows off-site copies: their numbers, their check, and what failed where."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from kyb_backup_pipeline.defs.card import table
from kyb_backup_pipeline.engine.manifest import Proof, Verdict
from kyb_backup_pipeline.engine.offsite_lock import Safety
from kyb_backup_pipeline.engine.offsite_rounds import Copied, Failed
from kyb_backup_pipeline.engine.offsite_verify import CopyProof
from kyb_backup_pipeline.engine.offsite_view import SeenCopy
from kyb_backup_pipeline.engine.printable import markdown_text

CHECK = "copy_as_pushed"
_WORST: tuple[Verdict, ...] = ("failed", "could_not_verify", "passed")


def copied_metadata(copied: Sequence[Copied]) -> dict[str, Any]:
    """The figures of one backup at all its places: bytes, seconds, how it is encrypted and locked."""
    copies = [one.pushed.copy for one in copied]
    rows = [
        (one.target, one.url, f"{one.pushed.sent:,}", f"{one.pushed.found:,}", one.pushed.copy.encryption,
         one.proof.verdict.replace("_", " "), _locked(one.safety))
        for one in copied
    ]  # fmt: skip
    metadata: dict[str, Any] = {
        "places": dg.MetadataValue.md(
            _table(("Place", "Address", "Sent", "Found", "Encryption", "Copy", "Locked"), rows)
        ),
        "copies": len(copied),
        "bytes_sent": sum(one.pushed.sent for one in copied),
        "bytes_found": sum(one.pushed.found for one in copied),
        "records": sum(one.pushed.records for one in copied),
        "seconds": sum(one.pushed.seconds for one in copied),
        "dagster/size_bytes": max(sum(f.stored_size for f in copy.all_files) for copy in copies),
        "encryption": ", ".join(dict.fromkeys(copy.encryption for copy in copies)),
        "pushed_at": dg.MetadataValue.timestamp(min(copy.pushed_at for copy in copies)),
    }
    until = [one.safety.until for one in copied]
    earliest = min((at for at in until if at is not None), default=None)
    if earliest is not None and None not in until:
        metadata["locked_until"] = dg.MetadataValue.timestamp(earliest)
    return metadata


def seen_metadata(seen: Mapping[str, SeenCopy]) -> dict[str, Any]:
    """The same of a copy that no run of this Dagster made, as far as it is known at home: by place."""
    rows = [(name, f"{one.pushed_at:%Y-%m-%d %H:%M} UTC", (one.verdict or "not verified").replace("_", " "))
            for name, one in seen.items()]  # fmt: skip
    return {
        "places": dg.MetadataValue.md(_table(("Place", "Pushed", "Copy"), rows)),
        "copies": len(seen),
        "pushed_at": dg.MetadataValue.timestamp(min(one.pushed_at for one in seen.values())),
    }


def verified_metadata(proofs: Sequence[CopyProof]) -> dict[str, Any]:
    """The figures of a copy that is told for the first time when it is looked at."""
    rows = [(p.target, f"{p.stored:,}", p.summary) for p in proofs]
    return {
        "places": dg.MetadataValue.md(_table(("Place", "Bytes", "Copy"), rows)),
        "copies": len(proofs),
        "dagster/size_bytes": max(p.stored for p in proofs),
        "verified_at": dg.MetadataValue.timestamp(min(p.finished_at for p in proofs)),
    }


def copy_check(asset: dg.AssetKey, proofs: Sequence[CopyProof]) -> dg.AssetCheckResult:
    """Whether every copy of a backup is what was pushed. Nobody could look: a warning, and no pass."""
    worst = worst_of(proofs)
    said = [f"{p.target}: {p.summary}" for p in proofs if p.verdict == worst]
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=CHECK,
        passed=worst == "passed",
        severity=dg.AssetCheckSeverity.WARN
        if worst == "could_not_verify"
        else dg.AssetCheckSeverity.ERROR,
        description="; ".join(said),
        metadata={
            "verdict": worst,
            "stored_bytes": sum(p.stored for p in proofs),
            "bytes_read": sum(p.read for p in proofs),
            "differences": sum(len(p.findings) for p in proofs),
        },
    )


def worst_of(proofs: Sequence[CopyProof]) -> Verdict:
    """The verdict on a backup that has several copies."""
    return min((proof.verdict for proof in proofs), key=_WORST.index)


def copy_failure(proofs: Sequence[CopyProof], failed: Sequence[Failed]) -> dg.Failure | None:
    """The failure that names every bad copy and every place that could not be used; None without any."""
    bad = sorted((p for p in proofs if p.verdict != "passed"), key=lambda p: _WORST.index(p.verdict))  # fmt: skip
    how = {"failed": "is not what was pushed", "could_not_verify": "could not be verified"}
    lines = [f"{p.backup_id}: the copy in {p.target} {how[p.verdict]}: {p.summary}" for p in bad]
    lines += [str(one) for one in failed]
    if not lines:
        return None
    metadata: dict[str, Any] = {"verdict": bad[0].verdict if bad else "could_not_verify"}
    hints = [p.hint for p in bad] + [one.error.hint for one in failed]
    if given := [hint for hint in hints if hint]:
        metadata["hint"] = given[0]
    if failed:
        metadata |= {"error": type(failed[0].error).__name__, "exit_code": failed[0].error.exit_code}  # fmt: skip
    return dg.Failure("\n".join(lines), metadata=metadata, allow_retries=False)


def drill_failure(proofs: Sequence[Proof], failed: Sequence[Failed]) -> dg.Failure | None:
    """The failure that names every copy that did not pass its restore test, and every place without one."""
    bad = [proof for proof in proofs if proof.verdict != "passed"]
    lines = [f"{p.backup_id}: the restore test {p.summary}" for p in bad] + [str(f) for f in failed]
    if not lines:
        return None
    verdict = "failed" if any(p.verdict == "failed" for p in bad) else "could_not_verify"
    metadata: dict[str, Any] = {"verdict": verdict}
    hints = [p.hint for p in bad] + [one.error.hint for one in failed]
    if given := [hint for hint in hints if hint]:
        metadata["hint"] = given[0]
    return dg.Failure("\n".join(lines), metadata=metadata, allow_retries=False)


def _locked(safety: Safety) -> str:
    if not safety.known:
        return "not known"
    if safety.until is None:
        return "no"
    return "until released" if safety.until.year == 9999 else f"until {safety.until:%Y-%m-%d %H:%M} UTC"  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(head, [tuple(map(markdown_text, row)) for row in rows])
