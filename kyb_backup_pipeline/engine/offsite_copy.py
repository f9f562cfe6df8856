"""What an off-site copy is: data objects under keys that never change, and one commit object, written last.

    <kind's folder>/<id>/offsite_copy.json                    the commit object; create-only
    <kind's folder>/<id>/<file>/00000-<SHA-256 of the part>   the parts of each file
    database/incremental/wal/<timeline>/<segment>…/00000-…    WAL, shared by all increments that name it
    database/verification/<id>/<record>.json                  records of proofs, as at home

What has no commit object is not a copy, and is never listed. A file is its parts, one behind the other; an
encrypted one is then one file of age or gpg. The commit object has the manifest to the byte, so that what is
fetched is what was pushed; keys, passphrases and the dump's content are not in it.
"""

import base64
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kyb_backup_pipeline.engine.backup import FOLDERS, valid_id
from kyb_backup_pipeline.engine.errors import CouldNotVerify, InvalidRequest, NotFound
from kyb_backup_pipeline.engine.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    Kind,
    Manifest,
    Sha256,
    UnreadableManifest,
    parse_manifest,
    write_json,
)
from kyb_backup_pipeline.engine.offsite_target import Found, Gone, Target
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.wal import history_name
from kyb_backup_pipeline.engine.wal_store import named

_log = logging.getLogger(__name__)

COMMIT = "offsite_copy.json"
RECORDS = "database/verification"
WAL = f"{FOLDERS['incremental']}/wal"
FORMAT_VERSION = 1

Encryption = Literal["none", "age", "gpg"]


_UNSIGNED = "0" * 64
_SIGNATURE = re.compile(rb'"document_sha256": "([0-9a-f]{64})"')
_LONGEST_NAME = 255
_NOTHING = hashlib.sha256().hexdigest()


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Document):
    """One object: what is stored in it. ``etag`` is what the service called this version of it."""

    key: str
    size: int = Field(ge=0)
    sha256: Sha256
    etag: str | None = None


class CopiedFile(_Document):
    """One file: ``size`` and ``sha256`` are of the file at home, ``stored_…`` of all its parts together."""

    path: str
    size: int = Field(ge=0)
    sha256: Sha256
    encryption: Encryption = "none"
    stored_size: int = Field(ge=0)
    stored_sha256: Sha256
    parts: tuple[Part, ...]

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\0" in path or not pure.parts:
            raise ValueError("leads out of the folder")
        if str(pure) != path or any(len(part.encode()) > _LONGEST_NAME for part in pure.parts):
            raise ValueError("is no path of a file")
        return path

    def lies_at(self, place: str) -> bool:
        """Whether its parts have the keys that a push gives them there, and add up."""
        keys = [part_key(place, number, part.sha256) for number, part in enumerate(self.parts)]
        plain, age = self.encryption == "none", self.encryption == "age"
        return (
            [part.key for part in self.parts] == keys
            and sum(part.size for part in self.parts) == self.stored_size
            and (bool(self.parts) or self.stored_sha256 == _NOTHING)
            and (not plain or (self.stored_size, self.stored_sha256) == (self.size, self.sha256))
            and (not age or self.stored_size > self.size)
        )


class OffsiteCopy(_Document):
    """The commit object. ``wal`` are files of the WAL store, with paths relative to that.

    ``document_sha256`` is of the object itself, with zeros in its own place.
    """

    document_sha256: Sha256 = _UNSIGNED
    format_version: int = FORMAT_VERSION
    backup_id: str
    kind: Kind
    pushed_at: AwareDatetime
    host: str
    manifest_base64: str
    manifest_sha256: Sha256
    recipients: tuple[str, ...] = ()
    files: tuple[CopiedFile, ...] = ()
    wal: tuple[CopiedFile, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, document: object) -> object:
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(
                f"format_version {version} is newer than this program knows "
                f"({FORMAT_VERSION}): update kyb-backup-pipeline"
            )
        return document

    @model_validator(mode="after")
    def _fits_together(self) -> "OffsiteCopy":
        try:
            valid_id(self.backup_id)
            content = base64.b64decode(self.manifest_base64, validate=True)
            manifest = parse_manifest(content, where="its manifest")
        except (InvalidRequest, UnreadableManifest) as error:
            raise ValueError(error.message) from None
        if hashlib.sha256(content).hexdigest() != self.manifest_sha256:
            raise ValueError("its manifest has another SHA-256 than it says")
        if (manifest.backup_id, manifest.type) != (self.backup_id, self.kind):
            raise ValueError(f"its manifest is of {manifest.type} {manifest.backup_id}")
        return self

    @property
    def manifest_bytes(self) -> bytes:
        return base64.b64decode(self.manifest_base64)

    @cached_property
    def manifest(self) -> Manifest:
        return parse_manifest(self.manifest_bytes, where=f"the manifest of {self.backup_id}")

    @property
    def all_files(self) -> tuple[CopiedFile, ...]:
        return self.files + self.wal

    @property
    def size(self) -> int:
        """Bytes at home: of its files, and of an increment of the WAL that it names."""
        return sum(file.size for file in self.all_files)

    @property
    def encryption(self) -> Encryption:
        """How the database's files are encrypted on their way; archives are by themselves."""
        return next((f.encryption for f in self.all_files if f.encryption != "none"), "none")

    def same_content(self, other: "OffsiteCopy") -> bool:
        """Whether both are of one backup, however they are encrypted and cut into parts."""
        return self._content() == other._content()

    def _content(self) -> tuple[str, frozenset[tuple[str, int, str]]]:
        files = frozenset((f.path, f.size, f.sha256) for f in self.all_files)
        return self.manifest_sha256, files


def folder_of(kind: Kind, backup_id: str) -> str:
    """Where a copy lies."""
    return f"{FOLDERS[kind]}/{backup_id}"


def commit_key(kind: Kind, backup_id: str) -> str:
    return f"{folder_of(kind, backup_id)}/{COMMIT}"


def objects_of(target: Target, copy: OffsiteCopy) -> dict[str, Found]:
    """What is there of a copy at this moment, by keys. Raises what the target raises.

    Of the WAL, which it shares with others, only the stretch that it names is asked for.
    """
    found = [*target.list(folder_of(copy.kind, copy.backup_id))]
    places = [f"{WAL}/{file.path}" for file in copy.wal]
    for timeline in {place.rpartition("/")[0] for place in places}:
        inside = [place for place in places if place.rpartition("/")[0] == timeline]
        found += target.list(timeline, stretch_of(inside))
    return {one.key: one for one in found}


def stretch_of(places: Iterable[str]) -> tuple[str, str]:
    """The two keys between which everything lies that is in some folders of one folder."""
    ordered = sorted(places)
    return ordered[0], f"{ordered[-1]}0"  # "0" comes behind "/"


def part_key(place: str, number: int, sha256: str) -> str:
    """The key of a part: it changes with the content, so the content under it never does."""
    return f"{place}/{number:05}-{sha256}"


def group_of(key: str) -> str:
    """The folder of a backup; of WAL that of one file."""
    return "/".join(key.split("/")[: 5 if key.startswith(f"{WAL}/") else 3])


class DamagedCopy(CouldNotVerify):
    """A commit object that cannot be read."""

    exit_code = 6


def write_copy(copy: OffsiteCopy) -> bytes:
    """The bytes of a commit object, which tell whether one of them was altered."""
    content = write_json(copy.model_copy(update={"document_sha256": _UNSIGNED}))
    return _signed(content, hashlib.sha256(content).hexdigest())


def parse_copy(content: bytes, *, where: str) -> OffsiteCopy:
    """Read a commit object; it comes from outside, and is believed nothing. Raises DamagedCopy."""
    try:
        copy = OffsiteCopy.model_validate_json(content)
        reason = _altered(content) or _contradiction(copy)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}: {first['msg']}" if key else first["msg"]
    if reason is not None:
        raise DamagedCopy(f"{where} cannot be read: {reason}",
                          hint="was it altered there? kyb-backup offsite verify looks at the others")  # fmt: skip
    return copy.model_copy(update={"document_sha256": _UNSIGNED})  # that was of the document


def _signed(content: bytes, digest: str) -> bytes:
    return _SIGNATURE.sub(f'"document_sha256": "{digest}"'.encode(), content)


def _altered(content: bytes) -> str | None:
    said = _SIGNATURE.findall(content)
    unsigned = _signed(content, _UNSIGNED)
    if [hashlib.sha256(unsigned).hexdigest().encode()] == said:
        return None
    return "it has another SHA-256 than it says"


def _contradiction(copy: OffsiteCopy) -> str | None:
    """Where a commit object says one thing and its manifest, or its keys, another; None where nowhere."""
    folder = folder_of(copy.kind, copy.backup_id)
    names = sorted(
        [*(file.path for file in copy.files), MANIFEST], key=lambda path: path.split("/")
    )
    for name, following in itertools.pairwise(names):
        if following == name or following.startswith(f"{name}/"):
            return f"{following} is in the way of {name}"
    for file, place in [(file, f"{folder}/{file.path}") for file in copy.files] + [
        (file, f"{WAL}/{file.path}") for file in copy.wal
    ]:
        if not file.lies_at(place):
            return f"{file.path}: its parts are not those that a push makes"
    return _against_manifest(copy) or _against_segments(copy)


def _against_manifest(copy: OffsiteCopy) -> str | None:
    manifest = copy.manifest
    copied = {file.path: (file.size, file.sha256) for file in copy.files}
    wanted = {file.path: (file.size, file.sha256) for file in manifest.files}
    if manifest.legacy and manifest.checksum:
        wanted[Path(manifest.backup_file).name] = (manifest.file_size, manifest.checksum)
    if not manifest.legacy:
        line = checksum_line(copy.manifest_bytes)
        wanted[MANIFEST_CHECKSUM] = (len(line), hashlib.sha256(line).hexdigest())
    lacking = [path for path, known in wanted.items() if copied.get(path) != known]
    return f"{lacking[0]} is not in it as the manifest says" if lacking else None


def _against_segments(copy: OffsiteCopy) -> str | None:
    """Of an increment: all segments, each in the folder of its timeline, and the timeline's history."""
    found: dict[str, str] = {}
    for file in copy.wal:
        timeline, _, name = file.path.partition("/")
        what = named(name)
        if what is None or what[0][:8] != timeline:
            return f"{file.path} is no file of a WAL store"
        found[what[0]] = what[1]
    wal = copy.manifest.wal
    if copy.kind != "incremental" or wal is None:
        return None
    lacking = [s.name for s in wal.segments if found.get(s.name) != s.sha256]
    if wal.timeline > 1 and history_name(wal.timeline) not in found:
        lacking.append(history_name(wal.timeline))
    return f"{lacking[0]} is not in it as the manifest says" if lacking else None


class Listed(_Document):
    """What the folder of one id holds: a copy, or why it cannot be read."""

    backup_id: str
    kind: Kind
    copy_: OffsiteCopy | None = None
    problem: str | None = None


def read_copy(target: Target, kind: Kind, backup_id: str) -> OffsiteCopy | None:
    """The copy of a backup; None where there is no commit object. Raises DamagedCopy."""
    key = commit_key(kind, backup_id)
    try:
        copy = parse_copy(target.get(key), where=f"{target.url}/{key}")
    except Gone:
        return None
    if (copy.backup_id, folder_of(copy.kind, "")) != (backup_id, folder_of(kind, "")):
        raise DamagedCopy(f"{target.url}/{key} is the copy of {copy.backup_id}: somebody moved it")
    return copy


def list_copies(target: Target, kinds: Iterable[Kind] = tuple(FOLDERS)) -> list[Listed]:
    """All copies, the newest first, then those that cannot be read. What is not committed is no copy."""
    wanted = tuple(kinds)
    places = {FOLDERS[kind]: kind for kind in reversed(wanted)}
    ids = [
        (kind, name)
        for place, kind in places.items()
        for name in target.folders(place)
        if _is_id(name)
    ]
    with ThreadPoolExecutor(target.options.parallel, thread_name_prefix="offsite") as pool:
        found = [one for one in pool.map(lambda pair: _look(target, *pair), ids) if one is not None]
    return sorted((one for one in found if one.kind in wanted), key=_newest_first)


def find_copy(target: Target, backup_id: str) -> OffsiteCopy:
    """The copy of a backup, of whatever kind. Raises NotFound, DamagedCopy, InvalidRequest."""
    valid_id(backup_id)
    for kind in {FOLDERS[kind]: kind for kind in FOLDERS}.values():
        copy = read_copy(target, kind, backup_id)
        if copy is not None:
            return copy
    raise NotFound(f"no copy of {backup_id!r} in {target.url}",
                   hint="kyb-backup offsite list shows what there is")  # fmt: skip


def _look(target: Target, kind: Kind, backup_id: str) -> Listed | None:
    try:
        copy = read_copy(target, kind, backup_id)
    except DamagedCopy as error:
        return Listed(backup_id=backup_id, kind=kind, problem=error.message)
    if copy is None:
        return None
    return Listed(backup_id=backup_id, kind=copy.kind, copy_=copy)


def _is_id(name: str) -> bool:
    try:
        return valid_id(name) == name
    except InvalidRequest:
        return False


def _newest_first(listed: Listed) -> tuple[bool, float]:
    made: datetime | None = listed.copy_.manifest.completed_at if listed.copy_ else None
    return made is None, -(made.timestamp() if made else 0)


def files_of(folder: Path) -> Sequence[Path]:
    """All files of a backup but its manifest, in a fixed order, relative to its folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path.relative_to(folder) for path in found if path != folder / MANIFEST)
