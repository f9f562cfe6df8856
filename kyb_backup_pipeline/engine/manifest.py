"""What is written about a backup: its manifest, and the records of its proofs.

The manifest keeps the keys of the procedures' ``backup_metadata.json`` and adds to them. One written
by the old scripts is read too: there ``file_size`` and ``database.port`` are strings,
``backup_file`` is an absolute path, and there is no ``format_version``, no ``files`` and no evidence.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kyb_backup_pipeline.engine.errors import KybError

MANIFEST = "backup_metadata.json"
MANIFEST_CHECKSUM = "backup_metadata.json.sha256"
FORMAT_VERSION = 1

Kind = Literal["full", "base", "incremental", "application_state", "configuration"]
Verdict = Literal["passed", "failed", "could_not_verify"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class UnreadableManifest(KybError):
    """A manifest that is damaged, or of a format this version does not know."""

    exit_code = 6


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SourceDatabase(_Document):
    """Where the backup comes from."""

    host: str
    port: int
    name: str
    user: str


class BackupFile(_Document):
    """One file of a backup; ``path`` is relative to its folder, ``size`` in bytes."""

    path: str
    size: int = Field(ge=0)
    sha256: Sha256


class Requirements(_Document):
    """What a server must offer to take this backup in."""

    encoding: str
    locale_provider: str
    collate: str
    ctype: str
    locale: str | None = None
    icu_rules: str | None = None
    lc_monetary: str = "C"
    bootstrap_role: str = "postgres"
    database_bytes: int = 0
    extensions: dict[str, str] = {}
    collations: tuple[str, ...] = ()


class EvidenceSummary(_Document):
    """What the source held in the snapshot of the dump; the whole stands in ``evidence.json``.

    ``seconds`` is the time the digests took beside the dump.
    """

    mode: Literal["content", "none"]
    tables: int = 0
    rows: int = 0
    objects: int = 0
    seconds: float = 0


class WalSegment(_Document):
    """One segment in the store: SHA-256 of its content, ``size`` in bytes as it is stored."""

    name: str
    sha256: Sha256
    size: int = Field(ge=0)


class Marker(_Document):
    """A transaction that was committed only to be found again.

    It was committed between the positions ``begun_lsn`` and ``lsn``, and between the times ``at`` and
    ``done_at`` of the server's clock.
    """

    xid: int
    begun_lsn: str
    lsn: str
    at: AwareDatetime
    done_at: AwareDatetime


class Wal(_Document):
    """The part of the log that a base backup or an increment holds, and where it comes from.

    A base backup is consistent from ``end_lsn`` on, which the server reached before ``end_at`` (its own
    clock). An increment of ``method`` "wal" is replayed on ``base``; its segments lie in the store.
    ``settings`` are those that a server must have at least to replay it. ``lag_bytes`` is what the
    slot kept back on the server, ``archive_failures`` what its archiver counted.
    """

    method: Literal["wal"] = "wal"
    base: str | None = None
    previous: str | None = None
    system_identifier: str
    timeline: int = Field(ge=1)
    start_lsn: str
    end_lsn: str
    end_at: AwareDatetime
    segment_bytes: int
    segments: tuple[WalSegment, ...] = ()
    markers: tuple[Marker, ...] = ()
    tablespaces: dict[str, str] = {}
    settings: dict[str, int] = {}
    superusers: tuple[str, ...] = ()
    source: Literal["slot", "archive"] | None = None
    lag_bytes: int | None = None
    archive_failures: int | None = None


class Encryption(_Document):
    """What the files of a backup are encrypted with: age and its public keys, or gpg's passphrase."""

    method: Literal["age", "gpg"]
    recipients: tuple[str, ...] = ()


class Archive(_Document):
    """An encrypted archive among the files of a backup: tar, zstd, then age or gpg.

    ``content_bytes`` is what its members hold. Their list, with a SHA-256 for each, is the last member and as
    secret as the rest; ``members_sha256`` is that list's.
    """

    path: str
    encryption: Literal["age", "gpg"]
    recipients: tuple[str, ...] = ()
    members: int = Field(ge=0)
    content_bytes: int = Field(ge=0)
    members_sha256: Sha256


class Manifest(_Document):
    """One backup. Sizes in bytes, times aware and in UTC.

    ``encryption`` is of backups of the database; archives each say their own. Nothing here is secret:
    a manifest is plain text also where all else is encrypted.
    """

    backup_id: str
    timestamp: AwareDatetime
    type: Kind
    database: SourceDatabase | None = None
    backup_file: str
    file_size: int = Field(ge=0)
    checksum: Sha256 | None = None
    format_version: int = 0
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    server_version: str | None = None
    tool_versions: dict[str, str] = {}
    dump_format: Literal["plain", "directory"] = "plain"
    compression: str = "gzip"
    encryption: Encryption | None = None
    uncompressed_size: int | None = None
    files: tuple[BackupFile, ...] = ()
    requirements: Requirements | None = None
    evidence: EvidenceSummary | None = None
    wal: Wal | None = None
    archives: tuple[Archive, ...] = ()
    components: dict[str, bool] = {}
    version: str | None = None
    notes: tuple[str, ...] = ()
    label: str | None = None
    deployment: str | None = None
    run_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_format(cls, data: Any) -> Any:
        version = data.get("format_version", 0) if isinstance(data, dict) else 0
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(
                f"format_version {version} is newer than this program knows ({FORMAT_VERSION}): "
                "update kyb-backup-pipeline"
            )
        return data

    @property
    def completed_at(self) -> datetime:
        """When the backup was complete; the manifest's own time for those of the old scripts."""
        return self.finished_at or self.timestamp

    @property
    def legacy(self) -> bool:
        """Whether the shell scripts of the procedures made it."""
        return self.format_version == 0

    @property
    def total_size(self) -> int:
        """Bytes of all files but the manifest; of an increment, its segments in the store."""
        return sum(file.size for file in self.files) or self.file_size

    def require_checksum(self) -> str:
        """The checksum. Raises UnreadableManifest where there is none (old application backups)."""
        if self.checksum is None:
            raise UnreadableManifest(f"the manifest of {self.backup_id} has no checksum")
        return self.checksum

    def require_wal(self) -> Wal:
        """The part of the log. Raises UnreadableManifest where there is none."""
        if self.wal is None:
            raise UnreadableManifest(f"the manifest of {self.backup_id} says nothing of its WAL")
        return self.wal

    @property
    def server_major(self) -> int | None:
        return int(self.server_version.split(".")[0]) if self.server_version else None


def parse_manifest(content: bytes, *, where: str, model: type[Manifest] = Manifest) -> Manifest:
    """Read a manifest. Raises UnreadableManifest; ``where`` names it in the message."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}: {first['msg']}" if key else first["msg"]
        raise UnreadableManifest(f"{where} cannot be read: {reason}") from error


def write_json(document: BaseModel) -> bytes:
    """The bytes of a document: indented, keys in the order of the model, a final newline."""
    return (document.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


class Finding(_Document):
    """One thing a proof found: the object it is about, and what is wrong with it."""

    object: str
    message: str


class Proof(_Document):
    """The record of one verification or restore test; kept when the backup is pruned.

    ``figures`` are numbers for plots and reports (bytes, rows, seconds); ``steps`` are seconds. ``place`` is the
    off-site place whose copy was proved, None for the backup at home.
    """

    format_version: int = FORMAT_VERSION
    backup_id: str
    proof: Literal["verification", "restore_test"]
    verdict: Verdict
    summary: str
    hint: str | None = None
    place: str | None = None
    started_at: AwareDatetime
    finished_at: AwareDatetime
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, float] = {}
    steps: dict[str, float] = {}
    tool_versions: dict[str, str] = {}
    run_id: str | None = None

    @property
    def seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def of_backup(self) -> bool:
        """Whether it tells of the backup itself. A copy that is good does; one that is bad tells of the copy."""
        return self.place is None or self.verdict == "passed"


def utc_now() -> datetime:
    """The clock, read by entry points only."""
    return datetime.now(UTC)
