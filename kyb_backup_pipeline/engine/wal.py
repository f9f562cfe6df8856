"""Write-ahead log: positions, segments and timelines. Names and arithmetic, nothing else.

A position (LSN) is a byte in the log, printed ``16/B374D848``. The log is cut into segments of one
size (16 MB unless the cluster was made otherwise); a segment's file is named by its timeline and its
number. After a promotion the log goes on under a new timeline, whose history file says where each
earlier one was left.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
ARCHIVED_NAME = re.compile(r"[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history")
"""Everything that a server hands to its archive_command."""

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SWITCH = re.compile(r"^\s*(\d+)\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})", re.MULTILINE)


def parse_lsn(text: str) -> int:
    """The number of ``16/B374D848``. Raises ValueError."""
    match = _LSN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no position in the log, such as 16/B374D848")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(position: int) -> str:
    """The position as PostgreSQL prints it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


@dataclass(frozen=True, order=True)
class Segment:
    """One file of the log; ``size`` in bytes is the same for all files of a cluster."""

    timeline: int
    number: int
    size: int

    @property
    def name(self) -> str:
        each = (1 << 32) // self.size
        return f"{self.timeline:08X}{self.number // each:08X}{self.number % each:08X}"

    @property
    def start(self) -> int:
        return self.number * self.size

    @property
    def end(self) -> int:
        """The position behind its last byte."""
        return self.start + self.size


def parse_segment(name: str, size: int) -> Segment:
    """The segment with this file name. Raises ValueError."""
    if not SEGMENT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a WAL segment")
    each = (1 << 32) // size
    return Segment(int(name[:8], 16), int(name[8:16], 16) * each + int(name[16:], 16), size)


@dataclass(frozen=True)
class History:
    """A timeline with those it comes from: ``switches`` are (timeline, position it was left at)."""

    timeline: int
    switches: tuple[tuple[int, int], ...] = ()

    def timeline_at(self, position: int) -> int:
        """The timeline that the byte at ``position`` belongs to."""
        return next((tli for tli, left in self.switches if position < left), self.timeline)

    def contains(self, timeline: int, position: int) -> bool:
        """Whether a server on this history has been at ``position`` of ``timeline``."""
        if timeline == self.timeline:
            return True
        return any(tli == timeline and position <= left for tli, left in self.switches)

    def segments(self, start: int, end: int, size: int) -> Iterator[Segment]:
        """The segments that recovery needs from ``start`` up to ``end`` (not included).

        Where a timeline was left in the middle of a segment, the file of the later one holds both.
        """
        for number in range(start // size, -(-end // size)):
            last = min((number + 1) * size, end) - 1
            yield Segment(self.timeline_at(last), number, size)


def parse_history(timeline: int, text: str) -> History:
    """The content of a history file; empty for the first timeline."""
    return History(
        timeline, tuple((int(tli), parse_lsn(lsn)) for tli, lsn in _SWITCH.findall(text))
    )


_HEADER = struct.Struct("<HHIQI4xQII")
"""The first page of a segment: magic, flags, timeline, position, rest, system, size, block size."""


def header_problem(header: bytes, segment: Segment, system_identifier: str) -> str | None:
    """What the first 40 bytes of a segment's file say against it; None if they fit.

    Layout: ``XLogLongPageHeaderData`` in PostgreSQL's ``access/xlog_internal.h``, little-endian.
    """
    if len(header) < _HEADER.size:
        return "is too short to be a segment"
    magic, _, timeline, position, _, system, size, _ = _HEADER.unpack_from(header)
    if magic >> 8 != 0xD1:
        return "does not begin as a WAL segment does"
    if str(system) != system_identifier:
        return f"comes from another cluster (system identifier {system}, not {system_identifier})"
    if position != segment.start or size != segment.size or timeline > segment.timeline:
        return "holds another segment than its name says"
    return None


def history_name(timeline: int) -> str:
    """The history file of a timeline."""
    return f"{timeline:08X}.history"


def ranges(names: Sequence[str]) -> str:
    """Names of segments for people: at most five, then how many more."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
