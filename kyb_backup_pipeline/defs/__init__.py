"""The Dagster room: what the engine does, as assets, checks, jobs, schedules and sensors.

One page a capability; ``definitions.py`` lists them all. Nothing here opens a file, starts a process
or speaks SQL: an asset calls the engine and says what came out. Modules here do without
``from __future__ import annotations``, because Dagster reads the annotations of ``context``.
"""
