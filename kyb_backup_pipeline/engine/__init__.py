"""PostgreSQL, files and proofs.

Never imports dagster: recovery must work when the orchestrator is gone. Low to high:
errors, config, process, progress, compression → postgres, manifest → store, throwaway →
evidence, comparison → full_backup → verify, restore → restore_drill.
"""
