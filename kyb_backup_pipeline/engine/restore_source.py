"""A full backup as a restore sees it: what it says of its source, and what it needs.

Its small files are read in memory, decrypted where they are encrypted; nothing of them touches the disk. Those of the old scripts have no manifest of ours: what they need is read from the dump itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.backup_files import Files
from kyb_backup_pipeline.engine.compression import BLOCK, CorruptStream
from kyb_backup_pipeline.engine.contents import DAMAGED
from kyb_backup_pipeline.engine.dump import GLOBALS_FILE
from kyb_backup_pipeline.engine.encryption import plain_name
from kyb_backup_pipeline.engine.errors import RestoreFailed
from kyb_backup_pipeline.engine.evidence import EVIDENCE_FILE, Evidence, parse_evidence
from kyb_backup_pipeline.engine.manifest import Manifest, Requirements
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.verify import dump_file


@dataclass(frozen=True, kw_only=True)
class Source:
    """A backup as a restore sees it: where it lies, what it says of itself, and what opens it."""

    files: Files
    manifest: Manifest
    keys: EncryptionSettings = field(default_factory=EncryptionSettings)


def source_of(backup: Backup, keys: EncryptionSettings) -> Source:
    """A backup, at home or in a copy, as a restore sees it. Raises UnreadableManifest."""
    return Source(files=backup.files, manifest=backup.require_manifest(), keys=keys)


@dataclass(frozen=True)
class Origin:
    """The major version of server that a backup needs, and what it must offer."""

    major: int
    requirements: Requirements


def origin_of(source: Source) -> Origin:
    """The server a backup needs: pg_dump's major version, where that is newer than the server's."""
    manifest = source.manifest
    if manifest.requirements is not None and manifest.server_version is not None:
        versions = (manifest.server_version, manifest.tool_versions.get("pg_dump", "0"))
        return Origin(max(int(v.split(".")[0]) for v in versions), manifest.requirements)
    head = _head(source)
    versions = tuple(
        re.findall(r"^-- Dumped (?:from database|by pg_dump) version (\d+)", head, re.M)
    )
    encoding = re.search(r"^SET client_encoding = '(\w+)';", head, re.M)
    if not versions:
        raise RestoreFailed(f"{dump_file(manifest).path} does not begin as a dump of pg_dump does")
    return Origin(
        max(map(int, versions)),
        Requirements(
            encoding=encoding.group(1) if encoding else "UTF8",
            locale_provider="libc",
            collate="C",
            ctype="C",
            bootstrap_role="postgres",
        ),
    )


def _head(source: Source) -> str:
    file = dump_file(source.manifest)
    try:
        with source.files.reading(file.path, source.keys) as content:
            content.abandoned = True
            return next(content.pieces, b"")[:8192].decode(errors="replace")
    except CorruptStream as error:
        raise RestoreFailed(f"{file.path} {error.message}") from error


def check_key(source: Source) -> None:
    """Can what is encrypted be opened here? Asked before anything is done. Raises CouldNotVerify.

    Damage is none of its business: verification names it.
    """
    for file in sorted(source.manifest.files, key=lambda file: file.size):
        if source.files.encrypted(file.path):
            source.files.check_opens(file.path, source.keys)
            return


def part_of(source: Source, name: str) -> bytes | None:
    """What is in one of the small files; None where it is not there.

    Raises CouldNotVerify without the key, RestoreFailed.
    """
    listed = (file.path for file in source.manifest.files if plain_name(file.path) == name)
    path = next(listed, name)
    try:
        return source.files.read_whole(path, source.keys)
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        raise RestoreFailed(f"{path} {error.message}") from error


def evidence_of(source: Source) -> Evidence | None:
    """The evidence, where the backup has any. Raises RestoreFailed, CouldNotVerify."""
    if not any(plain_name(file.path) == EVIDENCE_FILE for file in source.manifest.files):
        return None
    try:
        return parse_evidence(part_of(source, EVIDENCE_FILE) or b"")
    except ValueError as error:
        raise RestoreFailed(f"{EVIDENCE_FILE} cannot be read") from error


def globals_of(source: Source) -> tuple[str, bool]:
    """The script of roles and tablespaces, and whether they were recorded.

    Where they were not, it makes those that the dump names. Raises RestoreFailed, CouldNotVerify.
    """
    script = None if source.manifest.legacy else part_of(source, GLOBALS_FILE)
    if script is None:
        return mentioned_globals(source), False
    return script.decode("utf-8", errors="surrogateescape"), True


_MENTIONED_ROLES = re.compile(
    rb"^(?:ALTER .* OWNER TO|GRANT .* TO|REVOKE .* FROM|ALTER DEFAULT PRIVILEGES FOR ROLE) "
    rb'("(?:[^"]|"")+"|\w+)',
    re.MULTILINE,
)
_MENTIONED_TABLESPACES = re.compile(rb"^SET default_tablespace = (\"(?:[^\"]|\"\")+\"|\w+);",
                                    re.MULTILINE)  # fmt: skip


def mentioned_globals(source: Source) -> str:
    """The roles and tablespaces that a dump without ``globals.sql`` needs, as a script.

    The old scripts kept none. A match inside the rows of a table costs no more than an unused role.
    """
    roles: set[bytes] = set()
    tablespaces: set[bytes] = set()
    for piece in _lines(source):
        roles.update(_MENTIONED_ROLES.findall(piece))
        tablespaces.update(_MENTIONED_TABLESPACES.findall(piece))
    lines = [f"CREATE ROLE {name.decode()};" for name in sorted(roles - {b"PUBLIC"})]
    lines += [f"CREATE TABLESPACE {name.decode()} LOCATION '';" for name in sorted(tablespaces)]
    return "\n".join(lines)


def _lines(source: Source) -> Iterator[bytes]:
    """The text of a dump in pieces that end with whole lines."""
    rest = b""
    with source.files.reading(dump_file(source.manifest).path, source.keys) as content:
        for piece in content.pieces:
            whole, newline, rest_of = (rest + piece).rpartition(b"\n")
            rest = rest_of[-BLOCK:]
            yield whole + newline
