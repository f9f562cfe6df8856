"""What is found while a backup is looked at, file by file."""

from dataclasses import dataclass, field

from kyb_backup_pipeline.engine.errors import CouldNotVerify
from kyb_backup_pipeline.engine.manifest import Finding


@dataclass
class Examination:
    """What is found while a backup is looked at."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unverifiable: CouldNotVerify | None = None
    figures: dict[str, float] = field(default_factory=dict)
    read: int = 0

    def found(self, what: str, message: str) -> None:
        self.findings.append(Finding(object=what, message=message))

    def unreadable(self, what: str, error: OSError) -> None:
        """A file that cannot be read: bad, unless it is only this user who may not."""
        if isinstance(error, PermissionError):
            self.unverifiable = CouldNotVerify(
                f"{what} may not be read by this user", hint="run as the repository's owner"
            )
        else:
            self.found(what, f"cannot be read: {error.strerror}")
