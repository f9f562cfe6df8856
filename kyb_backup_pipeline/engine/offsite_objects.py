"""Object storage as an off-site place: S3 and what speaks like it, Google Cloud Storage, Azure.

Every object is one request, at most ``part_size`` long: so it is there whole or not at all, nothing half-sent
stays behind unseen after a kill (as parts of a multipart upload do, and cost), create-only is the service's own,
and so is a SHA-256 of the whole. Requests are retried here, with a growing pause, and not by the library: it
would give up on writes that it cannot know to be harmless; ours are.

Locks of single objects go as headers of the write; they are read back by a signed HEAD.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
import requests
from obstore.store import AzureStore, GCSStore, S3Store

from kyb_backup_pipeline.engine.offsite_errors import (
    Passing,
    refuses_digest,
    translated,
    unreachable,
)
from kyb_backup_pipeline.engine.offsite_target import Found, Gone, Lock
from kyb_backup_pipeline.engine.settings import OffsiteTargetSettings

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
_CONNECT = timedelta(seconds=10)
_SIGNED_FOR = timedelta(minutes=5)
_NOTHING = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""The SHA-256 of no bytes at all, as it goes into a header."""

_T = TypeVar("_T")


class ObjectTarget:
    """One bucket, below a prefix."""

    def __init__(self, name: str, options: OffsiteTargetSettings, now: datetime) -> None:
        assert options.url is not None
        self.name = name
        self.url = options.url.rstrip("/")
        self.options = options
        self._s3 = self.url.startswith("s3://")
        self._store = _store(options, {})
        self._headers = lock_headers(options, now)
        self._writing = _store(options, self._headers)

    def put(self, key: str, data: bytes | bytearray, *, create: bool = False) -> str | None:
        mode: Any = "create" if create else "overwrite"

        def send() -> str | None:
            answer = obstore.put(self._writing, key, data, mode=mode, use_multipart=False)
            return answer["e_tag"]

        return self._patiently(f"write {key}", send)

    def get(self, key: str) -> bytes:
        return self._patiently(f"read {key}", lambda: bytes(obstore.get(self._store, key).bytes()))

    def list(self, prefix: str, between: tuple[str, str] | None = None) -> Sequence[Found]:
        begin, end = between or (None, None)

        def look() -> Sequence[Found]:
            found = []
            for chunk in obstore.list(self._store, prefix=prefix.rstrip("/"), offset=begin):
                found += [
                    Found(
                        key=m["path"], size=m["size"], modified=m["last_modified"], etag=m["e_tag"]
                    )
                    for m in chunk
                    # not every service looks at where a listing is to begin
                    if (begin is None or m["path"] > begin) and (end is None or m["path"] < end)
                ]
                if end is not None and chunk and all(m["path"] >= end for m in chunk):
                    break
            return found

        return self._patiently(f"list {prefix}", look)

    def folders(self, prefix: str) -> Sequence[str]:
        def look() -> Sequence[str]:
            found = obstore.list_with_delimiter(self._store, prefix=prefix.rstrip("/"))
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

        return self._patiently(f"list {prefix}", look)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._patiently(f"delete {key}", lambda key=key: obstore.delete(self._store, [key]))  # type: ignore[misc]
            except Gone:
                continue

    def lock_of(self, key: str) -> Lock | None:
        if not isinstance(self._store, S3Store):
            return None
        store = self._store

        def ask() -> Lock | None:
            url = obstore.sign(store, "HEAD", key, _SIGNED_FOR)
            try:
                answer = requests.head(url, timeout=min(60, self.options.timeout))
            except requests.RequestException as error:
                raise Passing(type(error).__name__) from None
            if answer.status_code == 404:
                raise Gone(key)
            if answer.status_code >= 500 or answer.status_code == 429:
                raise Passing(str(answer.status_code))
            # who may not ask (403) learns nothing; no header would read as no lock
            return _lock(answer) if answer.status_code == 200 else None

        return self._patiently(f"look at {key}", ask)

    def accepts_wrong_digest(self, key: str) -> bool | None:
        if not self._s3:
            return None
        headers = {**self._headers, "x-amz-checksum-sha256": _NOTHING}
        wrong = _store(self.options, headers, checksum=False)

        def send() -> bool:
            try:
                obstore.put(wrong, key, b"not nothing", use_multipart=False)
            except Exception as error:
                if refuses_digest(error):
                    return False
                raise
            return True

        return self._patiently(f"write {key}", send)

    def _patiently(self, what: str, act: Callable[[], _T]) -> _T:
        """Do it, and again where that can help."""
        pause = _FIRST_PAUSE
        for number in range(1, self.options.retries + 2):
            try:
                return act()
            except (AssertionError, Gone):
                raise
            except Exception as error:  # noqa: BLE001  (obstore has no common one for built-in errors)
                meant = error if isinstance(error, Passing) else translated(error, what, self.url)
                if not isinstance(meant, Passing):
                    raise meant from None  # what obstore says is long, and holds addresses
                last = meant
            if number <= self.options.retries:
                _log.info("%s: %s: %s; again in %.1f s", self.url, what, last, pause)
                time.sleep(pause * (0.5 + random.random() / 2))
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise unreachable(self.url, what, last, self.options.retries + 1)


def lock_headers(options: OffsiteTargetSettings, now: datetime) -> dict[str, str]:
    """What a write says so that its object is locked."""
    if options.lock == "none":
        return {}
    said = {"x-amz-sdk-checksum-algorithm": "SHA256"}  # some look for this and not for the checksum
    if options.lock == "bucket" or options.lock_days is None:
        return said
    until = (now + timedelta(days=options.lock_days)).astimezone(UTC)
    return {
        **said,
        "x-amz-object-lock-mode": options.lock.upper(),
        "x-amz-object-lock-retain-until-date": f"{until:%Y-%m-%dT%H:%M:%SZ}",
    }


def _lock(answer: requests.Response) -> Lock:
    mode = answer.headers.get("x-amz-object-lock-mode")
    until = answer.headers.get("x-amz-object-lock-retain-until-date")
    moment = None
    if until is not None:
        text = re.sub(r"(\.\d{1,6})\d*", r"\1", until).replace("Z", "+00:00")
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if answer.headers.get("x-amz-object-lock-legal-hold", "").upper() == "ON":
        return Lock(mode="LEGAL HOLD", until=datetime.max.replace(tzinfo=UTC))
    return Lock(mode=mode, until=moment)


def _store(
    options: OffsiteTargetSettings, headers: dict[str, str], *, checksum: bool = True
) -> S3Store | GCSStore | AzureStore:
    assert options.url is not None
    parts = urlsplit(options.url)
    prefix = parts.path.strip("/") or None
    client: Any = {"timeout": timedelta(seconds=options.timeout), "connect_timeout": _CONNECT,
                   "allow_http": options.allow_http}  # fmt: skip
    if headers:
        client["default_headers"] = headers
    secret = options.secret_access_key.get_secret_value() if options.secret_access_key else None
    token = options.session_token.get_secret_value() if options.session_token else None
    once: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=options.timeout)}
    config: dict[str, Any]
    if parts.scheme == "s3":
        config = {"region": options.region, "endpoint": options.endpoint, "access_key_id": options.access_key_id,
                  "secret_access_key": secret, "session_token": token,
                  "checksum_algorithm": "SHA256" if checksum else None}  # fmt: skip
        return S3Store(parts.netloc, prefix=prefix, config=_set(config), client_options=client,
                       retry_config=once)  # fmt: skip
    if parts.scheme == "gs":
        config = {"service_account": options.credentials_file and str(options.credentials_file)}
        return GCSStore(parts.netloc, prefix=prefix, config=_set(config), client_options=client,
                        retry_config=once)  # fmt: skip
    config = {
        "account_name": options.access_key_id,
        "account_key": secret,
        "endpoint": options.endpoint,
    }
    return AzureStore(parts.netloc, prefix=prefix, config=_set(config), client_options=client,
                      retry_config=once)  # fmt: skip


def _set(config: dict[str, Any]) -> Any:
    return {key: value for key, value in config.items() if value is not None}
