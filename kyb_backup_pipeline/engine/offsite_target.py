"""What a place for off-site copies must offer, whatever service is behind it, and how it fails.

Objects have keys, which are paths below the target's prefix; an object is there whole or not at all. ``put``
with ``create`` never replaces an object; whether a target keeps that promise, ``offsite_probe`` finds out.

    TargetUnreachable     4   no answer, or only errors, however often it was asked
    TargetMisconfigured   3   wrong region, bucket or key, expired credentials, a clock that is off
    TargetFull           11   no room, or over its quota
    TargetRefuses        12   these credentials may not do it; an object is locked
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from kyb_backup_pipeline.engine.errors import (
    KybError,
    NotEnoughSpace,
    NotFound,
    Refused,
    SettingsInvalid,
)
from kyb_backup_pipeline.engine.settings import OffsiteSettings, OffsiteTargetSettings

DEFAULT_NAME = "offsite"
"""The name of the target that ``offsite.url`` is."""


class TargetUnreachable(KybError):
    """The target does not answer, or answers with errors of its own, however often it is asked."""

    exit_code = 4


class TargetMisconfigured(SettingsInvalid):
    """The target answers, and says that the settings are wrong."""


class TargetFull(NotEnoughSpace):
    """The target has no room for more."""


class TargetRefuses(Refused):
    """The target does not let us do this."""


class AlreadyThere(Exception):
    """An object with this key exists, and was to be created."""


class Gone(Exception):
    """There is no object with this key."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object. ``etag`` is what the service gives to tell versions apart; it is no proof of content."""

    key: str
    size: int
    modified: datetime
    etag: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lock:
    """How an object is locked: ``mode`` in the service's words. None of both: it can be deleted."""

    mode: str | None = None
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        return self.until is not None and self.until > now


class Target(Protocol):
    """A place that copies go to. Each call tries again by itself where that can help."""

    name: str
    url: str
    options: OffsiteTargetSettings

    def put(self, key: str, data: bytes | bytearray, *, create: bool = False) -> str | None:
        """Write an object, durably; return its etag. Raises AlreadyThere with ``create``."""

    def get(self, key: str) -> bytes:
        """A whole object. Raises Gone."""

    def list(self, prefix: str, between: tuple[str, str] | None = None) -> Sequence[Found]:
        """All objects in a folder and below; ``between`` two keys only, the second excluded."""

    def folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders in a folder."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are fine."""

    def lock_of(self, key: str) -> Lock | None:
        """How an object is locked; None where this target cannot say. Raises Gone."""

    def accepts_wrong_digest(self, key: str) -> bool | None:
        """Write an object with a wrong checksum, and see whether it is taken; None: cannot be tried."""


def address_of(options: OffsiteTargetSettings) -> str:
    """The address of a place, written in one way whatever way it was set."""
    assert options.url is not None
    if options.url.startswith(("/", "file://")):
        return "/" + options.url.removeprefix("file://").strip("/")
    return options.url.rstrip("/")


def target_settings(settings: OffsiteSettings) -> dict[str, OffsiteTargetSettings]:
    """All targets by their names."""
    own = {DEFAULT_NAME: settings} if settings.url is not None else {}
    return {**own, **settings.targets}


def chosen(settings: OffsiteSettings, name: str | None) -> dict[str, OffsiteTargetSettings]:
    """The target with this name, or all of them. Raises SettingsInvalid without any, NotFound."""
    targets = target_settings(settings)
    if not targets:
        raise SettingsInvalid(
            "no off-site place is set",
            hint='offsite.url, such as "s3://bucket/prefix" or "/mnt/second-disk"; docs/settings.md',
        )
    if name is None:
        return targets
    if name not in targets:
        raise NotFound(
            f"no off-site place is called {name!r}", hint=f"there are {', '.join(targets)}"
        )
    return {name: targets[name]}
