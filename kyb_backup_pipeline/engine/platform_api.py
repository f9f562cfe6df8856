"""The platform's admin API: feature flags and sessions over HTTP.

An answer counts only with status 200, a JSON content type and JSON that reads, of at most so many bytes,
whole within the time-out. What may pass (no connection, 429, 5xx, an answer cut short) is tried again.
Redirects are not followed (a login page is no answer), proxies and netrc files of the environment not
asked. The token goes into a header, and into nothing else.
"""

import json
import logging
import queue
import threading
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kyb_backup_pipeline.engine.errors import BackupFailed, KybError, RestoreFailed
from kyb_backup_pipeline.engine.settings import ApplicationSettings

_log = logging.getLogger(__name__)

_PASSING = (429, 500, 502, 503, 504)
_BACKOFF = 0.5
_CHUNK = 1 << 16


class _Unanswered(KybError):
    """No good answer; ``again`` where another try may help."""

    def __init__(self, message: str, *, hint: str | None = None, again: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.again = again


def fetch_flags(settings: ApplicationSettings) -> bytes:
    """The feature flags, as the API gives them. Raises BackupFailed."""
    try:
        return _ask(settings, "GET", settings.flags_url, settings.answer_limit)
    except _Unanswered as error:
        raise BackupFailed(f"feature flags: {error.message}", hint=error.hint) from error


def fetch_sessions(settings: ApplicationSettings) -> bytes:
    """The sessions, as ``sessions_url`` gives them. Raises BackupFailed."""
    if not settings.sessions_url:
        raise BackupFailed(
            'application.sessions is "http", but application.sessions_url is not set',
            hint="docs/settings.md",
        )
    try:
        return _ask(settings, "GET", settings.sessions_url, settings.sessions_limit)
    except _Unanswered as error:
        raise BackupFailed(f"sessions: {error.message}", hint=error.hint) from error


def restore_flags(settings: ApplicationSettings, flags: bytes) -> list[str]:
    """Post feature flags back; the names of those that the service answers with otherwise afterwards.

    An API may add what it likes to its answer (a time, a version), so a difference is told, not judged.
    Raises RestoreFailed.
    """
    url = settings.flags_restore_url or f"{settings.flags_url}/restore"
    try:
        _ask(settings, "POST", url, settings.answer_limit, flags)
        after = json.loads(_ask(settings, "GET", settings.flags_url, settings.answer_limit))
    except _Unanswered as error:
        raise RestoreFailed(f"feature flags: {error.message}", hint=error.hint) from error
    posted = json.loads(flags)
    if after == posted:
        return []
    if not (isinstance(after, dict) and isinstance(posted, dict)):
        return ["all"]
    return sorted(name for name in {*after, *posted} if after.get(name) != posted.get(name))


def _ask(
    settings: ApplicationSettings, method: str, url: str, limit: int, body: bytes | None = None
) -> bytes:
    for attempt in range(settings.retries + 1):
        try:
            return _within(settings.timeout, method, url, settings, limit, body)
        except _Unanswered as error:
            if not error.again or attempt == settings.retries:
                raise
            _log.info("%s; trying again", error.message)
            time.sleep(_BACKOFF * 2**attempt)
    raise AssertionError("unreachable")


def _within(
    seconds: float,
    method: str,
    url: str,
    settings: ApplicationSettings,
    limit: int,
    body: bytes | None,
) -> bytes:
    """Ask, and wait that long for the whole of it: a service can drip its headers for hours."""
    answers: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_ask_once(settings, method, url, limit, body))
        except BaseException as error:  # noqa: BLE001  (it is raised where it is waited for)
            answers.put(error)

    threading.Thread(target=ask, name="ask", daemon=True).start()
    try:
        answer = answers.get(timeout=2 * seconds + 1)
    except queue.Empty:
        raise _Unanswered(f"{method} {_shown(url)} did not answer in time",
                          hint="application.timeout", again=True) from None  # fmt: skip
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _ask_once(
    settings: ApplicationSettings, method: str, url: str, limit: int, body: bytes | None
) -> bytes:
    import requests

    what = f"{method} {_shown(url)}"
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if body is not None:
        headers["Content-Type"] = "application/json"

    def with_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
        assert settings.token is not None
        request.headers["Authorization"] = f"Bearer {settings.token.get_secret_value()}"
        return request

    give_up = time.monotonic() + settings.timeout
    with requests.Session() as session:
        session.trust_env = False
        try:
            with session.request(
                method, url, data=body, headers=headers, timeout=settings.timeout,
                auth=None if settings.token is None else with_token,
                allow_redirects=False, stream=True,
            ) as response:  # fmt: skip
                _check_head(what, response)
                content = _read(what, response, limit, give_up)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Unanswered(
                f"{what}: {_reason(error, settings.timeout)}",
                hint="is the service running?",
                again=True,
            ) from None
        except (requests.RequestException, ValueError) as error:
            raise _Unanswered(f"{what}: {type(error).__name__}: is the address right?") from None
    check_json(content, what)
    return content


def check_json(content: bytes, what: str) -> None:
    """Is it JSON, an object or an array, to the letter? Raises KybError."""
    try:
        document = json.loads(content, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _Unanswered(f"{what} answered with something that is not JSON") from None
    if not isinstance(document, dict | list):
        raise _Unanswered(f"{what} answered with JSON that is neither object nor array")


def _refuse(name: str) -> None:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _check_head(what: str, response: Any) -> None:
    status = response.status_code
    if status != 200:
        hint = None
        if status in (401, 403):
            hint = "application.token_file (or KYB_APPLICATION__TOKEN) sets the token"
        elif 300 <= status < 400:
            hint = "redirects are not followed: is a login page in between?"
        raise _Unanswered(
            f"{what} answered {status} {response.reason}", hint=hint, again=status in _PASSING
        )
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise _Unanswered(
            f"{what} answered with {kind or 'no content type'} instead of JSON",
            hint="is a login or an error page in between?",
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _Unanswered(f"{what} answered with a compressed body that was not asked for")


def _read(what: str, response: Any, limit: int, give_up: float) -> bytes:
    """The body, of which not more than ``limit`` bytes are ever held."""
    import urllib3

    content = bytearray()
    try:
        while chunk := response.raw.read1(_CHUNK):
            content += chunk
            if len(content) > limit:
                raise _Unanswered(f"{what} answered with more than {limit} bytes",
                                  hint="application.answer_limit, application.sessions_limit")  # fmt: skip
            if time.monotonic() > give_up:
                raise _Unanswered(f"{what} did not answer in time",
                                  hint="application.timeout", again=True)  # fmt: skip
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Unanswered(
            f"{what}: the answer broke off ({type(error).__name__})", again=True
        ) from None
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) != len(content):
        raise _Unanswered(f"{what}: the answer broke off after {len(content)} bytes", again=True)
    return bytes(content)


def _reason(error: Exception, timeout: float) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer within {timeout:g} s"
    text = str(error)
    return "connection refused" if "refused" in text else "no connection"


def _shown(url: str) -> str:
    """The address without what may be a password in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
