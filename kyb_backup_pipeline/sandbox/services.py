"""The services of the sandbox: two clusters, the platform's HTTP service, and Dagster's programs.

Each can be started again at any time and is found if it runs already. Those that are not clusters
keep their process id in ``.kyb/run`` and are only ever stopped by it, after a look that the id still
belongs to them.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from psycopg import sql

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.encryption import new_key_pair, public_keys
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.sandbox import platform, sample_data
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline.sandbox.place import DATABASE, RESTORER, USER, Place

Say = Callable[[str], None]

DEFINITIONS = "kyb_backup_pipeline.definitions"
_START_TIMEOUT = 120.0


def start_sandbox(place: Place, say: Say) -> None:
    """Make what is missing and start what does not run; doing it again changes nothing."""
    for name in ("log", "run", "secrets", place.offsite.name):
        (place.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    say("PostgreSQL of the sample platform")
    _start_cluster(place.platform, {"wal_level": "replica"})
    _fill(place, say)
    with connect(place.platform.target(DATABASE)) as connection:  # functions belong to a database
        switch = sql.SQL("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {}")
        connection.execute(switch.format(sql.Identifier(USER)))
    say("PostgreSQL of Dagster's storage")
    _start_cluster(place.dagster_storage, {"fsync": "off", "synchronous_commit": "off"})
    _make_storage(place)
    say("the platform's folder and HTTP service")
    platform.write_application_folder(place.application)
    start_platform_service(place)
    if not place.identity_file.exists():
        new_key_pair(place.identity_file.parent, utc_now())
    _write_settings(place)
    place.dagster_home.mkdir(exist_ok=True)
    shutil.copyfile(place.project / "dagster.yaml", place.dagster_home / "dagster.yaml")


def make_traffic(place: Place) -> int:
    """Write a little, as the platform would between two backups; the number of rows."""
    with connect(place.platform.target(DATABASE)) as connection:
        cursor = connection.execute(
            """INSERT INTO verifications (id, business_id, provider, status, result, requested_at, requested_by)
               SELECT gen_random_uuid(), business_id, provider, 'pending', result, now(), requested_by
               FROM verifications ORDER BY id LIMIT 2000"""
        )
        return cursor.rowcount


def stop_sandbox(place: Place, say: Say) -> None:
    """Stop every service that runs."""
    for name in ("daemon", "webserver", "platform"):
        if _stop(place, name):
            say(f"{name} stopped")
    for name, cluster in (("platform", place.platform), ("dagster", place.dagster_storage)):
        if cluster.pid() is not None:
            cluster.stop()
            say(f"PostgreSQL of {name} stopped")


def dagster_environment(place: Place) -> dict[str, str]:
    """What Dagster's programs need to know; secrets go this way and no other."""
    return {
        "DAGSTER_HOME": str(place.dagster_home),
        "DAGSTER_POSTGRES_URL": place.dagster_url(),
        "KYB_CONFIG": str(place.settings_file),
        "PYTHONUNBUFFERED": "1",
    }


def dagster_program(name: str) -> Path:
    """A program of Dagster's, beside the Python that runs. Raises KybError if it is not there."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise KybError(f"{name} is not installed beside {sys.executable}", hint="make setup")
    return path


def start_ui(place: Place, port: int, say: Say) -> str:
    """Start Dagster's webserver and daemon on the sandbox; return the address of the UI."""
    workspace = str(place.project / "workspace.yaml")
    address = f"http://127.0.0.1:{port}"
    if _running(place, "webserver") is None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise KybError(
                    f"port {port} is taken: {error.strerror}", hint="kyb-backup up --port 3001"
                ) from error
        say("Dagster's webserver")
        _start(
            place,
            "webserver",
            [dagster_program("dagster-webserver"), "-h", "127.0.0.1", "-p", str(port), "-w", workspace],
        )  # fmt: skip
    if _running(place, "daemon") is None:
        say("Dagster's daemon (schedules and sensors)")
        _start(place, "daemon", [dagster_program("dagster-daemon"), "run", "-w", workspace])
    _await(place, "webserver", lambda: _answers(f"{address}/server_info"))
    return address


def _start_cluster(cluster: Cluster, settings: Mapping[str, str]) -> None:
    if not (cluster.data / "PG_VERSION").exists():
        cluster.initialise(settings={"listen_addresses": "127.0.0.1", **settings})
    cluster.start()


def _fill(place: Place, say: Say) -> None:
    """Make role and database of the platform with their sample data, once."""
    cluster = place.platform
    _make_role(cluster, USER, place.secret("database"))
    _make_role(cluster, RESTORER, place.secret("restore"))
    with connect(cluster.target()) as connection:
        connection.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(RESTORER)))
        connection.execute(
            sql.SQL("GRANT pg_read_all_data, pg_read_all_settings TO {}").format(
                sql.Identifier(USER)
            )
        )
        connection.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(USER)))
        connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        connection.execute("SELECT pg_reload_conf()")
        marker = connection.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            (DATABASE,),
        ).fetchone()
        if marker is not None and marker[0] is not None:
            return
        name = sql.Identifier(DATABASE)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(USER))
        )
    say(f"sample data ({sample_data.DEFAULT_BUSINESSES:,} businesses and what belongs to them)")
    with connect(cluster.target(DATABASE), autocommit=False) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(USER)))
        sample_data.create_schema(connection)
        sample_data.load(connection, businesses=sample_data.DEFAULT_BUSINESSES)
        connection.commit()
    with connect(cluster.target()) as connection:
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS 'Sample of the KYB platform, complete'").format(name)
        )
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET statement_timeout TO '5min'").format(name)
        )


def _make_storage(place: Place) -> None:
    cluster = place.dagster_storage
    _make_role(cluster, "dagster", place.secret("dagster"))
    with connect(cluster.target()) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'dagster'").fetchone():
            connection.execute("CREATE DATABASE dagster OWNER dagster")


def _make_role(cluster: Cluster, role: str, password: str) -> None:
    with connect(cluster.target()) as connection:
        name = sql.Identifier(role)
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, password))


def stop_platform_service(place: Place) -> None:
    """Stop the HTTP service of the sample platform, if it runs."""
    _stop(place, "platform")


def start_platform_service(place: Place) -> None:
    """Start it, unless it runs; returns once it answers."""
    if _running(place, "platform") is not None:
        return
    port_file = place.root / "run" / "platform.port"
    port_file.unlink(missing_ok=True)
    _start(
        place,
        "platform",
        [
            sys.executable, "-m", "kyb_backup_pipeline.sandbox.platform",
            "--root", place.application, "--port-file", port_file,
            "--port", str(place.port("application")),
        ],
    )  # fmt: skip
    _await(place, "platform", port_file.exists)


def _write_settings(place: Place) -> None:
    place.secret("database")
    place.settings_file.touch(mode=0o600)  # the table of an off-site place may hold a key
    place.settings_file.chmod(0o600)
    place.settings_file.write_text(
        f"""\
# Settings of the sandbox, written anew by `kyb-backup demo` and `kyb-backup up`.
repository = "backups"
log_file = "log/backup.log"

[database]
host = "127.0.0.1"
port = {place.platform.port}
name = "{DATABASE}"
user = "{USER}"
password_file = "secrets/database"

[recovery]
user = "{RESTORER}"
password_file = "secrets/restore"
health_url = "http://127.0.0.1:{place.port("application")}/health"

[backup]
minimum_free = 268435456

[encryption]
# the key lies beside what it opens: fine for a sandbox, and for nothing else
recipients = ["{public_keys(place.identity_file)[0]}"]
identity_file = "{place.identity_file.relative_to(place.root)}"
database = "offsite"

[application]
root = "application"
logs = "application/logs"
flags_url = "http://127.0.0.1:{place.port("application")}/api/v1/admin/feature-flags"
sessions = "query"
sessions_query = "SELECT id, email, last_login FROM users WHERE last_login IS NOT NULL ORDER BY id LIMIT 500"
stop_command = {_service_command(place, "stop")}
start_command = {_service_command(place, "start")}

{_offsite_table(place)}"""
    )


def _offsite_table(place: Place) -> str:
    """Where copies go: to a folder beside the repository, or to where ``offsite.toml`` says."""
    try:
        return place.offsite_table.read_text()
    except FileNotFoundError:
        url = json.dumps(str(place.offsite))
        return f"""\
[offsite]
# a folder stands for another disk; for a bucket write this table into {place.offsite_table.name} beside this file
url = {url}
"""


def _service_command(place: Place, what: str) -> str:
    """The command that stops or starts the platform's service, as TOML."""
    module = "kyb_backup_pipeline.sandbox.service"
    return json.dumps([sys.executable, "-m", module, what, "--root", str(place.root)])


def _start(place: Place, name: str, argv: list[str | Path]) -> None:
    pid = process.start_detached(
        argv,
        log=place.log(name),
        env=dagster_environment(place),
        inherit=True,
        cwd=place.project,
    )
    place.pid_file(name).write_text(f"{pid} {process.started_at(pid)}\n")


def _running(place: Place, name: str) -> int | None:
    """The process id of a service; None if the id is gone or belongs to another by now."""
    try:
        pid, began = place.pid_file(name).read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if process.alive(int(pid)) and process.started_at(int(pid)) == began else None


def _stop(place: Place, name: str) -> bool:
    pid = _running(place, name)
    if pid is None:
        return False
    process.stop_pid(pid, signal.SIGTERM, deadline=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)  # code servers it started, which lead no life of their own
    place.pid_file(name).unlink(missing_ok=True)
    return True


def _await(place: Place, name: str, ready: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _START_TIMEOUT
    while not ready():
        if _running(place, name) is None or time.monotonic() > give_up:
            log = place.log(name)
            tail = log.read_text(errors="replace")[-800:] if log.exists() else ""
            raise KybError(f"{name} did not start:\n{tail}", hint=f"its log is {log}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
