"""PostgreSQL, files and proofs.

Never imports dagster: recovery must work when the orchestrator is gone. Low to high:
errors → config, process, progress, compression, files → postgres, manifest → records → store →
throwaway → snapshot, catalog, database → evidence → comparison, dump → full_backup → verify →
restore → restore_drill, doctor. An import-linter contract guards that order.
"""
