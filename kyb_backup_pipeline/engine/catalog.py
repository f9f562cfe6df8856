"""The identity of every object that a dump carries, by kind, so that a missing index has a name.

Each query yields (name, detail). ``detail`` holds only what survives a dump and restore to the letter:
column types, enum labels, grants, the text of function bodies. Expressions (views, defaults, check
constraints) are left out, since PostgreSQL prints them differently after a reload; a comparison of
those would cry wolf. Followed from pg_dump's own rules: members of extensions, toast tables, internal
triggers, clones of triggers and foreign keys on partitions, and invalid indexes are not dumped.
Names are as PostgreSQL prints them under an empty search_path.
"""

from collections.abc import Mapping

import psycopg

_SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"


def _own(catalog: str, oid: str = "o.oid") -> str:
    """Not built in, and not a member of an extension."""
    return f"""{oid} >= 16384 AND NOT EXISTS (SELECT FROM pg_depend x
        WHERE x.classid = '{catalog}'::regclass AND x.objid = {oid} AND x.deptype = 'e')"""


def _grants(acl: str, letter: str, owner: str) -> str:
    """Grants on an object, the default ones where none were made."""
    return _explode(f"coalesce({acl}, acldefault('{letter}', {owner}))")


def _explode(acl: str) -> str:
    """Grants as ``role=privilege`` in a fixed order, without the grantor."""
    return f"""(SELECT string_agg(coalesce(r.rolname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::text END)
        || '=' || a.privilege_type
        || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ' '
        ORDER BY r.rolname COLLATE "C", a.privilege_type, a.is_grantable)
        FROM (SELECT DISTINCT grantee, privilege_type, is_grantable
              FROM aclexplode({acl})) a
        LEFT JOIN pg_roles r ON r.oid = a.grantee)"""


def _columns(numbers: str, relation: str) -> str:
    """The names of columns by their numbers, in their order; an expression has none."""
    return f"""(SELECT string_agg(coalesce(quote_ident(a.attname), '(expression)'), ',' ORDER BY k.n)
        FROM unnest({numbers}::int2[]) WITH ORDINALITY AS k(attnum, n)
        LEFT JOIN pg_attribute a ON a.attrelid = {relation} AND a.attnum = k.attnum)"""


def _plain(catalog: str, detail: str = "''", *, schema: str | None = None) -> str:
    """Objects whose name is PostgreSQL's own identity for them; ``schema`` is the column of theirs."""
    inside = f"JOIN pg_namespace n ON n.oid = o.{schema}" if schema else ""
    return f"""SELECT (pg_identify_object('{catalog}'::regclass, o.oid, 0)).identity, {detail}
        FROM {catalog} o {inside} WHERE {_own(catalog)} {f"AND {_SCHEMAS}" if schema else ""}"""


def _relation(kinds: str, detail: str) -> str:
    return f"""SELECT o.oid::regclass::text, {detail}
        FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace
        WHERE o.relkind IN ({kinds}) AND {_SCHEMAS} AND o.relpersistence <> 't'
          AND {_own("pg_class")}"""


_RELATION_DETAIL = f"""concat_ws(' ', 'owner', pg_get_userbyid(o.relowner),
    CASE o.relpersistence WHEN 'u' THEN 'unlogged' END,
    CASE WHEN o.relrowsecurity THEN 'row security' END,
    CASE WHEN o.relforcerowsecurity THEN 'forced' END,
    'identity ' || nullif(nullif(o.relreplident, 'd'), 'n')::text,
    'with ' || (SELECT string_agg(w, ', ' ORDER BY w) FROM unnest(o.reloptions) AS w),
    'in ' || (SELECT string_agg(h.inhparent::regclass::text, ',' ORDER BY h.inhseqno)
              FROM pg_inherits h WHERE h.inhrelid = o.oid),
    'grants', {_grants("o.relacl", "r", "o.relowner")})"""

_ON_OWN_TABLE = f"""JOIN pg_class c ON c.oid = o.{{column}}
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {_SCHEMAS} AND c.relpersistence <> 't' AND {_own("pg_class", "c.oid")}"""


def _on_table(column: str) -> str:
    return _ON_OWN_TABLE.replace("{column}", column)


_QUERIES: Mapping[str, str] = {
    "schema": f"""SELECT quote_ident(n.nspname), concat_ws(' ', 'grants',
            {_grants("n.nspacl", "n", "n.nspowner")})
        FROM pg_namespace n WHERE {_SCHEMAS} AND NOT EXISTS (SELECT FROM pg_depend x
        WHERE x.classid = 'pg_namespace'::regclass AND x.objid = n.oid AND x.deptype = 'e')""",
    "table": _relation("'r', 'p'", _RELATION_DETAIL),
    "foreign table": _relation("'f'", _RELATION_DETAIL),
    "view": _relation("'v'", _RELATION_DETAIL),
    "materialized view": _relation("'m'", _RELATION_DETAIL),
    "sequence": _relation(
        "'S'",
        f"""concat_ws(' ', 'owner', pg_get_userbyid(o.relowner), 'grants',
            {_grants("o.relacl", "s", "o.relowner")}, (SELECT concat_ws(' ', 'of',
            format_type(q.seqtypid, NULL), 'start', q.seqstart, 'by', q.seqincrement, 'min',
            q.seqmin, 'max', q.seqmax, 'cache', q.seqcache, CASE WHEN q.seqcycle THEN 'cycle' END)
            FROM pg_sequence q WHERE q.seqrelid = o.oid))""",
    ),
    "column": f"""SELECT o.attrelid::regclass || '.' || quote_ident(o.attname),
            concat_ws(' ', format_type(o.atttypid, o.atttypmod),
            'collate ' || nullif(o.attcollation, 0)::regcollation,
            CASE WHEN o.attnotnull THEN 'not null' END, CASE WHEN o.atthasdef AND o.attinhcount = 0 THEN 'default' END,
            'identity ' || nullif(o.attidentity::text, ''),
            'generated ' || nullif(o.attgenerated::text, ''), 'grants ' || {_explode("o.attacl")})
        FROM pg_attribute o {_on_table("attrelid")} AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c')
          AND o.attnum > 0 AND NOT o.attisdropped""",
    "index": f"""SELECT o.indexrelid::regclass::text, concat_ws(' ', 'on', c.oid::regclass,
            am.amname, CASE WHEN o.indisunique THEN 'unique' END,
            CASE WHEN o.indisprimary THEN 'primary' END, o.indnkeyatts,
            {_columns("o.indkey", "o.indrelid")}, o.indoption,
            CASE WHEN o.indpred IS NOT NULL THEN 'partial' END)
        FROM pg_index o JOIN pg_class i ON i.oid = o.indexrelid JOIN pg_am am ON am.oid = i.relam
        {_on_table("indrelid")} AND (o.indisvalid OR c.relkind = 'p') AND o.indisready""",
    "constraint": f"""SELECT quote_ident(o.conname) || ' on ' || c.oid::regclass, concat_ws(' ',
            o.contype, CASE WHEN o.convalidated THEN 'valid' END,
            CASE WHEN o.condeferrable THEN 'deferrable' END,
            CASE WHEN o.condeferred THEN 'deferred' END,
            CASE WHEN o.contype = 'f' THEN concat_ws(' ', {_columns("o.conkey", "o.conrelid")}, 'to',
                o.confrelid::regclass, {_columns("o.confkey", "o.confrelid")},
                o.confupdtype, o.confdeltype, o.confmatchtype) END)
        FROM pg_constraint o {_on_table("conrelid")} AND o.contype IN ('c', 'f', 'p', 'u', 'x')
          AND (o.contype <> 'f' OR o.conparentid = 0)""",
    "domain constraint": f"""SELECT quote_ident(o.conname) || ' on ' || t.oid::regtype, ''
        FROM pg_constraint o JOIN pg_type t ON t.oid = o.contypid
        JOIN pg_namespace n ON n.oid = t.typnamespace
        WHERE {_SCHEMAS} AND o.contype = 'c' AND {_own("pg_type", "t.oid")}""",
    "trigger": f"""SELECT quote_ident(o.tgname) || ' on ' || c.oid::regclass, concat_ws(' ',
            o.tgenabled, o.tgtype, o.tgfoid::regprocedure, encode(o.tgargs, 'hex'),
            {_columns("o.tgattr", "o.tgrelid")}, CASE WHEN o.tgqual IS NOT NULL THEN 'when' END,
            CASE WHEN o.tgdeferrable THEN 'deferrable' END)
        FROM pg_trigger o {_on_table("tgrelid")} AND NOT o.tgisinternal AND o.tgparentid = 0""",
    "rule": f"""SELECT quote_ident(o.rulename) || ' on ' || c.oid::regclass, o.ev_enabled::text
        FROM pg_rewrite o {_on_table("ev_class")} AND o.rulename <> '_RETURN'""",
    "policy": f"""SELECT quote_ident(o.polname) || ' on ' || c.oid::regclass, concat_ws(' ',
            o.polcmd, CASE WHEN o.polpermissive THEN 'permissive' END, 'to',
            (SELECT string_agg(coalesce(r.rolname, 'PUBLIC'), ',' ORDER BY r.rolname COLLATE "C")
             FROM unnest(o.polroles) AS p(oid) LEFT JOIN pg_roles r ON r.oid = p.oid))
        FROM pg_policy o {_on_table("polrelid")}""",
    "extended statistics": f"""SELECT quote_ident(k.nspname) || '.' || quote_ident(o.stxname),
            concat_ws(' ', 'on', c.oid::regclass, o.stxkind)
        FROM pg_statistic_ext o JOIN pg_namespace k ON k.oid = o.stxnamespace
        {_on_table("stxrelid")}""",
    "type": f"""SELECT o.oid::regtype::text, concat_ws(' ', o.typtype,
            CASE WHEN o.typtype = 'd' THEN format_type(o.typbasetype, o.typtypmod) END,
            CASE WHEN o.typnotnull THEN 'not null' END,
            CASE WHEN o.typtype <> 'm'  -- whose owner a restore forgot before PostgreSQL 17
                THEN 'grants ' || {_grants("o.typacl", "T", "o.typowner")} END,
            (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder)
             FROM pg_enum e WHERE e.enumtypid = o.oid))
        FROM pg_type o JOIN pg_namespace n ON n.oid = o.typnamespace
        LEFT JOIN pg_class c ON c.oid = o.typrelid
        WHERE {_SCHEMAS} AND {_own("pg_type")} AND (o.typrelid = 0 OR c.relkind = 'c')
          AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = o.oid)""",
    "comment": """SELECT i.type || ' ' || i.identity, md5(d.description)
        FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
        WHERE (d.objoid >= 16384 OR (d.classoid = 'pg_namespace'::regclass AND i.name = 'public'))
          AND d.classoid <> 'pg_extension'::regclass AND coalesce(i.schema, '') !~ '^pg_'
          AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = d.classoid
                          AND x.objid = d.objoid AND x.deptype = 'e')""",
    "function": f"""SELECT o.oid::regprocedure::text, concat_ws(' ', o.prokind, l.lanname,
            o.provolatile, CASE WHEN o.prosecdef THEN 'security definer' END,
            CASE WHEN o.proisstrict THEN 'strict' END, CASE WHEN o.proleakproof THEN 'leakproof' END,
            'set ' || (SELECT string_agg(w, ', ' ORDER BY w) FROM unnest(o.proconfig) AS w),
            'owner', pg_get_userbyid(o.proowner),
            'grants', {_grants("o.proacl", "f", "o.proowner")},
            CASE WHEN l.lanname NOT IN ('c', 'internal') THEN md5(o.prosrc) END)
        FROM pg_proc o JOIN pg_language l ON l.oid = o.prolang
        JOIN pg_namespace n ON n.oid = o.pronamespace
        WHERE {_SCHEMAS} AND {_own("pg_proc")}""",
    "operator": _plain("pg_operator", schema="oprnamespace"),
    "operator class": _plain("pg_opclass", schema="opcnamespace"),
    "operator family": _plain("pg_opfamily", schema="opfnamespace"),
    "cast": _plain("pg_cast"),
    "collation": _plain("pg_collation", schema="collnamespace"),
    "conversion": _plain("pg_conversion", schema="connamespace"),
    "access method": _plain("pg_am"),
    "language": _plain("pg_language"),
    "transform": _plain("pg_transform"),
    "text search configuration": _plain("pg_ts_config", schema="cfgnamespace"),
    "text search dictionary": _plain("pg_ts_dict", schema="dictnamespace"),
    "text search parser": _plain("pg_ts_parser", schema="prsnamespace"),
    "text search template": _plain("pg_ts_template", schema="tmplnamespace"),
    "foreign-data wrapper": _plain("pg_foreign_data_wrapper"),
    "foreign server": _plain("pg_foreign_server"),
    "user mapping": """SELECT quote_ident(usename) || ' on ' || quote_ident(srvname), ''
        FROM pg_user_mappings""",
    "event trigger": _plain("pg_event_trigger", "o.evtenabled::text"),
    "publication": _plain(
        "pg_publication",
        """concat_ws(' ', CASE WHEN o.puballtables THEN 'all tables' END, CASE WHEN o.pubinsert
        THEN 'insert' END, CASE WHEN o.pubupdate THEN 'update' END,
        CASE WHEN o.pubdelete THEN 'delete' END)""",
    ),
    "published table": f"""SELECT c.oid::regclass || ' in ' || quote_ident(p.pubname), ''
        FROM pg_publication_rel o JOIN pg_publication p ON p.oid = o.prpubid
        {_on_table("prrelid")}""",
    "default privileges": f"""SELECT concat_ws(' ', quote_ident(pg_get_userbyid(o.defaclrole)),
            o.defaclobjtype, quote_ident(n.nspname)), {_explode("o.defaclacl")}
        FROM pg_default_acl o LEFT JOIN pg_namespace n ON n.oid = o.defaclnamespace""",
    "extension": "SELECT quote_ident(extname), '' FROM pg_extension",
}

_SUPERUSER_QUERIES: Mapping[str, str] = {
    "subscription": """SELECT quote_ident(subname), '' FROM pg_subscription
        WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())""",
}
"""pg_dump leaves these out for other users."""


def read_objects(connection: psycopg.Connection) -> dict[str, dict[str, str]]:
    """All objects of the database by kind: ``{kind: {name: detail}}``, empty kinds left out."""
    (superuser,) = connection.execute("SHOW is_superuser").fetchone() or ("off",)
    queries = {**_QUERIES, **(_SUPERUSER_QUERIES if superuser == "on" else {})}
    objects = {kind: _pairs(connection, query) for kind, query in queries.items()}
    return {kind: found for kind, found in objects.items() if found}


def _pairs(connection: psycopg.Connection, query: str) -> dict[str, str]:
    rows = connection.execute(query).fetchall()
    return {name: detail or "" for name, detail in rows if name is not None}  # None: gone by now
