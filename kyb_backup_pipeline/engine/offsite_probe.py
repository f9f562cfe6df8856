"""What a target can be trusted with: tried once with tiny objects, and remembered.

Does it refuse to create an object twice? Does it refuse a body whose checksum is another? Does a listing show
what was just written? Does it keep metadata of locks? The answers decide how a copy is proved: where checksums
are refused, a write that was accepted is proof; elsewhere every object is read back. A new look is taken when
the settings of the target change, and on request.

A folder gets a marker at its first use; later one without it is a mount point with nothing mounted.
"""

import contextlib
import hashlib
import json
import secrets
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict

from kyb_backup_pipeline.engine.backup import FOLDERS
from kyb_backup_pipeline.engine.manifest import MANIFEST
from kyb_backup_pipeline.engine.offsite_folder import FolderTarget
from kyb_backup_pipeline.engine.offsite_target import (
    AlreadyThere,
    Gone,
    Lock,
    Target,
    TargetMisconfigured,
    TargetUnreachable,
)

MARKER = "kyb-offsite.json"
_PLACE = "probe"
_LOCKS = ".locks"
"""What a repository has in it, and no place for copies."""


class Probe(BaseModel):
    """What was found. ``honest_checksums`` is None where it cannot be tried: then it is not relied on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = 1
    at: AwareDatetime
    options: str
    create_only: bool
    honest_checksums: bool | None = None
    listed_at_once: bool
    locked_until: AwareDatetime | None = None
    lock_mode: str | None = None
    marker: str | None = None

    @property
    def honest(self) -> bool:
        """Whether a write that was accepted needs no reading back."""
        return self.honest_checksums is True

    def weaknesses(self) -> list[str]:
        """What must be made up for here, in words."""
        found = []
        if not self.create_only:
            found.append("it overwrites objects that were to be created")
        if self.honest_checksums is False:
            found.append("it accepts a wrong checksum")
        if self.honest_checksums is None:
            found.append("whether it looks at checksums cannot be tried")
        if not self.listed_at_once:
            found.append("a listing does not show what was just written")
        return found


def fingerprint(target: Target) -> str:
    """What changes when a target has to be probed anew; no secret is in it."""
    wanted = target.options.model_dump(
        mode="json", include={"url", "region", "endpoint", "access_key_id", "lock", "lock_days"}
    )
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


def probe(target: Target, now: datetime) -> Probe:
    """Try the target. Leaves nothing behind but what is locked there. Raises what the target raises."""
    place = f"{_PLACE}/{now:%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"
    one, wrong = f"{place}/one", f"{place}/wrong"
    marker = _mark(target)
    try:
        try:
            target.put(one, b"first", create=True)
        except Gone:
            raise TargetMisconfigured(
                f"{target.url} takes no objects", hint="offsite.url"
            ) from None
        with contextlib.suppress(AlreadyThere):
            target.put(one, b"second", create=True)
        create_only = target.get(one) == b"first"
        listed = [found.key for found in target.list(place)]
        accepted = target.accepts_wrong_digest(wrong)
        lock = target.lock_of(one) or Lock()
    except Gone:
        raise TargetMisconfigured(f"{target.url} does not have what it has just taken",
                                  hint="is offsite.url a bucket that keeps objects?") from None  # fmt: skip
    finally:
        for key in (one, wrong):
            _forget(target, key)
    return Probe(
        at=now,
        options=fingerprint(target),
        create_only=create_only,
        honest_checksums=None if accepted is None else not accepted,
        listed_at_once=one in listed,
        locked_until=lock.until,
        lock_mode=lock.mode,
        marker=marker,
    )


def check_marker(target: Target, known: Probe | None) -> None:
    """Raise TargetUnreachable for a folder that lost the marker we once left in it."""
    if not isinstance(target, FolderTarget) or known is None or known.marker is None:
        return
    found = _marker(target)
    if found != known.marker:
        what = "has no marker" if found is None else "has the marker of another"
        raise TargetUnreachable(
            f"{target.url} {what}: it is not the place that copies went to before",
            hint="is it mounted? If it is a new one: kyb-backup offsite list --probe",
        )


def check_no_repository(target: Target) -> None:
    """Raise TargetMisconfigured for a folder that has no marker and looks like a repository, or a copy of one."""
    if not isinstance(target, FolderTarget) or _marker(target) is not None:
        return
    backup = next(target.root.glob(f"{FOLDERS['full']}/*/{MANIFEST}"), None)
    if backup is not None or (target.root / _LOCKS).is_dir():
        raise TargetMisconfigured(
            f"{target.url} is a repository, or a copy of one, and no place for copies",
            hint="offsite.url: an empty folder beside it; nothing was written",
        )


def _mark(target: Target) -> str | None:
    if not isinstance(target, FolderTarget):
        return None
    found = _marker(target)
    if found is None:
        check_no_repository(target)
        found = secrets.token_hex(8)
        try:
            target.put(MARKER, json.dumps({"marker": found}).encode() + b"\n", create=True)
        except AlreadyThere:
            found = _marker(target)
    return found


def _marker(target: Target) -> str | None:
    try:
        return str(json.loads(target.get(MARKER))["marker"])
    except (Gone, ValueError, KeyError, TypeError):
        return None


def _forget(target: Target, key: str) -> None:
    try:
        target.delete([key])
    except Exception:  # noqa: BLE001  (it may be locked, or nothing may be deleted there at all)
        return
