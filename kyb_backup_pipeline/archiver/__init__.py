"""Programs that PostgreSQL itself calls: ``kyb-wal-push`` and ``kyb-wal-fetch``.

They run once for each WAL segment, as the server's own user, so they start fast: the standard library
only (and the zstd module to read the store), nothing of the engine.
"""
