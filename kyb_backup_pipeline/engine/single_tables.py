"""Single tables of a restored database: everything else goes."""

from psycopg import sql

from kyb_backup_pipeline.engine.errors import InvalidRequest
from kyb_backup_pipeline.engine.postgres import Target, connect


def keep_tables(database: Target, tables: tuple[str, ...]) -> None:
    """Drop every other table, and what depends on it. Raises InvalidRequest for one that is not there."""
    with connect(database, autocommit=False) as connection:
        rows = connection.execute(
            """
            SELECT n.nspname, c.relname,
                   array_agg(a.ancestor) FILTER (WHERE a.ancestor IS NOT NULL)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN LATERAL (SELECT relid::oid AS ancestor FROM pg_partition_ancestors(c.oid)) a ON true
            WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname NOT LIKE 'pg\\_%'
              AND n.nspname <> 'information_schema'
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                              AND d.objid = c.oid AND d.deptype = 'e')
            GROUP BY 1, 2, c.oid
            """
        ).fetchall()
        names = {f"{schema}.{name}": (schema, name) for schema, name, _ in rows}
        wanted = {name if "." in name else f"public.{name}" for name in tables}
        if unknown := sorted(wanted - set(names)):
            raise InvalidRequest(f"there is no table {', '.join(unknown)} in this backup",
                                 hint="with its schema where that is not public")  # fmt: skip
        kept_oids = {
            oid
            for name in wanted
            for (oid,) in connection.execute(
                "SELECT to_regclass(%s)::oid", (sql.Identifier(*names[name]).as_string(),)
            )
        }
        for schema, name, ancestors in rows:
            if f"{schema}.{name}" in wanted or kept_oids & set(ancestors or ()):
                continue
            connection.execute(
                sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(schema, name))
            )
        connection.commit()
