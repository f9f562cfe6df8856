"""A proxy in front of a real S3 server that breaks what goes through it, as a test says.

It stands between: requests reach the real server, and its answers come back, unless a fault says otherwise.
A fault looks at each request and may answer in its place, change what is sent or what comes back, wait, or cut
the connection. So the server's own behaviour stays real, and what breaks it is one function of a test.
"""

import contextlib
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kyb_backup_pipeline_tests.s3_server import Bucket, S3Server


class Cut(Exception):
    """Close the connection without an answer."""


@dataclass
class Passage:
    """One request on its way, with its number. ``answer`` is there after it went through."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answer: "Answer | None" = None

    @property
    def writes(self) -> bool:
        return self.method == "PUT"

    @property
    def data(self) -> bool:
        """Whether it writes a part of a file."""
        return self.writes and "/probe/" not in self.path and not self.path.endswith(".json")

    @property
    def commit(self) -> bool:
        return self.writes and self.path.endswith("/offsite_copy.json")


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


Fault = Callable[[Passage], Answer | None]
"""Called before a request goes through, and again after it with its ``answer``."""


def refused(status: int, code: str) -> Answer:
    """An answer as S3 gives it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


@dataclass
class Proxy:
    """A running proxy. ``passages`` are all requests that came, without their bodies."""

    port: int
    fault: Fault = lambda passage: None
    passages: list[Passage] = field(default_factory=list)

    def sent(self) -> list[str]:
        """The keys of all parts that were written, as often as they were."""
        return [p.path.partition("?")[0] for p in self.passages if p.data]

    def bucket(self, real: Bucket) -> Bucket:
        """A bucket of the real server, seen through the proxy."""
        return Bucket(S3Server(self.port), real.name)


@contextlib.contextmanager
def proxy_to(server: S3Server) -> Iterator[Proxy]:
    """A proxy for the block."""
    proxy = Proxy(0)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                passage = Passage(len(proxy.passages), self.command, self.path,
                                  dict(self.headers.items()), body)  # fmt: skip
                proxy.passages.append(passage)
            try:
                answer = proxy.fault(passage)
                if answer is None:
                    passage.answer = _through(server, passage)
                    answer = proxy.fault(passage) or passage.answer
            except Cut:
                self._cut()
                return
            finally:
                passage.body = b""
            self._give(answer)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_one

        def _give(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "content-length",
                    "date",
                ):
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: Any) -> None:
            return

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            return  # clients that were killed

    with Server(("127.0.0.1", 0), Handler) as running:
        proxy.port = running.server_port
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            running.shutdown()
            thread.join()


def _through(server: S3Server, passage: Passage) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        # the Host header goes along as it is: it is signed
        connection.putrequest(
            passage.method, passage.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in passage.headers.items():
            if name.lower() not in ("connection", "content-length", "expect"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(passage.body)))
        connection.endheaders(passage.body)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def slowly(seconds: float) -> None:
    """A pause, in the words of a fault."""
    time.sleep(seconds)
