"""The one door to other programs.

Promises: argument lists and never a shell; a deadline or an explicit None; secrets only through the
environment of the child, never in its arguments, and masked in what is reported; nothing of our own
environment leaks into PostgreSQL's programs (a stray ``PGOPTIONS`` or ``PGSERVICE`` would change
what they do); the tail of stderr in every error; children die with their parent.

The last promise rests on ``PR_SET_PDEATHSIG``, which is set after the change of user (a change of
user clears it) and is tied to the *thread* that forks: whoever starts a child waits for it in the
same thread. ``start_detached`` is for servers that are meant to outlive us.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kyb_backup_pipeline.engine.errors import KybError

_log = logging.getLogger(__name__)

PIPE = subprocess.PIPE
"""For ``stdin`` and ``stdout`` of ``start``: a pipe that the caller works with."""
_STDERR_KEPT = 1 << 16
_STDERR_SHOWN = 4000
_PIPE_SIZE = 1 << 20
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "KRB5CCNAME", "SSL_CERT_FILE")
_SECRET_NAMES = ("PGPASSWORD",)
_MASKABLE = 8
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True)
class Account:
    """An operating-system user that a child runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> "Account":
        """The account called ``name``. Raises KeyError if there is none."""
        entry = pwd.getpwnam(name)
        return cls(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


@dataclass(frozen=True)
class Completed:
    """What a program that ended with 0 left behind."""

    stdout: str
    stderr: str


class ProcessFailed(KybError):
    """A program ended with a status other than 0, was killed, or ran past its deadline."""

    def __init__(self, program: str, status: str, stderr: str) -> None:
        self.program = program
        self.status = status
        self.stderr = stderr.strip()
        shown = self.stderr[-_STDERR_SHOWN:]
        super().__init__(f"{program} {status}" + (f": {shown}" if shown else ""))


class Child:
    """A running program whose pipes the caller works with; ``finish`` waits and judges."""

    def __init__(
        self, popen: subprocess.Popen[bytes], stderr: IO[bytes], secrets: Sequence[str]
    ) -> None:
        self._popen = popen
        self._stderr = stderr
        self._secrets = secrets
        self.program = Path(str(popen.args[0])).name  # type: ignore[index]

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def returncode(self) -> int | None:
        """The status it ended with; None while it runs."""
        return self._popen.returncode

    def running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._popen.poll() is None

    def ended_within(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the end; whether it came."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return self._popen.returncode is not None

    def ran(self) -> bool:
        """Whether it has ended by itself: no signal, and not for want of the program or a library."""
        return self._popen.returncode is not None and 0 <= self._popen.returncode < 126

    def stderr_tail(self) -> str:
        """The last lines the program wrote to stderr, secrets masked."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_KEPT))
        return _masked(self._stderr.read().decode(errors="replace"), self._secrets)

    def finish(self, deadline: float | None) -> str:
        """Wait at most ``deadline`` seconds; return the tail of stderr. Raises ProcessFailed."""
        try:
            code = self._popen.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(
                self.program, f"did not end within {deadline:g} s", self.stderr_tail()
            ) from None
        if code != 0:
            raise ProcessFailed(self.program, _status(code), self.stderr_tail())
        return self.stderr_tail()

    def kill(self) -> None:
        """End the program and all it started (it leads a process group of its own)."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def stop(self, how: signal.Signals, deadline: float) -> None:
        """Ask the program to end with signal ``how``; kill it after ``deadline`` seconds."""
        if self._popen.poll() is None:
            self._popen.send_signal(how)
            try:
                self._popen.wait(deadline)
            except subprocess.TimeoutExpired:
                self.kill()


@contextlib.contextmanager
def start(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: IO[bytes] | None = None,
    account: Account | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    umask: int = 0o077,
    death_signal: signal.Signals = signal.SIGKILL,
) -> Iterator[Child]:
    """Run a program beside us; on leaving the block whatever still runs is killed.

    ``stdin`` and ``stdout`` take ``PIPE`` or an open file. Pipes are unbuffered. ``pass_fds`` keep
    their numbers in the program (``secret_pipe``).
    """
    environment = _environment(env, account)
    secrets = [environment[name] for name in _SECRET_NAMES if environment.get(name)]
    _log.debug("start %s", " ".join(map(str, argv)))
    with open(os.memfd_create("stderr"), "w+b", buffering=0) as memory:
        popen = subprocess.Popen(
            list(map(str, argv)),
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr or memory,
            bufsize=0,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=_die_with_parent(death_signal),
            umask=umask,
            **_as_account(account),
        )
        child = Child(popen, memory, secrets)
        try:
            yield child
        finally:
            child.kill()
            for pipe in (popen.stdin, popen.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


@contextlib.contextmanager
def secret_pipe(secret: str) -> Iterator[int]:
    """A descriptor that a program can read a short secret from, once: neither argument nor file."""
    reading, writing = os.pipe()
    try:
        os.write(writing, secret.encode())
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def run(
    argv: Sequence[str | Path],
    *,
    deadline: float | None,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
    cwd: Path | None = None,
    umask: int = 0o077,
) -> Completed:
    """Run a program to its end and return what it printed.

    Raises ProcessFailed with the tail of stderr when the status is not 0 or the deadline (seconds)
    passes, and when the program cannot be started at all.
    """
    try:
        with (
            open(os.memfd_create("stdout"), "w+b", buffering=0) as out,
            start(argv, env=env, stdout=out, account=account, cwd=cwd, umask=umask) as child,
        ):
            stderr = child.finish(deadline)
            out.seek(0)
            return Completed(stdout=out.read().decode(errors="replace"), stderr=stderr)
    except OSError as error:
        raise ProcessFailed(Path(argv[0]).name, "could not be started", str(error)) from error


def run_logged(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    deadline: float | None,
    cwd: Path,
) -> None:
    """Run a program of our own (it gets our whole environment) with all it prints in ``log``.

    Raises ProcessFailed.
    """
    with (
        open(log, "wb") as output,
        start(argv, env={**os.environ, **env}, stdout=output, stderr=output, cwd=cwd) as child,
    ):
        child.finish(deadline)


def start_detached(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    inherit: bool = False,
    account: Account | None = None,
    cwd: Path | None = None,
) -> int:
    """Start a server that outlives us, with its output appended to ``log``; return its process id.

    ``inherit`` passes our whole environment on, for our own Python programs. Signals start from
    their defaults, also where a background shell had them ignored.
    """
    with open(log, "ab") as output:
        popen = subprocess.Popen(
            list(map(str, argv)),
            env={**os.environ, **(env or {})} if inherit else _environment(env, account),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_default_signals,
            umask=0o077,
            **_as_account(account),
        )
    popen.returncode = 0  # not ours to reap: it outlives us, and Popen would warn about it
    return popen.pid


def widen_pipe(pipe: IO[bytes]) -> None:
    """Make a pipe hold 1 MiB, which saves a fifth of the time; ordinary users may be refused."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


def feed(child: Child, data: bytes, patience: float) -> None:
    """Write all of ``data`` to the child's stdin.

    Raises BrokenPipeError if it ended, ProcessFailed if it takes nothing for ``patience`` seconds.
    """
    descriptor = child.stdin.fileno()
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    rest = memoryview(data)
    while rest:
        if not poll.poll(patience * 1000):
            raise ProcessFailed(child.program, f"took nothing for {patience:g} s", "")
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(descriptor, rest) :]


def write_all(descriptor: int, block: bytes | bytearray | memoryview) -> None:
    """Write a whole block, however often the kernel takes only a part."""
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def alive(pid: int) -> bool:
    """Whether a process with this id runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def started_at(pid: int) -> str:
    """When a process started, in the kernel's ticks: with its id, it names one process for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def command_line(pid: int) -> list[str]:
    """The arguments of a running process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def stop_pid(pid: int, how: signal.Signals, deadline: float) -> None:
    """Ask a process that is not our child to end; kill it after ``deadline`` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
        give_up = time.monotonic() + deadline
        while alive(pid):
            if time.monotonic() > give_up:
                os.kill(pid, signal.SIGKILL)
                give_up = time.monotonic() + deadline
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)


def _die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    parent = os.getpid()
    number = int(death_signal)

    def arrange() -> None:
        _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        signal.pthread_sigmask(
            signal.SIG_SETMASK, ()
        )  # what we block for a moment is not their affair
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file-size limit is an error, not a death
        if os.getppid() != parent:  # it died between the fork and this line
            os._exit(1)

    return arrange


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _environment(env: Mapping[str, str] | None, account: Account | None) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment["LC_ALL"] = "C"
    if account is not None:
        environment["HOME"] = "/"
    return {**environment, **(env or {})}


def _as_account(account: Account | None) -> dict[str, Any]:
    if account is None or account.uid == os.geteuid():
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _masked(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if len(secret) >= _MASKABLE:  # masking short ones would mutilate words, and tell them
            text = text.replace(secret, "********")
    return text


def _status(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"
