"""The platform beside its database: an application folder and a small admin service.

    python -m kyb_backup_pipeline.sandbox.platform --root DIR --port-file FILE [--port N]

| request                                    | answer                                          |
|--------------------------------------------|-------------------------------------------------|
| `GET /health`                              | `{"status": "ok"}`                              |
| `GET /api/v1/admin/feature-flags`          | `{"<name>": true or false, ...}`                |
| `POST /api/v1/admin/feature-flags/restore` | the flags now in force: exactly the ones posted |

Promises: what GET gives, the restore takes back unchanged. A restore replaces every flag or, when
anything in it is wrong, none (400, with the reasons). The flags live in `feature-flags.json` under
the root, read at each request and replaced by rename, so a kill at any moment leaves the old set or
the new one. The port file appears only once requests are answered and goes away at the end.

The service listens on 127.0.0.1 only and asks for no password: it is a stand-in, not to be exposed.
Start it with `-m`: run as a plain script, this file would hide the standard `platform` module.
"""

import argparse
import json
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

FLAGS_FILE = "feature-flags.json"
DEFAULT_FLAGS = {
    "adverse_media_screening": True,
    "bulk_onboarding": False,
    "instant_registry_lookup": True,
    "ownership_graph_v2": True,
    "risk_model_2025": False,
}

_FLAGS_PATH = "/api/v1/admin/feature-flags"
_MAX_BODY_BYTES = 1_000_000
_READ_SECONDS = 30
_FLAG_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

_DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: kyb-NAME, namespace: kyb}
spec:
  replicas: 2
  selector: {matchLabels: {app: kyb-NAME}}
  template:
    metadata: {labels: {app: kyb-NAME}}
    spec: {containers: [{name: NAME, image: "registry.example/kyb-NAME:4.12.3"}]}
"""
_APPLICATION = {
    "VERSION": "4.12.3\n",
    "configs/application.yaml": """\
service: {name: kyb-platform, port: 8080, log_level: info}
database: {pool_size: 20, statement_timeout_ms: 15000}
storage: {bucket: kyb-documents, retention_days: 2555}
""",
    "configs/providers.yaml": """\
providers:
  - {name: Companies House, url: "https://registry.example/uk", timeout_ms: 4000}
  - {name: OpenCorporates, url: "https://registry.example/oc", timeout_ms: 8000}
""",
    "configs/risk-rules.yaml": """\
bands: {medium: 40, high: 70}
controlling_share_percent: 25
""",
    "configs/secrets.env": """\
JWT_SIGNING_KEY=not-a-real-key
STORAGE_SECRET_KEY=not-a-real-secret
""",
    "deployments/api.yaml": _DEPLOYMENT.replace("NAME", "api"),
    "deployments/worker.yaml": _DEPLOYMENT.replace("NAME", "worker"),
    "production.env": """\
KYB_ENV=production
DATABASE_URL=postgresql://kyb:not-a-real-password@db.example/kyb
""",
    "logs/api.log": "2025-06-30T23:59:58Z INFO request done path=/health status=200\n",
}
_PRIVATE = {"configs/secrets.env", "production.env"}


class FlagsError(ValueError):
    """The posted document is not a set of feature flags."""


def write_application_folder(root: Path) -> None:
    """Make the sample tree: create what is missing, put back what differs, touch nothing else."""
    for name, text in _APPLICATION.items():
        path, mode = root / name, 0o600 if name in _PRIVATE else 0o644
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != text.encode():
            _replace_file(path, text, mode=mode)
        path.chmod(mode)


def parse_flags(body: bytes) -> dict[str, bool]:
    """Read a JSON object of flag name to true or false; `FlagsError` names everything wrong."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FlagsError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FlagsError("expected a JSON object of flag name to true or false")
    wrong = [f"bad flag name {name!r}" for name in document if not _FLAG_NAME.fullmatch(name)]
    wrong += [
        f"flag {name!r} is neither true nor false"
        for name, value in document.items()
        if not isinstance(value, bool)
    ]
    if wrong:
        raise FlagsError("; ".join(wrong))
    return document


class PlatformServer(ThreadingHTTPServer):
    """Bound and listening as soon as it exists; `serve_forever` answers."""

    def __init__(self, root: Path, *, port: int = 0) -> None:
        self.flags_file = root / FLAGS_FILE
        if not self.flags_file.exists():
            self.write_flags(DEFAULT_FLAGS)
        super().__init__(("127.0.0.1", port), _Handler)

    def read_flags(self) -> dict[str, bool]:
        return parse_flags(self.flags_file.read_bytes())

    def write_flags(self, flags: dict[str, bool]) -> None:
        _replace_file(self.flags_file, json.dumps(flags, indent=2, sort_keys=True) + "\n")


class _Handler(BaseHTTPRequestHandler):
    server: PlatformServer
    timeout = _READ_SECONDS

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok"})
        elif self.path == _FLAGS_PATH:
            try:
                self._answer(HTTPStatus.OK, self.server.read_flags())
            except (OSError, FlagsError) as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {self.path}"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._answer(HTTPStatus.LENGTH_REQUIRED, {"error": "Content-Length is required"})
        elif int(length) > _MAX_BODY_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "more than 1 MB"})
        elif self.path != f"{_FLAGS_PATH}/restore":
            self.rfile.read(int(length))
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no such page: {self.path}"})
        else:
            self._restore(self.rfile.read(int(length)))

    def _restore(self, body: bytes) -> None:
        try:
            flags = parse_flags(body)
            self.server.write_flags(flags)
        except FlagsError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        else:
            self._answer(HTTPStatus.OK, flags)

    def _answer(self, status: HTTPStatus, document: Mapping[str, object]) -> None:
        body = json.dumps(document).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.info(format, *args)


def _replace_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write beside, fsync, rename, fsync the folder: readers see the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stop(signum: int, frame: FrameType | None) -> None:
    _on_stop_signals(signal.SIG_IGN)  # once is enough: leave the clean-up alone
    raise SystemExit(0)


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    # SIGINT too: a shell starts background jobs with it ignored, and Python leaves it so.
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Stand-in for the KYB platform's admin service.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the flags")
    parser.add_argument("--port-file", type=Path, required=True, help="where to write the port")
    parser.add_argument("--port", type=int, default=0, help="0, the default: any free port")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _on_stop_signals(_stop)
    options.root.mkdir(parents=True, exist_ok=True)
    with PlatformServer(options.root, port=options.port) as server:
        try:
            _replace_file(options.port_file, f"{server.server_port}\n")
            logger.info("listening on http://127.0.0.1:%d", server.server_port)
            server.serve_forever()
        finally:
            options.port_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
