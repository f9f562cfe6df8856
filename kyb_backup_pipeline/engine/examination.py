"""What is found while a backup is looked at, file by file."""

from dataclasses import dataclass, field

from kyb_backup_pipeline.engine.errors import CouldNotVerify
from kyb_backup_pipeline.engine.manifest import BackupFile, Finding


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

    def compare(self, file: BackupFile, size: int, sha256: str) -> None:
        """Hold size and SHA-256 of a file against the manifest."""
        if size != file.size:
            self.found(file.path, f"has {size} bytes, the manifest says {file.size}")
        elif sha256 != file.sha256:
            self.found(file.path, "has another SHA-256 than the manifest says")

    def unopened(self, error: CouldNotVerify) -> None:
        """A file whose checksum fits, and which cannot be opened here."""
        self.unverifiable = CouldNotVerify(
            f"checksum passed, content could not be verified: {error.message}", hint=error.hint
        )

    def unreadable(self, what: str, error: OSError) -> None:
        """A file that cannot be read: bad, unless it is only this user who may not."""
        if isinstance(error, PermissionError):
            self.unverifiable = CouldNotVerify(
                f"{what} may not be read by this user", hint="run as the repository's owner"
            )
        else:
            self.found(what, f"cannot be read: {error.strerror}")
