"""The course of a restore test: what it gathers on its way, and the verdict at its end.

passed              nothing differed
failed              something of the backup is bad: a finding, or an error of the restore itself
could not verify    this machine lacks what the test needs; not a pass, and not a bad backup
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from kyb_backup_pipeline.engine.errors import CouldNotVerify, KybError, ProofFailed, RestoreFailed
from kyb_backup_pipeline.engine.manifest import Finding, Proof, Verdict, utc_now

_HINT = "take a new backup now and test it; keep this one until another has passed"


@dataclass
class Course:
    """Kept also when the test ends early. ``figures`` are numbers, ``steps`` seconds."""

    steps: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    summary: str = ""
    server: str = ""
    _verdict: Verdict = "passed"
    _hint: str | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.steps[name] = round(time.monotonic() - began, 3)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Turn errors of the block into a verdict."""
        try:
            yield
        except (RestoreFailed, ProofFailed) as error:
            self._verdict, self.summary = "failed", error.message
        except KybError as error:  # CouldNotVerify among them, and no room, and no connection
            self._verdict, self.summary, self._hint = "could_not_verify", error.message, error.hint

    def could_not_verify(self, error: CouldNotVerify) -> None:
        """End with that verdict."""
        self._verdict, self.summary, self._hint = "could_not_verify", error.message, error.hint

    def proof(
        self,
        backup_id: str,
        proof: Literal["verification", "restore_test"],
        now: datetime,
        run_id: str | None,
    ) -> Proof:
        """The record. Whatever was found makes it a failure, and the first finding its summary."""
        verdict, hint, summary = self._verdict, self._hint, self.summary
        if self.findings:
            verdict, first = "failed", self.findings[0]
            more = f" and {len(self.findings) - 1} more" if len(self.findings) > 1 else ""
            summary = f"{first.object} {first.message}{more}"
        if verdict == "failed":
            hint = _HINT
        return Proof(
            backup_id=backup_id,
            proof=proof,
            verdict=verdict,
            summary=summary,
            hint=hint,
            started_at=now,
            finished_at=utc_now(),
            findings=tuple(self.findings),
            notes=tuple(self.notes),
            figures=self.figures,
            steps=self.steps,
            tool_versions={"postgres": self.server} if self.server else {},
            run_id=run_id,
        )
