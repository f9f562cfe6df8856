"""User sessions, from wherever the platform keeps them: nowhere, HTTP, its database, or a command."""

import os
import select
import time

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.engine.compression import BLOCK
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.platform_api import fetch_sessions
from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.settings import ApplicationSettings, Settings
from kyb_backup_pipeline.engine.sink import POLL


def read_sessions(settings: Settings) -> tuple[str, bytes] | None:
    """File name and content; None where there are none to back up. Raises BackupFailed."""
    how = settings.application
    if how.sessions == "http":
        return "sessions.json", fetch_sessions(how)
    if how.sessions == "query":
        return "sessions.jsonl", _from_query(settings)
    if how.sessions == "command":
        return "sessions.out", _from_command(how)
    return None


def _from_query(settings: Settings) -> bytes:
    """One line of JSON for each row, in a transaction that can only read."""
    how = settings.application
    query = (how.sessions_query or "").strip().rstrip(";")
    if not query:
        raise _unset("query")
    milliseconds = sql.Literal(int(how.sessions_timeout * 1000))
    content = bytearray()
    try:
        with connect(Target.of(settings), autocommit=False) as connection:
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(milliseconds))
            with connection.cursor(name="sessions") as cursor:
                cursor.execute(f"SELECT to_jsonb(s)::text FROM (\n{query}\n) AS s".encode())
                for (line,) in cursor:
                    content += line.encode() + b"\n"
                    _check_limit(len(content), how)
    except psycopg.Error as error:
        raise BackupFailed(
            f"sessions: the query failed: {str(error).strip()}", hint="application.sessions_query"
        ) from error
    return bytes(content)


def _from_command(how: ApplicationSettings) -> bytes:
    if not how.sessions_command:
        raise _unset("command")
    content = bytearray()
    give_up = time.monotonic() + how.sessions_timeout
    poll = select.poll()
    try:
        with process.start(how.sessions_command, stdout=process.PIPE) as child:
            poll.register(child.stdout.fileno(), select.POLLIN)
            while True:
                if time.monotonic() > give_up:
                    raise BackupFailed(
                        f"sessions: {child.program} did not end within {how.sessions_timeout:g} s",
                        hint="application.sessions_timeout",
                    )
                if not poll.poll(POLL * 1000):
                    continue
                block = os.read(child.stdout.fileno(), BLOCK)
                if not block:
                    break
                content += block
                _check_limit(len(content), how)
            child.finish(max(give_up - time.monotonic(), 1))
    except process.ProcessFailed as error:
        raise BackupFailed(
            f"sessions: {error.message}", hint="application.sessions_command"
        ) from error
    except OSError as error:
        raise BackupFailed(
            f"sessions: {how.sessions_command[0]} could not be started: {error.strerror}",
            hint="application.sessions_command",
        ) from error
    return bytes(content)


def _check_limit(size: int, how: ApplicationSettings) -> None:
    if size > how.sessions_limit:
        raise BackupFailed(
            f"sessions: more than {how.sessions_limit} bytes", hint="application.sessions_limit"
        )


def _unset(kind: str) -> BackupFailed:
    return BackupFailed(
        f'application.sessions is "{kind}", but application.sessions_{kind} is not set',
        hint="docs/settings.md",
    )
