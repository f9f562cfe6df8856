"""How archives and backups of the database are encrypted: age with public keys, or gpg with a passphrase.

With age the host that backs up holds public keys only; what it wrote it cannot read. gpg is symmetric
AES256, as in the procedures; the passphrase goes through a pipe, never through arguments, a prompt or
an agent. Both are filters in processes of their own (``age_pipe``, ``gpg``), and both are to be trusted
only once they have ended with 0: gpg hands out all of an altered file first. What is small and encrypted with
age is done in this process (``seal``, ``unseal``): 10 ms for a segment of WAL, where a child takes 90.

Anybody can open what comes out without this software: docs/runbook.md has the lines.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kyb_backup_pipeline.engine import age_pipe, process
from kyb_backup_pipeline.engine.errors import (
    BackupFailed,
    CouldNotVerify,
    KybError,
    Refused,
    SettingsInvalid,
)
from kyb_backup_pipeline.engine.files import flush_folder
from kyb_backup_pipeline.engine.manifest import Encryption
from kyb_backup_pipeline.engine.settings import EncryptionSettings

if TYPE_CHECKING:
    import pyrage

Method = Literal["age", "gpg"]

SUFFIX: dict[Method, str] = {"age": "age", "gpg": "gpg"}
_PATIENCE = 600.0
IDENTITY_FILE = "kyb_backup_identity.txt"

_GPG = (
    "--homedir", "/nonexistent", "--no-options", "--no-permission-warning", "--no-random-seed-file",
    "--no-default-keyring", "--no-keyring", "--lock-never", "--no-autostart", "--batch", "--no-tty",
    "--quiet", "--pinentry-mode", "loopback", "--passphrase-fd",
)  # fmt: skip
"""No home, no keys, no agent that stays behind: nothing but the passphrase and the stream."""
_GPG_SEAL = (
    "--cipher-algo", "AES256", "--s2k-mode", "3", "--s2k-digest-algo", "SHA512",
    "--s2k-count", "65011712", "--compress-algo", "none", "--symmetric", "--output", "-",
)  # fmt: skip


class NoKeys(SettingsInvalid):
    """There is nothing to encrypt with: no recipient, no passphrase, or no gpg."""


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A new key pair: its public key, and the file that holds the private one."""

    recipient: str
    file: Path


def check_keys(settings: EncryptionSettings) -> tuple[str, ...]:
    """The recipients (none for gpg) of what is encrypted with these settings. Raises NoKeys."""
    import pyrage

    if settings.method == "gpg":
        _passphrase(settings, NoKeys)
        _gpg(NoKeys)
        return ()
    if not settings.recipients:
        raise NoKeys(
            "nothing to encrypt with: encryption.recipients is empty",
            hint="kyb-backup keys init makes a key pair, or set recipients to the public key of yours",
        )
    for recipient in settings.recipients:
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            what = (
                "a private key" if recipient.upper().startswith("AGE-SECRET") else repr(recipient)
            )
            raise NoKeys(
                f"encryption.recipients holds {what}, which is no public key of age",
                hint="a public key begins with age1; age-keygen -y prints it",
            ) from None
    return settings.recipients


def described(settings: EncryptionSettings | None) -> Encryption | None:
    """What a manifest says of this encryption; None without any. Raises NoKeys."""
    if settings is None:
        return None
    return Encryption(method=settings.method, recipients=check_keys(settings))


def ending(settings: EncryptionSettings | None) -> str:
    """What names of files end with that are encrypted so: ``.age``; nothing without encryption."""
    return f".{SUFFIX[settings.method]}" if settings is not None else ""


def method_of(name: str) -> Method | None:
    """How a file is encrypted, by its name."""
    return next((m for m in SUFFIX if name.endswith(f".{SUFFIX[m]}")), None)


def plain_name(name: str) -> str:
    """The name that a file would have if it were not encrypted."""
    method = method_of(name)
    return name if method is None else name.removesuffix(f".{SUFFIX[method]}")


def seal(settings: EncryptionSettings, content: bytes) -> bytes:
    """Encrypt what fits into memory. Raises NoKeys, BackupFailed."""
    import pyrage

    recipients = check_keys(settings)
    if settings.method == "age":
        keys = [pyrage.x25519.Recipient.from_str(recipient) for recipient in recipients]
        return bytes(pyrage.encrypt(content, keys))
    with encrypting(settings) as child:
        try:
            sealed = _through(child, content)
            child.finish(_PATIENCE)
        except process.ProcessFailed as error:
            raise BackupFailed(f"the encryption failed: {error.message}") from error
    if len(sealed) <= len(content):
        raise too_short(child.program)
    return sealed


def unseal(settings: EncryptionSettings, method: Method, sealed: bytes) -> bytes:
    """Decrypt what fits into memory; all of it or nothing comes back.

    Raises CouldNotVerify without the key, WrongKey, Undecryptable.
    """
    import pyrage

    if method == "age":
        keys = _identities(settings)
        try:
            return bytes(pyrage.decrypt(sealed, keys))
        except pyrage.DecryptError as error:
            if age_pipe.no_identity_fits(error):
                raise _wrong_identity() from None
            raise Undecryptable(f"cannot be decrypted: {error}") from None
    with decrypting(settings, method) as child:
        content = _through(child, sealed)
        opened(child, method, _PATIENCE)
        return content


def _through(child: process.Child, content: bytes) -> bytes:
    """All that a filter makes of ``content``; the caller judges its end."""
    with ThreadPoolExecutor(1, thread_name_prefix="filter") as pool:
        reading = pool.submit(child.stdout.read)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: why, its status says
                process.feed(child, content, _PATIENCE)
            child.stdin.close()
            return reading.result(_PATIENCE)
        except TimeoutError:
            raise process.ProcessFailed(child.program, "stands still", "") from None
        finally:
            if not reading.done():
                child.kill()


def too_short(program: str) -> BackupFailed:
    """The error for a filter that says it has done well and gave less than it took."""
    return BackupFailed(
        f"the encryption failed: {program} ended with 0, but gave less than it took",
        hint="what runs by that name?",
    )


@contextlib.contextmanager
def encrypting(settings: EncryptionSettings) -> Iterator[process.Child]:
    """A running filter: what is written to its stdin comes out encrypted. Raises NoKeys."""
    recipients = check_keys(settings)
    if settings.method == "age":
        with _filter(_age("encrypt", *recipients)) as child:
            yield child
    else:
        with process.secret_pipe(_passphrase(settings, NoKeys)) as secret:
            with _filter([_gpg(NoKeys), *_GPG, str(secret), *_GPG_SEAL], (secret,)) as child:
                yield child


def check_opening(settings: EncryptionSettings, method: Method) -> None:
    """Is there what it takes to open something? Raises CouldNotVerify."""
    if method == "gpg":
        _passphrase(settings, CouldNotVerify)
        _gpg(CouldNotVerify)
        return
    _identities(settings)


def _identities(settings: EncryptionSettings) -> "list[pyrage.x25519.Identity]":
    """The private keys of age. Raises CouldNotVerify."""
    file = settings.identity_file
    if file is None:
        raise CouldNotVerify(
            "no identity is set: what is encrypted cannot be looked into here",
            hint="encryption.identity_file names it, on the machine that has it",
        )
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no regular file")
        return age_pipe.identities(file.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CouldNotVerify(
            f"the identity file {file} cannot be used: {reason}", hint="encryption.identity_file"
        ) from None


def check_own(settings: EncryptionSettings) -> None:
    """Could what is encrypted from now on be opened here? Raises NoKeys, CouldNotVerify."""
    recipients = check_keys(settings)
    check_opening(settings, settings.method)
    file = settings.identity_file
    if recipients and file is not None and not set(public_keys(file)) & set(recipients):
        raise WrongKey(
            f"{file} opens none of what is encrypted from now on",
            hint="its public key is not among encryption.recipients",
        )


@contextlib.contextmanager
def decrypting(settings: EncryptionSettings, method: Method) -> Iterator[process.Child]:
    """A running filter that decrypts its stdin. Raises CouldNotVerify without the key.

    Nothing that comes out may be trusted before ``opened`` has judged its end.
    """
    check_opening(settings, method)
    if method == "age":
        with _filter(_age("decrypt", str(settings.identity_file))) as child:
            yield child
    else:
        with process.secret_pipe(_passphrase(settings, CouldNotVerify)) as secret:
            argv = [_gpg(CouldNotVerify), *_GPG, str(secret), "--decrypt", "--output", "-"]
            with _filter(argv, (secret,)) as child:
                yield child


_NOT_OURS = {
    "No secret key": "it is encrypted for a private key, not with a passphrase",
    "No public key": "it is signed, and the signature cannot be looked at here",
    "not integrity protected": "it has no integrity protection, as very old versions of gpg made them",
}
"""What gpg says of files that are good, but not of the kind that is made here."""


class WrongKey(CouldNotVerify):
    """It was encrypted for another key, or with another passphrase."""


def _wrong_identity() -> WrongKey:
    return WrongKey(
        "it is encrypted for another key than encryption.identity_file holds",
        hint="the manifest names the recipients: kyb-backup show ID",
    )


class Undecryptable(KybError):
    """The encrypted data are damaged, altered, or end too early."""


def opened(child: process.Child, method: Method, patience: float) -> None:
    """Judge how the decryption ended. Raises WrongKey, Undecryptable."""
    try:
        child.finish(patience)
    except process.ProcessFailed as error:
        if method == "age" and child.returncode == age_pipe.NO_IDENTITY_FITS:
            raise _wrong_identity() from None
        if method == "age" and child.returncode == age_pipe.IDENTITY_UNUSABLE:
            raise CouldNotVerify(
                f"the identity file cannot be used: {error.stderr}", hint="encryption.identity_file"
            ) from None
        for said, meaning in _NOT_OURS.items():
            if said in error.stderr:
                raise CouldNotVerify(f"gpg does not open it: {meaning}",
                                     hint="open it by hand, with the keys it was made for") from None  # fmt: skip
        if "Bad session key" in error.stderr:
            raise WrongKey(
                "gpg could not open it: the passphrase is another, or its first bytes are damaged",
                hint="encryption.passphrase_file: is it the one of that time?",
            ) from None
        raise Undecryptable(f"cannot be decrypted: {error.message}") from None


def new_key_pair(folder: Path, now: datetime) -> KeyPair:
    """Make a key pair in ``folder``, as ``age-keygen`` would, mode 0600.

    Raises Refused rather than write over a file, KybError if the folder cannot be written.
    """
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    path = folder / IDENTITY_FILE
    text = (
        f"# created: {now.isoformat(timespec='seconds')}\n# public key: {recipient}\n{identity}\n"
    )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refused(
            f"{path} exists, and a key is never overwritten",
            hint="without it no archive made for it can be opened; choose another folder with --into",
        ) from None
    except OSError as error:
        raise KybError(f"{path} cannot be written: {error.strerror}") from error
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(folder)
    return KeyPair(recipient=recipient, file=path)


def public_keys(identity_file: Path) -> list[str]:
    """The public keys of an identity file. Raises ValueError, OSError."""
    return [str(i.to_public()) for i in age_pipe.identities(identity_file.read_text())]


def _age(*arguments: str) -> list[str]:
    return [sys.executable, "-I", str(Path(age_pipe.__file__).resolve()), *arguments]


def _gpg(missing: type[KybError]) -> str:
    found = shutil.which("gpg")
    if found is None:
        raise missing(
            "gpg is not installed", hint='install gnupg, or set encryption.method = "age"'
        )
    return found


def _passphrase(settings: EncryptionSettings, missing: type[KybError]) -> str:
    passphrase = settings.passphrase.get_secret_value() if settings.passphrase else ""
    if not passphrase:
        raise missing(
            "no passphrase is set for gpg",
            hint="set encryption.passphrase_file, or KYB_ENCRYPTION__PASSPHRASE",
        )
    if "\n" in passphrase:
        raise missing("the passphrase holds a line break: gpg reads the first line only")
    return passphrase


@contextlib.contextmanager
def _filter(argv: Sequence[str | Path], pass_fds: Sequence[int] = ()) -> Iterator[process.Child]:
    with process.start(argv, stdin=process.PIPE, stdout=process.PIPE, pass_fds=pass_fds) as child:
        process.widen_pipe(child.stdin)
        process.widen_pipe(child.stdout)
        yield child
