"""Are the copies what was pushed? Looked at there, not at home.

Quick: every object is there with its size, and the service calls it the same version as at the push (its etag);
one that it calls another is read. Deep: every object is read and hashed; no key is needed for that. What was
altered or deleted behind our back is found by both, unless the service itself lies: then only by reading.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.manifest import Finding, Kind, Verdict, utc_now
from kyb_backup_pipeline.engine.offsite_copy import WAL, Listed, OffsiteCopy, Part, folder_of
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged, read_part
from kyb_backup_pipeline.engine.offsite_target import Found, Target
from kyb_backup_pipeline.engine.offsite_view import SeenCopy
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent

_log = logging.getLogger(__name__)


class CopyProof(BaseModel):
    """What was found of one copy. ``read`` are bytes that were read and hashed, of ``stored`` bytes."""

    model_config = ConfigDict(frozen=True)

    backup_id: str
    kind: Kind
    target: str
    deep: bool
    verdict: Verdict
    summary: str
    hint: str | None = None
    started_at: AwareDatetime
    finished_at: AwareDatetime
    findings: tuple[Finding, ...] = ()
    stored: int = 0
    read: int = 0


def verify_copy(
    place: Place, listed: Listed, *, deep: bool, now: datetime, report: Reporter = silent
) -> CopyProof:
    """Look at one copy, and write down at home what was found."""
    copy = listed.copy_
    look = Examination()
    unreachable: KybError | None = None
    if copy is None:
        look.found(listed.backup_id, listed.problem or "its commit object cannot be read")
    else:
        try:
            examine_copy(place.target, copy, look, deep=deep, report=report)
        except CopyDamaged as error:
            look.found(listed.backup_id, error.message)
        except KybError as error:
            unreachable = error
    proof = _proof(place, listed, look, unreachable, deep, now)
    if copy is not None:
        known = place.view.copies.get(copy.backup_id)
        seen = SeenCopy(
            kind=copy.kind, finished_at=copy.manifest.completed_at, pushed_at=copy.pushed_at,
            verified_at=proof.finished_at, deep=deep, verdict=proof.verdict, summary=proof.summary,
            run_id=known.run_id if known else None,
        )  # fmt: skip
        if known is not None and not deep and _outweighs(known, copy, proof.verdict):
            seen = known  # what was read there and found bad is not made good by a look at names
        place.saw({copy.backup_id: seen}, trouble=place.view.trouble if unreachable else None)
    else:
        place.saw(damaged={listed.backup_id: proof.summary})
    if unreachable is not None:
        place.fails(unreachable, now)
    return proof


def _outweighs(known: SeenCopy, copy: OffsiteCopy, verdict: Verdict) -> bool:
    """Whether a copy that was read and found bad is still that copy, whatever a quick look says."""
    bad = known.deep and known.verdict == "failed" and known.verified_at is not None
    return bad and verdict == "passed" and copy.pushed_at <= (known.verified_at or copy.pushed_at)


def examine_copy(
    target: Target, copy: OffsiteCopy, look: Examination, *, deep: bool, report: Reporter = silent
) -> None:
    """Note what is wrong with the objects of a copy. Raises what the target raises."""
    there = {found.key: found for folder in _folders(copy) for found in target.list(folder)}
    parts = [part for file in copy.all_files for part in file.parts]
    doubtful = [part for part in parts if _problem(look, part, there) or deep]
    doubtful = [
        part for part in doubtful if part.key in there and there[part.key].size == part.size
    ]
    total = sum(part.size for part in doubtful)
    done = 0

    def read(part: Part) -> tuple[Part, str | None]:
        try:
            read_part(target, part)
        except CopyDamaged as error:
            return part, error.message
        return part, None

    for part, problem in _side_by_side(read, doubtful, target.options.parallel):
        done += part.size
        report(Progress(step="verify", done=done, total=total, detail=copy.backup_id))
        if problem:
            look.found(part.key, problem.removeprefix(part.key).strip())
    look.read = done


def _side_by_side(
    read: Callable[[Part], tuple[Part, str | None]], parts: Iterable[Part], parallel: int
) -> Iterable[tuple[Part, str | None]]:
    with ThreadPoolExecutor(parallel, thread_name_prefix="verifying") as pool:
        yield from pool.map(read, parts)


def _problem(look: Examination, part: Part, there: dict[str, Found]) -> bool:
    """Note what the listing says against a part; whether it must be read to be sure."""
    found = there.get(part.key)
    if found is None:
        look.found(part.key, "is missing")
        return False
    if found.size != part.size:
        look.found(part.key, f"has {found.size} bytes, {part.size} were pushed")
        return False
    return part.etag is None or found.etag != part.etag


def _folders(copy: OffsiteCopy) -> set[str]:
    folders = {folder_of(copy.kind, copy.backup_id)}
    return folders | {f"{WAL}/{file.path.partition('/')[0]}" for file in copy.wal}


def _proof(
    place: Place,
    listed: Listed,
    look: Examination,
    unreachable: KybError | None,
    deep: bool,
    now: datetime,
) -> CopyProof:
    copy = listed.copy_
    stored = sum(file.stored_size for file in copy.all_files) if copy else 0
    verdict: Verdict = "passed"
    how = "read and hashed" if deep else "there, with the right sizes and versions"
    count = sum(len(file.parts) for file in copy.all_files) if copy else 0
    summary, hint = f"{count} objects {how}", None
    if look.findings:
        first = look.findings[0]
        more = f" and {len(look.findings) - 1} more" if len(look.findings) > 1 else ""
        verdict, summary = "failed", f"{first.object} {first.message}{more}"
        hint = f"while the backup is at home: kyb-backup offsite push {listed.backup_id} --again"
    elif unreachable is not None:
        verdict, summary, hint = "could_not_verify", unreachable.message, unreachable.hint
    return CopyProof(
        backup_id=listed.backup_id, kind=listed.kind, target=place.target.name, deep=deep,
        verdict=verdict, summary=summary, hint=hint, started_at=now, finished_at=utc_now(),
        findings=tuple(look.findings), stored=stored, read=look.read,
    )  # fmt: skip
