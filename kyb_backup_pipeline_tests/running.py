"""The command line as a process of its own, and what it started."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyb_backup_pipeline.engine import process


@dataclass
class Run:
    """A command that runs; what it prints goes to files, so that no pipe can fill up."""

    popen: "subprocess.Popen[bytes]"
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.popen.send_signal(how)

    def wait(self, seconds: float = 120) -> int:
        """Wait for its end and return its status."""
        return self.popen.wait(seconds)

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()


class Cli:
    """``kyb-backup`` with a settings file, in an environment without variables of ours."""

    def __init__(self, file: Path | None, environment: Mapping[str, str] | None = None) -> None:
        names = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_STATE_HOME")
        self._env = {name: os.environ[name] for name in names if name in os.environ}
        self._env |= environment or {}
        self._argv = [sys.executable, "-m", "kyb_backup_pipeline"]
        if file is not None:
            self._argv += ["--config", str(file)]
        self._outputs = Path(tempfile.mkdtemp(prefix="kyb-cli-"))
        atexit.register(shutil.rmtree, self._outputs, ignore_errors=True)

    def start(self, *arguments: str, **options: Any) -> Run:
        """Start it beside the test."""
        name = f"{time.monotonic_ns()}"
        out, err = self._outputs / f"{name}.out", self._outputs / f"{name}.err"
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            popen = subprocess.Popen(
                [*self._argv, *arguments], stdout=stdout, stderr=stderr, env=self._env, **options
            )
        return Run(popen, out, err)

    def run(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return subprocess.run(
            [*self._argv, *arguments],
            capture_output=True,
            text=True,
            env=self._env,
            check=False,
            **options,
        )


def children_of(pid: int) -> list[int]:
    """The process ids of all descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def none_alive(pids: list[int]) -> bool:
    """Whether all these processes are gone."""
    return not any(map(process.alive, pids))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for something that must come; fail by its name if it does not."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds:g} s, but not yet: {what}"
        time.sleep(0.02)
