"""Are the copies what was pushed? Looked at there, not at home.

Quick: every object is there with its size, and the service calls it the same version as at the push (its etag);
one that it calls another is read. Deep: every object is read and hashed; no key is needed for that. What was
altered or deleted behind our back is found by both, unless the service itself lies: then only by reading.
"""

import hashlib
import time
from collections.abc import Generator, Iterable
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.examination import Examination
from kyb_backup_pipeline.engine.manifest import Finding, Kind, Verdict, utc_now
from kyb_backup_pipeline.engine.offsite_copy import (
    CopiedFile,
    Listed,
    OffsiteCopy,
    Part,
    objects_of,
    read_copy,
)
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_reading import CopyDamaged, reading_ahead
from kyb_backup_pipeline.engine.offsite_target import (
    Found,
    Target,
    TargetMisconfigured,
    TargetUnreachable,
)
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, as_seen
from kyb_backup_pipeline.engine.progress import Progress, Reporter, silent

_OF_THE_PLACE = (TargetUnreachable, TargetMisconfigured)
"""With these the next copy may fail in the same way."""
_ENOUGH = 3
_WRITE_EVERY = 10.0
"""Seconds. A kill loses no more than what was found in these."""


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


def verify_copies(
    place: Place, copies: Iterable[Listed], *, deep: bool, report: Reporter = silent
) -> Generator[CopyProof, None, None]:
    """Look at copies one after the other; what was found is written down at home from time to time, and at the end.

    A place that does not answer any more is left after the first copy that it hides; one that does, and cannot
    give this one, after three in a row.
    """
    notes = _Notes(place, deep)
    hidden = 0
    try:
        for listed in copies:
            proof, error = _verified(place, listed, deep, report)
            if proof.verdict == "failed" and _went(place.target, listed):
                continue
            notes.add(listed, proof)
            yield proof
            hidden = hidden + 1 if isinstance(error, _OF_THE_PLACE) else 0
            if error is not None and hidden and (hidden == _ENOUGH or not _answers(place.target)):
                notes.write()
                place.fails(error, proof.started_at)
                return
    finally:
        notes.write()


def _went(target: Target, listed: Listed) -> bool:
    """Whether a copy is none any more: a prune took it while we looked, and that is no damage."""
    try:
        return listed.copy_ is not None and read_copy(target, listed.kind, listed.backup_id) is None
    except KybError:
        return False


def _answers(target: Target) -> bool:
    try:
        target.folders("")
    except KybError:
        return False
    return True


class _Notes:
    """What was found and is not written down yet: at home all copies of a place share one file."""

    def __init__(self, place: Place, deep: bool) -> None:
        self._place = place
        self._deep = deep
        self._copies: dict[str, SeenCopy] = {}
        self._damaged: dict[str, str] = {}
        self._written = time.monotonic()

    def add(self, listed: Listed, proof: CopyProof) -> None:
        copy = listed.copy_
        if copy is None:
            self._damaged[listed.backup_id] = proof.summary
        else:
            known = self._place.view.copies.get(copy.backup_id)
            seen = as_seen(
                copy, verified_at=proof.finished_at, deep=self._deep, verdict=proof.verdict,
                summary=proof.summary, run_id=known.run_id if known else None,
            )  # fmt: skip
            if known is not None and not self._deep and _outweighs(known, copy, proof.verdict):
                seen = (
                    known  # what was read there and found bad is not made good by a look at names
                )
            self._copies[copy.backup_id] = seen
        if time.monotonic() - self._written > _WRITE_EVERY:
            self.write()

    def write(self) -> None:
        if self._copies or self._damaged:
            self._place.saw(self._copies, damaged=self._damaged, trouble=self._place.view.trouble)
        self._copies, self._damaged, self._written = {}, {}, time.monotonic()


def _verified(
    place: Place, listed: Listed, deep: bool, report: Reporter
) -> tuple[CopyProof, KybError | None]:
    """What a look at one copy finds, and what kept it from finding more."""
    now = utc_now()
    look = Examination()
    unreachable: KybError | None = None
    if listed.copy_ is None:
        look.found(listed.backup_id, listed.problem or "its commit object cannot be read")
    else:
        try:
            examine_copy(place.target, listed.copy_, look, deep=deep, report=report)
        except CopyDamaged as error:
            look.found(listed.backup_id, error.message)
        except KybError as error:
            unreachable = error
    return _proof(place, listed, look, unreachable, deep, now), unreachable


def _outweighs(known: SeenCopy, copy: OffsiteCopy, verdict: Verdict) -> bool:
    """Whether a copy that was read and found bad is still that copy, whatever a quick look says."""
    bad = known.deep and known.verdict == "failed" and known.verified_at is not None
    return bad and verdict == "passed" and copy.pushed_at <= (known.verified_at or copy.pushed_at)


def examine_copy(
    target: Target, copy: OffsiteCopy, look: Examination, *, deep: bool, report: Reporter = silent
) -> None:
    """Note what is wrong with the objects of a copy. Raises what the target raises."""
    there = objects_of(target, copy)
    doubtful: list[tuple[CopiedFile, Part]] = []
    unread: set[str] = set()
    for file in copy.all_files:
        for part in file.parts:
            if _is_doubtful(look, part, there.get(part.key), deep):
                doubtful.append((file, part))
            else:
                unread.add(file.path)
    total = sum(part.size for _, part in doubtful)
    done = 0
    files = {file.path: hashlib.sha256() for file in copy.all_files}
    with reading_ahead(target, (part for _, part in doubtful)) as data:
        for (file, part), future in zip(doubtful, data, strict=True):
            try:
                files[file.path].update(future.result())
            except CopyDamaged as error:
                look.found(part.key, error.message.removeprefix(part.key).strip())
                unread.add(file.path)
            done += part.size
            report(Progress(step="verify", done=done, total=total, detail=copy.backup_id))
    for file in copy.all_files:
        if file.path not in unread and files[file.path].hexdigest() != file.stored_sha256:
            look.found(file.path, "its parts do not make what was pushed")
    look.read = done


def _is_doubtful(look: Examination, part: Part, found: Found | None, deep: bool) -> bool:
    """Note what the listing says against a part for sure; whether it must be read.

    What a listing lacks is asked for: one that came late, or left something out, is no loss.
    """
    if found is not None and found.size != part.size:
        look.found(part.key, f"has {found.size} bytes, {part.size} were pushed")
        return False
    return deep or found is None or part.etag is None or found.etag != part.etag


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
        hint = (
            f"while the backup is at home: kyb-backup offsite push {listed.backup_id} --again, then "
            f"kyb-backup offsite verify {listed.backup_id} --deep"
        )
    elif unreachable is not None:
        verdict, summary, hint = "could_not_verify", unreachable.message, unreachable.hint
    return CopyProof(
        backup_id=listed.backup_id, kind=listed.kind, target=place.target.name, deep=deep,
        verdict=verdict, summary=summary, hint=hint, started_at=now, finished_at=utc_now(),
        findings=tuple(look.findings), stored=stored, read=look.read,
    )  # fmt: skip
