"""The command line: exit codes, one readable message, and no secret anywhere."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kyb_backup_pipeline.cli.program import VERBS, program
from kyb_backup_pipeline.engine import errors
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import MANIFEST, MANIFEST_CHECKSUM, utc_now
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.staging import checksum_line
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute, settings_file
from kyb_backup_pipeline_tests.mail_server import mail_server
from kyb_backup_pipeline_tests.platforms import Platform
from kyb_backup_pipeline_tests.running import Cli, children_of, wait_until

_DOCS = Path(__file__).parent.parent / "docs"
SECRET = "hunter2-secret"


@pytest.fixture
def cli(settings: Settings, tmp_path: Path) -> Cli:
    return Cli(settings_file(settings, tmp_path / "kyb.toml"))


@pytest.fixture
def with_password(server: Cluster, database: str) -> Iterator[dict[str, str]]:
    """The variables of a role that needs its password over TCP."""
    execute(server.target(), f"CREATE ROLE secretive LOGIN SUPERUSER PASSWORD '{SECRET}'")
    yield {
        "DB_HOST": "127.0.0.1",
        "DB_PORT": str(server.port),
        "DB_NAME": database,
        "DB_USER": "secretive",
        "DB_PASSWORD": SECRET,
    }
    execute(server.target(), "DROP ROLE secretive")


def one_message(run: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The run ended with ``code`` and one readable message with a hint."""
    assert run.returncode == code, run.stderr
    assert run.stderr.startswith("error: ")
    assert "HINT: " in run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_a_backup_is_taken_listed_shown_verified_and_drilled(cli: Cli) -> None:
    assert cli.run("list").stdout.startswith("no backups in ")
    assert cli.run("list", "--json").stdout == "[]\n"
    run = cli.run("backup", "full", "--id", "first", "--label", "before the move")
    assert run.returncode == 0, run.stderr
    (line,) = json.loads(cli.run("list", "--json").stdout)
    assert (line["id"], line["kind"], line["label"]) == ("first", "full", "before the move")
    assert (line["verification"], line["restore_test"]) == (None, None)
    assert line["size_bytes"] > 0
    assert cli.run("verify").returncode == 0
    assert cli.run("drill").returncode == 0
    (line,) = json.loads(cli.run("list", "--json").stdout)
    assert (line["verification"], line["restore_test"]) == ("passed", "passed")
    shown = json.loads(cli.run("show", "first", "--json").stdout)
    assert shown["backup_id"] == "first"
    assert shown["verifications"][0]["verdict"] == "passed"
    assert shown["restore_tests"][0]["figures"]["rows"] > 0
    text = cli.run("show", "first").stdout
    assert "before the move" in text
    assert "recovery took" in text


def test_the_id_can_come_from_the_procedures_variable(settings: Settings, tmp_path: Path) -> None:
    file = settings_file(settings, tmp_path / "kyb.toml")
    assert Cli(file, {"BACKUP_ID": "manual_20260131"}).run("backup", "full").returncode == 0
    elsewhere = tmp_path / "custom" / "backup location"
    run = Cli(file, {"BACKUP_DIR": str(elsewhere)}).run("backup", "full", "--id", "there")
    assert run.returncode == 0, run.stderr
    assert (elsewhere / "database" / "full" / "there" / MANIFEST).exists()
    run = Cli(file).run("list", "--repository", str(elsewhere), "--json")
    assert [line["id"] for line in json.loads(run.stdout)] == ["there"]


@pytest.mark.parametrize("backup_id", ["../x", "a/b", ".hidden", "a b", "", "x" * 101, "a\nb", "ü"])
def test_a_bad_id_is_refused_before_a_path_is_built(
    cli: Cli, settings: Settings, backup_id: str
) -> None:
    for command in (["backup", "full", "--id", backup_id], ["show", backup_id], ["verify", backup_id],
                    ["drill", backup_id]):  # fmt: skip
        if backup_id == "" and command[0] in ("backup", "drill"):
            continue  # as BACKUP_ID="" has it: no id was given
        assert "is not a valid backup id" in one_message(cli.run(*command), 2)
    assert not settings.repository.exists() or Repository(settings.repository).backups() == []


def test_an_id_in_use_is_refused_also_when_only_its_records_are_left(
    cli: Cli, settings: Settings
) -> None:
    assert cli.run("backup", "full", "--id", "once").returncode == 0
    assert "is in use" in one_message(cli.run("backup", "full", "--id", "once"), 2)
    assert cli.run("verify", "once").returncode == 0
    folder = settings.repository / "database" / "full" / "once"
    folder.rename(settings.repository.parent / "pruned")
    assert "is in use" in one_message(cli.run("backup", "full", "--id", "once"), 2)


def test_connection_errors_say_which_of_them_it_is(
    settings: Settings, tmp_path: Path, with_password: dict[str, str]
) -> None:
    file = settings_file(settings, tmp_path / "kyb.toml")

    def fails(**changed: str) -> str:
        cli = Cli(file, {**with_password, **changed})
        return one_message(cli.run("backup", "full"), 4)

    assert "check DB_USER and DB_PASSWORD" in fails(DB_PASSWORD="wrong-secret")
    assert "wrong-secret" not in fails(DB_PASSWORD="wrong-secret")
    assert "set DB_PASSWORD" in fails(DB_PASSWORD="")
    assert "check DB_HOST" in fails(DB_HOST="no-such-host.invalid")
    assert "is the server running" in fails(DB_PORT="1")
    assert "check DB_NAME" in fails(DB_NAME="no_such_database")
    assert Repository(settings.repository).leftovers() == []


def test_a_silent_host_is_given_up_within_its_time(tmp_path: Path, settings: Settings) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "DB_HOST": "127.0.0.1",
            "DB_PORT": str(silent.getsockname()[1]),
            "DB_PASSWORD": "x",
            "KYB_DATABASE__CONNECT_TIMEOUT": "2",
        }
        cli = Cli(settings_file(settings, tmp_path / "kyb.toml"), environment)
        one_message(cli.run("backup", "full", timeout=60), 4)


def test_no_password_is_in_argv_log_manifest_output_or_show(
    settings: Settings, tmp_path: Path, with_password: dict[str, str], server: Cluster
) -> None:
    execute(
        server.target(with_password["DB_NAME"]),
        "CREATE TABLE filler AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n",
    )
    log = tmp_path / "backup.log"
    cli = Cli(
        settings_file(settings, tmp_path / "kyb.toml"), {**with_password, "LOG_FILE": str(log)}
    )
    run = cli.start("--verbose", "backup", "full", "--id", "secret_test")
    seen: set[str] = set()

    def watched() -> bool:
        for pid in (run.pid, *children_of(run.pid)):
            try:
                seen.add(Path(f"/proc/{pid}/cmdline").read_bytes().decode())
            except OSError:
                continue
        return run.popen.poll() is not None

    wait_until(watched, "the backup has ended")
    assert run.wait() == 0, run.stderr
    assert any("pg_dump\0" in line for line in seen), "the watch must have seen pg_dump"
    outputs = [*seen, run.stdout, run.stderr, log.read_text()]
    for command in (
        ["list"],
        ["show", "secret_test"],
        ["show", "secret_test", "--json"],
        ["check"],
    ):
        done = cli.run(*command)
        outputs += [done.stdout, done.stderr]
    for path in settings.repository.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".sha256", ".sql", ".lock"):
            outputs.append(path.read_text())
    assert not [text for text in outputs if SECRET in text]
    assert "full backup secret_test is complete" in log.read_text()


def test_settings_errors_are_one_message(tmp_path: Path, settings: Settings) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("repository = [")
    assert "broken.toml: not valid TOML" in one_message(Cli(broken).run("list"), 3)
    file = settings_file(settings, tmp_path / "kyb.toml")
    run = Cli(file, {"KYB_BAKUP__LEVEL": "1"}).run("list")
    assert "KYB_BAKUP__LEVEL): unknown setting" in one_message(run, 3)


def test_what_is_not_there_is_not_found(cli: Cli) -> None:
    for command in (["show", "nothing"], ["verify", "nothing"], ["drill", "nothing"], ["drill"]):
        one_message(cli.run(*command), 9)


def test_usage_errors_name_the_help(cli: Cli) -> None:
    assert "--help" in one_message(cli.run("backup", "full", "--nonsense"), 2)
    assert "--help" in one_message(cli.run("nonsense"), 2)
    run = cli.run("verify", "a", "--all")
    assert run.returncode == 2


def test_a_folder_without_a_manifest_is_not_listed_but_named(cli: Cli, settings: Settings) -> None:
    assert cli.run("backup", "full", "--id", "whole").returncode == 0
    full = settings.repository / "database" / "full"
    (full / "half").mkdir()
    (full / "half" / "database.sql.gz").write_bytes(b"half")
    (full / ".killed.partial").mkdir()
    run = cli.run("list", "--json")
    assert [line["id"] for line in json.loads(run.stdout)] == ["whole"]
    assert "half (has no manifest)" in run.stderr
    assert ".killed.partial (left by a run that was killed)" in run.stderr
    assert cli.run("verify", "half").returncode == 6
    run = cli.run("verify", "--all")
    assert run.returncode == 6
    assert "backup_metadata.json cannot be read" in run.stdout
    assert "whole  verification passed" in run.stdout


def test_a_damaged_manifest_is_listed_as_damaged(cli: Cli, settings: Settings) -> None:
    assert cli.run("backup", "full", "--id", "hurt").returncode == 0
    manifest = settings.repository / "database" / "full" / "hurt" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:100])
    (line,) = json.loads(cli.run("list", "--json").stdout)
    assert line["id"] == "hurt"
    assert "cannot be read" in line["problem"]
    assert cli.run("list").returncode == 0
    assert cli.run("verify", "hurt").returncode == 6


def test_newest_is_by_the_manifests_time_not_by_name_or_mtime(cli: Cli, settings: Settings) -> None:
    for name in ("zzz_old", "aaa_new"):
        take_full_backup(settings, Request(backup_id=name), now=utc_now())
    os.utime(settings.repository / "database" / "full" / "zzz_old")
    assert json.loads(cli.run("list", "--json").stdout)[0]["id"] == "aaa_new"
    assert cli.run("verify").stdout.startswith("aaa_new ")


def test_a_future_format_says_so(cli: Cli, settings: Settings) -> None:
    backup = take_full_backup(settings, Request(backup_id="tomorrow"), now=utc_now())
    path = backup.folder / MANIFEST
    content = path.read_bytes().replace(b'"format_version": 1', b'"format_version": 2')
    path.write_bytes(content)
    (backup.folder / MANIFEST_CHECKSUM).write_bytes(checksum_line(content))
    run = cli.run("show", "tomorrow")
    assert run.returncode == 6
    assert "format_version 2 is newer than this program knows" in run.stderr


def test_check_names_what_is_missing(
    settings: Settings, tmp_path: Path, server: Cluster, database: str, platform: Platform
) -> None:
    file = settings_file(settings, tmp_path / "kyb.toml")
    files = {name: value for name, value in platform.environment.items() if name[:4] == "KYB_"}
    (elsewhere := tmp_path / "second-disk").mkdir()
    with mail_server() as mail:
        told = {"ALERT_EMAIL": "oncall@example.com", "KYB_ALERTS__SMTP": mail.address,
                "KYB_OFFSITE__URL": str(elsewhere), "KYB_ENCRYPTION__DATABASE": "offsite"}  # fmt: skip
        run = Cli(file, files | told).run("check", "--json")
    assert run.returncode == 0, run.stdout
    assert {line["level"] for line in json.loads(run.stdout)} == {"ok"}
    execute(server.target(), "CREATE ROLE weak LOGIN")
    try:
        environment = {"DB_USER": "weak", "BACKUP_DIR": str(tmp_path / "x" / "database")}
        run = Cli(file, environment).run("check")
        assert run.returncode == 3
        assert "nobody is told of troubles" in run.stdout
        assert "off-site: no place is set" in run.stdout
        assert "this user may not read " in run.stdout
        assert "role passwords" in run.stdout
        assert "ends in /database" in run.stdout
        assert f"set BACKUP_DIR={tmp_path / 'x'}" in run.stdout
    finally:
        execute(server.target(), "DROP ROLE weak")
    run = Cli(file, {"DB_NAME": "nothing_here"}).run("check")
    assert run.returncode == 3
    assert "check DB_NAME" in run.stdout


def commands() -> dict[str, click.Command]:
    """Every command with its whole name, such as ``backup full``."""
    found: dict[str, click.Command] = {}
    context = click.Context(program)
    for name in VERBS:
        command = program.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": part for inner, part in command.commands.items()}
        else:
            found[name] = command
    return found


def test_every_command_has_help_with_examples() -> None:
    for name, command in commands().items():
        assert command.help, name
        assert "Example" in (command.epilog or ""), name


def test_every_command_stands_in_the_runbook_and_none_else() -> None:
    text = (_DOCS / "runbook.md").read_text()
    mentioned = set(
        re.findall(r"kyb-backup ((?:alert |backup |restore |keys |offsite )?[a-z-]+)", text)
    )
    assert mentioned == set(commands())


def test_exit_codes_are_a_contract() -> None:
    codes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.KybError)
    }
    assert codes == {
        "KybError": 1, "InvalidRequest": 2, "SettingsInvalid": 3, "DatabaseUnreachable": 4,
        "BackupFailed": 5, "ProofFailed": 6, "RestoreFailed": 7, "Locked": 8, "NotFound": 9,
        "CouldNotVerify": 10, "NotEnoughSpace": 11, "Refused": 12,
    }  # fmt: skip


def test_the_command_line_never_imports_dagster() -> None:
    script = (
        "import sys, click, importlib\n"
        "from kyb_backup_pipeline.cli.program import VERBS\n"
        "for module, _ in VERBS.values():\n"
        "    importlib.import_module(f'kyb_backup_pipeline.cli.{module}')\n"
        "print([name for name in sys.modules if name.split('.')[0].startswith('dagster')])\n"
    )
    import sys

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
