"""What object storage says when it says no, in our own words and with what to do about it.

``obstore`` gives the answer of the service as text; S3 and Azure name the reason in ``<Code>``. What may pass by
itself is ``Passing``: the caller tries again, and makes ``TargetUnreachable`` of it in the end.
"""

import re

from obstore import exceptions

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.offsite_target import (
    AlreadyThere,
    Gone,
    TargetFull,
    TargetMisconfigured,
    TargetRefuses,
    TargetUnreachable,
)

_CODE = re.compile(r"<Code>([A-Za-z0-9_.]+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_EXPECTED_REGION = re.compile(r"<Region>([^<]+)</Region>|expecting '([^']+)'")
_PASSING = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "ServerBusy", "OperationTimedOut",
    "BadDigest", "XAmzContentSHA256Mismatch", "Md5Mismatch", "IncompleteBody", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
}  # fmt: skip
"""Also what a body says that was damaged on its way."""
_CONTENDED = {"ConditionalRequestConflict", "OperationAborted"}
_FULL = {
    "EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StorageQuotaExceeded",
    "AccountStorageQuotaExceeded", "NotEnoughSpace",
}  # fmt: skip
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException",
           "AuthorizationQueryParametersError"}  # fmt: skip
_KEY = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthenticationFailed", "InvalidSecurity"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}
_CLOCK = {"RequestTimeTooSkewed", "RequestInTheFuture"}
_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
_WRONG_DIGEST = {"BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest", "InvalidRequest",
                 "XAmzContentChecksumMismatch"}  # fmt: skip


class Passing(Exception):
    """Something that may go by itself: no connection, an error of the service, a request to slow down."""


def refuses_digest(error: Exception) -> bool:
    """Whether an answer says that the checksum did not fit."""
    return _code(str(error)) in _WRONG_DIGEST


def translated(error: Exception, what: str, place: str) -> Exception:
    """What an error of ``obstore`` means. ``what`` was tried, ``place`` is the target for people."""
    said = str(error)
    code = _code(said)
    status = int(match[1]) if (match := _STATUS.search(said)) else 0
    if code in _BUCKET:
        return TargetMisconfigured(f"{place}: there is no such bucket ({code})",
                                   hint="offsite.url names the bucket; make it first, nothing here does")  # fmt: skip
    if code in _CONTENDED:
        return Passing(code)  # two at once, and neither has won yet
    if isinstance(error, exceptions.AlreadyExistsError):
        return AlreadyThere(what)
    if isinstance(error, FileNotFoundError) or status == 404:
        return Gone(what)
    for codes, make in ((_CLOCK, _clock), (_REGION, _region), (_EXPIRED, _expired), (_KEY, _key)):
        if code in codes:
            return make(place, said)
    if code in _FULL or status in (413, 507):
        return TargetFull(f"{place} takes no more: {code or status}",
                          hint="its quota, or its disk: make room there, or shorten offsite.retention")  # fmt: skip
    if code in _PASSING or status >= 500 or status in (408, 429) or not status:
        return Passing(_short(code, status, said))
    if status in (301, 307):
        return _region(place, said)
    if status in (401, 403):
        return TargetRefuses(f"{place} does not let us {what}: {code or status}",
                             hint="the rights of offsite.access_key_id; an object may be locked, too")  # fmt: skip
    return KybError(f"{place}: {what}: {_short(code, status, said)}")


def unreachable(place: str, what: str, last: Passing, tries: int) -> TargetUnreachable:
    """The end of patience."""
    times = f"{tries} times" if tries > 1 else "once"
    kept = "" if what.startswith("read") else " What was sent so far is kept: push again"
    return TargetUnreachable(
        f"{place}: {what}: tried {times}, the last time: {last}",
        hint=f"offsite.endpoint and offsite.url; is it up?{kept}",
    )


def _code(said: str) -> str:
    return match[1] if (match := _CODE.search(said)) else ""


def _short(code: str, status: int, said: str) -> str:
    if code or status:
        return " ".join(str(part) for part in (status or "", code) if part)
    if "timed out" in said or "Timeout" in said:
        return "no answer in time"
    if "kind: Connect" in said:
        return "no connection"
    first = said.splitlines()[0] if said else "no reason given"
    return re.sub(r"https?://\S+", "…", first)[:200]


def _clock(place: str, said: str) -> KybError:
    return TargetMisconfigured(
        f"{place}: the clock of this machine is off: the service refuses what is signed with its time",
        hint="set the clock (timedatectl, chronyc tracking): retention and schedules go by it, too",
    )


def _region(place: str, said: str) -> KybError:
    match = _EXPECTED_REGION.search(said)
    expected = f": it is {match[1] or match[2]}" if match else ""
    return TargetMisconfigured(f"{place}: the region is wrong{expected}", hint="offsite.region")


def _expired(place: str, said: str) -> KybError:
    return TargetMisconfigured(
        f"{place}: the credentials have expired",
        hint="renew offsite.session_token with its key; what was sent so far is kept: push again",
    )


def _key(place: str, said: str) -> KybError:
    return TargetMisconfigured(
        f"{place}: the key is wrong ({_code(said)})",
        hint="offsite.access_key_id and offsite.secret_access_key (or …_file); and offsite.region",
    )
