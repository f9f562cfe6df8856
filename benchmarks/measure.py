"""Timing whole commands as processes, in rounds.

A bare second says more about the machine and its neighbours than about a program. So contenders take
turns, one after the other, for several rounds, and ``table`` makes ratios of what ran in one round.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.noise import Meter

Figures = dict[str, float]
Contender = Callable[[int], Figures]
"""Measures one thing in round N and returns its figures by name."""


class CommandFailed(Exception):
    """A measured command did not do its work, so its time means nothing."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One command: its time in seconds, and the peak memory in bytes of its largest process."""

    seconds: float
    peak: int


def run(argv: Sequence[str | Path], *, env: Mapping[str, str], chatty: bool = False) -> Sample:
    """Run a command to its end and measure it. ``env`` is all of its environment.

    Raises CommandFailed for another status than 0 and, unless it is ``chatty``, for any word on
    stderr: the status of a pipeline is only that of its last part.
    """
    with tempfile.TemporaryFile() as stderr:
        began = time.perf_counter()
        child = subprocess.Popen(
            list(map(str, argv)),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            _end(child)
            raise
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        said = stderr.read().decode(errors="replace").strip()
    if child.returncode != 0 or (said and not chatty):
        line = " ".join(map(str, argv))
        raise CommandFailed(f"ended with {child.returncode}: {line}\n{said[-2000:]}")
    return Sample(seconds=seconds, peak=usage.ru_maxrss * 1024)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a command and all it started: asking first, so that it clears up after itself."""
    for how in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@dataclass(frozen=True)
class Rounds:
    """The figures of all contenders, round by round, without the warm-up."""

    figures: tuple[Figures, ...]
    others: tuple[float, ...]
    """The share of the machine, 0 to 1, that others took in each measurement."""

    def values(self, names: Iterable[str]) -> list[float]:
        """For each round the sum of the named figures."""
        wanted = tuple(names)
        return [sum(figures[name] for name in wanted) for figures in self.figures]

    def has(self, names: Iterable[str]) -> bool:
        return all(name in figures for figures in self.figures for name in names)


def interleaved(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    meter: Meter,
    before: Callable[[], None] = lambda: None,
    progress: Callable[[str], None] = lambda text: None,
) -> Rounds:
    """Let the contenders take turns, once to warm up and then for ``rounds`` rounds.

    ``before`` brings the machine to rest before each of them.
    """
    measured: list[Figures] = []
    others: list[float] = []
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warm-up")
        figures: Figures = {}
        for contender in contenders:
            before()
            began = meter.now()
            figures |= contender(number)
            others.append(began.others_until(meter.now()))
        measured.append(figures)
    return Rounds(tuple(measured[1:]), tuple(others[len(contenders) :]))
