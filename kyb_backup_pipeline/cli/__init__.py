"""``kyb-backup``: one verb a file, and none of them needs Dagster to run."""

from kyb_backup_pipeline.cli.program import main

__all__ = ["main"]
