"""Sending the parts of a file: some at a time, at most so many bytes a second, none twice, each proved.

Proved is a part whose SHA-256 the target checked when it took it (where the probe found that it does), or one
that was read back and hashed. A part that is there already, from a push that was cut, is not sent again: its
key says what it must hold, and its etag (an MD5 of our own bytes) or a reading says that it does. One that lies
there for long, and that no copy names yet, is written anew: to a prune it is the rest of a push that was cut.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Self

from kyb_backup_pipeline.engine.backup import LEFTOVER_AGE
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.offsite_copy import CopiedFile, Encryption, Part, group_of, part_key
from kyb_backup_pipeline.engine.offsite_folder import FolderTarget
from kyb_backup_pipeline.engine.offsite_source import Source
from kyb_backup_pipeline.engine.offsite_target import (
    AlreadyThere,
    Found,
    Gone,
    Target,
    TargetRefuses,
)

_log = logging.getLogger(__name__)

_SENDINGS = 3
"""How often a part is sent that the target then holds with other content."""
_OLD = LEFTOVER_AGE / 2
"""After so long what a push left is written anew: a prune that takes it for remains has a day's patience."""


class PartLost(BackupFailed):
    """The target took a part and has another content under its key."""


class Limiter:
    """At most so many bytes a second, over all threads; a part goes in one piece."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait for the turn of so many bytes."""
        if self._rate is None:
            return
        with self._lock:
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + count / self._rate
        time.sleep(max(0.0, begin - time.monotonic()))


@dataclass
class Tally:
    """Bytes that were sent, and bytes that were there already."""

    sent: int = 0
    found: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, sent: int = 0, found: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.found += found


class Sender:
    """Sends files to one target; ``known`` are the objects that were there before.

    ``honest``: its checksums and etags are believed. What is in ``named`` a copy names, and it is not written anew
    for its age.
    """

    def __init__(
        self,
        target: Target,
        *,
        honest: bool,
        now: datetime,
        named: Collection[str] = (),
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.tally = Tally()
        self._target = target
        self._honest = honest
        self._old_before = now - _OLD
        self._named = frozenset(named)
        self._renewed: set[str] = set()
        self._progress = progress
        self._limiter = Limiter(target.options.rate_limit)
        self._parallel = target.options.parallel
        self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="sending")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def send(
        self,
        place: str,
        path: str,
        source: Source,
        encryption: Encryption,
        known: Mapping[str, Found],
    ) -> CopiedFile:
        """Send one file. Raises what the target raises, PartLost, OSError."""
        whole = hashlib.sha256()
        parts: list[Part] = []
        flying: deque[Future[Part]] = deque()

        def land() -> None:
            part = flying.popleft().result()
            parts.append(part)
            self._progress(part.size)

        try:
            for number, data in enumerate(source.parts):
                whole.update(data)
                key = part_key(place, number, hashlib.sha256(data).hexdigest())
                flying.append(self._pool.submit(self._one, key, data, known.get(key)))
                del data
                while len(flying) >= self._parallel:
                    land()
            while flying:
                land()
        finally:
            for future in flying:
                future.cancel()
        return CopiedFile(
            path=path,
            size=source.size,
            sha256=source.sha256,
            encryption=encryption,
            stored_size=sum(part.size for part in parts),
            stored_sha256=whole.hexdigest(),
            parts=tuple(parts),
        )

    def keep(self, part: Part, known: Found) -> Part | None:
        """A part that an earlier push sent, as it is now; None where it is not what that sent.

        A service is believed that it is by the etag of then; a folder's etag tells nothing of what rots.
        """
        told = self._honest and known.etag is not None and known.etag == part.etag
        same = part.model_copy(update={"etag": known.etag})
        if told and not self.is_old(known) and not isinstance(self._target, FolderTarget):
            self.tally.add(found=part.size)
            return same
        data = self._content(part.key)
        if data is None or hashlib.sha256(data).hexdigest() != part.sha256:
            return None
        if self.is_old(known):
            return self._one(part.key, data, known)
        self.tally.add(found=part.size)
        return same

    def keep_all(self, parts: Sequence[Part], known: Mapping[str, Found]) -> list[Part] | None:
        """All parts of a file that an earlier push sent; None where one of them is not what that sent."""
        if any(part.key not in known or known[part.key].size != part.size for part in parts):
            return None
        kept = list(self._pool.map(lambda part: self.keep(part, known[part.key]), parts))
        return None if None in kept else [part for part in kept if part is not None]

    def is_old(self, known: Found) -> bool:
        """Whether an object that no copy names lies there for so long that a prune may take it away."""
        return (
            known.modified < self._old_before
            and known.key not in self._named
            and group_of(known.key) not in self._renewed
        )

    def _one(self, key: str, data: bytes | bytearray, known: Found | None) -> Part:
        sha256 = key.rpartition("-")[2]
        fits = known is not None and known.size == len(data)
        fresh = known is not None and not self.is_old(known)
        if known is not None and fits and fresh and self._holds(known, data, sha256):
            self.tally.add(found=len(data))
            return Part(key=key, size=len(data), sha256=sha256, etag=known.etag)
        try:
            etag = self._send(key, data, sha256, replace=known is not None)
        except TargetRefuses:
            # what is locked and cannot be overwritten cannot be deleted either
            if known is None or not fits or not self._reads_back(key, sha256):
                raise
            self.tally.add(found=len(data))
            return Part(key=key, size=len(data), sha256=sha256, etag=known.etag)
        self._renewed.add(group_of(key))  # one fresh object keeps a prune off its whole folder
        self.tally.add(sent=len(data))
        return Part(key=key, size=len(data), sha256=sha256, etag=etag)

    def _holds(self, known: Found, data: bytes | bytearray, sha256: str) -> bool:
        """Whether an object that was there holds what its key says."""
        etag = (known.etag or "").strip('"')
        if self._honest and etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        return self._reads_back(known.key, sha256)

    def _send(self, key: str, data: bytes | bytearray, sha256: str, *, replace: bool) -> str | None:
        for number in range(_SENDINGS):
            self._limiter.take(len(data))
            try:
                etag = self._target.put(key, data, create=not (replace or number))
            except (
                AlreadyThere
            ):  # somebody else pushes the same, or our first try arrived after all
                etag = None
                if self._reads_back(key, sha256):
                    return etag
                continue
            if self._honest or self._reads_back(key, sha256):
                return etag
            _log.warning("%s/%s has another content than was sent", self._target.url, key)
        raise PartLost(
            f"{self._target.url} took {key} {_SENDINGS} times, and holds another content",
            hint="it cannot be trusted with a copy: look at its disks, or use another place",
        )

    def _reads_back(self, key: str, sha256: str) -> bool:
        data = self._content(key)
        return data is not None and hashlib.sha256(data).hexdigest() == sha256

    def _content(self, key: str) -> bytes | None:
        try:
            return self._target.get(key)
        except Gone:
            return None
