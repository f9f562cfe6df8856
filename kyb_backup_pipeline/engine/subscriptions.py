"""Subscriptions of logical replication: a database that has one can neither be dropped nor change places.

Its slot on the publisher is used by whoever has the subscription enabled: a replaced database that goes on
subscribing takes the changes away from the restored one. pg_dump writes subscriptions that are disabled.
"""

import psycopg
from psycopg import sql

from kyb_backup_pipeline.engine.postgres import Target, connect
from kyb_backup_pipeline.engine.quiet_session import quiet
from kyb_backup_pipeline.engine.recovery_journal import maintenance

_OF = """
    SELECT s.subname, s.subslotname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
    WHERE d.datname = %s AND (s.subenabled OR NOT %s) ORDER BY 1
"""


def subscriptions_of(
    server: psycopg.Connection, database: str, *, enabled: bool = False
) -> list[tuple[str, str | None]]:
    """The subscriptions of a database, each with the name of its slot; only those ``enabled``, if said."""
    return server.execute(_OF, (database, enabled)).fetchall()


def forget_subscriptions(database: Target) -> list[str]:
    """Drop the subscriptions of a database that is to be dropped; return what that leaves behind.

    No publisher is asked: slots there stay, for the database that goes on using them, or for a person.
    """
    with connect(maintenance(database)) as connection:
        found = subscriptions_of(connection, database.dbname)
    if not found:
        return []
    notes = []
    with connect(quiet(database)) as connection:
        for name, slot in found:
            subscription = sql.Identifier(name)
            for clause in ("ALTER SUBSCRIPTION {} DISABLE",
                           "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                           "DROP SUBSCRIPTION {}"):  # fmt: skip
                connection.execute(sql.SQL(clause).format(subscription))
            if slot is not None:
                notes.append(f"the slot {slot} of the subscription {name} stays on its publisher")
    return notes
