"""Can copies go off-site, and are they safe there? Looked at for ``check``; nothing is written."""

from collections.abc import Iterator
from datetime import datetime

from kyb_backup_pipeline.engine.checkup import Line
from kyb_backup_pipeline.engine.encryption import check_keys, check_opening
from kyb_backup_pipeline.engine.errors import CouldNotVerify, KybError
from kyb_backup_pipeline.engine.offsite_copy import Listed, OffsiteCopy, list_copies
from kyb_backup_pipeline.engine.offsite_lock import safety_of
from kyb_backup_pipeline.engine.offsite_opening import check_apart, target_of
from kyb_backup_pipeline.engine.offsite_probe import check_marker, check_no_repository, fingerprint
from kyb_backup_pipeline.engine.offsite_target import Target, target_settings
from kyb_backup_pipeline.engine.offsite_view import Views
from kyb_backup_pipeline.engine.settings import EncryptionSettings, OffsiteTargetSettings, Settings

_RETRIES, _PATIENCE = 1, 10.0
"""A check does not wait as long as a push."""


def offsite(settings: Settings, now: datetime) -> Iterator[Line]:
    """Lines for each off-site place."""
    targets = target_settings(settings.offsite)
    if not targets:
        yield Line("warning", "off-site", "no place is set: what takes this machine takes all backups",
                   "offsite.url; docs/settings.md")  # fmt: skip
        return
    yield from _encryption(settings.encryption)
    for name, options in targets.items():
        yield from _target(settings, name, options, now)


def _target(
    settings: Settings, name: str, options: OffsiteTargetSettings, now: datetime
) -> Iterator[Line]:
    subject = f"off-site {name}" if name != "offsite" else "off-site"
    brief = options.model_copy(
        update={
            "retries": min(options.retries, _RETRIES),
            "timeout": min(options.timeout, _PATIENCE),
        }
    )
    try:
        target = target_of(name, brief, now)
        check_apart(target, settings)
        known = Views(settings.repository).read(name, target.url).probe
        check_marker(target, known)
        check_no_repository(target)
        copies = list_copies(target)
    except KybError as error:
        yield Line("error", subject, error.message, error.hint)
        return
    readable = [listed.copy_ for listed in copies if listed.copy_ is not None]
    newest = f", the newest {readable[0].backup_id}" if readable else ""
    yield Line("ok", subject, f"{target.url} answers: {len(readable)} copies{newest}")
    for listed in copies:
        if listed.copy_ is None:
            yield Line("error", subject, listed.problem or "", "kyb-backup offsite verify")
    if known is None or known.options != fingerprint(target):
        yield Line("ok", subject, "what it can be trusted with is tried at the next push")
    elif weaknesses := known.weaknesses():
        yield Line("warning", subject, f"{'; '.join(weaknesses)}: what goes there is read back",
                   "that takes twice the time; kyb-backup offsite list --probe looks again")  # fmt: skip
    else:
        yield Line("ok", subject, "it refuses wrong checksums, and to create an object twice")
    if readable:
        yield from _safety(subject, target, copies, readable[0], now)


def _safety(
    subject: str, target: Target, copies: list[Listed], newest: OffsiteCopy, now: datetime
) -> Iterator[Line]:
    try:
        safety = safety_of(target, newest)
    except KybError as error:
        yield Line("warning", subject, f"whether copies can be deleted cannot be read: {error.message}",
                   error.hint)  # fmt: skip
        return
    deletable = safety.deletable(now)
    if deletable is None:
        yield Line("warning", subject, "whether copies can be deleted cannot be read here",
                   "look at the retention policy of the bucket or container")  # fmt: skip
    elif deletable:
        yield Line("warning", subject, f"{newest.backup_id} can be deleted today, by whoever has this key",
                   "a bucket with Object Lock, and offsite.lock; docs/runbook.md")  # fmt: skip
    else:
        until = safety.until
        assert until is not None
        yield Line(
            "ok", subject, f"{newest.backup_id} is locked until {until:%Y-%m-%d} ({safety.mode})"
        )


def _encryption(encryption: EncryptionSettings) -> Iterator[Line]:
    if encryption.database is False:
        yield Line("warning", "off-site", "copies of the database leave this machine unencrypted",
                   'encryption.database = "offsite"')  # fmt: skip
        return
    try:
        check_keys(encryption)
        yield Line(
            "ok", "off-site", f"copies of the database are encrypted with {encryption.method}"
        )
    except KybError as error:
        yield Line("error", "off-site", f"nothing can be copied: {error.message}", error.hint)
        return
    try:
        check_opening(encryption, encryption.method)
    except CouldNotVerify as error:
        yield Line(
            "warning", "off-site", f"copies cannot be opened here: {error.message}", error.hint
        )
