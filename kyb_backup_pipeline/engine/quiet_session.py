"""Sessions in a database that is being restored: nothing of its own gets in their way.

A trigger on login writes rows that the source never had, one on ``sql_drop`` forbids what must go, a
``transaction_timeout`` or a ``role`` of the database holds for whoever comes. From 17 on event triggers
can be switched off for a session, by a superuser or with ``GRANT SET ON PARAMETER event_triggers``.
"""

from dataclasses import replace

import psycopg

from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.recovery_journal import maintenance

_EVENT_TRIGGERS = "event_triggers"


def quiet(target: Target) -> Target:
    """The same database, in sessions as undisturbed as the server and this role's rights allow."""
    options = {**target.options, "default_transaction_read_only": "off"}
    with connect(maintenance(target)) as connection:
        row = connection.execute("SELECT current_user, current_user = session_user").fetchone()
        assert row is not None
        options["role"] = "none" if row[1] else row[0]
        if connection.info.server_version >= 170000:
            options["transaction_timeout"] = "0"
            may = connection.execute(
                "SELECT has_parameter_privilege(%s, 'SET')", (_EVENT_TRIGGERS,)
            ).fetchone()
            if may == (True,):
                options[_EVENT_TRIGGERS] = "off"
    return replace(target, options=options)


def login_triggers(target: Target) -> bool:
    """Whether event triggers on login fire in sessions of this target."""
    if target.options.get(_EVENT_TRIGGERS) == "off":
        return False
    with connect(target) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D'"
        ).fetchone()
    return row is not None and row[0] > 0


def has_tables(connection: psycopg.Connection) -> bool:
    """Whether there is any table that is neither PostgreSQL's own nor an extension's."""
    row = connection.execute(
        """
        SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname !~ '^pg_'
              AND n.nspname <> 'information_schema'
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                              AND d.objid = c.oid AND d.deptype = 'e'))
        """
    ).fetchone()
    return row == (True,)
