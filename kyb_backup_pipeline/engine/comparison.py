"""Is what was restored what the source held? Pure: two pieces of evidence in, differences out.

The two ways to be wrong are passing a bad backup and crying wolf over a good one. So everything is
compared to the letter, but for what may legitimately differ: sequences pass within the interval in
which the dump read them, versions of extensions are the throwaway server's own, and details of
objects are compared only between servers of one major version.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kyb_backup_pipeline.engine.evidence import Evidence, SequenceState
from kyb_backup_pipeline.engine.manifest import Finding

_RELATIONS = ("table", "foreign table", "view", "materialized view", "type")
_SLOW_CYCLE = 1_000_000
"""A sequence that cycles within fewer values cannot be held to an interval."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was compared, what differs, and what could not be compared (``notes``)."""

    tables: int
    rows: int
    objects: int
    differences: tuple[Finding, ...]
    notes: tuple[str, ...]


def compare(source: Evidence, restored: Evidence) -> Comparison:
    """Compare a restored database with the evidence of its source."""
    notes: list[str] = []
    same_major = _major(source) == _major(restored)
    if not same_major:
        notes.append(
            f"source PostgreSQL {_major(source)}, restored on {_major(restored)}: "
            "details of objects not compared"
        )
    undigested = sum(table.digest is None for table in source.tables.values())
    if undigested:
        notes.append(f"{undigested} tables have rows too long to digest: only their rows counted")
    if source.changed:
        notes.append(f"{source.changed} objects were altered during the backup: not compared")
    unbounded = sum((s.period or _SLOW_CYCLE) < _SLOW_CYCLE for s in source.sequences.values())
    if unbounded:
        notes.append(f"{unbounded} sequences cycle within few values: their position not compared")
    differences = (
        *_tables(source, restored),
        *_sequences(source, restored),
        *_objects(source, restored, details=same_major),
        *_roles(source, restored, details=same_major),
        *_large_objects(source, restored),
        *_populated(source, restored),
    )
    return Comparison(
        tables=len(source.tables),
        rows=source.rows,
        objects=source.object_count,
        differences=differences,
        notes=tuple(notes),
    )


def _tables(source: Evidence, restored: Evidence) -> Iterator[Finding]:
    for name, expected in source.tables.items():
        actual = restored.tables.get(name)
        if actual is None:
            yield Finding(object=f"table {name}", message="is missing after restore")
        elif actual.rows != expected.rows:
            yield Finding(
                object=f"table {name}",
                message=f"has {actual.rows} rows, the source had {expected.rows} "
                f"({actual.rows - expected.rows:+d})",
            )
        elif expected.digest is not None and actual.digest != expected.digest:
            yield Finding(
                object=f"table {name}",
                message=f"has {actual.rows} rows as the source, but their content differs",
            )
    for name in restored.tables.keys() - source.tables.keys():
        yield Finding(object=f"table {name}", message="is there, but the source had none")


def _sequences(source: Evidence, restored: Evidence) -> Iterator[Finding]:
    for name, expected in source.sequences.items():
        actual = restored.sequences.get(name)
        if actual is None:
            yield Finding(object=f"sequence {name}", message="is missing after restore")
        elif not _within(expected, actual.before):
            low, high = expected.before, expected.after
            seen = _state(low) if low == high else f"between {_state(low)} and {_state(high)}"
            yield Finding(
                object=f"sequence {name}",
                message=f"stands at {_state(actual.before)}, the source at {seen}",
            )


def _within(expected: SequenceState, actual: tuple[int, bool]) -> bool:
    """Whether a dump taken between ``before`` and ``after`` can have read ``actual``.

    One that cycles within few values can have gone all the way round meanwhile, any number of
    times; one that was taken back by ``setval`` leaves no interval either.
    """
    if expected.period is not None and expected.period < _SLOW_CYCLE:
        return True
    sign = 1 if expected.increment > 0 else -1
    low, value, high = (
        (sign * state[0], state[1]) for state in (expected.before, actual, expected.after)
    )
    return low > high or low <= value <= high


def _state(state: tuple[int, bool]) -> str:
    value, called = state
    return str(value) if called else f"{value} (not yet used)"


def _objects(source: Evidence, restored: Evidence, *, details: bool) -> Iterator[Finding]:
    missing = tuple(
        f"{name}."
        for kind in _RELATIONS
        for name in source.objects.get(kind, {})
        if name not in restored.objects.get(kind, {})
    )
    for kind in source.objects.keys() | restored.objects.keys():
        expected, actual = source.objects.get(kind, {}), restored.objects.get(kind, {})
        for name, detail in expected.items():
            if kind == "column" and name.startswith(missing):
                continue  # its table was named
            if name not in actual:
                yield Finding(object=f"{kind} {name}", message="is missing after restore")
            elif details and actual[name] != detail:
                yield Finding(
                    object=f"{kind} {name}",
                    message=f"is {actual[name]!r}, the source had {detail!r}",
                )
        if details and not source.changed:
            for name in actual.keys() - expected.keys():
                yield Finding(object=f"{kind} {name}", message="is there, but the source had none")


def _roles(source: Evidence, restored: Evidence, *, details: bool) -> Iterator[Finding]:
    for name, detail in source.roles.items():
        actual = restored.roles.get(name)
        if actual is None:
            yield Finding(object=f"role {name}", message="is missing after restore")
        elif details and actual != detail:
            yield Finding(
                object=f"role {name}", message=f"is {actual!r}, the source had {detail!r}"
            )


def _large_objects(source: Evidence, restored: Evidence) -> Iterator[Finding]:
    expected, actual = source.large_objects, restored.large_objects
    if expected is None or actual is None or expected == actual:
        return
    if expected.count != actual.count:
        message = f"are {actual.count}, the source had {expected.count}"
    elif expected.size != actual.size:
        message = f"hold {actual.size} bytes, the source {expected.size}"
    else:
        message = "differ in content"
    yield Finding(object="large objects", message=message)


def _populated(source: Evidence, restored: Evidence) -> Iterator[Finding]:
    for name, populated in source.populated.items():
        if restored.populated.get(name, populated) != populated:
            state = "populated" if restored.populated[name] else "not populated"
            yield Finding(object=f"materialized view {name}", message=f"is {state} after restore")


def _major(evidence: Evidence) -> str:
    return evidence.server_version.split(".")[0]
