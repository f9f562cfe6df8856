"""Which base backup and which log lead to a moment.

What a repository covers follows from what is in it: from where a base backup is consistent to the last
marker that an unbroken chain of segments leads to, along the history of timelines. A target outside
is refused, with what is covered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kyb_backup_pipeline.engine.base_archive import own_segments
from kyb_backup_pipeline.engine.errors import CouldNotVerify, InvalidRequest, NotFound, Refused
from kyb_backup_pipeline.engine.manifest import Manifest
from kyb_backup_pipeline.engine.store import Backup, Repository
from kyb_backup_pipeline.engine.wal import History, format_lsn, parse_history, parse_lsn, ranges
from kyb_backup_pipeline.engine.wal_store import WalStore


@dataclass(frozen=True)
class Moment:
    """What to recover to: everything, the state at a position, or the state at a time."""

    position: int | None = None
    time: datetime | None = None

    def __str__(self) -> str:
        if self.position is not None:
            return format_lsn(self.position)
        return self.time.isoformat(sep=" ") if self.time is not None else "latest"


def parse_moment(text: str) -> Moment:
    """``latest``, a position such as ``0/3000028``, or a time. Raises InvalidRequest.

    A time without a zone is UTC.
    """
    if text == "latest":
        return Moment()
    if "/" in text:
        try:
            return Moment(position=parse_lsn(text))
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is no moment to recover to",
            hint='latest, a position such as 0/3000028, or a time such as "2026-01-31 02:00:00+00:00"',
        ) from None
    return Moment(time=time_ if time_.tzinfo else time_.replace(tzinfo=UTC))


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What one base backup and the log behind it lead to. ``missing`` names what cuts it short."""

    base: Backup
    increments: tuple[Manifest, ...]
    history: History
    first: int
    last: int
    since: datetime
    until: datetime
    missing: tuple[str, ...] = ()

    @property
    def manifest(self) -> Manifest:
        return self.base.require_manifest()

    @property
    def last_marker(self) -> int:
        """The position behind the last marker that is covered; the base's end without one."""
        markers = self.increments[-1].require_wal().markers if self.increments else ()
        return parse_lsn(markers[-1].lsn) if markers else self.first

    def covers(self, moment: Moment) -> bool:
        """Whether recovery from this base can stop there."""
        if moment.position is not None:
            return self.first <= moment.position <= self.last_marker
        if moment.time is not None:
            return self.since <= moment.time < self.until
        return True

    def __str__(self) -> str:
        span = f"{self.since:%Y-%m-%d %H:%M:%S} to {self.until:%Y-%m-%d %H:%M:%S} UTC"
        return f"{span} ({format_lsn(self.first)} to {format_lsn(self.last_marker)})"


@dataclass(frozen=True, kw_only=True)
class RecoveryPlan:
    """The way to a moment. ``segments`` are those that the log is replayed from, with SHA-256.

    ``stop`` is the position where replay must stop; None for a time, for all there is, and where
    it must stop as soon as the base is consistent (``immediate``).
    """

    coverage: Coverage
    moment: Moment
    stop: int | None
    immediate: bool
    segments: dict[str, str]
    timeline: int
    settings: dict[str, int]
    superusers: tuple[str, ...]

    @property
    def base(self) -> Manifest:
        return self.coverage.manifest

    @property
    def increment(self) -> Manifest | None:
        """The increment that holds the target: the first whose marker is not before it."""
        for manifest in self.coverage.increments:
            marker = manifest.require_wal().markers[-1]
            beyond_position = self.stop is not None and parse_lsn(marker.lsn) >= self.stop
            beyond_time = self.moment.time is not None and marker.at > self.moment.time
            if beyond_position or beyond_time:
                return manifest
        return self.coverage.increments[-1] if self.coverage.increments else None


def to_last_marker(plan: RecoveryPlan) -> RecoveryPlan:
    """The plan for all there is, stopped at the last marker: what a test can hold it to."""
    if plan.moment != Moment() or plan.immediate:
        return plan
    return replace(plan, stop=plan.coverage.last_marker)


def coverages(repository: Repository) -> list[Coverage]:
    """What the repository covers, by base backup, the newest first."""
    store = repository.wal
    names = {timeline: set(store.names(timeline)) for timeline in store.timelines()}
    increments = [
        b.manifest for b in repository.backups(("incremental",)) if b.manifest and b.manifest.wal
    ]
    return [
        _coverage(base, increments, store, names)
        for base in repository.backups(("base",))
        if base.manifest is not None and base.manifest.wal is not None
    ]


def _coverage(
    base: Backup, increments: Sequence[Manifest], store: WalStore, names: dict[int, set[str]]
) -> Coverage:
    manifest = base.require_manifest()
    wal = manifest.require_wal()
    first, own = parse_lsn(wal.end_lsn), {segment.name for segment in own_segments(manifest)}
    candidates = [
        m
        for m in increments
        if m.require_wal().system_identifier == wal.system_identifier
        and m.completed_at > manifest.completed_at
    ]
    missing: tuple[str, ...] = ()
    for newest in candidates:  # the newest first: without a hole it leads to all before it
        end = parse_lsn(newest.require_wal().end_lsn)
        timeline = newest.require_wal().timeline
        history = parse_history(timeline, store.history(timeline))
        if not history.contains(wal.timeline, first) or end <= first:
            continue
        wanted = history.segments(parse_lsn(wal.start_lsn), end, wal.segment_bytes)
        holes = tuple(
            s.name for s in wanted if s.name not in own and s.name not in names.get(s.timeline, ())
        )
        if timeline > 1 and not history.switches:
            holes = (f"{timeline:08X}.history", *holes)
        if holes:
            missing = missing or holes
            continue
        on_the_way = tuple(
            m for m in reversed(candidates)
            if first < parse_lsn(m.require_wal().markers[-1].lsn) <= end
            and history.contains(m.require_wal().timeline, parse_lsn(m.require_wal().markers[-1].lsn))
        )  # fmt: skip
        return Coverage(
            base=base, increments=on_the_way, history=history, first=first, last=end,
            since=wal.end_at, until=newest.require_wal().markers[-1].at, missing=missing,
        )  # fmt: skip
    history = parse_history(wal.timeline, store.history(wal.timeline))
    return Coverage(
        base=base, increments=(), history=history, first=first, last=first,
        since=wal.end_at, until=wal.end_at, missing=missing,
    )  # fmt: skip


def plan_recovery(repository: Repository, moment: Moment) -> RecoveryPlan:
    """The newest base that leads to ``moment``. Raises NotFound without any, Refused outside."""
    found = coverages(repository)
    if not found:
        raise NotFound(
            f"there is no base backup in {repository.root}", hint="kyb-backup backup base"
        )
    chosen = next((coverage for coverage in found if coverage.covers(moment)), None)
    if chosen is None:
        spans = "; ".join(f"{c.base.backup_id}: {c}" for c in found)
        gaps = [name for coverage in found for name in coverage.missing]
        lost = f"; missing: {ranges(sorted(set(gaps)))}" if gaps else ""
        raise Refused(
            f"{moment} is outside of what the repository covers",
            hint=f"it covers {spans}{lost}",
        )
    return _planned(repository, chosen, moment)


def _planned(repository: Repository, coverage: Coverage, moment: Moment) -> RecoveryPlan:
    wal = coverage.manifest.require_wal()
    recorded = {
        segment.name: segment.sha256
        for increment in coverage.increments
        for segment in increment.require_wal().segments
    }
    stored = {
        name: found.sha256
        for timeline in repository.wal.timelines()
        for name, found in repository.wal.names(timeline).items()
    }
    wanted = coverage.history.segments(parse_lsn(wal.start_lsn), coverage.last, wal.segment_bytes)
    segments = {s.name: recorded.get(s.name, stored[s.name]) for s in wanted if s.name in stored}
    wals = [wal, *(m.require_wal() for m in coverage.increments)]
    settings: dict[str, int] = {}
    for each in wals:
        for name, value in each.settings.items():
            settings[name] = max(value, settings.get(name, 0))
    new = {oid: p for each in wals for oid, p in each.tablespaces.items()
           if oid not in wal.tablespaces and p.startswith("/")}  # fmt: skip
    if new:
        raise CouldNotVerify(
            f"a tablespace was made since {coverage.base.backup_id}, in {', '.join(new.values())}: "
            "replay would use that path",
            hint="take a new base backup: kyb-backup backup base",
        )
    return RecoveryPlan(
        coverage=coverage,
        moment=moment,
        stop=moment.position if coverage.increments else None,
        immediate=not coverage.increments,
        segments=segments,
        timeline=coverage.history.timeline,
        settings=settings,
        superusers=wals[-1].superusers or wal.superusers,
    )
