"""Hands WAL to a recovering server: each segment on request, checked before it is given.

The server's ``restore_command`` is a line of shell that writes a name into one pipe and reads a status
from another; we decrypt and decompress the segment, compare it with its checksum, and put it where
PostgreSQL wants it. So the server needs no right to read the repository and no key, a damaged or missing
segment has a name, and recovery never ends early in silence: what the plan has and the store has not is
an error, not the end of the log.
"""

import contextlib
import os
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.base_archive import own_segments
from kyb_backup_pipeline.engine.errors import CouldNotVerify, KybError, RestoreFailed
from kyb_backup_pipeline.engine.postgres import Programs
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.engine.recovery_plan import RecoveryPlan
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.wal import SEGMENT_NAME, Segment, format_lsn, parse_segment
from kyb_backup_pipeline.engine.wal_store import WalStore

_OUTSIDE = re.compile(r'desc: CREATE \d+ "(/[^"]*)"')


class Feeder:
    """Serves one recovering server, whose data are in ``data``; ``problem`` is the first thing wrong."""

    def __init__(
        self,
        store: WalStore,
        plan: RecoveryPlan,
        programs: Programs,
        folder: Path,
        data: Path,
        account: Account | None,
        keys: EncryptionSettings,
    ) -> None:
        self._store = store
        self._plan = plan
        self._programs = programs
        self._data = data
        self._account = account
        self._keys = keys
        self._ask = folder / "ask"
        self._answer = folder / "answer"
        self._scan = folder / "scan"
        self._last: Segment | None = None
        self.problem: KybError | None = None
        self.served = 0

    @property
    def command(self) -> str:
        """The ``restore_command``. Status 200 makes recovery stop; 1 means the end of the log."""
        ask, answer = (shlex.quote(str(p)).replace("%", "%%") for p in (self._ask, self._answer))
        return f"echo %f %p > {ask} && read answer < {answer} && exit $answer; exit 200"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer until the block is left."""
        for pipe in (self._ask, self._answer):
            os.mkfifo(pipe, 0o600)
            hand_over(pipe, self._account)
        self._scan.mkdir(mode=0o700, exist_ok=True)
        # opened for both, so that neither side ever sees an end or waits for the other to open
        asked = os.open(self._ask, os.O_RDWR)
        answered = os.open(self._answer, os.O_RDWR)
        thread = threading.Thread(target=self._serve, args=(asked, answered), daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.write(asked, b"\n")
            thread.join()
            os.close(asked)
            os.close(answered)

    def _serve(self, asked: int, answered: int) -> None:
        with open(os.dup(asked), encoding="utf-8") as questions:
            while (line := questions.readline()) != "\n":
                name, _, place = line.strip().partition(" ")
                try:
                    status = self._fetch(name, place)
                except KybError as error:
                    self.problem, status = self.problem or error, 200
                except Exception as error:  # noqa: BLE001 the server waits for an answer
                    self.problem = self.problem or RestoreFailed(f"{name}: {error}")
                    status = 200
                os.write(answered, f"{status}\n".encode())

    def _fetch(self, name: str, place: str) -> int:
        destination = self._data / "pg_wal" / Path(place).name
        if SEGMENT_NAME.fullmatch(name):
            if name not in self._plan.segments:
                return 1
        elif not name.endswith(".history"):
            return 1  # histories of later timelines too: a promotion then takes a number of its own
        stored = self._store.find(name)
        if stored is None:
            if name.endswith(".history"):
                return 1
            raise RestoreFailed(f"the WAL segment {name} is missing in {self._store.root}")
        if stored.sha256 != self._plan.segments.get(name, stored.sha256):
            raise RestoreFailed(f"{name} is another than the one its backup recorded")
        self._store.extract(stored, destination, self._keys)
        if SEGMENT_NAME.fullmatch(name):
            self._look_through(name, destination)
            self.served += 1
        hand_over(destination, self._account)
        return 0

    def look_through_own(self) -> None:
        """The same for the segments that the base itself carries, which nobody asks us for."""
        self._scan.mkdir(mode=0o700, exist_ok=True)
        for segment in own_segments(self._plan.base):
            self._look_through(segment.name, self._data / "pg_wal" / segment.name)
        self._forget()

    def _forget(self) -> None:
        if self._last is not None:
            (self._scan / self._last.name).unlink(missing_ok=True)
        self._last = None

    def _look_through(self, name: str, path: Path) -> None:
        """Refuse a segment whose replay would make a tablespace outside.

        A record can begin in one segment and end in the next, so two are looked at together.
        """
        segment = parse_segment(name, self._plan.base.require_wal().segment_bytes)
        if segment == self._last:
            return  # asked for once more, as at the end of recovery
        os.link(path, self._scan / name)
        before = self._last
        together = before is not None and (
            (before.timeline, before.number + 1) == (segment.timeline, segment.number)
        )
        start = before.start if before is not None and together else segment.start
        argv: list[str | Path] = [
            self._programs.path("pg_waldump"),
            f"--path={self._scan}",
            f"--timeline={segment.timeline}",
            f"--start={format_lsn(start)}",
            f"--end={format_lsn(segment.end)}",  # without it, it waits five seconds for the next file
            "--rmgr=Tablespace",
        ]
        # its status says little: it is an error too where the last record is cut off
        with (
            open(os.memfd_create("waldump"), "w+b", buffering=0) as out,
            process.start(argv, stdout=out) as child,
        ):
            if not child.ended_within(60) or not child.ran():
                raise CouldNotVerify(f"pg_waldump does not run: {child.stderr_tail()}")
            out.seek(0)
            made = _OUTSIDE.search(out.read().decode(errors="replace"))
        if before is not None:
            (self._scan / before.name).unlink(missing_ok=True)
        self._last = segment
        if made:
            raise CouldNotVerify(
                f"replaying {name} would make a tablespace in {made[1]}",
                hint="take a new base backup: kyb-backup backup base",
            )


def hand_over(path: Path, account: Account | None) -> None:
    """Let ``account`` own a file or folder, where the server is another user than we are."""
    if account is not None:
        os.chown(path, account.uid, account.gid)
