"""Which base backup and which log lead to a moment.

What a repository covers follows from what is in it: from where a base backup is consistent to the last
marker that an unbroken chain of segments leads to, along the history of timelines. A target outside
is refused, with what is covered. What comes before what is read from the log (timeline and position),
never from clocks, which may have been wrong.

Where a promoted server and the old primary both wrote on, each timeline has a coverage of its own. A
moment that two of them cover with different states is refused until a timeline is named. "Latest" means
all that was ever brought in: where a part of it cannot be reached any more, that is an error which names
it, never a smaller "latest".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.base_archive import own_segments
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    InvalidRequest,
    NotFound,
    ProofFailed,
    Refused,
)
from kyb_backup_pipeline.engine.manifest import Manifest
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.wal import (
    History,
    format_lsn,
    history_name,
    parse_history,
    parse_lsn,
    ranges,
)
from kyb_backup_pipeline.engine.wal_store import WalStore


@dataclass(frozen=True)
class Moment:
    """What to recover to: everything, the state at a position, or the state at a time.

    ``timeline`` chooses where a promotion left two; None for the latest, where they do not differ.
    """

    position: int | None = None
    time: datetime | None = None
    timeline: int | None = None

    @property
    def latest(self) -> bool:
        return self.position is None and self.time is None

    def __str__(self) -> str:
        if self.position is not None:
            return format_lsn(self.position)
        return self.time.isoformat(sep=" ") if self.time is not None else "latest"


class BrokenChain(Refused):
    """A part of what was brought in cannot be reached; ``backup_id`` is the increment that shows it."""

    def __init__(self, message: str, backup_id: str) -> None:
        super().__init__(
            message,
            hint="kyb-backup verify --all names what is damaged; recover to a moment before it with "
            "--at TIME, and take a new base backup",
        )
        self.backup_id = backup_id


def parse_moment(text: str, timeline: int | None = None) -> Moment:
    """``latest``, a position such as ``0/3000028``, or a time. Raises InvalidRequest.

    A time without a zone is UTC.
    """
    if text == "latest":
        return Moment(timeline=timeline)
    if "/" in text:
        try:
            return Moment(position=parse_lsn(text), timeline=timeline)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is no moment to recover to",
            hint='latest, a position such as 0/3000028, or a time such as "2026-01-31 02:00:00+00:00"',
        ) from None
    aware = time_ if time_.tzinfo else time_.replace(tzinfo=UTC)
    return Moment(time=aware, timeline=timeline)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What one base backup and the log behind it lead to, on one timeline and those it comes from.

    ``missing`` names what cuts it short, ``unreached`` the increments behind that.
    """

    base: Backup
    increments: tuple[Manifest, ...]
    history: History
    first: int
    last: int
    since: datetime
    until: datetime
    missing: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()

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
        if moment.timeline not in (None, self.history.timeline):
            holder = self.holder(moment.position, moment.time)
            if holder is None or holder.require_wal().timeline != moment.timeline:
                return False  # nor is it on the way to this timeline
        if moment.position is not None:
            return self.first <= moment.position <= self.last_marker
        if moment.time is not None:
            return self.since <= moment.time < self.until
        return True

    def holder(self, position: int | None, time: datetime | None) -> Manifest | None:
        """The first increment whose marker is not before a position or time; the last one for neither."""
        for manifest in self.increments:
            marker = manifest.require_wal().markers[-1]
            if position is not None and parse_lsn(marker.lsn) >= position:
                return manifest
            if time is not None and marker.at > time:
                return manifest
        return self.increments[-1] if self.increments else None

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
        return self.coverage.holder(self.stop, self.moment.time)


def to_last_marker(plan: RecoveryPlan) -> RecoveryPlan:
    """The plan for all there is, stopped at the last marker: what a test can hold it to."""
    if not plan.moment.latest or plan.immediate:
        return plan
    return replace(plan, stop=plan.coverage.last_marker)


def coverages(repository: Repository) -> list[Coverage]:
    """What the repository covers: by base backup, the newest first, and of each the latest timeline first."""
    bases, increments = repository.backups(("base",)), repository.backups(("incremental",))
    return coverages_of(bases, increments, repository.wal)


def coverages_of(
    bases: Iterable[Backup], increments: Iterable[Backup], store: WalStore, *, newest: bool = False
) -> list[Coverage]:
    """The same of backups that were read already, the newest first; of the ``newest`` base only."""
    path = in_log_order(increments)
    wanted = in_log_order(bases)[-1:] if newest else in_log_order(bases)[::-1]
    since = _first_segment(wanted[0]) if newest and wanted else ""
    names = {timeline: store.listing(timeline, since) for timeline in store.timelines()}
    return [coverage for base in wanted for coverage in _of_base(base, path, store, names)]


def _first_segment(base: Backup) -> str:
    wal = base.require_manifest().require_wal()
    start = parse_lsn(wal.start_lsn)
    return next(iter(History(wal.timeline).segments(start, start + 1, wal.segment_bytes))).name


def in_log_order(newest_first: Iterable[Backup]) -> list[Backup]:
    """The backups that can be read, in the order of the log; clusters one after the other, that of the
    newest backup last."""
    backups = [b for b in newest_first if b.manifest and b.manifest.wal]
    found = (b.require_manifest().require_wal().system_identifier for b in backups)
    clusters = list(dict.fromkeys(found))

    def order(backup: Backup) -> tuple[int, int, int]:
        wal = backup.require_manifest().require_wal()
        return -clusters.index(wal.system_identifier), wal.timeline, parse_lsn(wal.end_lsn)

    return sorted(backups, key=order)


def _of_base(
    base: Backup, increments: Sequence[Backup], store: WalStore, names: dict[int, set[str]]
) -> list[Coverage]:
    """The coverages of a base, one for each timeline that is no mere beginning of a later one."""
    wal = base.require_manifest().require_wal()
    first = parse_lsn(wal.end_lsn)
    own = [m for m in (b.require_manifest() for b in increments)
           if m.require_wal().system_identifier == wal.system_identifier]  # fmt: skip
    found: list[Coverage] = []
    for timeline in sorted({wal.timeline, *(m.require_wal().timeline for m in own)}, reverse=True):
        history, lost = read_history(store, timeline)
        if not lost and not history.contains(wal.timeline, first):
            continue
        path = [m for m in own if _on(history, m, first)]
        if any(set(_ids(path)) <= {*_ids(c.increments), *c.unreached} for c in found):
            continue  # a later timeline leads to all of it
        if not path:
            lost = ()  # a base is consistent by what it brings: where its timeline comes from is not asked
        found.append(_coverage(base, history, path, lost, names))
    return found or [_coverage(base, History(wal.timeline), [], (), names)]


def read_history(store: WalStore, timeline: int) -> tuple[History, tuple[str, ...]]:
    """Where a timeline comes from, and what of that is lost: its history file, missing or damaged."""
    try:
        history = parse_history(timeline, store.history(timeline))
    except ProofFailed as error:
        return History(timeline), (error.message,)
    lost = timeline > 1 and not history.switches
    return history, (history_name(timeline),) if lost else ()


def _ids(manifests: Iterable[Manifest]) -> list[str]:
    return [manifest.backup_id for manifest in manifests]


def _on(history: History, manifest: Manifest, first: int) -> bool:
    """Whether an increment lies on a history, behind where its base is consistent."""
    wal = manifest.require_wal()
    position = parse_lsn(wal.markers[-1].lsn)
    return position > first and history.contains(wal.timeline, position)


def _coverage(
    base: Backup,
    history: History,
    path: Sequence[Manifest],
    lost: tuple[str, ...],
    names: dict[int, set[str]],
) -> Coverage:
    """How far the increments on a path can be reached: up to the last one without a hole before it."""
    manifest = base.require_manifest()
    wal = manifest.require_wal()
    first, own = parse_lsn(wal.end_lsn), {segment.name for segment in own_segments(manifest)}
    reached = list(path)
    missing = lost
    while reached:
        end = parse_lsn(reached[-1].require_wal().end_lsn)
        wanted = history.segments(parse_lsn(wal.start_lsn), end, wal.segment_bytes)
        holes = tuple(
            s.name for s in wanted if s.name not in own and s.name not in names.get(s.timeline, ())
        )
        if not holes and not lost:
            break
        missing = missing or holes
        reached.pop()
    last = reached[-1].require_wal() if reached else None
    return Coverage(
        base=base,
        increments=tuple(reached),
        history=history,
        first=first,
        last=parse_lsn(last.end_lsn) if last else first,
        since=wal.end_at,
        until=last.markers[-1].at if last else wal.end_at,
        missing=missing,
        unreached=tuple(_ids(path[len(reached) :])),
    )


def plan_recovery(repository: Repository, moment: Moment) -> RecoveryPlan:
    """The newest base that leads to ``moment``.

    Raises NotFound without any, Refused outside of what is covered and where two timelines differ,
    BrokenChain where "latest" is not all that was brought in.
    """
    found = coverages(repository)
    if not found:
        raise NotFound(
            f"there is no base backup in {repository.root}", hint="kyb-backup backup base"
        )
    covering = [coverage for coverage in found if coverage.covers(moment)]
    if not covering:
        spans = "; ".join(f"{c.base.backup_id}: {c}" for c in found)
        gaps = [name for coverage in found for name in coverage.missing]
        lost = f"; missing: {ranges(sorted(set(gaps)))}" if gaps else ""
        raise Refused(
            f"{moment} is outside of what the repository covers",
            hint=f"it covers {spans}{lost}",
        )
    chosen = covering[0]
    if moment.latest:
        _check_latest(repository, chosen)
    _check_unambiguous(moment, [c for c in covering if c.base == chosen.base])
    return _planned(repository, chosen, moment)


def _check_latest(repository: Repository, coverage: Coverage) -> None:
    if coverage.missing:
        increment = (*coverage.unreached, coverage.base.backup_id)[-2 if coverage.unreached else -1]
        raise BrokenChain(
            f"the log behind {coverage.base.backup_id} is broken: {ranges(coverage.missing)} missing "
            f"or damaged; it leads to {format_lsn(coverage.last_marker)} only",
            increment,
        )
    for backup in repository.backups(("incremental",)):
        if backup.manifest is None:
            raise BrokenChain(
                f"{backup.backup_id} cannot be read: {backup.problem}", backup.backup_id
            )


def _check_unambiguous(moment: Moment, covering: Sequence[Coverage]) -> None:
    """Two timelines may both lead there; they agree where the same increment holds the moment."""
    holders = {
        manifest.backup_id if manifest is not None else ""
        for manifest in (c.holder(moment.position, moment.time) for c in covering)
    }
    if not moment.latest and len(holders) > 1:
        timelines = " and ".join(str(c.history.timeline) for c in covering)
        raise Refused(
            f"timelines {timelines} both have a state at {moment}, and they differ",
            hint="say which with --timeline",
        )


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
        immediate=not coverage.increments or moment.position == coverage.first,
        segments=segments,
        timeline=coverage.history.timeline,
        settings=settings,
        superusers=tuple(dict.fromkeys((*wals[-1].superusers, *wal.superusers))),
    )
