"""How much of the machine others took while we measured.

A ratio of two commands that ran side by side forgives noise that lasts, not noise that comes and goes.
So the share of the processors' time that belonged neither to us nor to our server is kept for every
measurement, and printed. Time that a hypervisor stole counts as others'.
"""

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_CORES = os.cpu_count() or 1
_GLANCE = 0.5
_QUIET = 0.1


@dataclass(frozen=True)
class Moment:
    """The clock, and the processor time in seconds that all and that we have used until now."""

    clock: float
    all: float
    ours: float

    def others_until(self, later: "Moment") -> float:
        """The share of all cores, 0 to 1, that others took."""
        others = (later.all - self.all) - (later.ours - self.ours)
        return min(1.0, max(0.0, others / ((later.clock - self.clock) * _CORES)))


@dataclass(frozen=True)
class Meter:
    """Reads moments; ``server`` is the process id of our server."""

    server: int

    def now(self) -> Moment:
        """This moment. What still runs under a measured command is not in it: read it at its end."""
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        ours = sum(usage.ru_utime + usage.ru_stime for usage in usages) + self._server_seconds()
        return Moment(time.monotonic(), _all_seconds(), ours)

    def await_quiet(self, patience: float) -> None:
        """Wait until nobody else works, at most ``patience`` seconds."""
        give_up = time.monotonic() + patience
        while time.monotonic() < give_up:
            before = self.now()
            time.sleep(_GLANCE)
            if before.others_until(self.now()) < _QUIET:
                return

    def _server_seconds(self) -> float:
        """Of the server, of those of its children that ended, and of those that run."""
        total = 0.0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if self.server in (int(entry.name), int(fields[1])):
                        total += sum(map(int, fields[11:15])) * _TICK
        return total


def _all_seconds() -> float:
    """Of all cores: user, nice, system, interrupts and stolen time; not waiting, not idle."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) * _TICK
