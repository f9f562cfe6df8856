"""Everything an operator can set: one tree of models, with the declared defaults. ``config`` loads it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kyb_backup_pipeline.engine.trouble import Severity

Seconds = Annotated[float, Field(gt=0)]
NonEmpty = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class DatabaseSettings(_Section):
    """The database that is backed up. ``host`` may be a folder with a Unix socket."""

    host: NonEmpty = "localhost"
    port: int = Field(5432, ge=1, le=65535)
    name: NonEmpty = "kyb_platform"
    user: NonEmpty = "kyb_user"
    password: SecretStr | None = None
    password_file: Path | None = None
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    connect_timeout: Seconds = 10


class PostgresSettings(_Section):
    """Where PostgreSQL's programs are looked for, before the system's own places."""

    bin_dirs: tuple[Path, ...] = ()
    use_system: bool = True
    use_embedded: bool = True


class BackupSettings(_Section):
    """How a full backup is taken. Sizes in bytes, times in seconds."""

    format: Literal["plain", "directory"] = "plain"
    compression: Literal["zstd", "gzip"] = "zstd"
    level: int | None = Field(None, ge=1, le=19)
    jobs: int = Field(2, ge=1, le=64)
    evidence: Literal["content", "none"] = "content"
    minimum_free: int = Field(2 * 1024**3, ge=0)
    stall_timeout: Seconds = 600
    lock_timeout: Seconds = 10
    lock_attempts: int = Field(5, ge=1, le=100)


class BaseBackupSettings(_Section):
    """How a base backup is taken. ``rate_limit`` in bytes a second, ``max_age`` in seconds: a base
    older than that is due for another.
    """

    checkpoint: Literal["fast", "spread"] = "fast"
    rate_limit: int | None = Field(None, ge=32 * 1024, le=1024**3)
    level: int | None = Field(None, ge=1, le=19)
    jobs: int = Field(2, ge=1, le=64)
    max_age: Seconds = 8 * 24 * 3600
    stall_timeout: Seconds = 600


class WalSettings(_Section):
    """How WAL comes into the repository. ``wait`` in seconds: for the server to hand a segment over.

    ``inbox`` is the folder that ``kyb-wal-push`` fills, with ``source = "archive"``.
    """

    source: Literal["slot", "archive"] = "slot"
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = "kyb_backup"
    allow_unbounded_slot: bool = False
    inbox: Path | None = None
    wait: Seconds = 300


class RestoreTestSettings(_Section):
    """The throwaway cluster of a restore test and what is asked of it."""

    directory: Path = Path("/var/tmp")
    run_as: NonEmpty | None = None
    jobs: int = Field(2, ge=1, le=64)
    smoke_queries: tuple[NonEmpty, ...] = ()
    smoke_timeout: Seconds = 60
    stall_timeout: Seconds = 3600


def _as_a_word(value: object) -> object:
    """Variables hold text: ``true`` and ``false`` mean what they mean in a file."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


class EncryptionSettings(_Section):
    """How archives of configuration and application state are encrypted, and whether backups of the
    database are: never, at home and everywhere (``True``), or only on their way to another place.

    ``recipients`` are public keys of age; ``identity_file`` holds the private one, and is needed only
    where what is encrypted is looked into or restored. gpg takes the passphrase.
    """

    method: Literal["age", "gpg"] = "age"
    recipients: tuple[NonEmpty, ...] = ()
    identity_file: Path | None = None
    passphrase: SecretStr | None = None
    passphrase_file: Path | None = None
    database: Annotated[Literal[False, True, "offsite"], BeforeValidator(_as_a_word)] = False

    @property
    def at_home(self) -> "EncryptionSettings | None":
        """What backups of the database are encrypted with as they are taken; None: they are not."""
        return self if self.database is True else None


class ApplicationSettings(_Section):
    """The application: its folder, its admin API, its sessions, its service.

    Limits in bytes, times in seconds. An empty ``flags_url`` means that there are no feature flags.
    """

    root: Path = Path("/opt/kyb-platform")
    configs: NonEmpty = "configs"
    backup_logs: bool = True
    logs: Path = Path("/var/log/kyb-platform")
    size_limit: int = Field(4 * 1024**3, ge=1)
    flags_url: str = "http://localhost:8080/api/v1/admin/feature-flags"
    flags_restore_url: str | None = None
    token: SecretStr | None = None
    token_file: Path | None = None
    timeout: Seconds = 10
    retries: int = Field(3, ge=0, le=20)
    answer_limit: int = Field(16 * 1024**2, ge=1)
    sessions: Literal["none", "http", "query", "command"] = "none"
    sessions_url: str | None = None
    sessions_query: str | None = None
    sessions_command: tuple[NonEmpty, ...] = ()
    sessions_limit: int = Field(32 * 1024**2, ge=1)
    sessions_timeout: Seconds = 60
    stop_command: tuple[NonEmpty, ...] = ("systemctl", "stop", "kyb-platform")
    start_command: tuple[NonEmpty, ...] = ("systemctl", "start", "kyb-platform")
    service_timeout: Seconds = 60


class ConfigurationSettings(_Section):
    """What a configuration archive holds: patterns as in ``.gitignore``, relative to ``root`` (by
    default the application's). ``size_limit`` in bytes of content.
    """

    root: Path | None = None
    include: tuple[NonEmpty, ...] = (
        "*.env", ".env.*", "/configs/", "/deployments/", "/secrets/",
    )  # fmt: skip
    exclude: tuple[NonEmpty, ...] = (".git/", "node_modules/")
    size_limit: int = Field(1024**3, ge=1)


class RecoverySettings(_Section):
    """How the database is brought back. Without ``user`` it is done as ``database.user``.

    ``health_url`` is asked after the service was started; times in seconds. ``minimum_free``, in bytes, is
    what must stay free on the server's disk while a restore loads. ``data_directory`` and the commands for the server are for a recovered cluster that takes the place of the running one.
    """

    user: NonEmpty | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    jobs: int = Field(2, ge=1, le=64)
    stall_timeout: Seconds = 3600
    minimum_free: int = Field(512 * 1024**2, ge=0)
    health_url: str | None = None
    health_timeout: Seconds = 60
    journals: Path | None = None
    allow_from_ui: bool = False
    data_directory: Path | None = None
    stop_server_command: tuple[NonEmpty, ...] = ()
    start_server_command: tuple[NonEmpty, ...] = ()
    server_timeout: Seconds = 300


class RetentionSettings(_Section):
    """What ``prune`` keeps. It refuses where no backup came for ``quiet_days``, or where more than
    ``largest_share`` of a kind would go at once: then the clock has jumped, not the backups aged.
    """

    full_days: int = Field(30, ge=1, le=36_500)
    incremental_days: int = Field(7, ge=1, le=36_500)
    application_deployments: int = Field(10, ge=1)
    configuration_days: int = Field(90, ge=1, le=36_500)
    pre_restore_days: int = Field(30, ge=1, le=36_500)
    minimum_kept: int = Field(3, ge=1)
    quiet_days: int = Field(3, ge=1, le=36_500)
    largest_share: float = Field(0.5, gt=0, le=1)


class OffsiteTargetSettings(_Section):
    """One place that copies go to, and how it is spoken to. Sizes in bytes, times in seconds.

    ``access_key_id`` and ``secret_access_key`` are, for Azure, the account and its key; where they are not
    set the environment of the service's own tools counts (``AWS_…``, ``AZURE_…``, ``GOOGLE_…``), and the
    role of the machine. ``rate_limit`` in bytes a second. ``lock_days`` is how long each object is locked
    with ``lock`` "governance" or "compliance"; with "bucket" the bucket's own default decides.
    """

    url: Annotated[str, Field(pattern=r"^((s3|gs|az)://[^/?#@]+|file:///|/)")] | None = None
    region: NonEmpty = "us-east-1"
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/?#@]+")] | None = None
    allow_http: bool = False
    access_key_id: NonEmpty | None = None
    secret_access_key: SecretStr | None = None
    secret_access_key_file: Path | None = None
    session_token: SecretStr | None = None
    session_token_file: Path | None = None
    credentials_file: Path | None = None
    rate_limit: int | None = Field(None, ge=1024)
    parallel: int = Field(4, ge=1, le=64)
    part_size: int = Field(8 * 1024**2, ge=64 * 1024, le=256 * 1024**2)
    timeout: Seconds = 300
    retries: int = Field(6, ge=0, le=50)
    lock: Literal["none", "bucket", "governance", "compliance"] = "none"
    lock_days: int | None = Field(None, ge=1, le=36_500)
    max_age: Seconds = 26 * 3600

    @field_validator("url")
    @classmethod
    def _written_in_one_way(cls, url: str | None) -> str | None:
        """Else half of it is dropped on the way to the service, and copies of two machines meet in one place."""
        scheme, _, rest = (url or "").rpartition("://")
        if scheme not in ("", "file") and ("?" in rest or "#" in rest):
            raise ValueError("no ? and no # can be in the address of a bucket")
        parts = rest.removeprefix("/").removesuffix("/").split("/")
        if rest not in ("", "/") and {"", ".", ".."} & {*parts}:
            raise ValueError('"//", "." and ".." cannot be in it: write the path in full')
        return url

    @model_validator(mode="after")
    def _lock_is_whole(self) -> "OffsiteTargetSettings":
        if self.lock in ("governance", "compliance"):
            if self.lock_days is None:
                raise ValueError(f"lock = {self.lock!r} needs lock_days")
            if not (self.url or "").startswith("s3://"):
                raise ValueError("objects can be locked one by one at s3:// only")
        return self


class OffsiteRetentionSettings(RetentionSettings):
    """What ``offsite prune`` keeps: the same rules as at home, longer by default."""

    full_days: int = Field(90, ge=1, le=36_500)
    incremental_days: int = Field(30, ge=1, le=36_500)
    application_deployments: int = Field(30, ge=1)
    configuration_days: int = Field(365, ge=1, le=36_500)
    pre_restore_days: int = Field(30, ge=1, le=36_500)


class OffsiteSettings(OffsiteTargetSettings):
    """Where copies go: one place (``url``), called "offsite", and more by name (``targets``)."""

    targets: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")], OffsiteTargetSettings
    ] = {}
    retention: OffsiteRetentionSettings = OffsiteRetentionSettings()

    @model_validator(mode="after")
    def _targets_have_addresses(self) -> "OffsiteSettings":
        for name, target in self.targets.items():
            if target.url is None:
                raise ValueError(f"targets.{name} has no url")
        if self.url is not None and "offsite" in self.targets:
            raise ValueError("url and targets.offsite are two places with one name")
        return self


class HealthSettings(_Section):
    """When something is wrong. Ages in hours, 0 for what is not watched; sizes in bytes.

    ``smaller``, ``larger`` and ``slower`` are shares of the median of up to seven earlier backups;
    ``days_until_full`` at the growth of the last week.
    """

    full_max_age: float = Field(25, ge=0)
    base_max_age: float = Field(8 * 24, ge=0)
    incremental_max_age: float = Field(7, ge=0)
    configuration_max_age: float = Field(25, ge=0)
    application_state_max_age: float = Field(168, ge=0)
    verified_max_age: float = Field(49, ge=0)
    restore_tested_max_age: float = Field(49, ge=0)
    point_in_time_tested_max_age: float = Field(32 * 24, ge=0)
    pruned_max_age: float = Field(73, ge=0)
    smaller: float = Field(0.5, ge=0, lt=1)
    larger: float = Field(3, gt=1)
    slower: float = Field(4, gt=1)
    slot_lag: int = Field(2 * 1024**3, ge=0)
    days_until_full: float = Field(14, ge=0)
    schedule_grace: Seconds = 3 * 3600


class MetricsSettings(_Section):
    """Where the text file for Prometheus is written, if not in the repository."""

    file: Path | None = None


class ChannelSettings(_Section):
    """One place that alerts go to, by an address of apprise (``slack://…``), which holds a token.

    ``minimum`` is the least severity that it is told of.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$")]
    url: SecretStr | None = None
    url_file: Path | None = None
    minimum: Severity = "warning"

    @model_validator(mode="after")
    def _has_an_address(self) -> "ChannelSettings":
        if self.url is None and self.url_file is None:
            raise ValueError("neither url nor url_file is set")
        if self.url is not None and not self.url.get_secret_value().strip():
            raise ValueError("the address is empty")
        return self


class AlertSettings(_Section):
    """Who is told of troubles, and how. Times in seconds.

    ``timeout`` is for one channel to take a message. ``remind_after`` is the time after which a trouble that
    is still there is told again; ``settle`` is how long it must be gone before it is said to be over.
    ``report_email`` gets the health report each day, with the page attached where ``report_page``.
    """

    email: tuple[Annotated[str, Field(pattern=r"^[^\s,<>\"]+$")], ...] = ()
    report_email: tuple[Annotated[str, Field(pattern=r"^[^\s,<>\"]+$")], ...] = ()
    report_page: bool = True
    email_from: NonEmpty | None = None
    email_minimum: Severity = "warning"
    smtp: Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/@]+)(:[0-9]{1,5})?$")] = (
        "localhost:25"
    )
    smtp_tls: Literal["none", "starttls", "tls"] | None = None
    smtp_user: NonEmpty | None = None
    smtp_password: SecretStr | None = None
    smtp_password_file: Path | None = None
    channels: tuple[ChannelSettings, ...] = ()
    timeout: Seconds = 10
    remind_after: Seconds = 24 * 3600
    settle: float = Field(0, ge=0)
    ui_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    ping_url: SecretStr | None = None
    ping_url_file: Path | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> "AlertSettings":
        names = [*dict.fromkeys(self.email), *(channel.name for channel in self.channels)]
        if len(set(names)) < len(names):
            raise ValueError("two channels have the same name")
        return self


class ScheduleSettings(_Section):
    """Cron lines, all in UTC."""

    full_backup: NonEmpty = "0 2 * * *"
    base_backup: NonEmpty = "0 1 * * 0"
    incremental_backup: NonEmpty = "30 0,6,12,18 * * *"
    configuration_backup: NonEmpty = "0 3 * * *"
    point_in_time_test: NonEmpty = "0 5 1 * *"
    verify_all: NonEmpty = "0 4 * * *"
    offsite_verify: NonEmpty = "30 4 * * *"
    offsite_restore_test: NonEmpty = "0 7 1 * *"
    retention: NonEmpty = "30 5 * * *"
    offsite_retention: NonEmpty = "45 5 * * *"
    health_report: NonEmpty = "0 6 * * *"


class Settings(_Section):
    """Everything an operator can set."""

    repository: Path = Path("/backups")
    log_file: Path | None = None
    database: DatabaseSettings = DatabaseSettings()
    postgres: PostgresSettings = PostgresSettings()
    backup: BackupSettings = BackupSettings()
    base_backup: BaseBackupSettings = BaseBackupSettings()
    wal: WalSettings = WalSettings()
    restore_test: RestoreTestSettings = RestoreTestSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    application: ApplicationSettings = ApplicationSettings()
    configuration: ConfigurationSettings = ConfigurationSettings()
    recovery: RecoverySettings = RecoverySettings()
    retention: RetentionSettings = RetentionSettings()
    offsite: OffsiteSettings = OffsiteSettings()
    health: HealthSettings = HealthSettings()
    metrics: MetricsSettings = MetricsSettings()
    alerts: AlertSettings = AlertSettings()
    schedules: ScheduleSettings = ScheduleSettings()

    @field_validator("encryption")
    @classmethod
    def _fits_the_format(
        cls, encryption: EncryptionSettings, info: ValidationInfo
    ) -> EncryptionSettings:
        backup = info.data.get("backup")
        if encryption.at_home and backup is not None and backup.format == "directory":
            raise ValueError(
                'database = true does not apply to backup.format = "directory", whose files pg_dump '
                'writes by itself: set backup.format = "plain"'
            )
        return encryption
