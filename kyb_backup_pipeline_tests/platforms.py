"""A platform to back up: an application's folder, its service as a real process, keys, settings."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.encryption import new_key_pair
from kyb_backup_pipeline.engine.file_backup import (
    take_application_backup,
    take_configuration_backup,
)
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.swap import REPLACED, UNDONE
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import free_port
from kyb_backup_pipeline.sandbox.platform import write_application_folder

FLAGS = "/api/v1/admin/feature-flags"
PASSPHRASE = "correct horse battery staple"
SECRET = b"not-a-real-secret"
"""Stands in the sample's configs/secrets.env."""

_SERVICE = """\
import os, signal, subprocess, sys, time
what, root, port, place = sys.argv[1:]
pid_file, port_file = place + "/service.pid", place + "/service.port"
def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
pid = int(open(pid_file).read()) if os.path.exists(pid_file) else 0
if what == "start" and not (pid and alive(pid)):
    child = subprocess.Popen([sys.executable, "-m", "kyb_backup_pipeline.sandbox.platform", "--root", root,
                              "--port-file", port_file, "--port", port], start_new_session=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(pid_file, "w").write(str(child.pid))
    child.returncode = 0
    while not os.path.exists(port_file):
        time.sleep(0.02)
if what == "stop" and pid and alive(pid):
    os.kill(pid, signal.SIGTERM)
    while alive(pid):
        time.sleep(0.02)
with open(place + "/service.log", "a") as log:
    log.write(what + "\\n")
"""


@dataclass
class Platform:
    """Everything of one platform under ``place``."""

    place: Path
    environment: dict[str, str]

    @property
    def root(self) -> Path:
        return self.place / "app"

    @property
    def identity(self) -> Path:
        return self.place / "keys" / "kyb_backup_identity.txt"

    @property
    def settings(self) -> Settings:
        return self.with_settings()

    def with_settings(self, **changes: str) -> Settings:
        """Settings with some variables set otherwise, without ``KYB_``."""
        added = {f"KYB_{name}": value for name, value in changes.items()}
        return config.load(environment={**self.environment, **added})

    @property
    def repository(self) -> Repository:
        return Repository(self.settings.repository)

    def configuration(self, settings: Settings | None = None, **request: str) -> Backup:
        return take_configuration_backup(
            settings or self.settings, Request(**request), now=utc_now()
        )

    def application(
        self, settings: Settings | None = None, deployment: str = "v1", **request: str
    ) -> Backup:
        return take_application_backup(
            settings or self.settings, Request(**request), deployment, now=utc_now()
        )

    def verify(self, backup: Backup, settings: Settings | None = None) -> Proof:
        return verify_backup(
            self.repository, self.repository.find(backup.backup_id),
            settings=settings or self.settings, now=utc_now(),
        )  # fmt: skip

    def service(self, what: str) -> None:
        subprocess.run(self.command(what), check=True)

    def command(self, what: str) -> list[str]:
        return [sys.executable, str(self.place / "service.py"), what, str(self.root),
                self.environment["PORT"], str(self.place)]  # fmt: skip

    def calls(self) -> list[str]:
        """What the service was told so far."""
        path = self.place / "service.log"
        return path.read_text().split() if path.exists() else []

    def flags(self) -> Any:
        with urllib.request.urlopen(self.settings.application.flags_url, timeout=5) as answer:
            return json.load(answer)

    def tree(self, folder: Path | None = None) -> dict[str, object]:
        """Every file with its content and mode, every link with its target; without what restores took
        out of place and left beside, and without their journals."""
        top = folder or self.root
        return {
            str(path.relative_to(top)): _seen(path)
            for path in sorted(top.rglob("*"))
            if not any(part.startswith((REPLACED, UNDONE)) for part in path.relative_to(top).parts)
            and "recovery" not in path.relative_to(top).parts
        }

    def file(self, path: Path, *, without: tuple[str, ...] = ()) -> Path:
        """A settings file with these settings, for a process of its own."""
        how, encryption = self.settings.application, self.settings.encryption
        lines = [
            f'repository = "{self.settings.repository}"',
            "[backup]\nminimum_free = 0",
            "[encryption]",
            f"recipients = {json.dumps(encryption.recipients)}",
            f'identity_file = "{encryption.identity_file}"',
            "[application]",
            f'root = "{how.root}"',
            f'logs = "{how.logs}"',
            f'flags_url = "{how.flags_url}"',
            f"timeout = {how.timeout}",
            f"service_timeout = {how.service_timeout}",
            f"stop_command = {json.dumps(how.stop_command)}",
            f"start_command = {json.dumps(how.start_command)}",
        ]
        path.write_text(
            "\n".join(line for line in lines if line.split(" ")[0] not in without) + "\n"
        )
        return path


def _seen(path: Path) -> object:
    if path.is_symlink():
        return os.readlink(path)
    if path.is_file():
        return (path.read_bytes(), path.stat().st_mode & 0o7777, path.stat().st_mtime_ns)
    return "folder" if path.is_dir() else "special"


@contextlib.contextmanager
def gpg_home() -> Iterator[str]:
    """A home for gpg as an operator has one, with a path that its agent's socket fits into."""
    home = tempfile.mkdtemp(prefix="gpg-")
    try:
        yield home
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def platform_in(place: Path) -> Iterator[Platform]:
    """Make a platform with a running service, and stop that at the end."""
    place.mkdir()
    write_application_folder(place / "app")
    (place / "logs").mkdir()
    (place / "logs" / "api.log").write_text("a line\n")
    (place / "service.py").write_text(_SERVICE)
    keys = new_key_pair(place / "keys", utc_now())
    port = str(free_port())
    platform = Platform(place, {"PORT": port})
    platform.environment |= {
        "BACKUP_DIR": str(place / "backups"),
        "KYB_BACKUP__MINIMUM_FREE": "0",
        "KYB_ENCRYPTION__RECIPIENTS": keys.recipient,
        "KYB_ENCRYPTION__IDENTITY_FILE": str(keys.file),
        "KYB_ENCRYPTION__PASSPHRASE": PASSPHRASE,
        "KYB_APPLICATION__ROOT": str(place / "app"),
        "KYB_APPLICATION__LOGS": str(place / "logs"),
        "KYB_APPLICATION__FLAGS_URL": f"http://127.0.0.1:{port}{FLAGS}",
        "KYB_APPLICATION__RETRIES": "1",
        "KYB_APPLICATION__TIMEOUT": "5",
        "KYB_APPLICATION__SERVICE_TIMEOUT": "10",
        "KYB_APPLICATION__STOP_COMMAND": " ".join(platform.command("stop")),
        "KYB_APPLICATION__START_COMMAND": " ".join(platform.command("start")),
    }
    platform.service("start")
    (place / "service.log").unlink()
    try:
        yield platform
    finally:
        platform.service("stop")
        shutil.rmtree(place, ignore_errors=True)


@dataclass
class Answers:
    """An HTTP server that answers each request as ``each`` says; ``seen`` are (method, headers, body)."""

    each: Callable[[BaseHTTPRequestHandler, int], None]
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def answering(each: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[Answers]:
    """Serve on loopback; ``each`` gets the request and its number, from 0."""
    answers = Answers(each)

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answers.seen.append((self.command, dict(self.headers), body))
            with contextlib.suppress(OSError):
                answers.each(self, len(answers.seen) - 1)

        do_GET = do_POST = _any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        answers.url = f"http://127.0.0.1:{server.server_port}/flags"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield answers
        finally:
            server.shutdown()
            thread.join()


def answer(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    kind: str = "application/json",
    **headers: str,
) -> None:
    """Send one whole answer."""
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", headers.pop("length", str(len(body))))
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
