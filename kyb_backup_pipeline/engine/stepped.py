"""A restore in steps that can be run one after the other, also by different processes.

Each step is written down before it begins and when it has ended; a step that stands in the journal as done
is not done again, one whose turn has not come is refused. What fails leaves what the restore owes: a live
database as it was, a service that runs. That is told with the error.
"""

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import psycopg

from kyb_backup_pipeline.engine.errors import KybError, Refused
from kyb_backup_pipeline.engine.journal import JournalFolder, Step, StepJournal
from kyb_backup_pipeline.engine.manifest import utc_now

_log = logging.getLogger(__name__)

J = TypeVar("J", bound=StepJournal)


class Stepped(ABC, Generic[J]):
    """One restore. The body of a step ``swap`` is a method ``_swap``, which may fill in its detail."""

    journal: J
    journals: JournalFolder

    @property
    @abstractmethod
    def steps(self) -> tuple[str, ...]:
        """The names of the steps, in their order."""

    @abstractmethod
    def _holding(self) -> AbstractContextManager[object]:
        """The locks of a step."""

    @abstractmethod
    def _owed(self, name: str, error: BaseException) -> str:
        """What is owed when a step fails: do it, and say how things stand."""

    def _told(self, error: psycopg.Error) -> KybError:
        """What PostgreSQL said, as an error of ours."""
        return KybError(str(error).splitlines()[0])

    def run(self) -> J:
        """Run every step that is not done yet. Raises what went wrong; the journal says how it ended."""
        for name in self.steps:
            self.step(name)
        return self.finish()

    def step(self, name: str) -> Step:
        """Run one step. Raises Refused unless all before it are done."""
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
            with self._holding():
                try:
                    with self.journals.step(self.journal, name) as step:
                        _log.info("%s: %s", self.journal.restore_id, name)
                        body(step)
                    return step
                except BaseException as error:
                    self._fail(name, error)
                    raise
        except psycopg.Error as error:
            raise self._told(error) from error

    def finish(self) -> J:
        """Close the journal."""
        self.journal.state = "done"
        self.journal.finished_at = utc_now()
        self.journals.keep(self.journal)
        return self.journal

    def _fail(self, name: str, error: BaseException) -> None:
        said = error.message if isinstance(error, KybError) else str(error) or type(error).__name__
        self.journal.error = f"{name}: {said.splitlines()[0] if said else name}"
        outcome: list[str] = []
        try:
            outcome.append(self._owed(name, error))
            if self.journal.state == "running":
                self.journal.state = "failed"
        except (KybError, psycopg.Error, OSError) as further:
            # it stays "running", and whoever comes next finishes it: kyb-backup restore repair
            self.journal.given_up = True
            outcome.append(f"and then: {str(further).splitlines()[0]}; once that is mended: "
                           "kyb-backup restore repair")  # fmt: skip
        self.journal.finished_at = utc_now()
        with contextlib.suppress(KybError):
            self.journals.keep(self.journal)
        if isinstance(error, KybError):
            error.message = "; ".join([error.message, *filter(None, outcome)])
