"""``python -m kyb_backup_pipeline`` is ``kyb-backup``."""

from kyb_backup_pipeline.cli import main

main()
