"""KYB backup pipeline: PostgreSQL backups that are proved, through Dagster and without it."""

__version__ = "0.1.0"
