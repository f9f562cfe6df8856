"""Can files be backed up, verified and restored here? The part of ``doctor`` that needs no database."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kyb_backup_pipeline.engine.encryption import NoKeys, check_keys, check_opening, check_own
from kyb_backup_pipeline.engine.errors import BackupFailed, CouldNotVerify
from kyb_backup_pipeline.engine.file_backup import configuration_root, configured_selection
from kyb_backup_pipeline.engine.file_repair import bases_of
from kyb_backup_pipeline.engine.platform_api import fetch_flags
from kyb_backup_pipeline.engine.postgres import Target
from kyb_backup_pipeline.engine.recovery_journal import Journals
from kyb_backup_pipeline.engine.settings import ApplicationSettings, EncryptionSettings, Settings
from kyb_backup_pipeline.engine.swap import kept, unfinished
from kyb_backup_pipeline.engine.tree import Changed, walk

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    level: Level
    subject: str
    message: str
    hint: str | None = None


def archives(settings: Settings) -> Iterator[Line]:
    """Keys, the application's folder and service, and what killed restores left."""
    yield from _keys(settings.encryption)
    yield from _configuration(settings)
    yield from _application(settings.application)
    for base in bases_of(settings):
        for work in unfinished(base) if base.is_dir() else ():
            yield Line("error", "restore", f"{work.folder} was left by a restore that was killed",
                       "kyb-backup restore repair")  # fmt: skip
        for folder in kept(base) if base.is_dir() else ():
            yield Line(
                "ok", "restore", f"{folder} is what a restore took out of place: remove it one day"
            )
    for journal in Journals.of(settings).all(Target.of(settings)):
        if journal.abandoned():
            yield Line("error", "restore", f"{journal.restore_id} of {journal.backup_id} was killed",
                       "kyb-backup restore repair")  # fmt: skip


def _keys(encryption: EncryptionSettings) -> Iterator[Line]:
    home = encryption.at_home is not None
    try:
        recipients = check_keys(encryption)
    except NoKeys as error:
        what = "nothing can" if home else "no configuration and no application state can"
        yield Line("error" if home else "warning", "encryption",
                   f"{error.message}: {what} be backed up", error.hint)  # fmt: skip
        return
    keys = f"{len(recipients)} public key{'s' * (len(recipients) > 1)}"
    to = f"to {keys}" if recipients else "with a passphrase"
    also = ", backups of the database too" if home else ""
    yield Line("ok", "encryption", f"{encryption.method}, {to}{also}")
    what = "contents of archives cannot be verified here"
    if home:
        what += ", and restore tests of backups of the database could not verify"
    try:
        check_opening(encryption, encryption.method)
    except CouldNotVerify as error:
        yield Line("warning", "encryption", f"{what}: {error.message}", error.hint)
        return
    try:
        check_own(encryption)
    except CouldNotVerify as error:
        yield Line("warning", "encryption", f"{what}: {error.message}", error.hint)
    secret = encryption.identity_file if encryption.method == "age" else encryption.passphrase_file
    if secret is None:
        return
    if secret.stat().st_mode & 0o077:
        yield Line(
            "warning", "encryption", f"{secret} can be read by others", f"chmod 600 {secret}"
        )
    else:
        yield Line("ok", "encryption", f"{secret} opens what is encrypted: keep a copy elsewhere")


def _configuration(settings: Settings) -> Iterator[Line]:
    root = configuration_root(settings)
    if not root.is_dir():
        yield Line("warning", "configuration", f"there is no folder {root}",
                   "application.root or configuration.root names it")  # fmt: skip
        return
    notes: list[str] = []
    try:
        found = list(walk(root, configured_selection(settings), notes))
        for entry in found:
            if not os.access(entry.source, os.R_OK, follow_symlinks=False):
                yield Line("error", "configuration", f"{entry.path} may not be read by this user",
                           "run as a user who may, or leave it out: configuration.exclude")  # fmt: skip
                return
    except Changed as error:
        yield Line("warning", "configuration", error.message)
        return
    except BackupFailed as error:
        yield Line("error", "configuration", error.message, error.hint)
        return
    level: Level = "ok" if found else "warning"
    yield Line(level, "configuration", f"{len(found)} entries of {root} are taken")
    for note in notes:
        yield Line("warning", "configuration", note)


def _application(how: ApplicationSettings) -> Iterator[Line]:
    configs = how.root / how.configs
    if not configs.is_dir():
        yield Line("warning", "application", f"there is no folder {configs}",
                   "application.root and application.configs name it")  # fmt: skip
    if how.backup_logs and not how.logs.is_dir():
        yield Line("warning", "application", f"there is no folder {how.logs}: no logs are backed up",
                   "application.logs names it, application.backup_logs = false does without")  # fmt: skip
    if not how.flags_url:
        return
    try:
        content = fetch_flags(how.model_copy(update={"retries": 0}))
        yield Line("ok", "application", f"feature flags answer, {len(content)} bytes")
    except BackupFailed as error:
        yield Line("warning", "application", error.message, error.hint)
