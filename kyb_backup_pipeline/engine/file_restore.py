"""Bringing back configuration and application state, in the place of what runs now.

    unpack      every member compared, beside what runs
    save        a safety backup of what runs now, and its feature flags
    stop        the service
    swap        by renames
    start       the service
    flags       posted back

On any failure what was swapped is swapped back, the service is started again and the error says so; after a
kill the next restore (or ``restore repair``) does that. Unlike a restore of the database it is one
process's work: the folder is held, and what was unpacked lies there, only as long as that lives.

Where to look next: ``extraction`` for what is refused, ``swap`` for the renames, ``file_unpacking`` for a
restore into a new folder.
"""

import contextlib
import logging
from contextlib import ExitStack
from datetime import datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import BackupFailed, KybError, RestoreFailed
from kyb_backup_pipeline.engine.extraction import Rules, Unpacked
from kyb_backup_pipeline.engine.file_backup import (
    FLAGS_FILE,
    LOGS,
    take_application_backup,
    take_configuration_backup,
)
from kyb_backup_pipeline.engine.file_repair import FLAGS_BEFORE, await_api, repair_all
from kyb_backup_pipeline.engine.file_source import (
    Destination,
    destination_of,
    is_old_archive,
    unpack_backup,
)
from kyb_backup_pipeline.engine.file_unpacking import Options, Restored, restore_into
from kyb_backup_pipeline.engine.files import flush_folder, write_durably
from kyb_backup_pipeline.engine.journal import JournalFolder, Step, StepJournal, journal_folder
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.platform_api import check_json, fetch_flags, restore_flags
from kyb_backup_pipeline.engine.progress import Reporter, silent
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX, Request
from kyb_backup_pipeline.engine.service import start_service, stop_service
from kyb_backup_pipeline.engine.settings import ApplicationSettings, Settings
from kyb_backup_pipeline.engine.stepped import Stepped
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.swap import (
    REPLACED,
    Unit,
    carry_over,
    check_mounts,
    forget,
    keep_aside,
    plan_units,
    remove,
    swap,
    undo,
    working,
    write_journal,
)
from kyb_backup_pipeline.engine.tree import walk

_log = logging.getLogger(__name__)

STEPS = ("unpack", "save", "stop", "swap", "start", "flags")


def restore_in_place(
    settings: Settings,
    backup: Backup,
    options: Options,
    *,
    now: datetime,
    report: Reporter = silent,
) -> Restored:
    """Restore configuration or application state over what runs now.

    Raises RestoreFailed (then the old state stands, and the service was started again), Refused,
    Locked, BackupFailed if what runs now cannot be saved.
    """
    restore = InPlaceRestore(settings, backup, options, now=now, report=report)
    restore.run()
    return restore.outcome


class InPlaceRestore(Stepped[StepJournal]):
    """One restore over what runs now. Left before its end, it puts back what was there."""

    def __init__(
        self,
        settings: Settings,
        backup: Backup,
        options: Options,
        *,
        now: datetime,
        run_id: str | None = None,
        report: Reporter = silent,
    ) -> None:
        """Hold the folder and the backup. Raises Locked, RestoreFailed, Refused."""
        self.settings, self.backup, self.options, self.report = settings, backup, options, report
        self.how = settings.application
        self.target = destination_of(settings, backup)
        self.outcome = Restored(backup_id=backup.backup_id, folder=self.target.base)
        self.journals = JournalFolder(journal_folder(settings))
        self.journal = StepJournal(
            restore_id=f"files_{now:%Y%m%d_%H%M%S_%f}", backup_id=backup.backup_id, place=backup.place,
            began_at=now,
            run_id=run_id, service_wanted=options.service,
        )  # fmt: skip
        self._flags_now: bytes | None = None
        self._posted = False
        self._units: list[Unit] = []
        self._unpacked = Unpacked()
        repair_all(settings, service=options.service)
        try:
            self.target.base.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise RestoreFailed(f"{self.target.base} cannot be made: {error.strerror}") from error
        with ExitStack() as held:
            held.enter_context(Repository(settings.repository).reading(backup))
            self.work = held.enter_context(working(self.target.base, backup.backup_id, now))
            self.held = held.pop_all()

    @property
    def steps(self) -> tuple[str, ...]:
        return STEPS

    def finish(self) -> StepJournal:
        """What was in place lies beside from now on."""
        aside = keep_aside(self.work, REPLACED)
        (aside / FLAGS_BEFORE).unlink(missing_ok=True)
        if any(unit.old is not None for unit in self._units):
            self.outcome.kept = aside
        else:
            remove(aside)  # nothing was replaced
        self.outcome.interruption = self.journal.interruption_seconds
        self.journal.notes = self.outcome.notes
        return super().finish()

    # The steps

    def _unpack(self, step: Step) -> None:
        options, outcome, backup = self.options, self.outcome, self.backup
        rules = Rules(take=self.target.take, captured=self._captured, owners=options.owners,
                      skip_unsafe=options.skip_unsafe)  # fmt: skip
        self._unpacked = unpacked = unpack_backup(
            self.settings, backup, None, self.work.new, rules, self.report
        )
        outcome.files, outcome.notes = unpacked.files, unpacked.notes
        if not unpacked.wholes and not unpacked.singles:
            raise RestoreFailed(f"{backup.backup_id} holds nothing to restore")
        check_mounts(self.work.base, [*unpacked.wholes, *unpacked.singles])
        if self._flags_then is not None:
            _check_flags(backup, self._flags_then)
        elif self._captured:
            outcome.notes.append(
                "the backup has no feature flags: those in force were left as they are"
            )
        if is_old_archive(backup):
            outcome.notes.append(
                "the old script kept no folders of environment files: they lie at the top"
            )
        if options.logs_into is not None:
            restore_into(
                self.settings, backup, options.logs_into, options, part=LOGS, report=self.report
            )
        step.detail = f"{outcome.files} files"

    def _save(self, step: Step) -> None:
        if self._captured:
            self._flags_now = _present_flags(self.how)
        if self.options.safety_backup:
            self.outcome.saved_as = _save(
                self.settings, self.backup, self.target, self.journal.began_at
            )
        step.detail = self.outcome.saved_as or "nothing was saved"

    def _stop(self, step: Step) -> None:
        self._units = plan_units(self.work, self._unpacked.wholes, self._unpacked.singles)
        self.outcome.units = tuple(unit.path for unit in self._units)
        write_journal(self.work, self._units, self.backup.backup_id)
        if self.options.service:
            stop_service(self.how)

    def _swap(self, step: Step) -> None:
        for whole in self._unpacked.wholes:  # now nobody writes there any more
            if carried := carry_over(self.work, whole, self.target.selection):
                self.outcome.notes.append(
                    f"{carried} entries of {whole} that no backup has were kept"
                )
        swap(self.work, self._units)

    def _start(self, step: Step) -> None:
        if self.options.service:
            start_service(self.how)
        stopped = self.journal.began("stop")
        assert stopped is not None
        self.journal.interruption_seconds = (utc_now() - stopped.began_at).total_seconds()

    def _flags(self, step: Step) -> None:
        flags = self._flags_then
        if flags is None or not self.how.flags_url:
            step.detail = "left as they are"
            return
        await_api(self.how)
        if self._flags_now is not None:
            write_durably(self.work.folder / FLAGS_BEFORE, self._flags_now)
            flush_folder(self.work.folder)
        self._posted = True
        if other := restore_flags(self.how, flags):
            self.outcome.notes.append(
                f"the service now answers with other flags: {', '.join(other)}"
            )
        self.outcome.flags = True

    # What is around them

    @property
    def _captured(self) -> tuple[str, ...]:
        wanted = self.options.flags and self.backup.kind == "application_state"
        return (FLAGS_FILE,) if wanted else ()

    @property
    def _flags_then(self) -> bytes | None:
        return self._unpacked.captured.get(FLAGS_FILE)

    def _owed(self, name: str, error: BaseException) -> str:
        """The old state again, and the service with it.

        The journal of the folder goes only once all of it is done: else ``restore repair`` goes on.
        """
        if not self.work.journalled:
            return ""
        _log.warning("the restore failed and is undone: %s", error)
        if self.journal.began("start"):  # with the new state, which it would go on with
            with contextlib.suppress(KybError):
                stop_service(self.how)
        undo(self.work)
        if self.options.service:
            start_service(self.how)
        if self._posted and self._flags_now is not None:
            await_api(self.how)
            restore_flags(self.how, self._flags_now)
        forget(self.work)
        if self._posted and self._flags_now is None:
            return "the feature flags of the backup are in force: those of before are not known"
        return "everything is as it was before"


def _check_flags(backup: Backup, flags: bytes) -> None:
    """Flags that the service could only refuse are found before it is stopped."""
    try:
        check_json(flags, f"{FLAGS_FILE} of {backup.backup_id}")
    except KybError as error:
        raise RestoreFailed(
            error.message, hint="--without-flags leaves them as they are"
        ) from error


def _save(settings: Settings, backup: Backup, target: Destination, now: datetime) -> str | None:
    """Back up what is there now; None where there is nothing."""
    request = Request(
        backup_id=Repository(settings.repository).free_id(SAFETY_PREFIX, now),
        label=f"before restoring {backup.backup_id}",
    )
    try:
        if backup.kind == "configuration":
            if not any(walk(target.base, target.selection, [])):
                return None
            return take_configuration_backup(settings, request, now=now).backup_id
        how = settings.application
        if not (how.root / how.configs).is_dir():
            return None
        saved = take_application_backup(settings, request, None, now=now, flags_required=False)
        return saved.backup_id
    except KybError as error:
        raise BackupFailed(
            f"what is there now could not be saved: {error.message}",
            hint="nothing was changed; --without-safety-backup restores all the same",
        ) from error


def _present_flags(how: ApplicationSettings) -> bytes | None:
    if not how.flags_url:
        return None
    try:
        return fetch_flags(how)
    except BackupFailed as error:
        _log.warning("the flags in force now are not known: %s", error.message)
        return None
