"""A restore in steps, each written down before it begins and when it has ended.

A restore holds its locks from its beginning to its end, and settles what it owes whatever ends it: a failed
step, a signal, an error between two steps. What it owes is a live database as it was and a service that runs.
What it cannot settle is told, stays in its journal, and is done by ``restore repair``.
"""

import contextlib
import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, Self, TypeVar

import psycopg

from kyb_backup_pipeline.engine.errors import KybError, Refused
from kyb_backup_pipeline.engine.journal import JournalFolder, Step, StepJournal
from kyb_backup_pipeline.engine.manifest import utc_now

_log = logging.getLogger(__name__)

J = TypeVar("J", bound=StepJournal)


class Stepped(ABC, Generic[J]):
    """One restore. The body of a step ``swap`` is a method ``_swap``, which may fill in its detail.

    A context manager: leaving it lets go of the locks in ``held``, and settles a restore that has not ended.
    """

    journal: J
    journals: JournalFolder
    held: ExitStack

    @property
    @abstractmethod
    def steps(self) -> tuple[str, ...]:
        """The names of the steps, in their order."""

    @abstractmethod
    def _owed(self, name: str, error: BaseException) -> str:
        """What is owed when a step fails: do it, and say how things stand.

        ``name`` is empty where it was no step that failed.
        """

    def _check_held(self) -> None:
        """Raises Locked if a lock was lost meanwhile."""

    def _told(self, error: psycopg.Error) -> KybError:
        """What PostgreSQL said, as an error of ours."""
        return KybError((str(error) or type(error).__name__).splitlines()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Let go of it; what has not come to its end is settled first."""
        try:
            if self.journal.state == "running" and not self.journal.given_up:
                self._fail("", error or KybError("it was given up"))
        finally:
            self.held.close()

    def run(self) -> J:
        """Run every step, and let go. Raises what went wrong; the journal says how it ended."""
        with self:
            for name in self.steps:
                self.step(name)
            return self.finish()

    def step(self, name: str) -> Step:
        """Run one step; one that is done is not done again. Raises Refused unless all before it are done."""
        done = self.journal.began(name)
        if done is not None and done.finished_at is not None:
            return done
        if self.journal.state != "running":
            raise Refused(f"{self.journal.restore_id} has ended ({self.journal.state})",
                          hint="begin a new restore")  # fmt: skip
        missing = [s for s in self.steps[: self.steps.index(name)] if not self.journal.done(s)]
        if missing:
            raise Refused(f"{name} comes after {missing[0]}, which was not done",
                          hint="run the steps in their order")  # fmt: skip
        body: Callable[[Step], None] = getattr(self, f"_{name}")
        try:
            self._check_held()
            with self.journals.step(self.journal, name) as step:
                _log.info("%s: %s", self.journal.restore_id, name)
                body(step)
            return step
        except psycopg.Error as error:
            self._fail(name, told := self._told(error))
            self.held.close()
            raise told from error
        except BaseException as error:
            self._fail(name, error)
            self.held.close()
            raise

    def finish(self) -> J:
        """Close the journal."""
        self.journal.state = "done"
        self.journal.stopped = False
        self.journal.finished_at = utc_now()
        self.journals.keep(self.journal)
        return self.journal

    def _fail(self, name: str, error: BaseException) -> None:
        said = error.message if isinstance(error, KybError) else str(error) or type(error).__name__
        self.journal.error = f"{name}: {said.splitlines()[0] if said else name}"
        outcome: list[str] = []
        with undisturbed():
            try:
                outcome.append(self._owed(name, error))
                self.journal.given_up = False
                if self.journal.state == "running":
                    self.journal.state = "failed"
            except (KybError, psycopg.Error, OSError) as further:
                # whoever comes next does it: kyb-backup restore repair
                self.journal.given_up = True
                reason = (str(further) or type(further).__name__).splitlines()[0]
                outcome.append(
                    f"and then: {reason}; once that is mended: kyb-backup restore repair"
                )
            self.journal.finished_at = utc_now()
            with contextlib.suppress(KybError):
                self.journals.keep(self.journal)
        _log.warning(
            "%s failed: %s", self.journal.restore_id, "; ".join([said, *filter(None, outcome)])
        )
        if isinstance(error, KybError):
            error.message = "; ".join([error.message, *filter(None, outcome)])


def recorded_step(journal: StepJournal, name: str) -> Step:
    """A step that somebody asks for alone, of a restore that is not at work here: done, or refused."""
    done = journal.began(name)
    if done is not None and done.finished_at is not None:
        return done
    if journal.settled:
        raise Refused(
            f"{journal.restore_id} has ended ({journal.state})", hint="begin a new restore"
        )
    raise Refused(
        f"{name} of {journal.restore_id} was not done, and what it needs went with the run that it was "
        "part of", hint="launch a new run from its beginning; kyb-backup restore repair settles the old one",
    )  # fmt: skip


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not keep the old state from coming back."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
