"""The channels that alerts go through, and the sending: each in a thread of its own, none waited for too long.

Each address of ``alerts.email`` is a channel, so that one that is refused does not have the others told
twice; so is each of ``alerts.channels``, whose URL apprise understands. The threads hold nobody's exit.

URLs hold tokens, and apprise writes them to its log. So that never goes below INFO, and its lines reach nobody
but us, who mask them. Its plugins are called one by one, not through its ``Apprise`` object, whose pool of
threads is waited for at exit (decision 012).
"""

import contextlib
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from kyb_backup_pipeline.engine.alert_mail import Undelivered, send_mail
from kyb_backup_pipeline.engine.alert_text import Message
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.settings import AlertSettings
from kyb_backup_pipeline.engine.trouble import Severity

if TYPE_CHECKING:
    from apprise import NotifyBase

_log = logging.getLogger(__name__)

_MASKABLE = 6
_REASON = 500
_TYPES = {"info": "info", "warning": "warning", "critical": "failure", None: "success"}
"""How apprise calls what we call severity; nothing but good news is a success."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One place that alerts go to: an address of mail (``url`` is None, ``name`` is it), or a URL."""

    name: str
    minimum: Severity
    url: SecretStr | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What became of one message; ``answer`` is for people, and holds no secret."""

    channel: str
    delivered: bool
    answer: str


def channels(settings: AlertSettings) -> list[Channel]:
    """Every channel that is set, addresses of mail first."""
    mail = [
        Channel(name=each, minimum=settings.email_minimum) for each in dict.fromkeys(settings.email)
    ]
    return mail + [
        Channel(name=each.name, minimum=each.minimum, url=each.url) for each in settings.channels
    ]


def deliver(
    messages: Mapping[Channel, Message], settings: AlertSettings, now: datetime
) -> Iterator[Delivery]:
    """Send all at once, and give what each channel answered as it comes."""
    if any(channel.url is not None for channel in messages):
        load_apprise()
    jobs = {
        channel.name: _sending(channel, message, settings, now)
        for channel, message in messages.items()
    }
    for name, delivered, answer in within(jobs, settings.timeout):
        if delivered:
            _log.info("alert to %s: %s", name, answer)
        else:
            _log.warning("alert to %s did not arrive: %s", name, answer)
        yield Delivery(channel=name, delivered=delivered, answer=answer)


def within(
    jobs: Mapping[str, Callable[[], str]], seconds: float
) -> Iterator[tuple[str, bool, str]]:
    """Run all at once; name, success and answer of each as it comes, and after ``seconds`` (and one) of the rest."""
    answers: queue.SimpleQueue[tuple[str, bool, str]] = queue.SimpleQueue()
    requests_log = logging.getLogger("urllib3")  # at DEBUG it has the paths of requests: tokens
    requests_log.setLevel(max(requests_log.getEffectiveLevel(), logging.INFO))

    def run(name: str, job: Callable[[], str]) -> None:
        try:
            answers.put((name, True, job()))
        except KybError as error:
            answers.put((name, False, error.message))
        except Exception as error:  # noqa: BLE001  (the edge of a thread; its text may hold a secret)
            answers.put((name, False, f"unexpected: {type(error).__name__}"))

    for name, job in jobs.items():
        threading.Thread(target=run, args=(name, job), name=f"alert {name}", daemon=True).start()
    give_up = time.monotonic() + seconds + 1
    waiting = dict.fromkeys(jobs)
    while waiting:
        try:
            answer = answers.get(timeout=max(0.0, give_up - time.monotonic()))
        except queue.Empty:
            break
        del waiting[answer[0]]
        yield answer
    for name in waiting:
        yield name, False, f"no answer within {seconds:g} s"


def service(url: SecretStr) -> "NotifyBase":
    """What apprise makes of a URL. Raises Undelivered if it is none of its."""
    apprise = load_apprise()
    with _listener.listening() as said:
        asset = apprise.AppriseAsset(app_id="KYB backups", image_url_mask="", image_url_logo="")
        found = apprise.Apprise.instantiate(url.get_secret_value().strip(), asset=asset)
    if found is None:
        raise Undelivered(f"its address is none that apprise knows{_because(said, url)}",
                          hint="https://appriseit.com/services/")  # fmt: skip
    return found  # type: ignore[no-any-return]


def _sending(
    channel: Channel, message: Message, settings: AlertSettings, now: datetime
) -> Callable[[], str]:
    url = channel.url
    if url is None:
        return lambda: _send_mail(settings, channel.name, message, now)
    return lambda: _notify(url, message, settings.timeout)


def _send_mail(settings: AlertSettings, to: str, message: Message, now: datetime) -> str:
    try:
        return send_mail(settings, to, message, now)
    except Undelivered as error:
        password = settings.smtp_password
        secrets = [password.get_secret_value()] if password else []
        raise Undelivered(_masked(error.message, secrets), hint=error.hint) from None


def _notify(url: SecretStr, message: Message, seconds: float) -> str:
    plugin = service(url)
    plugin.socket_connect_timeout = plugin.socket_read_timeout = seconds
    preferred = plugin.notify_format
    first = preferred[0] if isinstance(preferred, tuple) else preferred
    html = first == "html"
    with _listener.listening() as said:
        taken = plugin.notify(
            title=message.subject,
            body=message.html if html else message.text,
            body_format="html" if html else "text",
            notify_type=_TYPES[message.worst],
            # what is too long is refused by some; the worst comes first
            overflow="truncate" if plugin.overflow_mode.value == "upstream" else None,
        )
    if not taken:
        raise Undelivered(f"{plugin.service_name} did not take it{_because(said, url)}")
    return f"taken by {plugin.service_name}"


class _Listener(logging.Filter):
    """Takes what apprise says out of its log, for whom it said it to: the thread that asked it."""

    def __init__(self) -> None:
        super().__init__()
        self._of_thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        lines = getattr(self._of_thread, "lines", None)
        if lines is not None and record.levelno >= logging.WARNING:
            lines.append(" ".join(record.getMessage().split()))
        return False

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[str]]:
        """What is said in this thread meanwhile."""
        self._of_thread.lines = []
        try:
            yield self._of_thread.lines
        finally:
            self._of_thread.lines = None


_listener = _Listener()


def _because(lines: list[str], url: SecretStr) -> str:
    """The reason, to be put behind what failed, without secrets."""
    text = _masked("; ".join(lines), secrets_of(url.get_secret_value()))
    return f": {text[:_REASON]}" if text else ""


def secrets_of(url: str) -> list[str]:
    """Every part of an address that may be a secret, the longest first: all but a plain host's name."""
    parts = urlsplit(url.strip())
    pieces = [
        url,
        url.strip(),
        parts.netloc.rpartition("@")[0],
        parts.username or "",
        parts.password or "",
    ]
    host = parts.hostname or ""
    if "." not in host and host != "localhost":
        pieces.append(parts.netloc.rpartition("@")[2])
    pieces += re.split(r"[/?&=#:]", f"{parts.path}?{parts.query}#{parts.fragment}")
    found = {piece for raw in pieces for piece in (raw, unquote(raw)) if len(piece) >= _MASKABLE}
    return sorted(found, key=len, reverse=True)


def _masked(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "********")
    return text


def load_apprise() -> ModuleType:
    """apprise, with its log for our ears only. Loaded where it is needed: it takes 0.3 s."""
    import apprise
    from apprise.plugins import N_MGR

    N_MGR.load_modules()  # type: ignore[no-untyped-call]  # here, and not in the time that a channel has
    logger = logging.getLogger("apprise")
    logger.setLevel(logging.INFO)
    logger.addFilter(_listener)
    return apprise
