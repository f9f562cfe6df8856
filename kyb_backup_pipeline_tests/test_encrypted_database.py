"""Encrypted full backups: they come back with the key, say so without it, and keep what they hold."""

import os
import re
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from psycopg import sql

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.doctor import examine
from kyb_backup_pipeline.engine.encryption import NoKeys, new_key_pair
from kyb_backup_pipeline.engine.errors import (
    CouldNotVerify,
    ProofFailed,
    RestoreFailed,
    SettingsInvalid,
)
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, Proof, utc_now
from kyb_backup_pipeline.engine.postgres import client_programs
from kyb_backup_pipeline.engine.progress import silent
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.restore import load_dump
from kyb_backup_pipeline.engine.restore_drill import drill_full_backup
from kyb_backup_pipeline.engine.restore_outlook import Wish, look_ahead
from kyb_backup_pipeline.engine.restore_source import source_of
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import (
    create_database,
    drop_database,
    execute,
    settings_for,
)
from kyb_backup_pipeline_tests.keys import PASSPHRASE, Keys, flip, keys_in, seal_anew
from kyb_backup_pipeline_tests.running import Cli, children_of, none_alive, wait_until
from kyb_backup_pipeline_tests.test_database_restore import Live, change, living

METHODS = ["age", "gpg"]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return keys_in(tmp_path / "keys")


@pytest.fixture
def sealed(
    server: Cluster, database: str, tmp_path: Path, drills: Path, keys: Keys
) -> Callable[..., Settings]:
    """Settings for the sample database, with the variables of some keys."""
    return lambda variables: settings_for(
        server.target(database), tmp_path / "backups", drills, **variables
    )


def take(settings: Settings, backup_id: str | None = None) -> Backup:
    return take_full_backup(settings, Request(backup_id=backup_id), now=utc_now())


def verify(settings: Settings, backup: Backup) -> Proof:
    return verify_backup(Repository(settings.repository), backup, settings=settings, now=utc_now())


@pytest.mark.parametrize(
    ("major", "method", "compression"),
    [(16, "age", "zstd"), (18, "age", "gzip"), (18, "gpg", "zstd")],
)
def test_an_encrypted_backup_is_verified_restored_and_equal_to_its_source(
    server_of: Callable[[int], Cluster], tmp_path: Path, drills: Path, keys: Keys,
    major: int, method: str, compression: str,
) -> None:  # fmt: skip
    target, name = server_of(major).target(), f"sealed_{method}_{os.getpid()}"
    create_database(target, name)
    try:
        target = target.with_database(name)
        execute(target, "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
        execute(
            target, sql.SQL("ALTER DATABASE {} SET work_mem = '5MB'").format(sql.Identifier(name))
        )
        settings = settings_for(
            target, tmp_path / "backups", drills, KYB_BACKUP__COMPRESSION=compression,
            **keys.opens(method),
        )  # fmt: skip
        backup = take(settings)
        manifest = backup.require_manifest()
        ending = f"{'zst' if compression == 'zstd' else 'gz'}.{method}"
        assert {path.name for path in backup.folder.iterdir()} == {
            f"database.sql.{ending}", f"globals.sql.{method}", f"database_settings.sql.{method}",
            f"evidence.json.{method}", MANIFEST, MANIFEST_CHECKSUM,
        }  # fmt: skip
        assert manifest.encryption is not None
        recipients = (keys.pair.recipient,) if method == "age" else ()
        assert (manifest.encryption.method, manifest.encryption.recipients) == (method, recipients)
        proof = verify(settings, backup)
        assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())
        proof = drill_full_backup(settings, backup, now=utc_now())
        assert (proof.verdict, proof.findings, proof.notes) == ("passed", (), ())
        assert (proof.figures["rows"], proof.figures["tables"]) == (20000, 1)
    finally:
        drop_database(server_of(major).target(), name)


@pytest.mark.parametrize("method", METHODS)
def test_without_the_key_checksums_count_and_the_rest_could_not_be_verified(
    sealed: Callable[..., Settings], keys: Keys, method: str
) -> None:
    backup = take(sealed(keys.seals(method)))
    for variables, said in (
        (keys.none(method), "no identity is set" if method == "age" else "no passphrase is set"),
        (keys.wrong(method), "another key than" if method == "age" else "passphrase is another"),
    ):
        settings = sealed(variables)
        for proof in (verify(settings, backup), drill_full_backup(settings, backup, now=utc_now())):
            assert (proof.verdict, said in proof.summary) == ("could_not_verify", True), (
                proof.summary
            )
        assert "checksum passed" in verify(settings, backup).summary
    for variables in (keys.none(method), keys.wrong(method)):
        path = backup.folder / f"database.sql.zst.{method}"
        whole = flip(path, -3)
        assert verify(sealed(variables), backup).verdict == "failed"
        path.write_bytes(whole[:-20])
        assert verify(sealed(variables), backup).verdict == "failed"
        path.write_bytes(whole)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_tampered_with_is_failed_and_never_restored(
    sealed: Callable[..., Settings], keys: Keys, method: str, server: Cluster, database: str
) -> None:
    """Also where file, manifest and its checksum all fit each other."""
    settings = sealed(keys.opens(method))
    backup = take(settings)
    into = f"{database}_into"
    create_database(server.target(), into)
    programs = client_programs(settings.postgres, 18)
    documents = [backup.folder / MANIFEST, backup.folder / MANIFEST_CHECKSUM]
    as_written = [path.read_bytes() for path in documents]
    try:
        for name in (f"globals.sql.{method}", f"database.sql.zst.{method}"):
            path = backup.folder / name
            whole = flip(path, -5)  # of gpg all plaintext but the end comes out before it says so
            assert verify(settings, backup).verdict == "failed", name
            seal_anew(backup)
            again = Repository(settings.repository).find(backup.backup_id)
            proof = verify(settings, again)
            assert (proof.verdict, "cannot be decrypted" in proof.summary) == ("failed", True)
            proof = drill_full_backup(settings, again, now=utc_now())
            assert (proof.verdict, proof.figures.get("rows")) == ("failed", None)
            if name.startswith("database.sql"):
                source = source_of(again, settings.encryption)
                with pytest.raises(RestoreFailed, match=r"cannot be decrypted"):
                    load_dump(source, programs, server.target(into), jobs=1, stall_timeout=60,
                              single_transaction=True, report=silent)  # fmt: skip
                left = "SELECT count(*) FROM pg_class WHERE relname = 'users'"
                assert execute(server.target(into), left) == [(0,)]
            path.write_bytes(whole)
            for document, content in zip(documents, as_written, strict=True):
                document.write_bytes(content)
        assert verify(settings, backup).verdict == "passed"
    finally:
        drop_database(server.target(), into)


# The database back


@pytest.fixture
def live(settings: Settings, server: Cluster, tmp_path: Path, drills: Path) -> Iterator[Live]:
    with living(settings, server, tmp_path, drills) as live:
        yield live


def without_prefix(variables: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix("KYB_"): value for name, value in variables.items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_database_comes_back_from_an_encrypted_backup(
    live: Live, keys: Keys, method: str
) -> None:
    opens = without_prefix(keys.opens(method))
    before = live.users()
    backup = live.backup(**opens)
    change(live)
    journal = live.restore(backup, None, **opens)
    assert (live.users(), journal.state) == (before, "done")
    assert journal.safety_backup is not None
    saved = live.find(journal.safety_backup)
    assert saved.require_manifest().encryption is not None
    only = live.restore(backup, Wish(into=f"{live.name}_one", tables=("users",)), **opens)
    assert only.state == "done"
    assert live.users(f"{live.name}_one") == before


@pytest.mark.parametrize("method", METHODS)
def test_a_restore_without_the_key_is_refused_before_anything_is_done(
    live: Live, keys: Keys, method: str
) -> None:
    backup = live.backup(**without_prefix(keys.seals(method)))
    plain = live.backup("plain")
    for variables in (keys.none(method), keys.wrong(method)):
        settings = live.with_settings(**without_prefix(variables))
        for wish in (Wish(), Wish(into=f"{live.name}_x"), Wish(into="x", tables=("users",))):
            with pytest.raises(CouldNotVerify) as refused:
                look_ahead(settings, backup, wish, now=utc_now())
            assert refused.value.hint
            with pytest.raises(CouldNotVerify):
                live.restore(backup, wish, **without_prefix(variables))
    run = live.cli(**without_prefix(keys.none(method))).run("restore", "database", "good", "--yes")
    assert (run.returncode, "HINT: " in run.stderr) == (10, True)
    if method == "age":
        # nor a plain one, where what is there now would be saved for a key that is not here
        with pytest.raises(CouldNotVerify, match="what is there now"):
            live.restore(plain, None, **without_prefix(keys.none()))
        live.restore(plain, Wish(safety_backup=False, service=False), **without_prefix(keys.none()))
    assert live.calls() == []
    assert {b.backup_id for b in Repository(live.settings.repository).backups()} == {
        "good",
        "plain",
    }
    assert len(live.journals().all(live.target)) == (1 if method == "age" else 0)


def test_a_damaged_encrypted_backup_leaves_the_live_database_as_it_is(
    live: Live, keys: Keys
) -> None:
    opens = without_prefix(keys.opens("gpg"))
    backup = live.backup(**opens)
    before = live.users()
    flip(backup.folder / "database.sql.zst.gpg", -5)
    seal_anew(backup)
    with pytest.raises(ProofFailed, match="cannot be decrypted"):
        live.restore(live.find("good"), None, **opens)
    assert (live.users(), live.databases(), live.calls()) == (before, [], [])


# What stays secret


@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_it_holds_can_be_read_in_the_repository_or_the_logs(
    live: Live, keys: Keys, method: str, server: Cluster, tmp_path: Path
) -> None:
    value, role = f"planted {secrets.token_hex(8)}", f"r_{secrets.token_hex(4)}"
    execute(live.target, sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
        sql.Identifier(role), value))  # fmt: skip
    try:
        execute(live.target, "CREATE TABLE planted (v text)")
        execute(live.target, "INSERT INTO planted VALUES (%s)", (value,))
        execute(live.target, sql.SQL("ALTER DATABASE {} SET kyb.token = {}").format(
            sql.Identifier(live.name), value))  # fmt: skip
        ((hashed,),) = execute(
            live.target, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", (role,)
        )
        log = tmp_path / "backup.log"
        cli = live.cli(**without_prefix(keys.opens(method)), BACKUP__COMPRESSION="gzip")
        cli._env["LOG_FILE"] = str(log)
        said = ""
        restore: tuple[str, ...] = ("restore", "database", "one", "--yes")
        if method == "gpg":
            restore += ("--into", f"{live.name}_b")
        for arguments in (("backup", "full", "--id", "one"), ("show", "one"), restore):
            run = cli.run("--verbose", *arguments)
            assert run.returncode == 0, run.stderr
            said += run.stdout + run.stderr
        assert (keys.pair.recipient in said) == (method == "age")
        places = [p for p in live.settings.repository.rglob("*") if p.is_file()]
        assert {p.name for p in places} >= {f"globals.sql.{method}", f"database.sql.gz.{method}"}
        assert list(live.settings.repository.rglob("*.json"))
        written = [log.read_bytes(), said.encode(), *(p.read_bytes() for p in places)]
        identity = keys.pair.file.read_text().splitlines()[-1]
        for secret in (value, hashed, hashed.split("$")[-1], PASSPHRASE, identity, role):
            assert not [w for w in written if secret.encode() in w], secret
    finally:
        execute(server.target(), sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("method", METHODS)
def test_kill_9_in_mid_encryption_leaves_a_partial_folder_and_no_child(
    live: Live, keys: Keys, method: str
) -> None:
    execute(live.target, "CREATE TABLE big AS SELECT n, md5(n::text) a, md5(n::text || 'x') b FROM generate_series(1, 200000) n")  # fmt: skip
    cli = live.cli(**without_prefix(keys.opens(method)))
    folder = live.settings.repository / "database" / "full" / ".killed.partial"
    dump = folder / f"database.sql.zst.{method}"
    run = cli.start("backup", "full", "--id", "killed")
    wait_until(lambda: dump.exists() and dump.stat().st_size > 1 << 20, "it is being written")
    children = children_of(run.pid)
    assert len(children) >= 2
    run.kill()
    assert run.wait() != 0
    wait_until(partial(none_alive, children), "its children are gone")
    assert [p.name for p in folder.parent.iterdir()] == [".killed.partial"]
    assert all(path.suffix == f".{method}" for path in folder.iterdir())
    again = cli.run("backup", "full", "--id", "after")
    assert again.returncode == 0, again.stderr
    assert cli.run("verify", "after").returncode == 0


# Settings and keys


def test_directory_format_and_encryption_do_not_go_together(tmp_path: Path) -> None:
    variables = {"KYB_ENCRYPTION__DATABASE": "true", "KYB_BACKUP__FORMAT": "directory"}
    with pytest.raises(SettingsInvalid, match=r"encryption.*database = true does not apply"):
        config.load(environment=variables)
    config.load(environment=variables | {"KYB_ENCRYPTION__DATABASE": "offsite"})
    run = Cli(None, {**variables, "BACKUP_DIR": str(tmp_path)}).run("check")
    assert (run.returncode, "does not apply" in run.stderr) == (3, True)


@pytest.mark.parametrize(
    ("written", "meant"), [("true", True), ("False", False), ("offsite", "offsite")]
)
def test_the_three_values_in_a_variable_and_in_a_file(
    tmp_path: Path, written: str, meant: object
) -> None:
    settings = config.load(environment={"KYB_ENCRYPTION__DATABASE": written})
    assert settings.encryption.database == meant
    assert (settings.encryption.at_home is not None) == (meant is True)
    file = tmp_path / "kyb.toml"
    word = '"offsite"' if meant == "offsite" else written.lower()
    file.write_text(f"[encryption]\ndatabase = {word}\n")
    assert config.load(file, environment={}).encryption.database == meant
    with pytest.raises(SettingsInvalid, match=re.escape("encryption.database")):
        config.load(environment={"KYB_ENCRYPTION__DATABASE": "sometimes"})


def test_offsite_means_plain_at_home(sealed: Callable[..., Settings], keys: Keys) -> None:
    settings = sealed(keys.seals() | {"KYB_ENCRYPTION__DATABASE": "offsite"})
    backup = take(settings)
    assert backup.require_manifest().encryption is None
    assert (backup.folder / "database.sql.zst").exists()
    assert verify(settings, backup).verdict == "passed"


def test_without_a_public_key_no_backup_is_begun(sealed: Callable[..., Settings]) -> None:
    settings = sealed({"KYB_ENCRYPTION__DATABASE": "true"})
    with pytest.raises(NoKeys, match="recipients is empty"):
        take(settings)
    assert Repository(settings.repository).backups() == []
    assert Repository(settings.repository).leftovers() == []


def test_a_new_key_opens_what_came_after_and_an_old_one_what_was_before(
    sealed: Callable[..., Settings], keys: Keys, tmp_path: Path
) -> None:
    new = new_key_pair(tmp_path / "new", utc_now())
    old = take(sealed(keys.opens()), "old")
    variables = keys.seals() | {"KYB_ENCRYPTION__RECIPIENTS": new.recipient}
    young = take(sealed(variables), "young")
    plain = take(sealed({}), "plain")
    both = tmp_path / "both.txt"
    both.write_text(keys.pair.file.read_text() + new.file.read_text())
    for identity, verdicts in (
        (keys.pair.file, ("passed", "could_not_verify", "passed")),
        (new.file, ("could_not_verify", "passed", "passed")),
        (both, ("passed", "passed", "passed")),
    ):
        settings = sealed({**variables, "KYB_ENCRYPTION__IDENTITY_FILE": str(identity)})
        found = tuple(verify(settings, backup).verdict for backup in (old, young, plain))
        assert found == verdicts


def test_check_says_beforehand_what_will_not_be_verified_here(
    sealed: Callable[..., Settings], keys: Keys
) -> None:
    def lines(variables: dict[str, str]) -> dict[str, str]:
        found = [line for line in examine(sealed(variables)) if line.subject == "encryption"]
        return {line.message: line.level for line in found}

    none = lines({"KYB_ENCRYPTION__DATABASE": "true"})
    assert [level for said, level in none.items() if "nothing can be backed up" in said] == [
        "error"
    ]
    ((said, level),) = [x for x in lines(keys.seals()).items() if "restore tests" in x[0]]
    assert (level, "could not verify: no identity is set" in said) == ("warning", True)
    ((said, level),) = [x for x in lines(keys.wrong()).items() if "restore tests" in x[0]]
    assert (level, "opens none of what is encrypted" in said) == ("warning", True)
    assert set(lines(keys.opens()).values()) == {"ok"}
    keys.pair.file.chmod(0o644)
    assert lines(keys.opens())[f"{keys.pair.file} can be read by others"] == "warning"
