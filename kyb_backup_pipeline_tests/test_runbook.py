"""Every command of the runbook, executed as it stands there, on a platform with a real server.

``demo``, ``up`` and ``down`` are executed by ``test_sandbox``, ``demo --story`` by ``test_story``, the lines for a deployment too, ``age -d`` and
``gpg -d`` by ``test_archives``.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kyb_backup_pipeline import archiver
from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.postgres import Target
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import create_database, execute
from kyb_backup_pipeline_tests.mail_server import mail_server
from kyb_backup_pipeline_tests.platforms import Platform
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.wal_clusters import running_cluster

_RUNBOOK = (Path(__file__).parent.parent / "docs" / "runbook.md").read_text()
_ELSEWHERE = {
    "kyb-backup demo",
    "kyb-backup up",
    "kyb-backup down",
    "kyb-backup demo --story",
}
_NAME = "kyb_platform"

_IN_ORDER = [
    "kyb-backup check",
    "kyb-backup alert test",
    "kyb-backup alert history",
    'kyb-backup backup full --id before_release_42 --label "before release 42"',
    "kyb-backup backup full && kyb-backup verify && kyb-backup drill",
    "kyb-backup backup base",
    "kyb-backup backup incremental",
    "kyb-backup status",
    "kyb-backup report --html FILE",
    "kyb-backup report --mail",
    "kyb-backup list",
    "kyb-backup show ID",
    "kyb-backup verify ID",
    "kyb-backup verify --all",
    "kyb-backup drill ID",
    "kyb-backup drill --at latest",
    'kyb-backup drill --at "2026-01-31 14:55:00+00:00"',
    "kyb-backup restore point-in-time --at TIME --into DIR --dry-run",
    "kyb-backup restore point-in-time --at TIME --into DIR",
    "kyb-backup restore point-in-time --at TIME --switch --dry-run",
    "kyb-backup restore point-in-time --at TIME --switch",
    "kyb-backup restore database",
    "kyb-backup restore database ID --dry-run",
    "kyb-backup restore database ID --into NAME",
    "kyb-backup restore database ID",
    "kyb-backup restore rollback",
    "kyb-backup restore replaced",
    "kyb-backup restore replaced --drop NAME",
    "kyb-backup restore repair",
    "kyb-backup keys init --into DIR",
    "kyb-backup backup application --deployment VERSION",
    "kyb-backup restore application",
    "kyb-backup restore application ID --dry-run",
    "kyb-backup restore application ID",
    "kyb-backup backup configuration",
    "kyb-backup restore configuration ID --into DIR",
    "kyb-backup offsite list --probe",
    "kyb-backup offsite push --all",
    "kyb-backup offsite push ID",
    "kyb-backup offsite list",
    "kyb-backup drill --from offsite",
    "kyb-backup restore database ID --from offsite --dry-run",
    "kyb-backup restore database ID --from offsite",
    "kyb-backup restore point-in-time --at TIME --into DIR --from offsite --dry-run",
    "kyb-backup restore point-in-time --at TIME --into DIR --from offsite",
    "kyb-backup restore configuration ID --into DIR --from offsite",
    "kyb-backup restore application ID --from offsite",
    "kyb-backup offsite verify",
    "kyb-backup offsite verify --all --deep",
    "kyb-backup offsite push ID --again",
    "kyb-backup offsite fetch ID --into DIR",
    "kyb-backup offsite prune",
    "kyb-backup offsite prune --dry-run",
    "kyb-backup offsite prune --yes",
    "kyb-backup offsite fetch ID --chain",
    "kyb-backup prune --dry-run",
    "kyb-backup prune",
    "kyb-backup prune --yes",
    "kyb-backup prune --despite-clock",
    "kyb-backup prune --full-days 14",
    "kyb-backup hold ID --until DATE --why TEXT",
    "kyb-backup hold",
    "kyb-backup hold ID --release",
]
_LISTS = {"kyb-backup restore database", "kyb-backup restore application"}
"""Without an id they list what there is, and ask which one: 2."""
_ASKS = ("restore database ID", "restore rollback", "restore replaced --drop", "restore application ID",
         "restore point-in-time --at TIME --")  # fmt: skip


def commands() -> set[str]:
    """What stands in code, in a line or in a block."""
    inline = re.findall(r"`(kyb-backup [^`]*)`", _RUNBOOK)
    blocks = re.findall(r"```sh\n(.*?)```", _RUNBOOK, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("kyb-")]
    return {*inline, *lines}


def test_the_list_of_this_test_is_that_of_the_runbook() -> None:
    deployment = {c for c in commands() if "$VERSION" in c}
    assert commands() - deployment == {*_IN_ORDER, *_ELSEWHERE}


@dataclass(frozen=True)
class Site:
    """A platform with its server; ``environment`` is all that the command line is given."""

    platform: Platform
    cluster: Cluster
    environment: dict[str, str]
    place: Path

    @property
    def cli(self) -> Cli:
        return Cli(None, self.environment)

    @property
    def empty(self) -> Cli:
        """The command line of a machine that has no backups, only the address of copies."""
        return Cli(None, self.environment | {"BACKUP_DIR": str(self.place / "empty")})

    @property
    def target(self) -> Target:
        return self.cluster.target(_NAME)

    def newest(self, kind: str) -> str:
        run = self.cli.run("list", "--kind", kind)
        assert run.returncode == 0, run.stderr
        return re.split(r"\s+", run.stdout.splitlines()[-1].strip())[0]

    def ids(self, kind: str) -> list[str]:
        folder = {"full": "database/full", "application_state": "application/state",
                  "configuration": "application/config"}[kind]  # fmt: skip
        found = self.platform.settings.repository / folder
        return sorted(p.name for p in found.iterdir() if not p.name.startswith("."))


@pytest.fixture
def site(platform: Platform, place: Path, drills: Path, tmp_path: Path) -> Iterator[Site]:
    with running_cluster(place, 16) as cluster:
        create_database(cluster.target(), _NAME)
        statements = ("CREATE TABLE users (id int PRIMARY KEY)",
                      "INSERT INTO users SELECT generate_series(1, 1000)")  # fmt: skip
        for statement in statements:
            execute(cluster.target(_NAME), statement)
        target = cluster.target(_NAME)
        data = shlex.quote(str(cluster.data))
        account = cluster.account
        who = (
            f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups" if account else ""
        )
        stop = f"kill -INT $(head -1 {data}/postmaster.pid); while test -e {data}/postmaster.pid; do sleep 0.05; done"
        start = f"cd /; exec {who} {cluster._programs.path('pg_ctl')} -D {data} -w -s " \
                f"-l {cluster.folder}/again.log -o '-k {cluster.sockets} -p {cluster.port}' start"  # fmt: skip
        environment = platform.environment | {
            "DB_HOST": target.host, "DB_PORT": str(target.port), "DB_NAME": _NAME, "DB_USER": target.user,
            "KYB_RESTORE_TEST__DIRECTORY": str(drills),
            "KYB_RECOVERY__STOP_SERVER_COMMAND": shlex.join(["sh", "-c", stop]),
            "KYB_RECOVERY__START_SERVER_COMMAND": shlex.join(["sh", "-c", start]),
            "ALERT_EMAIL": "oncall@example.com", "PATH": "/usr/bin:/bin",
        }  # fmt: skip
        second = tmp_path / "second-disk"
        second.mkdir()
        environment["KYB_OFFSITE__URL"] = str(second)
        try:
            with mail_server() as mail:
                environment["KYB_ALERTS__SMTP"] = mail.address
                yield Site(platform, cluster, environment, tmp_path)
        finally:
            subprocess.run(
                ["sh", "-c", f"test ! -e {data}/postmaster.pid || {{ {stop}; }}"], check=True
            )


def test_every_command_does_what_the_runbook_says(site: Site) -> None:
    moment = None
    for number, text in enumerate(_IN_ORDER):
        filled = text
        if "configuration ID" in text:
            filled = filled.replace("ID", site.ids("configuration")[-1], 1)
            filled = filled.replace("DIR", str(site.place / f"into-{number}"))
        elif "application ID" in text:
            filled = filled.replace(" ID", f" {site.ids('application_state')[-1]}")
        else:
            filled = filled.replace(" ID", " before_release_42")
        if "point-in-time" in text or "--at" in text:
            if moment is None:
                (marker,) = execute(site.cluster.target(), "SELECT now() - interval '100 ms'")[0]
                assert site.cli.run("backup", "incremental").returncode == 0
                moment = marker.isoformat(sep=" ")
            filled = filled.replace("2026-01-31 14:55:00+00:00", moment)
            filled = filled.replace("TIME", shlex.quote(moment))
            folder = "again" if "--from" in text else "recovered"
            filled = filled.replace("DIR", str(site.cluster.folder / folder))
        filled = filled.replace("DIR", str(site.place / f"into-{number}"))
        filled = filled.replace("VERSION", "v42").replace("FILE", str(site.place / "report.html"))
        filled = filled.replace("DATE", "2999-12-31")
        if "--drop" in text:
            listed = site.cli.run("restore", "replaced")
            filled = filled.replace("NAME", listed.stdout.split()[0])
        filled = filled.replace("NAME", "kyb_look")
        if "offsite fetch" in text and "--chain" in text:
            shutil.rmtree(site.platform.settings.repository / "database/full/before_release_42")
        for part in filled.split(" && "):
            arguments = shlex.split(part)[1:]
            if any(ask in text for ask in _ASKS) and "--dry-run" not in arguments:
                arguments.append("--yes")  # instead of the name that a person types
            run = (site.empty if "--from" in text else site.cli).run(*arguments)
            expected = 2 if text in _LISTS else 0
            if text == "kyb-backup status":
                expected = 6  # not every kind has been backed up yet, and it says so
            assert run.returncode == expected, f"{part}\n{run.stdout}\n{run.stderr}"
    assert execute(site.target, "SELECT count(*) FROM users") == [(1000,)]
    assert execute(site.cluster.target("kyb_look"), "SELECT count(*) FROM users") == [(1000,)]


def block(title: str, *, encrypted: bool = False) -> str:
    """The shell block of a chapter: of plain backups, or of encrypted ones."""
    chapter = _RUNBOOK.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"```sh\n(.*?)```", chapter, re.S)
    (wanted,) = [text for text in found if ("age -d" in text) == encrypted]
    return str(wanted)


def sh(site: Site, script: str, *, program: str = "sh", **environment: str) -> str:
    """Run lines of the runbook as an operator's shell does, with the server's own programs."""
    programs = site.cluster._programs.bin_dir
    own = {"PATH": f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin", "PGHOST": site.target.host,
           "PGPORT": str(site.target.port), "PGUSER": site.target.user, **environment}  # fmt: skip
    run = subprocess.run(
        [program, "-e", "-c", script], env=own, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_an_encrypted_dump_is_restored_by_hand_with_the_lines_of_the_runbook(site: Site) -> None:
    sealed = Cli(None, site.environment | {"KYB_ENCRYPTION__DATABASE": "true"})
    made = sealed.run("backup", "full", "--id", "by_hand")
    assert made.returncode == 0, made.stderr
    lines = block("Restoring by hand, without this software", encrypted=True).replace(
        "/backups/database/full/ID",
        str(site.platform.settings.repository / "database/full/by_hand"),
    )
    lines = lines.replace("KEY", str(site.platform.identity))
    assert "backup_metadata.json: OK" in sh(site, lines, program="bash")
    assert execute(site.cluster.target("kyb_restored"), "SELECT count(*) FROM users") == [(1000,)]
    assert sealed.run("verify", "by_hand").returncode == 0


@pytest.mark.parametrize("layout", ["plain", "directory"])
def test_a_dump_is_restored_by_hand_with_the_lines_of_the_runbook(site: Site, layout: str) -> None:
    made = site.cli.run("backup", "full", "--id", "by_hand")
    if layout == "directory":
        made = Cli(None, site.environment | {"KYB_BACKUP__FORMAT": "directory"}).run(
            "backup", "full", "--id", "by_hand_too"
        )
    assert made.returncode == 0, made.stderr
    name = "by_hand" if layout == "plain" else "by_hand_too"
    lines = block("Restoring by hand, without this software").replace(
        "/backups/database/full/ID", str(site.platform.settings.repository / "database/full" / name)
    )
    if layout == "directory":
        (other,) = re.findall(r"`(pg_restore [^`]*)`", _RUNBOOK)
        lines = re.sub(r"^zstd -dc .*$", other, lines, flags=re.M)
    assert "backup_metadata.json: OK" in sh(site, lines)
    assert execute(site.cluster.target("kyb_restored"), "SELECT count(*) FROM users") == [(1000,)]


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_cluster_is_recovered_by_hand_with_the_lines_of_the_runbook(
    site: Site, python: str, encrypted: bool
) -> None:
    cli = Cli(None, site.environment | {"KYB_ENCRYPTION__DATABASE": str(encrypted)})
    assert cli.run("backup", "base", "--id", "base_1").returncode == 0
    execute(site.target, "DELETE FROM users WHERE id > 900")
    (moment,) = execute(site.target, "SELECT now()")[0]
    execute(site.target, "DELETE FROM users")
    assert cli.run("backup", "incremental").returncode == 0
    repository = site.platform.settings.repository
    # the repository must be readable for the server's user
    copy = site.cluster.folder / "backups"
    shutil.copytree(repository / "database" / "incremental", copy)
    account = site.cluster.account
    key = copy / "identity.txt"
    shutil.copy(site.platform.identity, key)
    if account is not None:
        process.run(["chown", "-R", f"{account.uid}:{account.gid}", copy], deadline=60)
    data = site.cluster.folder / "by_hand"
    helper = site.cluster.folder / "kyb-wal-fetch"  # where the server's user reaches it
    shutil.copy(Path(archiver.__file__).parent / "fetch.py", site.cluster.folder)
    # where it cannot have the library, it calls the program age
    helper.write_text(f'#!/bin/sh\nexec {python} -I -S {site.cluster.folder}/fetch.py "$@"\n')
    for path in (helper, site.cluster.folder / "fetch.py"):
        path.chmod(0o755)
    lines = block("Recovering to a moment", encrypted=encrypted).replace("KEY", str(key))
    lines = lines.replace("/backups/database/incremental", str(copy))
    lines = lines.replace("BASE_ID", "base_1").replace(
        "2026-01-31 14:55:00+00:00", moment.isoformat(" ")
    )
    lines = lines.replace("DIR", str(data))
    *before, start = lines.strip().splitlines()
    assert start.startswith("pg_ctl")
    sh(site, "\n".join(before))
    if account is not None:
        process.run(["chown", "-R", f"{account.uid}:{account.gid}", data], deadline=60)
    who = f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups " if account else ""
    other = f"-o '-k {site.cluster.sockets} -p 5999' -w -s -l " + str(
        site.cluster.folder / "by_hand.log"
    )
    sh(
        site,
        f"cd /; {who}{start} {other}",
        PATH=f"{site.cluster.folder}:{site.cluster._programs.bin_dir}:/usr/bin:/bin",
    )
    try:
        rows = execute(Target(host=str(site.cluster.sockets), port=5999, dbname=_NAME,
                              user=site.target.user, sslmode="disable"), "SELECT count(*) FROM users")  # fmt: skip
        assert rows == [(900,)]
    finally:
        sh(site, f"cd /; {who}pg_ctl -D {data} -w -m immediate stop")
