"""The whole chain as an ordinary user: nothing of it may need root.

Where the tests run as root, a process that has loaded the program gives its rights up for good and
goes on as ``nobody``: the interpreter itself may lie where only root reads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine.postgres import reachable_programs
from kyb_backup_pipeline.engine.process import Account
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute

_GIVE_RIGHTS_UP = """
import os, pwd, sys
from kyb_backup_pipeline.cli import main, backup, drill, list, show, verify
from kyb_backup_pipeline.engine import config
import psycopg, encodings.idna, multiprocessing, concurrent.futures.thread
if os.geteuid() == 0:
    account = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
assert os.geteuid() != 0
main()
"""


@pytest.mark.parametrize("form", ["plain", "directory"])
def test_an_ordinary_user_takes_verifies_and_drills_a_backup(
    server: Cluster, database: str, place: Path, form: str
) -> None:
    home = place / f"home {form}"
    home.mkdir()
    programs = server.programs
    if os.geteuid() == 0:
        account = Account.named("nobody")
        os.chown(home, account.uid, account.gid)
        programs = reachable_programs(programs, account, place / "programs")
    execute(server.target(), "CREATE ROLE ordinary LOGIN BYPASSRLS PASSWORD 'not-so-secret'")
    execute(server.target(), "GRANT pg_read_all_data TO ordinary")
    environment = {
        "PATH": os.environ["PATH"],
        "BACKUP_DIR": str(home / "backups"),
        "DB_HOST": "127.0.0.1",
        "DB_PORT": str(server.port),
        "DB_NAME": database,
        "DB_USER": "ordinary",
        "DB_PASSWORD": "not-so-secret",
        "KYB_POSTGRES__BIN_DIRS": str(programs.bin_dir),
        "KYB_POSTGRES__USE_EMBEDDED": "false",
        "KYB_POSTGRES__USE_SYSTEM": "false",
        "KYB_RESTORE_TEST__DIRECTORY": str(home),
        "KYB_BACKUP__MINIMUM_FREE": "0",
        "KYB_BACKUP__FORMAT": form,
    }
    try:
        for command in (["backup", "full", "--id", "mine"], ["verify", "mine"], ["drill", "mine"]):
            done = subprocess.run(
                [sys.executable, "-c", _GIVE_RIGHTS_UP, *command],
                env=environment,
                cwd=home,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "rows in 18 tables" in done.stdout
        assert [path.name for path in home.iterdir()] == ["backups"]
        owner = (home / "backups" / "database" / "full" / "mine").stat().st_uid
        assert owner == home.stat().st_uid
        assert owner != 0
    finally:
        execute(server.target(), "DROP ROLE ordinary")
