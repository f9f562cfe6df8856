-- ugly.sql -- the ugliest legitimate PostgreSQL database we could think of.
--
-- Load it as a superuser into an empty UTF8 database made from template0:
--
--     psql -X -v ON_ERROR_STOP=1 -d DB -f ugly.sql
--
-- It loads on majors 15 to 18 (parts for newer servers are skipped on older
-- ones) and must not be run in a single transaction: it builds an index
-- concurrently and uses enum values right after adding them.
-- Exactly one ERROR line is printed, on purpose, for the invalid index; a
-- line before it says so.
--
-- Every object is here because it trips some tool which dumps, restores or
-- compares databases; the comments say which trap it is.  All data is fixed:
-- neither clock nor random numbers, so two loads have the same content, and
-- a logical restore must reproduce the content of every table.
-- Roles are cluster-wide, so they are made only if they are missing; all are
-- named ugly_*.
--
-- Switches (psql variables, any value):
--   -v ugly_no_db_settings=1        leave out ALTER DATABASE ... SET
--   -v ugly_no_foreign_partition=1  leave out the partitioned table which has
--                                   an unreadable foreign partition (it makes
--                                   a database-wide ANALYZE fail)
--   -v ugly_no_invalid_index=1      leave out the invalid index, and with it
--                                   the one ERROR line
--   -v ugly_differing=1             add objects whose content a dump and
--                                   restore does NOT reproduce (stale
--                                   materialized view and the like)
--   -v ugly_unrestorable=1          add objects which make restoring a dump
--                                   FAIL, though they are legitimate
--
-- Event triggers made last forbid most DDL in the finished database.  To
-- change it later:  SET ugly.permit_ddl = 'on';

\set ON_ERROR_STOP on
\set QUIET on
\encoding UTF8
-- The script must not depend on settings of the cluster, database or role.
SET client_min_messages = warning;
SET standard_conforming_strings = on;
SET search_path = pg_catalog;
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';
SET timezone = 'UTC';
SET bytea_output = 'hex';
SET extra_float_digits = 1;
SET xmloption = content;
SET quote_all_identifiers = off;
SET default_tablespace = '';
SET default_table_access_method = 'heap';
SET check_function_bodies = on;
SET array_nulls = on;
SET transform_null_equals = off;
SET session_replication_role = origin;
SET row_security = on;
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;

DO $$
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'ugly.sql needs major 15 or newer';
    ELSIF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'ugly.sql needs a database with encoding UTF8';
    END IF;
END
$$;

SELECT :SERVER_VERSION_NUM >= 160000 AS ge16,
       :SERVER_VERSION_NUM >= 170000 AS ge17,
       :SERVER_VERSION_NUM >= 180000 AS ge18 \gset

-- What can this build do?  Each question is asked with dynamic SQL, so that
-- a "no" is not an error.
DO $$
BEGIN
    PERFORM set_config('ugly.has_xml', 'off', false),
            set_config('ugly.has_icu', 'off', false),
            set_config('ugly.has_lz4', 'off', false),
            set_config('ugly.has_cutf8', 'off', false),
            set_config('ugly.has_english', 'off', false);
    BEGIN
        EXECUTE 'SELECT ''<a/>''::xml';
        PERFORM set_config('ugly.has_xml', 'on', false);
    EXCEPTION WHEN others THEN NULL;
    END;
    BEGIN
        EXECUTE 'CREATE COLLATION public.ugly_try (provider = icu, locale = ''und'')';
        EXECUTE 'DROP COLLATION public.ugly_try';
        PERFORM set_config('ugly.has_icu', 'on', false);
    EXCEPTION WHEN others THEN NULL;
    END;
    BEGIN
        EXECUTE 'CREATE TEMP TABLE ugly_try (t text COMPRESSION lz4)';
        EXECUTE 'DROP TABLE pg_temp.ugly_try';
        PERFORM set_config('ugly.has_lz4', 'on', false);
    EXCEPTION WHEN others THEN NULL;
    END;
    BEGIN
        EXECUTE 'CREATE COLLATION public.ugly_try (provider = libc, locale = ''C.UTF-8'')';
        EXECUTE 'DROP COLLATION public.ugly_try';
        PERFORM set_config('ugly.has_cutf8', 'on', false);
    EXCEPTION WHEN others THEN NULL;
    END;
    IF EXISTS (SELECT FROM pg_ts_dict WHERE dictname = 'english_stem') THEN
        PERFORM set_config('ugly.has_english', 'on', false);
    END IF;
END
$$;
SELECT current_setting('ugly.has_xml') AS has_xml,
       current_setting('ugly.has_icu') AS has_icu,
       current_setting('ugly.has_lz4') AS has_lz4,
       current_setting('ugly.has_cutf8') AS has_cutf8,
       current_setting('ugly.has_english') AS has_english \gset

------------------------------------------------------------------------------
-- 1. Roles
------------------------------------------------------------------------------
-- Cluster-wide, hence "only if missing": several ugly databases may live in
-- one cluster.  Names which need quoting, hold quotes, blanks, a dollar, a
-- backslash, non-ASCII letters, and one of exactly 63 bytes: all of them show
-- up in OWNER TO, GRANT, POLICY ... TO and USER MAPPING lines of a dump.
DO $do$
DECLARE
    r text;
BEGIN
    FOREACH r IN ARRAY ARRAY[
        'ugly_owner', 'ugly_reader', 'ugly_writer', 'ugly_grantor',
        'ugly_nobody',
        'ugly_Mixed Case "Rôle" o''x $1 \n',
        'ugly_rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', r);
            EXECUTE format('COMMENT ON ROLE %I IS %L', r, 'role of the ugly database: ' || r);
        END IF;
    END LOOP;
END
$do$;
-- Attributes and settings which only a globals dump carries.
ALTER ROLE ugly_owner CREATEDB CREATEROLE;
ALTER ROLE ugly_writer CONNECTION LIMIT 7 VALID UNTIL '2100-01-01 00:00:00+00';
ALTER ROLE ugly_nobody NOINHERIT BYPASSRLS VALID UNTIL 'infinity';
ALTER ROLE ugly_reader SET search_path = "Ugly Schema", "quote"" in schema", ugly, public;
ALTER ROLE ugly_reader SET "ugly.custom" = 'it''s a "custom" \ setting; -- really';
GRANT ugly_reader TO ugly_writer WITH ADMIN OPTION;
GRANT ugly_reader TO "ugly_Mixed Case ""Rôle"" o'x $1 \n";
GRANT pg_read_all_settings TO ugly_reader;
\if :ge16
-- Membership options are new in 16.
GRANT ugly_owner TO ugly_nobody WITH INHERIT FALSE, SET TRUE;
GRANT ugly_writer TO ugly_nobody WITH INHERIT TRUE, SET FALSE;
\endif
-- Privileges on configuration parameters live in a shared catalog.
GRANT SET ON PARAMETER "ugly.custom" TO ugly_reader WITH GRANT OPTION;

------------------------------------------------------------------------------
-- 2. Schemas
------------------------------------------------------------------------------
CREATE SCHEMA ugly;
-- Blank and capitals: must be quoted everywhere.
CREATE SCHEMA "Ugly Schema" AUTHORIZATION ugly_owner;
-- "ugly.a".b and ugly."a.b" look the same when names are joined by a dot
-- without quoting.
CREATE SCHEMA "ugly.a";
CREATE SCHEMA "quote"" in schema";
CREATE SCHEMA "$dollar$";
CREATE SCHEMA "schéma ünïcode 数据";
-- A key word.
CREATE SCHEMA "select" AUTHORIZATION "ugly_Mixed Case ""Rôle"" o'x $1 \n";
-- Exactly 63 bytes.
CREATE SCHEMA "sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss";
-- A schema without any object: table-driven tools lose it.
CREATE SCHEMA ugly_empty;
-- Names of system objects: a tool which does not pin search_path calls these
-- (see the database's search_path at the end).
CREATE SCHEMA "ugly shadow";
-- Not system schemas, though a filter written without care (LIKE 'pg_%', where
-- the underscore matches anything, or one which ignores case) takes them for
-- such.
CREATE SCHEMA pgdata;
CREATE SCHEMA "PG_Catalog";
CREATE SCHEMA information_schema2;
-- For FOR TABLES IN SCHEMA of publications.
CREATE SCHEMA ugly_pub;

-- Owner, ACL and comment of "public" differ from those of a new database.
ALTER SCHEMA public OWNER TO ugly_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO ugly_reader;
COMMENT ON SCHEMA public IS 'not the "standard" public schema';
GRANT USAGE ON SCHEMA ugly, "Ugly Schema", "select" TO PUBLIC;
GRANT CREATE ON SCHEMA ugly TO ugly_writer WITH GRANT OPTION;
GRANT ALL ON SCHEMA "quote"" in schema" TO ugly_owner;
-- Comments with line breaks, quotes and things which look like commands to
-- psql or to a reader of dumps.
COMMENT ON SCHEMA ugly IS E'line one\n\\. line two\n\\connect nowhere\n-- line "four" it''s\r\n\\unrestrict x\t;\n';
COMMENT ON SCHEMA ugly_empty IS 'nothing in here';
COMMENT ON SCHEMA "$dollar$" IS '$$ $_$ $1 $dollar$';

-- Default privileges, first part: objects made below get their ACL from
-- these; they are changed again later, so that the ACLs of the objects
-- cannot be derived from the final default privileges.
ALTER DEFAULT PRIVILEGES IN SCHEMA "Ugly Schema" GRANT SELECT ON TABLES TO ugly_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA "Ugly Schema" GRANT USAGE ON SEQUENCES TO ugly_writer WITH GRANT OPTION;

------------------------------------------------------------------------------
-- 3. Names
------------------------------------------------------------------------------
-- Three tables whose names differ in case only, and columns likewise.
CREATE TABLE ugly."MixedCase" ("Id" int PRIMARY KEY, "id" text, "ID" text, "iD" text);
CREATE TABLE ugly.mixedcase (id int PRIMARY KEY, note text);
CREATE TABLE ugly."MIXEDCASE" (id int PRIMARY KEY, note text);
INSERT INTO ugly."MixedCase" VALUES (1, 'lower', 'UPPER', 'mIXED'), (2, NULL, '', ' ');
INSERT INTO ugly.mixedcase VALUES (1, 'mixedcase');
INSERT INTO ugly."MIXEDCASE" VALUES (1, 'MIXEDCASE'), (2, 'MIXEDCASE');
-- The same table name in two (three) schemas with other columns.
CREATE TABLE "Ugly Schema"."MixedCase" (x numeric, "Id" text);
INSERT INTO "Ugly Schema"."MixedCase" VALUES (1.10, 'other table'), (1.1, 'other table');
CREATE TABLE public.mixedcase (id int PRIMARY KEY);
INSERT INTO public.mixedcase VALUES (7);
-- Blanks: leading, trailing, only.
CREATE TABLE ugly." leading and trailing " (" a " int, "b  c" text, "b c" text);
INSERT INTO ugly." leading and trailing " VALUES (1, 'two blanks', 'one blank');
CREATE TABLE ugly." " (" " int, "  " int);
INSERT INTO ugly." " VALUES (1, 2);
-- Looks like several statements and comments.
CREATE TABLE ugly."semi;colon -- comment /* open" ("x;y" int, "--" int, "/*" int, "*/" text, "); DROP SCHEMA ugly CASCADE; --" text);
INSERT INTO ugly."semi;colon -- comment /* open" VALUES (1, 2, 3, '*/', '; --');
-- Quotes, apostrophes, backslashes; columns named like COPY's own marks.
CREATE TABLE ugly."quote"" and 'single' and \back" ("""" int, "'" int, "\" int, "\." text, "\N" text, "\n" text, """""" text);
INSERT INTO ugly."quote"" and 'single' and \back" VALUES (1, 2, 3, '\.', '\N', '\n', '""');
CREATE TABLE "quote"" in schema"."""quoted""" ("""q""" int PRIMARY KEY, "'q'" text DEFAULT '''"');
INSERT INTO "quote"" in schema"."""quoted""" VALUES (1, DEFAULT), (2, '"');
CREATE INDEX "ix ""q"" 'x' \" ON "quote"" in schema"."""quoted""" ("'q'");
-- Dollars: dollar quoting, positional parameters, shell and regexp variables.
CREATE TABLE ugly."$$dollar$$ $1 $tag$ ${HOME} $(id) `id`" ("$1" int, "$$" text, "$tag$" text);
INSERT INTO ugly."$$dollar$$ $1 $tag$ ${HOME} $(id) `id`" VALUES (1, '$$', '$tag$ $1');
CREATE TABLE "$dollar$".dollar$inside (a$b int PRIMARY KEY);
INSERT INTO "$dollar$".dollar$inside VALUES (1);
-- Format strings and templates.
CREATE TABLE ugly."percent %s %d %% %n %(x)s {0} {x} {{y}}" ("%s" int, "%%" int, "{}" int, ":name" int, ":'x'" int, "?" int, "@" int);
INSERT INTO ugly."percent %s %d %% %n %(x)s {0} {x} {{y}}" VALUES (1, 2, 3, 4, 5, 6, 7);
-- Dots.
CREATE TABLE ugly."a.b" ("c.d" int, "c" int, "d" text);
CREATE TABLE "ugly.a".b ("c.d" int, "x" text);
INSERT INTO ugly."a.b" VALUES (1, 2, 'ugly."a.b"');
INSERT INTO "ugly.a".b VALUES (1, '"ugly.a".b'), (2, '"ugly.a".b');
-- Patterns of pg_dump -t and of regexps, options, paths, mark-up.
CREATE TABLE ugly."glob*?[a-z]{x,y}|+^$()!" (a int);
CREATE TABLE ugly."--data-only" (a int);
CREATE TABLE ugly."-t" (a int);
CREATE TABLE ugly."@file" (a int);
CREATE TABLE ugly."~" (a int);
CREATE TABLE ugly."/" (a int);
CREATE TABLE ugly."../../../etc/passwd" (a int);
CREATE TABLE ugly."C:\dir\con.txt" (a int);
CREATE TABLE ugly."<b>&amp;</b>,""x""=1,; x" (a int);
INSERT INTO ugly."glob*?[a-z]{x,y}|+^$()!" VALUES (1);
INSERT INTO ugly."--data-only" VALUES (2);
INSERT INTO ugly."-t" VALUES (3);
INSERT INTO ugly."@file" VALUES (4);
INSERT INTO ugly."~" VALUES (5);
INSERT INTO ugly."/" VALUES (6);
INSERT INTO ugly."../../../etc/passwd" VALUES (7);
INSERT INTO ugly."C:\dir\con.txt" VALUES (8);
INSERT INTO ugly."<b>&amp;</b>,""x""=1,; x" VALUES (9);
-- Line ends in names: dumps have comments ("-- Name: ...") and archive lists
-- which are read line by line.
CREATE TABLE ugly.U&"new\000aline; \000a\\. \000a-- Name: x" (U&"col\000aumn" int PRIMARY KEY, U&"cr\000d\000alf" text, U&"tab\0009" text);
INSERT INTO ugly.U&"new\000aline; \000a\\. \000a-- Name: x" VALUES (1, E'\r\n', E'\t'), (2, E'\n', NULL);
CREATE TABLE ugly.U&"bell\0007\001b[31mred\007f" (U&"\0001" int);
INSERT INTO ugly.U&"bell\0007\001b[31mred\007f" VALUES (1);
-- Names alike to the eye (composed and decomposed letters), other scripts,
-- right-to-left marks, zero-width signs, byte-order mark, outside the BMP.
CREATE TABLE ugly.U&"caf\00e9" (U&"\00e9" int, U&"e\0301" int);
CREATE TABLE ugly.U&"cafe\0301" (U&"\00e9" int, U&"e\0301" int);
INSERT INTO ugly.U&"caf\00e9" VALUES (1, 2);
INSERT INTO ugly.U&"cafe\0301" VALUES (3, 4), (5, 6);
CREATE TABLE ugly.U&"\feffbom \200b \202etxet \00a0" (U&"\+01f418" text);
INSERT INTO ugly.U&"\feffbom \200b \202etxet \00a0" VALUES (U&'\+01f418');
CREATE TABLE "schéma ünïcode 数据"."таблица שלום" ("Spalte ß" int PRIMARY KEY, "列" text);
INSERT INTO "schéma ünïcode 数据"."таблица שלום" VALUES (1, 'ÄÖÜ'), (2, 'ẞ');
-- Tables (and columns) named like key words, the reserved ones and some
-- which became key words only in later majors.
DO $do$
DECLARE
    k text;
BEGIN
    FOREACH k IN ARRAY ARRAY['select', 'table', 'user', 'order', 'group', 'all', 'null',
        'default', 'primary', 'references', 'end', 'case', 'array', 'row', 'values', 'copy',
        'current_user', 'position', 'trim', 'xmlelement', 'json_table', 'period', 'only',
        'lateral', 'false', 'check', 'constraint', 'collate', 'window', 'setof', 'int4', 'text']
    LOOP
        EXECUTE format('CREATE TABLE "select".%1$s (%1$s int PRIMARY KEY, "from" text DEFAULT %2$L)',
                       '"' || k || '"', k);
        EXECUTE format('INSERT INTO "select".%1$s VALUES (1), (2), (3)', '"' || k || '"');
    END LOOP;
END
$do$;
-- Tables which look like those of the system.
CREATE TABLE pgdata.pg_class (id int PRIMARY KEY, relname name);
INSERT INTO pgdata.pg_class VALUES (1, 'of the user');
CREATE TABLE "PG_Catalog"."PG_Class" (id serial PRIMARY KEY);
INSERT INTO "PG_Catalog"."PG_Class" VALUES (1), (2);
CREATE TABLE information_schema2.tables (table_name name);
INSERT INTO information_schema2.tables VALUES ('of the user');
CREATE TABLE public.pg_toast_1234 (id int);
INSERT INTO public.pg_toast_1234 VALUES (1);
-- User columns named like what system columns are or were.
CREATE TABLE ugly.systemlike (oid oid PRIMARY KEY, "xmin " int, "........pg.dropped.1........" int, rowid text, "?column?" int);
INSERT INTO ugly.systemlike VALUES (1, 2, 3, 'x', 4);
-- 63 bytes, twice, differing in the last byte only, with names made from
-- them (truncated) for keys and sequences; and 63 bytes in 21 letters.
CREATE TABLE ugly."ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttA" (
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc1" int PRIMARY KEY,
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc2" serial UNIQUE,
    CONSTRAINT "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkK"
        CHECK ("cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc1" > 0));
CREATE TABLE ugly."ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttB" (
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc1" int PRIMARY KEY,
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc2" serial UNIQUE
        REFERENCES ugly."ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttA",
    CONSTRAINT "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkK"
        CHECK ("cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc1" > 0));
INSERT INTO ugly."ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttA" VALUES (1), (2);
INSERT INTO ugly."ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttB" VALUES (1);
CREATE INDEX "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiA"
    ON ugly."ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttA"
    ("cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc2" DESC);
CREATE TABLE "sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss"."長長長長長長長長長長長長長長長長長長長長長"
    ("長長長長長長長長長長長長長長長長長長長長長" bigserial PRIMARY KEY, "短" text);
INSERT INTO "sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss"."長長長長長長長長長長長長長長長長長長長長長" ("短")
    VALUES ('長'), ('長'), (NULL);
ALTER TABLE "sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss"."長長長長長長長長長長長長長長長長長長長長長"
    OWNER TO "ugly_rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr";

------------------------------------------------------------------------------
-- 4. Types
------------------------------------------------------------------------------
-- Enum: values added before others give fractional sort orders in pg_enum
-- (a restored enum has 1, 2, 3...), a renamed value, labels which need
-- quoting, an empty label, one of 63 bytes; an enum without values.
CREATE TYPE ugly.mood AS ENUM ('sad', 'ok', 'happy');
ALTER TYPE ugly.mood ADD VALUE 'miserable' BEFORE 'sad';
ALTER TYPE ugly.mood ADD VALUE 'so-so' BEFORE 'ok';
ALTER TYPE ugly.mood ADD VALUE 'meh' BEFORE 'ok';
ALTER TYPE ugly.mood ADD VALUE 'it''s "great", \ok;' AFTER 'ok';
ALTER TYPE ugly.mood ADD VALUE '' BEFORE 'miserable';
ALTER TYPE ugly.mood ADD VALUE 'mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm';
ALTER TYPE ugly.mood RENAME VALUE 'happy' TO 'Häppy ☺';
CREATE TYPE ugly."Enum, (of) nothing" AS ENUM ();

-- Domains: with default, with checks, not null, over arrays, over domains,
-- over an enum, over a range.
CREATE DOMAIN ugly.posint AS int CHECK (VALUE > 0);
CREATE DOMAIN ugly."Small Posint" AS ugly.posint DEFAULT 5 CONSTRAINT "not too big" CHECK (VALUE < 100);
CREATE DOMAIN ugly.notnull_text AS text NOT NULL DEFAULT '' CHECK (VALUE <> 'forbidden');
CREATE DOMAIN ugly.posint_list AS ugly.posint[] CHECK (array_length(VALUE, 1) < 10);
CREATE DOMAIN ugly.some_moods AS ugly.mood CHECK (VALUE IN ('sad', 'ok', 'meh'));
CREATE DOMAIN ugly.future AS daterange CHECK (NOT isempty(VALUE));
CREATE DOMAIN ugly.c_text AS varchar(40) COLLATE "POSIX";
-- A date constant in a constraint: its text depends on DateStyle.
CREATE DOMAIN ugly.modern_date AS date CHECK (VALUE > DATE '1900-02-01' OR VALUE IS NULL);
-- A function which takes an array of the domain is used in a check of the
-- domain: the dump has to break the loop.
CREATE DOMAIN ugly.loop_domain AS int;
CREATE FUNCTION ugly.loop_domain_ok(int, ugly.loop_domain[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 2 = 0';
ALTER DOMAIN ugly.loop_domain ADD CONSTRAINT even CHECK (ugly.loop_domain_ok(VALUE, NULL));
COMMENT ON DOMAIN ugly."Small Posint" IS 'a domain over a domain';
COMMENT ON CONSTRAINT "not too big" ON DOMAIN ugly."Small Posint" IS 'comment on the constraint of a domain';

-- Ranges: with collation, own multirange name, difference function, canonical
-- function (needs a shell type first), over a domain-like composite sort.
CREATE FUNCTION ugly.text_distance(text, text) RETURNS float8
    LANGUAGE sql IMMUTABLE STRICT AS 'SELECT (length($1) - length($2))::float8';
CREATE TYPE ugly.textrange AS RANGE (subtype = text, collation = "C", subtype_opclass = text_pattern_ops,
    multirange_type_name = ugly."Multi Textrange");
CREATE TYPE ugly.floatrange AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE ugly.evenrange;
CREATE FUNCTION ugly.evenrange_canonical(ugly.evenrange) RETURNS ugly.evenrange
    LANGUAGE internal IMMUTABLE STRICT AS 'int4range_canonical';
CREATE TYPE ugly.evenrange AS RANGE (subtype = int4, canonical = ugly.evenrange_canonical);

-- Composite types: nested, of arrays, of domains, with dropped attributes,
-- without attributes.
CREATE TYPE ugly.comp AS (a int, "B c" text, moods ugly.mood[], r numrange);
CREATE TYPE ugly.comp_nested AS (c ugly.comp, cs ugly.comp[], p ugly.posint, t text COLLATE "C");
CREATE TYPE ugly.comp_dropped AS (gone int, a int, gone_too text, b text);
ALTER TYPE ugly.comp_dropped DROP ATTRIBUTE gone, DROP ATTRIBUTE gone_too, ADD ATTRIBUTE added date;
CREATE TYPE ugly.comp_empty AS ();
CREATE DOMAIN ugly.comp_domain AS ugly.comp CHECK ((VALUE).a IS DISTINCT FROM 13);
COMMENT ON TYPE ugly.comp IS 'a composite type';
COMMENT ON COLUMN ugly.comp."B c" IS 'comment on an attribute';

-- Base types of our own: with another array delimiter, a default, an odd
-- category; one which is collatable and has a type modifier; one shell type
-- which is never completed.
CREATE TYPE ugly.weird_int;
CREATE FUNCTION ugly.weird_int_in(cstring) RETURNS ugly.weird_int LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION ugly.weird_int_out(ugly.weird_int) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE FUNCTION ugly.weird_int_recv(internal) RETURNS ugly.weird_int LANGUAGE internal IMMUTABLE STRICT AS 'int4recv';
CREATE FUNCTION ugly.weird_int_send(ugly.weird_int) RETURNS bytea LANGUAGE internal IMMUTABLE STRICT AS 'int4send';
CREATE TYPE ugly.weird_int (INPUT = ugly.weird_int_in, OUTPUT = ugly.weird_int_out,
    RECEIVE = ugly.weird_int_recv, SEND = ugly.weird_int_send, LIKE = int4,
    CATEGORY = 'w', PREFERRED = true, DEFAULT = '42', DELIMITER = ';');
CREATE TYPE ugly.weird_text;
CREATE FUNCTION ugly.weird_text_in(cstring) RETURNS ugly.weird_text LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION ugly.weird_text_out(ugly.weird_text) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE ugly.weird_text (INPUT = ugly.weird_text_in, OUTPUT = ugly.weird_text_out,
    TYPMOD_IN = varchartypmodin, TYPMOD_OUT = varchartypmodout,
    INTERNALLENGTH = VARIABLE, STORAGE = external, COLLATABLE = true);
CREATE TYPE ugly.never_completed;
COMMENT ON TYPE ugly.weird_int IS 'a base type';

-- Operators and operator classes for it, so that it can be a key.
CREATE FUNCTION ugly.weird_eq(ugly.weird_int, ugly.weird_int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'int4eq';
CREATE FUNCTION ugly.weird_ne(ugly.weird_int, ugly.weird_int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4ne';
CREATE FUNCTION ugly.weird_lt(ugly.weird_int, ugly.weird_int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4lt';
CREATE FUNCTION ugly.weird_le(ugly.weird_int, ugly.weird_int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4le';
CREATE FUNCTION ugly.weird_gt(ugly.weird_int, ugly.weird_int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4gt';
CREATE FUNCTION ugly.weird_ge(ugly.weird_int, ugly.weird_int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4ge';
CREATE FUNCTION ugly.weird_cmp(ugly.weird_int, ugly.weird_int) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
CREATE FUNCTION ugly.weird_hash(ugly.weird_int) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'hashint4';
CREATE FUNCTION ugly.weird_larger(ugly.weird_int, ugly.weird_int) RETURNS ugly.weird_int LANGUAGE internal IMMUTABLE STRICT AS 'int4larger';
CREATE OPERATOR ugly.= (FUNCTION = ugly.weird_eq, LEFTARG = ugly.weird_int, RIGHTARG = ugly.weird_int,
    COMMUTATOR = OPERATOR(ugly.=), NEGATOR = OPERATOR(ugly.<>), RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR ugly.<> (FUNCTION = ugly.weird_ne, LEFTARG = ugly.weird_int, RIGHTARG = ugly.weird_int,
    COMMUTATOR = OPERATOR(ugly.<>), NEGATOR = OPERATOR(ugly.=), RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR ugly.< (FUNCTION = ugly.weird_lt, LEFTARG = ugly.weird_int, RIGHTARG = ugly.weird_int,
    COMMUTATOR = OPERATOR(ugly.>), NEGATOR = OPERATOR(ugly.>=), RESTRICT = scalarltsel);
CREATE OPERATOR ugly.<= (FUNCTION = ugly.weird_le, LEFTARG = ugly.weird_int, RIGHTARG = ugly.weird_int,
    COMMUTATOR = OPERATOR(ugly.>=), NEGATOR = OPERATOR(ugly.>));
CREATE OPERATOR ugly.> (FUNCTION = ugly.weird_gt, LEFTARG = ugly.weird_int, RIGHTARG = ugly.weird_int,
    COMMUTATOR = OPERATOR(ugly.<), NEGATOR = OPERATOR(ugly.<=));
CREATE OPERATOR ugly.>= (FUNCTION = ugly.weird_ge, LEFTARG = ugly.weird_int, RIGHTARG = ugly.weird_int,
    COMMUTATOR = OPERATOR(ugly.<=), NEGATOR = OPERATOR(ugly.<));
CREATE OPERATOR CLASS ugly."Weird btree ops" DEFAULT FOR TYPE ugly.weird_int USING btree AS
    OPERATOR 1 ugly.<, OPERATOR 2 ugly.<=, OPERATOR 3 ugly.=, OPERATOR 4 ugly.>=, OPERATOR 5 ugly.>,
    FUNCTION 1 ugly.weird_cmp(ugly.weird_int, ugly.weird_int);
CREATE OPERATOR CLASS ugly.weird_hash_ops DEFAULT FOR TYPE ugly.weird_int USING hash AS
    OPERATOR 1 ugly.=, FUNCTION 1 ugly.weird_hash(ugly.weird_int);
-- A prefix operator, an operator with an odd name in a schema to be quoted,
-- and one whose negator is never made (the negator stays a shell).
CREATE FUNCTION ugly.negate(ugly.weird_int) RETURNS ugly.weird_int LANGUAGE internal IMMUTABLE STRICT AS 'int4um';
CREATE OPERATOR ugly.~- (FUNCTION = ugly.negate, RIGHTARG = ugly.weird_int);
CREATE FUNCTION ugly.same_length(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE STRICT AS 'SELECT length($1) = length($2)';
CREATE OPERATOR "Ugly Schema".<#~@#> (FUNCTION = ugly.same_length, LEFTARG = text, RIGHTARG = text,
    NEGATOR = OPERATOR("Ugly Schema".<!#~@#>));
COMMENT ON OPERATOR ugly.~- (NONE, ugly.weird_int) IS 'prefix operator';
COMMENT ON OPERATOR CLASS ugly."Weird btree ops" USING btree IS 'operator class';
-- Reversed order of int4 from built-in operators; the family also has loose
-- members for two types.
CREATE FUNCTION ugly.rev_cmp(int, int) RETURNS int LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT pg_catalog.btint4cmp($2, $1)';
CREATE FUNCTION ugly.rev_cmp(int, bigint) RETURNS int LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT pg_catalog.btint84cmp($2, $1)';
CREATE OPERATOR FAMILY ugly."Reverse Family" USING btree;
CREATE OPERATOR CLASS ugly.rev_int_ops FOR TYPE int4 USING btree FAMILY ugly."Reverse Family" AS
    OPERATOR 1 pg_catalog.>, OPERATOR 2 pg_catalog.>=, OPERATOR 3 pg_catalog.=,
    OPERATOR 4 pg_catalog.<=, OPERATOR 5 pg_catalog.<, FUNCTION 1 ugly.rev_cmp(int, int);
ALTER OPERATOR FAMILY ugly."Reverse Family" USING btree ADD
    OPERATOR 1 pg_catalog.> (int4, int8), OPERATOR 3 pg_catalog.= (int4, int8),
    FUNCTION 1 (int4, int8) ugly.rev_cmp(int, bigint);
COMMENT ON OPERATOR FAMILY ugly."Reverse Family" USING btree IS 'operator family';
CREATE OPERATOR FAMILY ugly.empty_family USING gist;

-- Casts: without function, by function, by I/O conversion, explicit,
-- assignment and implicit ones.
CREATE CAST (ugly.weird_int AS int) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (int AS ugly.weird_int) WITHOUT FUNCTION;
CREATE CAST (ugly.weird_int AS jsonb) WITH INOUT;
CREATE FUNCTION ugly.comp_to_text(ugly.comp) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).a::text || '/' || ($1)."B c" $$;
CREATE CAST (ugly.comp AS text) WITH FUNCTION ugly.comp_to_text(ugly.comp);
CREATE CAST (ugly.weird_text AS text) WITHOUT FUNCTION AS IMPLICIT;
COMMENT ON CAST (ugly.weird_int AS int) IS 'a cast';

-- Collations.  ICU ones only where the server was built with it.
CREATE COLLATION ugly."My Collation" (provider = libc, locale = 'C');
CREATE COLLATION ugly.from_posix FROM "POSIX";
\if :has_cutf8
CREATE COLLATION ugly.c_utf8 (provider = libc, lc_collate = 'C.UTF-8', lc_ctype = 'C');
\endif
\if :has_icu
-- Equal strings which are not identical: a comparer using "=" sees no
-- difference, one using bytes does; DISTINCT and MINUS lose rows.
CREATE COLLATION ugly.case_blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION ugly.numeric_order (provider = icu, locale = 'en-u-kn-true');
CREATE TABLE ugly.blind (t text COLLATE ugly.case_blind PRIMARY KEY, u text COLLATE ugly.case_blind, n text COLLATE ugly.numeric_order);
INSERT INTO ugly.blind VALUES ('ABC', 'x', 'a10'), ('def', 'X', 'a9'), ('Éa', 'É', 'a09');
CREATE INDEX ON ugly.blind (u, n);
-- A version recorded long ago (as after an operating system upgrade): using
-- it warns; a restored collation has today's version.
SET client_min_messages = error;
CREATE COLLATION ugly.old_version (provider = icu, locale = 'sv', version = '1.2.3');
SET client_min_messages = warning;
\endif
\if :ge17
CREATE COLLATION ugly.builtin_utf8 (provider = builtin, locale = 'C.UTF-8');
\endif
\if :ge18
CREATE COLLATION ugly.fast (provider = builtin, locale = 'PG_UNICODE_FAST');
\endif
COMMENT ON COLLATION ugly."My Collation" IS 'a collation';

-- A conversion (not a default one, so nothing uses it by itself).
CREATE CONVERSION ugly."Conv ersion" FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
COMMENT ON CONVERSION ugly."Conv ersion" IS 'a conversion';

-- A language of our own with handlers of our own (the code is plpgsql's).
CREATE FUNCTION ugly.pl_handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE FUNCTION ugly.pl_inline(internal) RETURNS void LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_inline_handler';
CREATE FUNCTION ugly.pl_validator(oid) RETURNS void LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_validator';
CREATE TRUSTED LANGUAGE "ugly PL" HANDLER ugly.pl_handler INLINE ugly.pl_inline VALIDATOR ugly.pl_validator;
COMMENT ON LANGUAGE "ugly PL" IS 'a language';
ALTER LANGUAGE "ugly PL" OWNER TO ugly_owner;
REVOKE USAGE ON LANGUAGE "ugly PL" FROM PUBLIC;
GRANT USAGE ON LANGUAGE "ugly PL" TO ugly_writer;

-- A transform.  Nothing ever calls it: no language here looks at transforms.
CREATE FUNCTION ugly.transform_from_sql(internal) RETURNS internal LANGUAGE internal IMMUTABLE STRICT AS 'prsd_lextype';
CREATE FUNCTION ugly.transform_to_sql(internal) RETURNS ugly.comp LANGUAGE internal IMMUTABLE STRICT AS 'record_recv';
CREATE TRANSFORM FOR ugly.comp LANGUAGE "ugly PL" (
    FROM SQL WITH FUNCTION ugly.transform_from_sql(internal), TO SQL WITH FUNCTION ugly.transform_to_sql(internal));
COMMENT ON TRANSFORM FOR ugly.comp LANGUAGE "ugly PL" IS 'a transform';

-- Access methods which are heap and hash by other names: tools which test for
-- pg_class.relam = 2 leave their relations out (and amcheck refuses them).
CREATE ACCESS METHOD "ugly Heap" TYPE TABLE HANDLER heap_tableam_handler;
CREATE ACCESS METHOD "ugly Hash" TYPE INDEX HANDLER hashhandler;
CREATE OPERATOR CLASS ugly.am_int_ops DEFAULT FOR TYPE int4 USING "ugly Hash" AS OPERATOR 1 =, FUNCTION 1 hashint4(int4);
COMMENT ON ACCESS METHOD "ugly Heap" IS 'heap by another name';
CREATE TABLE ugly.other_am (id int, v text) USING "ugly Heap";
INSERT INTO ugly.other_am SELECT i, 'row ' || i FROM generate_series(1, 50) i;
CREATE INDEX other_am_ix ON ugly.other_am USING "ugly Hash" (id);

------------------------------------------------------------------------------
-- 5. Values
------------------------------------------------------------------------------
-- Numbers.  -0.0 = 0.0 and 1.0 = 1.00, but their texts differ; NaN equals
-- itself here; the smallest and largest values of every type; numeric with a
-- negative scale and with a scale above the precision.
CREATE TABLE ugly.v_numbers (
    id int PRIMARY KEY, i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision,
    n numeric, n20 numeric(20,5), n_neg numeric(5,-3), n_frac numeric(3,5), m money, b boolean);
INSERT INTO ugly.v_numbers VALUES
    (1, -32768, -2147483648, -9223372036854775808, '-0.0', '-0.0', '-0.0', '-0.00001', -12345678, 0.00999, '-92233720368547758.08', true),
    (2, 32767, 2147483647, 9223372036854775807, 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', '92233720368547758.07', false),
    (3, 0, 0, 0, 'Infinity', 'Infinity', 'Infinity', 999999999999999.99999, 0, 0, '0', NULL),
    (4, -0, 1, 1, '-Infinity', '-Infinity', '-Infinity', 0, 1000, '-0.00001', '-0.01', true),
    (5, 1, 1, 1, '1e-45', '4.9e-324', '1.0', 1, 1, 0, '1', true),
    (6, 1, 1, 1, '3.4028235e38', '1.7976931348623157e308', '1.000', 1, 1, 0, '1.00', true),
    (7, 1, 1, 1, '0.1', '0.1', ('1' || repeat('0', 3000) || '.' || repeat('9', 3000))::numeric, 1, 1, 0, '1234567.89', true),
    (8, 1, 1, 1, '16777217', '9007199254740993', ('0.' || repeat('0', 16382) || '1')::numeric, 1, 1, 0, '-1234567.89', true),
    (9, 1, 1, 1, '1.17549435e-38', '2.2250738585072014e-308', '1e100', 1, 1, 0, '.5', true),
    (10, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Text.  Every control character, alone and together; what COPY writes as
-- escapes; what it uses as marks; NULL against the empty string and against
-- the word; trailing blanks; not-characters; quotes and delimiters of CSV.
CREATE TABLE ugly.v_text (id int PRIMARY KEY, t text, v varchar(60), c char(6), b bpchar, n name, ch "char");
INSERT INTO ugly.v_text (id, t) SELECT i, 'x' || chr(i) || 'y' FROM generate_series(1, 127) i;
INSERT INTO ugly.v_text (id, t) SELECT 200 + i, chr(i) FROM generate_series(1, 32) i;
INSERT INTO ugly.v_text VALUES
    (300, '', '', '', '', '', ''),
    (301, NULL, NULL, NULL, NULL, NULL, NULL),
    (302, 'NULL', 'null', 'NULL', 'null', 'NULL', 'N'),
    (303, '\N', '\N', '\N', '\N', '\N', '\'),
    (304, '\.', '\.', '\.', '\.', '\.', '.'),
    (305, E'\n\\.\n', E'\\.\n', E'\n\\.\n', E'\r\n', E'\n', E'\n'),
    (306, E'a\\nb', E'\\\\', E'\\x41', E'\\101', E'\\t', E'\t'),
    (307, 'blanks   ', 'blanks   ', 'bl  ', 'bl   ', 'bl   ', ' '),
    (308, '   ', '   ', '   ', '   ', '   ', ' '),
    (309, E'cr\rlf\nboth\r\n', E'\r', E'\r', E'\r', E'\r', E'\r'),
    (310, U&'\0085 \2028 \2029 \feff \fffe \ffff \+10ffff \200b', U&'e\0301', U&'\00e9', U&'\+01f418', U&'\+01f418', '"'),
    (311, '"csv", "with ""quotes""",'',;|' || E'\t', '","', ',', '"', '''', ''''),
    (312, '$$ $1 ${x} `id` $(id) :name :''x'' %s {} <![CDATA[ ]]> &amp; -- ; /*', NULL, NULL, NULL, NULL, '$'),
    (313, E'COPY ugly.v_text FROM stdin;\n1\t2\n\\.\n\\restrict x\n\\connect postgres\nDROP TABLE x;', NULL, NULL, NULL, repeat('n', 63), NULL),
    (314, '\\', '\', '\\\', E'\b\f\v', '\0', E'\\'),
    (315, 'İıſKÅ', 'ß', 'ss', 'SS', 'straße', NULL),
    (316, E'\u00a0\u2007', repeat('長', 60), repeat('é', 6), repeat('b', 100), repeat('長', 21), NULL);
\if :ge16
-- Bytes above 127 in "char" are safe since 16 only.
INSERT INTO ugly.v_text (id, ch) SELECT 400 + i, ('\' || to_char(i / 64, 'FM9') || to_char(i / 8 % 8, 'FM9') || to_char(i % 8, 'FM9'))::"char" FROM generate_series(128, 255) i;
\endif
-- One text column only: a row holding \. is alone on its line, an empty
-- string is an empty line, and so is a row of no columns.
CREATE TABLE ugly.v_one_column (t text);
INSERT INTO ugly.v_one_column VALUES ('\.'), (''), (NULL), ('\N'), ('\\.'), (E'\n'), ('--'), ('.');
-- The same by COPY, with the escapes of the file format.
COPY ugly.v_one_column FROM stdin;
\\.
\\N
\N
\b\f\n\r\t\v
\x7f\1\52
back\\slash

\
continued line
\.

-- Long values: compressible, not compressible, out of line without
-- compression, kept in line; 2 MB each.  No value depends on chance.
CREATE TABLE ugly.v_long (id int PRIMARY KEY, t text, e text, b bytea, m text);
ALTER TABLE ugly.v_long ALTER e SET STORAGE EXTERNAL, ALTER m SET STORAGE MAIN;
INSERT INTO ugly.v_long VALUES
    (1, repeat('abcdefgh', 262144), NULL, NULL, repeat('m', 7000)),
    (2, (SELECT string_agg(md5(i::text), '' ORDER BY i) FROM generate_series(1, 65536) i), repeat('x', 200000), NULL, NULL),
    (3, NULL, (SELECT string_agg(md5(i::text), E'\\\n' ORDER BY i) FROM generate_series(1, 3000) i),
        (SELECT string_agg(decode(md5(i::text), 'hex'), ''::bytea ORDER BY i) FROM generate_series(1, 4096) i), NULL),
    (4, repeat(E'\\\t\n', 100000), NULL, decode(repeat('00', 100000), 'hex'), NULL),
    (5, repeat('長', 300000), '', '', '');

-- Bytes: all 256, what looks like the other output format, empty.
CREATE TABLE ugly.v_bytes (id int PRIMARY KEY, b bytea);
INSERT INTO ugly.v_bytes VALUES (1, (SELECT string_agg(decode(lpad(to_hex(i), 2, '0'), 'hex'), ''::bytea ORDER BY i) FROM generate_series(0, 255) i)),
    (2, ''), (3, NULL), (4, '\x5c7834313432'), (5, '\x00'), (6, '\xfffe0d0a1a'), (7, '\x5c'), (8, '\x5c5c30');

-- Dates and times.  Output depends on DateStyle, IntervalStyle, TimeZone.
CREATE TABLE ugly.v_times (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, t time, ttz timetz, i interval,
    ts0 timestamp(0), t3 time(3), iy interval year to month, ids interval day to second(2));
INSERT INTO ugly.v_times VALUES
    (1, 'infinity', 'infinity', 'infinity', '24:00:00', '24:00:00+15:59:59', '1 mon -1 day 00:00:00.000001', 'infinity', '23:59:59.999', '1-2', '1 2:03:04.05'),
    (2, '-infinity', '-infinity', '-infinity', '00:00:00', '00:00:00-15:59:59', '-1 mon 1 day -00:00:00.000001', '-infinity', '0:0', '-1-2', '-1 2:03:04.05'),
    (3, '4714-11-24 BC', '4714-11-24 00:00:00 BC', '4714-11-24 00:00:00+00 BC', '23:59:59.999999', '12:00:00.000001+05:45', '-178000000 years', '0001-01-01 BC', '0:0:0.001', '0-0', '0'),
    (4, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00', '00:00:60', '00:00:00.1-00:00:01', '178000000 years 11 mons 2147483647 days', '2000-01-01 23:59:59.6', '12:00', '178956970-7', '2147483647 days'),
    (5, '0001-12-31 BC', '0001-12-31 23:59:59.5 BC', '0044-03-15 12:00:00+00 BC', '12:00', '12:00+00', '2562047788 hours 54.775807 secs', '1999-12-31', '1:1', '0', '-0.01 sec'),
    (6, '2000-02-29', '2000-02-29 00:00:00', '2011-03-27 01:30:00 Europe/Berlin', '01:30', '01:30+01', '1 day -23:59:59.999999', '2000-01-02', '2:2', '1', '0.999 sec'),
    (7, '2001-02-03', '2001-02-03 04:05:06.7', '1900-01-01 00:00:00+00', '04:05:06.789', '04:05:06.789-08', '0', '2001-02-03', '3:3', '-0-1', '23:59:59.99'),
    (8, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (9, '1582-10-15', '1970-01-01', '1970-01-01 00:00:00+00', '0:0:0.000001', '0:0:0.000001+14:59', '24 hours', '1970-01-01', '4:4', '12 months', '24:00'),
    -- equal to the one above, yet another text
    (10, '1582-10-15', '1970-01-01', '1970-01-01 05:45:00+05:45', '0:0:0.000001', '0:0:0.000001+14:59', '1 day', '1970-01-01', '4:4', '1 year', '1 day');
\if :ge17
INSERT INTO ugly.v_times (id, i) VALUES (20, 'infinity'), (21, '-infinity');
\endif

-- JSON: json keeps white space, order and duplicate keys and has no equality
-- operator; jsonb keeps trailing zeroes and huge numbers.
CREATE TABLE ugly.v_json (id int PRIMARY KEY, j json, jb jsonb, jp jsonpath);
INSERT INTO ugly.v_json VALUES
    (1, E'{"a" :1,\t"a":2 ,\n\n "b" : [ ] }', '{"a":1,"a":2,"b":[]}', '$'),
    (2, '  null  ', 'null', 'lax $.a[*] ? (@ > 1 && @.b like_regex "^\\d+$" flag "i")'),
    (3, '"\u0041\ud83d\udc18\n\\\/"', '"\u0041\ud83d\udc18\n\\\/"', 'strict $."quoted key"[0 to last]'),
    (4, '[1.0, 1.00, 1E+2, -0, -0.0, 1e400]', '[1.0, 1.00, 1E+2, -0, -0.0, 1e400]', '$.**{2 to 5}.size()'),
    (5, '""', '""', NULL), (6, NULL, NULL, NULL), (7, '{}', '{"": {"": [[], {}, [[[[]]]]]}}', '$"x"'),
    (8, '{"\u0022":"\u005c"}', ('{"k": "' || repeat('long ', 50000) || '"}')::jsonb, '$.datetime()'),
    (9, '{"b":1,"aa":2}', '{"b":1,"aa":2,"ü":true}', '1 + $.x');

-- Text search types.
CREATE TABLE ugly.v_fts (id int PRIMARY KEY, v tsvector, q tsquery);
INSERT INTO ugly.v_fts VALUES
    (1, $$'it''s' 'a b':1A,2B,16383C '\\':3$$, $$'it''s' & !('a b':*AB | '\\')$$),
    (2, '', ''), (3, NULL, NULL), (4, 'zebra apple:3 apple:1 apple:2', 'a <-> b <5> (c | !!d)'),
    (5, to_tsvector('simple', repeat('word1 word2 ', 300)), $$'ü' & '数据':*$$);

-- Geometry: no equality by content, no order for most; -0, NaN, infinity.
CREATE TABLE ugly.v_geometry (id int PRIMARY KEY, p point, l line, s lseg, b box, pa path, po polygon, c circle);
INSERT INTO ugly.v_geometry VALUES
    (1, '(-0.0,0.0)', '{1,-1,0}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(0,0),0>'),
    (2, '(NaN,Infinity)', '{0,-1,1e300}', '[(-0,-0),(-0,-0)]', '(0,0),(1,1)', '((0,0),(1,1),(2,0))', '((0,0))', '<(1e-300,-1e300),1e300>'),
    (3, '(1e-310,0.1)', '{-1,0,0.3}', '[(1,2),(3,4)]', '(Infinity,Infinity),(-Infinity,-Infinity)', '((0,0))', '((1,2),(3,4),(1,2))', '<(0.1,0.2),0.3>'),
    (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE INDEX v_geometry_gist ON ugly.v_geometry USING gist (b, c);
CREATE INDEX v_geometry_spgist ON ugly.v_geometry USING spgist (po);

-- Network, bits, identifiers of transactions and log positions.
CREATE TABLE ugly.v_misc (id int PRIMARY KEY, i inet, c cidr, m macaddr, m8 macaddr8, b1 bit, b5 bit(5), vb varbit, vb3 varbit(3),
    l pg_lsn, x8 xid8, x xid, ci cid, ti tid, snap pg_snapshot, tsnap txid_snapshot, u uuid, o oid, ov oidvector, iv int2vector, rc refcursor);
INSERT INTO ugly.v_misc VALUES
    (1, '10.0.0.1/8', '10/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', B'1', B'10101', B'', B'',
        '0/0', '0', '0', '0', '(0,0)', '1:1:', '10:20:10,14,15', '00000000-0000-0000-0000-000000000000', 0, '', '', ''),
    (2, '::ffff:1.2.3.4/128', '2001:db8::/32', 'ff-ff-ff-ff-ff-ff', 'ffff.ffff.ffff.ffff', B'0', X'1F'::bit(5), X'DEADBEEF', B'101',
        'FFFFFFFF/FFFFFFFF', '18446744073709551615', '4294967295', '4294967295', '(4294967295,65535)', '1:2:1', NULL,
        'ffffffff-ffff-ffff-ffff-ffffffffffff', 4294967295, '1 2 3', '-1 0 32767', 'cursor "x"'),
    (3, '10.0.0.1', '::/0', NULL, '00:00:00:00:00:00:00:00', NULL, NULL, B'0', NULL, '16/B374D848', '4294967296', '3', '1', '(1,1)',
        NULL, NULL, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 2147483648, NULL, NULL, NULL),
    (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Arrays: other lower bounds, several dimensions, NULL against "NULL",
-- empty, of composites, domains, enums, ranges, with another delimiter.
CREATE TABLE ugly.v_arrays (id int PRIMARY KEY, i int[], i3 int[3][3], t text[], e ugly.mood[], c ugly.comp[], d ugly.posint[],
    r int4range[], w ugly.weird_int[], bx box[], by bytea[], j json[], n numeric(5,2)[], ch char(3)[], dl ugly.posint_list);
INSERT INTO ugly.v_arrays VALUES
    (1, '[0:1]={1,2}', '[-2:-1][3:4]={{1,2},{3,4}}', '{NULL,"NULL","","a b","\"","\\","{}",",","\n"}', '{sad,"",NULL,"it''s \"great\", \\ok;"}',
        ARRAY[ROW(1, 'x,"y"', '{ok,meh}', '[1,2)')::ugly.comp, NULL, ROW(NULL, NULL, NULL, NULL)::ugly.comp], '{1,2}',
        '{"[1,2)",empty,"(,)",NULL}', '{1;2;NULL}', '{(1,1),(0,0);(2,2),(1,1)}', '{"\\x00","\\x","\\\\"}', '{"{\"a\": 1}","[ ]"}',
        '{1.10,NaN}', '{a,"  b","   "}', '{1,2,3}'),
    (2, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', NULL),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, '{{{{{{1},{2}}}}}}', '{1}', '[5:5][2:3]={{a,NULL}}', '{ok}', '{}', '{NULL}', '{"[5,5]"}', '[7:7]={9}', '{}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '[2:2]={5}');

-- Ranges and multiranges, built-in and own.
CREATE TABLE ugly.v_ranges (id int PRIMARY KEY, i int4range, n numrange, d daterange, ts tsrange, tz tstzrange, tr ugly.textrange, fr ugly.floatrange,
    er ugly.evenrange, im int4multirange, dm datemultirange, tm ugly."Multi Textrange", f ugly.future);
INSERT INTO ugly.v_ranges VALUES
    (1, '[1,10)', '[1.0,1.00]', '[2000-01-01,infinity)', '(,"2000-01-01 00:00:00")', '["2000-01-01 00:00:00+00",)', '["a,b","c""d\\"]', '[-0.0,0.0]', '(1,5]', '{[1,2),[5,8)}', '{}', '{["",a),[b,)}', '[2030-01-01,)'),
    (2, 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', '{}', '{(,)}', '{}', NULL),
    (3, '(,)', '(NaN,NaN]', '(,)', '[,]', '(,)', '["",""]', '[NaN,NaN]', '(,)', '{(,)}', NULL, NULL, '(,)'),
    (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Composites: a NULL row is not a row of NULLs; nested quoting; values stored
-- before the row type they have lost a column; domains over composites.
-- ugly.comp has a cast to text of its own: "c::text" is not its output.
CREATE TABLE ugly.v_composites (id int PRIMARY KEY, c ugly.comp, n ugly.comp_nested, cd ugly.comp_dropped, e ugly.comp_empty, dom ugly.comp_domain);
INSERT INTO ugly.v_composites VALUES
    (1, ROW(1, E'x"y\\,(z)\n', '{ok,"",meh}', '[1,2]'), ROW(ROW(1, '', '{}', 'empty'), ARRAY[ROW(2, NULL, NULL, NULL)::ugly.comp], 3, '"'), ROW(1, 'b', '2000-01-01'), ROW(), ROW(1, 'd', NULL, NULL)),
    (2, NULL, NULL, NULL, NULL, NULL),
    (3, ROW(NULL, NULL, NULL, NULL), ROW(NULL, NULL, NULL, NULL), ROW(NULL, NULL, NULL), '()', ROW(NULL, '', NULL, NULL)),
    (4, ROW(1, ' ', NULL, NULL), ROW(ROW(NULL, NULL, NULL, NULL), '{}', 1, '()'), ROW(2, '', NULL), NULL, NULL);
CREATE TABLE ugly.rowtype_source (a int, gone text, b text);
CREATE TABLE ugly.v_rowtype (id int PRIMARY KEY, r ugly.rowtype_source, rs ugly.rowtype_source[]);
INSERT INTO ugly.rowtype_source VALUES (1, 'gone', 'b');
INSERT INTO ugly.v_rowtype VALUES (1, ROW(1, 'stays hidden', 'b'), ARRAY[ROW(2, 'x', 'c')::ugly.rowtype_source]);
ALTER TABLE ugly.rowtype_source DROP COLUMN gone;
ALTER TABLE ugly.rowtype_source ADD COLUMN added_later date;
INSERT INTO ugly.v_rowtype VALUES (2, ROW(5, 'b', '2020-02-02'), NULL);

-- Enums and domains.
CREATE TABLE ugly.v_enums (id int PRIMARY KEY, m ugly.mood, nothing ugly."Enum, (of) nothing", sm ugly.some_moods);
INSERT INTO ugly.v_enums SELECT row_number() OVER (ORDER BY m), m FROM unnest(enum_range(NULL::ugly.mood)) m;
INSERT INTO ugly.v_enums VALUES (100, NULL, NULL, 'meh');
CREATE INDEX v_enums_order ON ugly.v_enums (m DESC NULLS LAST);
CREATE TABLE ugly.v_domains (id int PRIMARY KEY, p ugly.posint, sp ugly."Small Posint", nn ugly.notnull_text, c ugly.c_text, md ugly.modern_date, ld ugly.loop_domain, pl ugly.posint_list[]);
INSERT INTO ugly.v_domains VALUES (1, 1, DEFAULT, DEFAULT, 'C', '2001-02-03', 2, NULL), (2, NULL, NULL, ' ', NULL, NULL, NULL, '{"{1}","{}",NULL}');
-- A domain constraint which is not valid, and data which break it.
CREATE DOMAIN ugly.not_valid_domain AS text;
CREATE TABLE ugly.v_not_valid_domain (id int PRIMARY KEY, d ugly.not_valid_domain);
INSERT INTO ugly.v_not_valid_domain VALUES (1, 'breaks the rule'), (2, 'ok');
ALTER DOMAIN ugly.not_valid_domain ADD CONSTRAINT short CHECK (length(VALUE) < 5) NOT VALID;
CREATE TABLE ugly.v_weird (w ugly.weird_int PRIMARY KEY DEFAULT '7', wt ugly.weird_text COLLATE "POSIX", wt10 ugly.weird_text(10));
INSERT INTO ugly.v_weird VALUES ('1', 'a', 'b'), ('-5', '', NULL), (DEFAULT, NULL, 'x');
CREATE INDEX v_weird_hash ON ugly.v_weird USING hash (w);

-- Columns holding object identifiers by name: their text depends on
-- search_path and quoting, their number differs in every database, and an
-- object which does not exist is shown as a number.  Only tables, views and
-- sequences: indexes do not exist yet when a dump restores data.
CREATE TABLE ugly.v_reg (id int PRIMARY KEY, cl regclass, pr regproc, pro regprocedure, ty regtype, op regoper, oper regoperator, ns regnamespace, ro regrole, cf regconfig, di regdictionary, co regcollation);
INSERT INTO ugly.v_reg VALUES
    (1, 'ugly."MixedCase"', 'ugly.weird_eq', 'ugly.rev_cmp(int,bigint)', 'ugly.comp[]', 'ugly.~-', 'pg_catalog.=(int4,int4)', '"Ugly Schema"', '"ugly_Mixed Case ""Rôle"" o''x $1 \n"', 'simple', 'simple', 'ugly."My Collation"'),
    (2, 'pg_class', 'now', 'pg_catalog.md5(text)', 'timestamp with time zone', 0, 0, 'pg_catalog', 'postgres', NULL, NULL, '"C"'),
    (3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (4, 4000000001, 4000000002, 4000000003, 4000000004, 4000000005, 4000000006, 4000000007, 4000000008, 4000000009, 4000000010, 4000000011),
    (5, 'public.mixedcase', NULL, NULL, '"char"', NULL, NULL, 'public', 'ugly_owner', NULL, NULL, NULL),
    (6, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

\if :has_xml
-- xml has no equality operator; content and documents, white space, entities.
CREATE TABLE ugly.v_xml (id int PRIMARY KEY, x xml, xs xml[]);
INSERT INTO ugly.v_xml VALUES
    (1, '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e "x">]><a b = ''1'' ><!-- c --> &lt; </a>', NULL),
    (2, E'two <b/> roots\n <c>\t</c> ', ARRAY['<a/>'::xml, NULL]), (3, '', '{}'), (4, NULL, NULL),
    (5, '<?pi data?><a xmlns:x="urn:x" x:y="&quot;&#10;"><![CDATA[ <raw> ]]></a>', NULL);
CREATE VIEW ugly.xml_view AS
    SELECT id, xmlelement(name "El em", xmlattributes(id AS "At tr"), x) AS e, xmlserialize(CONTENT x AS text) AS s FROM ugly.v_xml WHERE id IN (2, 3);
\endif

------------------------------------------------------------------------------
-- 6. Sequences, serials, identities, generated columns
------------------------------------------------------------------------------
-- setval by DO, so that loading prints nothing.
CREATE SEQUENCE ugly.seq_never_called START WITH 17;
CREATE SEQUENCE ugly.seq_is_called_false;
CREATE SEQUENCE ugly.seq_descending INCREMENT BY -3 MINVALUE -100 MAXVALUE -1 START WITH -10 CYCLE;
CREATE SEQUENCE ugly.seq_small AS smallint CYCLE CACHE 5;
CREATE SEQUENCE ugly.seq_int AS int MAXVALUE 1000 START 999 NO CYCLE;
CREATE SEQUENCE ugly.seq_at_its_end AS smallint;
CREATE SEQUENCE ugly.seq_int_descending AS int INCREMENT BY -1;
CREATE SEQUENCE ugly.seq_min_value MINVALUE -9223372036854775808 START -9223372036854775808;
CREATE SEQUENCE ugly.seq_high_cache CACHE 1000 INCREMENT BY 7;
CREATE SEQUENCE ugly.seq_altered MINVALUE 0 START 5;
CREATE SEQUENCE "Ugly Schema"."Seq ""x""";
CREATE UNLOGGED SEQUENCE ugly.seq_unlogged START 3;
DO $$
BEGIN
    PERFORM setval('ugly.seq_is_called_false', 1234, false);
    PERFORM setval('ugly.seq_descending', -100), nextval('ugly.seq_descending'), nextval('ugly.seq_descending');
    PERFORM nextval('ugly.seq_small'), nextval('ugly.seq_small');
    PERFORM nextval('ugly.seq_int'), nextval('ugly.seq_int');
    PERFORM setval('ugly.seq_at_its_end', 32767);
    PERFORM nextval('ugly.seq_int_descending');
    PERFORM nextval('ugly.seq_high_cache');
    PERFORM nextval('ugly.seq_altered');
    PERFORM setval('"Ugly Schema"."Seq ""x"""', 9223372036854775807);
    PERFORM nextval('ugly.seq_unlogged');
END
$$;
ALTER SEQUENCE ugly.seq_altered INCREMENT BY 11 MINVALUE -5 START 6 RESTART 500;
ALTER SEQUENCE ugly.seq_int OWNER TO ugly_owner;
GRANT USAGE ON SEQUENCE ugly.seq_small TO PUBLIC;
GRANT SELECT, UPDATE ON SEQUENCE "Ugly Schema"."Seq ""x""" TO ugly_reader WITH GRANT OPTION;
COMMENT ON SEQUENCE ugly.seq_descending IS 'goes down, and around';

-- Defaults which use sequences of other schemas, of other tables; a serial
-- whose table, column and sequence were renamed; whose default was replaced
-- or dropped (the sequence is still owned); one column owning two sequences.
CREATE TABLE ugly.serials_old (id serial PRIMARY KEY, s2 smallserial, "s 8" bigserial, dropped serial, replaced serial);
ALTER TABLE ugly.serials_old RENAME TO serials;
ALTER TABLE ugly.serials RENAME s2 TO "s Two";
ALTER SEQUENCE ugly.serials_old_id_seq RENAME TO "serials' id";
ALTER TABLE ugly.serials ALTER dropped DROP DEFAULT;
ALTER TABLE ugly.serials ALTER replaced SET DEFAULT nextval('ugly.seq_high_cache') * 2;
CREATE SEQUENCE ugly.second_owned OWNED BY ugly.serials.id;
CREATE TABLE "Ugly Schema".cross_default (
    id bigint PRIMARY KEY DEFAULT nextval('ugly.seq_small'),
    x bigint DEFAULT nextval('"Ugly Schema"."Seq ""x"""'::regclass),
    late bigint DEFAULT nextval('ugly.seq_int'::text));
INSERT INTO ugly.serials (dropped) VALUES (1), (2), (3);
INSERT INTO "Ugly Schema".cross_default VALUES (DEFAULT, 1, 1), (DEFAULT, 2, 2);

-- Identity columns: ALWAYS must be restored with the values of the dump; own
-- options, descending, renamed sequence, smallint, never used.
CREATE TABLE ugly.identities (
    a int GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME ugly."Identity of ""a""" START 100 INCREMENT 10 MINVALUE 50 MAXVALUE 5000 CYCLE CACHE 2) PRIMARY KEY,
    b bigint GENERATED BY DEFAULT AS IDENTITY (INCREMENT BY -1),
    c smallint GENERATED ALWAYS AS IDENTITY, t text);
INSERT INTO ugly.identities (t) VALUES ('x'), ('y');
INSERT INTO ugly.identities (a, b, t) OVERRIDING SYSTEM VALUE VALUES (1, 999, 'overridden'), (2, -999, 'overridden');
CREATE TABLE ugly.identity_unused (id int GENERATED ALWAYS AS IDENTITY);
-- A column which became an identity later.
CREATE TABLE ugly.identity_added (id int NOT NULL, v text);
INSERT INTO ugly.identity_added VALUES (1, 'a'), (5, 'b');
ALTER TABLE ugly.identity_added ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (RESTART 6);

-- Generated columns: first in the table, from own functions, only generated
-- columns (COPY has no column left), as key, in an index.
CREATE FUNCTION ugly."Twice""It"(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE TABLE ugly.generated (
    g1 int GENERATED ALWAYS AS (a + b) STORED, a int, "g Two" text GENERATED ALWAYS AS (upper(t COLLATE "C") || '"x"') STORED,
    t text, b int DEFAULT 3, g3 int GENERATED ALWAYS AS (ugly."Twice""It"(a)) STORED PRIMARY KEY,
    ga text[] GENERATED ALWAYS AS (ARRAY[t, '\.', NULL]) STORED);
INSERT INTO ugly.generated (a, t, b) VALUES (1, 'x', 2), (2, NULL, NULL), (3, 'ü', -3);
INSERT INTO ugly.generated (a, t) VALUES (4, 'default b');
CREATE INDEX ON ugly.generated ("g Two", (g1 % 2));
CREATE TABLE ugly.only_generated (g int GENERATED ALWAYS AS (40 + 2) STORED, h text GENERATED ALWAYS AS ('x' || '\.') STORED);
INSERT INTO ugly.only_generated DEFAULT VALUES;
INSERT INTO ugly.only_generated DEFAULT VALUES;
INSERT INTO ugly.only_generated DEFAULT VALUES;
\if :ge18
-- Virtual generated columns (18).
CREATE TABLE ugly.generated_virtual (v1 int GENERATED ALWAYS AS (a * 2) VIRTUAL, a int PRIMARY KEY, v2 text GENERATED ALWAYS AS (lower(t)) VIRTUAL NOT NULL, t text,
    s int GENERATED ALWAYS AS (a + 1) STORED, CHECK (v1 < 1000));
INSERT INTO ugly.generated_virtual (a, t) VALUES (1, 'X'), (2, 'Y');
CREATE TABLE ugly.only_virtual (v int GENERATED ALWAYS AS (1 + 1), w int GENERATED ALWAYS AS (2 + 2) VIRTUAL);
INSERT INTO ugly.only_virtual DEFAULT VALUES;
INSERT INTO ugly.only_virtual DEFAULT VALUES;
\endif

------------------------------------------------------------------------------
-- 7. Odd tables
------------------------------------------------------------------------------
-- No columns, with rows: COPY writes empty lines.  The second lost its only
-- column when it had rows already.
CREATE TABLE ugly.no_columns ();
INSERT INTO ugly.no_columns SELECT FROM generate_series(1, 5);
CREATE TABLE ugly.no_columns_left (a int);
INSERT INTO ugly.no_columns_left VALUES (1), (2), (3);
ALTER TABLE ugly.no_columns_left DROP COLUMN a;
CREATE TABLE ugly.no_columns_no_rows ();
CREATE TABLE ugly.no_rows (a int PRIMARY KEY, b text DEFAULT 'x');

-- As many columns as a table can have.
DO $do$
BEGIN
    EXECUTE 'CREATE TABLE ugly.wide (' || (SELECT string_agg(format('c%s int4', i), ', ' ORDER BY i) FROM generate_series(1, 1600) i) || ')';
    EXECUTE 'INSERT INTO ugly.wide SELECT ' || (SELECT string_agg(format('r * %s', i), ', ' ORDER BY i) FROM generate_series(1, 1600) i) || ' FROM generate_series(1, 3) r';
    EXECUTE 'INSERT INTO ugly.wide (c1600) VALUES (1)';
END
$do$;
INSERT INTO ugly.wide DEFAULT VALUES;

-- Rows which are the same, without any key: only counting them compares them.
CREATE TABLE ugly.duplicates (a int, b text);
INSERT INTO ugly.duplicates SELECT i % 3, CASE WHEN i % 4 > 0 THEN 'same' END FROM generate_series(1, 240) i;
-- Dropped columns at all places, columns added with a default after there
-- were rows (old rows do not hold the value), rows moved by updates.
CREATE TABLE ugly.altered (d1 int, a int, d2 text, b text, d3 text);
INSERT INTO ugly.altered SELECT i, i, 'gone', 'row ' || i, 'gone' FROM generate_series(1, 20) i;
ALTER TABLE ugly.altered DROP COLUMN d1, DROP COLUMN d2, DROP COLUMN d3;
ALTER TABLE ugly.altered ADD COLUMN fast int DEFAULT 77, ADD COLUMN fast_text text DEFAULT E'de\\fault\n', ADD COLUMN fast_null numeric(10,2);
INSERT INTO ugly.altered (a, fast) VALUES (21, NULL);
ALTER TABLE ugly.altered ALTER fast DROP DEFAULT, ALTER fast_text SET DEFAULT 'another';
UPDATE ugly.altered SET b = b || '!' WHERE a % 3 = 0;
DELETE FROM ugly.altered WHERE a % 7 = 0;
ALTER TABLE ugly.altered ADD PRIMARY KEY (a);
-- Many dropped columns, so attribute numbers are far from positions.
CREATE TABLE ugly.mostly_dropped (last text);
DO $do$
BEGIN
    FOR i IN 1..120 LOOP
        EXECUTE format('ALTER TABLE ugly.mostly_dropped ADD COLUMN c%s int DEFAULT %1$s', i);
        IF i <> 77 THEN
            EXECUTE format('ALTER TABLE ugly.mostly_dropped DROP COLUMN c%s', i);
        END IF;
    END LOOP;
END
$do$;
INSERT INTO ugly.mostly_dropped VALUES ('x', 1), ('y', DEFAULT);
-- Unlogged: a logical copy has the rows, a physical copy is empty.
CREATE UNLOGGED TABLE ugly.unlogged (id serial PRIMARY KEY, t text);
INSERT INTO ugly.unlogged (t) VALUES ('unlogged 1'), ('unlogged 2');
-- Typed tables; the second of a type which lost attributes.
CREATE TABLE ugly.of_type OF ugly.comp (a WITH OPTIONS PRIMARY KEY DEFAULT 9, "B c" NOT NULL DEFAULT '"', CHECK (a <> 3));
INSERT INTO ugly.of_type VALUES (1, 'x', '{ok}', '[1,2]'), (2, DEFAULT, NULL, NULL);
CREATE TABLE ugly.of_type2 OF ugly.comp_dropped;
INSERT INTO ugly.of_type2 VALUES (1, 'b', '2001-01-01');
ALTER TYPE ugly.comp_dropped ADD ATTRIBUTE cascaded int CASCADE;
CREATE TABLE ugly.was_of_type OF ugly.comp_empty;
-- Storage parameters of table and TOAST table, per-column statistics,
-- n_distinct, compression, storage.
CREATE TABLE ugly.parameters (id int PRIMARY KEY WITH (fillfactor = 55), a text, b text, c bytea, d jsonb)
    WITH (fillfactor = 33, autovacuum_enabled = false, autovacuum_vacuum_scale_factor = 0.123, parallel_workers = 3,
          toast_tuple_target = 256, user_catalog_table = true, vacuum_truncate = off, log_autovacuum_min_duration = 5,
          toast.autovacuum_enabled = off, toast.autovacuum_freeze_max_age = 123456789, toast.vacuum_index_cleanup = off);
ALTER TABLE ugly.parameters ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE MAIN, ALTER d SET STORAGE EXTENDED;
ALTER TABLE ugly.parameters ALTER a SET STATISTICS 0, ALTER b SET STATISTICS 10000, ALTER c SET (n_distinct = -0.25, n_distinct_inherited = 7);
ALTER TABLE ugly.parameters ALTER a SET COMPRESSION pglz;
\if :has_lz4
ALTER TABLE ugly.parameters ALTER d SET COMPRESSION lz4;
\endif
INSERT INTO ugly.parameters VALUES (1, repeat('a', 5000), repeat('b', 5000), '\x00', ('{"x":"' || repeat('y', 5000) || '"}')::jsonb);
CREATE INDEX parameters_ix ON ugly.parameters (b, (lower(a)), upper(b)) WITH (fillfactor = 44, deduplicate_items = off);
ALTER INDEX ugly.parameters_ix ALTER COLUMN 2 SET STATISTICS 321;
-- Replica identities: full, nothing, an index; a clustered table.
CREATE TABLE ugly.ri_full (a int, b text);
ALTER TABLE ugly.ri_full REPLICA IDENTITY FULL;
CREATE TABLE ugly.ri_nothing (a int PRIMARY KEY);
ALTER TABLE ugly.ri_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE ugly.ri_index (a int NOT NULL, b text NOT NULL, c int PRIMARY KEY);
CREATE UNIQUE INDEX "RI ""Index""" ON ugly.ri_index (b, a);
ALTER TABLE ugly.ri_index REPLICA IDENTITY USING INDEX "RI ""Index""";
INSERT INTO ugly.ri_full VALUES (1, 'a'), (NULL, NULL);
INSERT INTO ugly.ri_nothing VALUES (1);
INSERT INTO ugly.ri_index VALUES (1, 'a', 10);
CREATE TABLE ugly.clustered (a int, b int);
INSERT INTO ugly.clustered SELECT i, 100 - i FROM generate_series(1, 60) i;
CREATE INDEX "clustered by b" ON ugly.clustered (b);
CLUSTER ugly.clustered USING "clustered by b";

------------------------------------------------------------------------------
-- 8. Inheritance and partitions
------------------------------------------------------------------------------
-- Children whose columns are in another order than a restored child's: the
-- parent got a column later (it is last in the child, but a new child has it
-- before its own columns); a child which was a table of its own; two parents;
-- a grandchild; overridden and removed defaults; NO INHERIT checks.
CREATE TABLE ugly.inh_parent (id int PRIMARY KEY, a text DEFAULT 'parent', CONSTRAINT only_parent CHECK (id < 1000) NO INHERIT, CONSTRAINT in_both CHECK (id > 0));
CREATE TABLE ugly.inh_child (own int DEFAULT 1, a text DEFAULT 'child') INHERITS (ugly.inh_parent);
ALTER TABLE ugly.inh_parent ADD COLUMN later numeric(5,2) DEFAULT 1.5, ADD COLUMN later_dropped int;
ALTER TABLE ugly.inh_parent DROP COLUMN later_dropped;
CREATE TABLE ugly.inh_adopted (z text, later numeric(5,2), x int, a text, id int NOT NULL, CONSTRAINT in_both CHECK (id > 0));
ALTER TABLE ugly.inh_adopted INHERIT ugly.inh_parent;
CREATE TABLE ugly.inh_other_parent (other date, id int, a text DEFAULT 'other parent');
CREATE TABLE ugly.inh_two (mine text, id int DEFAULT 5, a text DEFAULT 'two') INHERITS (ugly.inh_parent, ugly.inh_other_parent);
ALTER TABLE ugly.inh_two ALTER a DROP DEFAULT;
CREATE TABLE ugly.inh_grandchild (g int GENERATED ALWAYS AS (own * 2) STORED) INHERITS (ugly.inh_child);
ALTER TABLE ugly.inh_child ALTER later SET DEFAULT 9, ALTER a SET NOT NULL;
ALTER TABLE ugly.inh_parent ADD COLUMN last_added int;
CREATE TABLE ugly.inh_left () INHERITS (ugly.inh_parent);
ALTER TABLE ugly.inh_left NO INHERIT ugly.inh_parent;
INSERT INTO ugly.inh_parent VALUES (1, 'p', 1, 1);
INSERT INTO ugly.inh_child (id, a, own, later, last_added) VALUES (2, 'c', 20, 2, 2), (3, 'c', 30, NULL, NULL);
INSERT INTO ugly.inh_adopted (id, a, x, z, later, last_added) VALUES (4, 'ad', 40, 'z', 4, 4);
INSERT INTO ugly.inh_two (id, a, mine, other, later, last_added) VALUES (5, NULL, 'mine', '2000-01-01', 5, 5);
INSERT INTO ugly.inh_grandchild (id, a, own, later, last_added) VALUES (6, 'g', 60, 6, 6);
INSERT INTO ugly.inh_left VALUES (7, 'left', 7, 7);

-- By range: sub-partitions, default partitions, one attached with another
-- column order and a dropped column, one in another schema with own default
-- and check, one detached, indexes on the parent only or partly attached.
CREATE TABLE ugly.p_range (id int NOT NULL, d date NOT NULL, v text DEFAULT 'parent', n int) PARTITION BY RANGE (d);
CREATE TABLE ugly.p_range_old PARTITION OF ugly.p_range FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE ugly.p_range_2020 PARTITION OF ugly.p_range FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY LIST (v);
CREATE TABLE ugly."p_range_2020 'A', b" PARTITION OF ugly.p_range_2020 FOR VALUES IN ('A', 'b', E'it''s \\ "c"');
CREATE TABLE ugly.p_range_2020_null PARTITION OF ugly.p_range_2020 FOR VALUES IN (NULL);
CREATE TABLE ugly.p_range_2020_rest PARTITION OF ugly.p_range_2020 DEFAULT PARTITION BY HASH (id);
CREATE TABLE ugly.p_range_2020_rest_0 PARTITION OF ugly.p_range_2020_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE ugly.p_range_2020_rest_1 PARTITION OF ugly.p_range_2020_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE "Ugly Schema".p_range_2021 PARTITION OF ugly.p_range (v DEFAULT 'child', n NOT NULL, CONSTRAINT "own check" CHECK (n > 0)) FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE ugly.p_range_attached (n int, junk text, v text, d date NOT NULL, junk2 int, id int NOT NULL);
ALTER TABLE ugly.p_range_attached DROP COLUMN junk, DROP COLUMN junk2;
ALTER TABLE ugly.p_range ATTACH PARTITION ugly.p_range_attached FOR VALUES FROM ('2022-01-01') TO ('infinity');
CREATE TABLE ugly.p_range_default PARTITION OF ugly.p_range DEFAULT;
CREATE TABLE ugly.p_range_detached PARTITION OF ugly.p_range FOR VALUES FROM ('infinity') TO (MAXVALUE);
INSERT INTO ugly.p_range VALUES (1, '-infinity', 'old', 1), (2, '2020-05-05', 'A', 2), (3, '2020-05-05', 'b', 3), (4, '2020-06-06', NULL, 4),
    (5, '2020-07-07', 'rest', 5), (6, '2020-07-07', 'rest', 6), (7, '2020-07-07', 'rest', 7), (8, '2021-01-01', 'x', 8), (9, '2022-01-01', 'attached', 9), (10, '9999-12-31', 'attached', 10), (11, 'infinity', 'inf', 11);
ALTER TABLE ugly.p_range DETACH PARTITION ugly.p_range_detached;
CREATE UNIQUE INDEX p_range_old_unique ON ugly.p_range_old (id);
CREATE INDEX p_range_everywhere ON ugly.p_range (v, n DESC);
CREATE INDEX "p_range only parent" ON ONLY ugly.p_range (n);
CREATE INDEX p_range_old_n ON ugly.p_range_old (n);
ALTER INDEX ugly."p_range only parent" ATTACH PARTITION ugly.p_range_old_n;
CREATE INDEX p_range_old_own ON ugly.p_range_old (lower(v)) WHERE n > 0;
CREATE STATISTICS ugly.p_range_stats (dependencies) ON v, n FROM ugly.p_range;
-- By list: booleans, NULL, several values.
CREATE TABLE ugly.p_list (id int, b boolean) PARTITION BY LIST (b);
CREATE TABLE ugly.p_list_true PARTITION OF ugly.p_list FOR VALUES IN (true);
CREATE TABLE ugly.p_list_false PARTITION OF ugly.p_list FOR VALUES IN (false);
-- One partition is unlogged: a physical copy has lost some rows of p_list.
CREATE UNLOGGED TABLE ugly.p_list_null PARTITION OF ugly.p_list FOR VALUES IN (NULL);
INSERT INTO ugly.p_list VALUES (1, true), (2, false), (3, NULL);
CREATE TABLE ugly.p_enum (m ugly.mood, id int) PARTITION BY LIST (m);
CREATE TABLE ugly.p_enum_good PARTITION OF ugly.p_enum FOR VALUES IN ('ok', 'Häppy ☺', 'it''s "great", \ok;');
CREATE TABLE ugly.p_enum_rest PARTITION OF ugly.p_enum DEFAULT;
INSERT INTO ugly.p_enum SELECT m, 1 FROM unnest(enum_range(NULL::ugly.mood)) m;
-- By hash, uneven; by text.
CREATE TABLE ugly.p_hash (t text, id int, PRIMARY KEY (id, t)) PARTITION BY HASH (t, id);
CREATE TABLE ugly.p_hash_0 PARTITION OF ugly.p_hash FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE ugly.p_hash_1 PARTITION OF ugly.p_hash FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE ugly.p_hash_3 (id int, t text, PRIMARY KEY (id, t));
ALTER TABLE ugly.p_hash ATTACH PARTITION ugly.p_hash_3 FOR VALUES WITH (MODULUS 4, REMAINDER 3);
INSERT INTO ugly.p_hash SELECT 'text ' || i, i FROM generate_series(1, 100) i;
-- By several columns and expressions; by an operator class of our own; by a
-- collation; by time with time zone (bounds are shown in the TimeZone of the
-- reader); of another access method; without any partition.
CREATE TABLE ugly.p_multi (a int, b text, c int) PARTITION BY RANGE (a, lower(b) COLLATE "C", (c + 1));
CREATE TABLE ugly.p_multi_1 PARTITION OF ugly.p_multi FOR VALUES FROM (MINVALUE, MINVALUE, MINVALUE) TO (10, 'm', 5);
CREATE TABLE ugly.p_multi_2 PARTITION OF ugly.p_multi FOR VALUES FROM (10, 'm', 5) TO (MAXVALUE, MAXVALUE, MAXVALUE);
INSERT INTO ugly.p_multi VALUES (1, 'Z', 1), (10, 'A', 99), (10, 'M', 3), (10, 'M', 4), (11, 'a', -1);
CREATE TABLE ugly.p_reverse (k int) PARTITION BY RANGE (k ugly.rev_int_ops);
CREATE TABLE ugly.p_reverse_1 PARTITION OF ugly.p_reverse FOR VALUES FROM (100) TO (50) USING "ugly Heap";
CREATE TABLE ugly.p_reverse_2 PARTITION OF ugly.p_reverse FOR VALUES FROM (50) TO (MAXVALUE);
INSERT INTO ugly.p_reverse VALUES (100), (51), (50), (-7);
CREATE TABLE ugly.p_collated (t text) PARTITION BY LIST (t COLLATE "POSIX");
CREATE TABLE ugly.p_collated_1 PARTITION OF ugly.p_collated FOR VALUES IN ('a', 'B');
INSERT INTO ugly.p_collated VALUES ('a'), ('B');
CREATE TABLE ugly.p_time (at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE ugly.p_time_1 PARTITION OF ugly.p_time FOR VALUES FROM ('2020-02-03 00:00:00+00') TO ('2020-03-02 12:34:56.789+00');
INSERT INTO ugly.p_time VALUES ('2020-02-03 00:00:00+00'), ('2020-03-01 00:00:00+00');
CREATE TABLE ugly.p_no_partitions (a int, b text) PARTITION BY HASH (a);
\if :ge17
-- Identity columns and access methods of partitioned tables (17).
CREATE TABLE ugly.p_identity (id int GENERATED BY DEFAULT AS IDENTITY, r int4range) PARTITION BY LIST (r);
CREATE TABLE ugly.p_identity_1 PARTITION OF ugly.p_identity DEFAULT;
INSERT INTO ugly.p_identity (r) VALUES ('[1,2)'), ('[2,3)');
CREATE TABLE ugly.p_am (a int) PARTITION BY LIST (a) USING "ugly Heap";
CREATE TABLE ugly.p_am_1 PARTITION OF ugly.p_am FOR VALUES IN (1);
INSERT INTO ugly.p_am VALUES (1);
\endif

------------------------------------------------------------------------------
-- 9. Constraints
------------------------------------------------------------------------------
-- Circular and self-referencing foreign keys, deferrable or not, so that no
-- order of the tables satisfies them.
CREATE TABLE ugly.circle_a (id int PRIMARY KEY, b int NOT NULL);
CREATE TABLE ugly.circle_b (id int PRIMARY KEY, c int NOT NULL);
CREATE TABLE ugly.circle_c (id int PRIMARY KEY, a int NOT NULL);
ALTER TABLE ugly.circle_a ADD CONSTRAINT "a to b" FOREIGN KEY (b) REFERENCES ugly.circle_b DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE ugly.circle_b ADD FOREIGN KEY (c) REFERENCES ugly.circle_c ON UPDATE CASCADE ON DELETE RESTRICT DEFERRABLE INITIALLY IMMEDIATE;
BEGIN;
INSERT INTO ugly.circle_a VALUES (1, 1), (2, 2);
INSERT INTO ugly.circle_c VALUES (1, 1), (2, 2);
INSERT INTO ugly.circle_b VALUES (1, 1), (2, 2);
COMMIT;
ALTER TABLE ugly.circle_c ADD FOREIGN KEY (a) REFERENCES ugly.circle_a ON DELETE CASCADE;
CREATE TABLE ugly.tree (id int PRIMARY KEY, parent int REFERENCES ugly.tree, sibling int REFERENCES ugly.tree DEFERRABLE);
INSERT INTO ugly.tree VALUES (1, 3, 2), (2, 1, 1), (3, 2, NULL), (4, 4, 4);
-- Other foreign keys: to a unique constraint, to a partitioned table, from
-- one, MATCH FULL, SET NULL of one column, the same one twice, not valid
-- (with orphans), across schemas.
CREATE TABLE ugly.fk_target (a int, b text, c int PRIMARY KEY, UNIQUE (b, a));
INSERT INTO ugly.fk_target VALUES (1, 'x', 10), (2, 'y', 20);
CREATE TABLE "Ugly Schema"."fk Source" (b text, a int, c int, p_id int, p_t text,
    CONSTRAINT "Full" FOREIGN KEY (a, b) REFERENCES ugly.fk_target (a, b) MATCH FULL ON DELETE SET NULL,
    CONSTRAINT one_column FOREIGN KEY (a, b) REFERENCES ugly.fk_target (a, b) ON DELETE SET DEFAULT (b) ON UPDATE CASCADE,
    CONSTRAINT twice_1 FOREIGN KEY (c) REFERENCES ugly.fk_target, CONSTRAINT twice_2 FOREIGN KEY (c) REFERENCES ugly.fk_target,
    CONSTRAINT to_partitioned FOREIGN KEY (p_id, p_t) REFERENCES ugly.p_hash);
INSERT INTO "Ugly Schema"."fk Source" VALUES ('x', 1, 10, 2, 'text 2'), (NULL, NULL, NULL, NULL, NULL);
ALTER TABLE "Ugly Schema"."fk Source" ADD CONSTRAINT orphans FOREIGN KEY (p_id) REFERENCES ugly.fk_target NOT VALID;
ALTER TABLE ugly.p_list ADD FOREIGN KEY (id) REFERENCES ugly.v_numbers;
-- Checks: not valid (and broken by rows), calling functions, on whole rows,
-- varchar IN lists (their text changes with every dump and restore), regular
-- expressions, constants whose text depends on settings.
CREATE FUNCTION ugly.check_it(text, VARIADIC int[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN pg_catalog.length($1) <> ALL ($2); END $$;
CREATE TABLE ugly.checks (
    id int PRIMARY KEY, v varchar(10) CHECK (v IN ('a', 'b', 'it''s')), w varchar CHECK (w = ANY (ARRAY['x', 'y'])), c char(3) CHECK (c NOT IN ('no', 'na')),
    t text CONSTRAINT "calls a ""function""" CHECK (ugly.check_it(t, 3, 4)), e text CHECK (e ~ '^[a-z]\.\d*\\$' OR e LIKE 'a\_%' ESCAPE '\' OR e SIMILAR TO '(a|b)%'),
    d date CHECK (d BETWEEN DATE '1999-02-01' AND '2100-12-31'), z timestamptz CHECK (z > '1999-12-31 23:00:00+00'), iv interval CHECK (iv < '1 year 2 mons -3 days 04:05:06.7'),
    b bytea CHECK (b <> '\xdeadbeef'), f float8 CHECK (f <> 0.1 AND f < 1e300), m ugly.mood CHECK (m > 'sad'), x text COLLATE "POSIX" CHECK (x > 'A' COLLATE "C"),
    CHECK (id IS NOT NULL AND (v, w) IS DISTINCT FROM ('a', 'y')), CONSTRAINT nothing CHECK (NULL), CONSTRAINT "always" CHECK (true));
INSERT INTO ugly.checks VALUES (1, 'it''s', 'x', 'ye', 'ab', 'a.1\', '2000-01-01', '2000-01-01 00:00:00+00', '1 day', '\x00', 0.2, 'ok', 'B'), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE ugly.not_valid (id int PRIMARY KEY, v int);
INSERT INTO ugly.not_valid VALUES (1, -1), (2, 1);
ALTER TABLE ugly.not_valid ADD CONSTRAINT positive CHECK (v > 0) NOT VALID;
-- A check and a default which need the row type of the table itself, by way
-- of functions: the dump has to break the loops.
CREATE TABLE ugly.loop_table (id int PRIMARY KEY, v text);
CREATE FUNCTION ugly.loop_check(ugly.loop_table) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT ($1).id > 0';
CREATE FUNCTION ugly.loop_default(ugly.loop_table) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'looped'::text $$;
ALTER TABLE ugly.loop_table ADD CONSTRAINT looped CHECK (ugly.loop_check(loop_table)), ALTER v SET DEFAULT ugly.loop_default(NULL::ugly.loop_table);
INSERT INTO ugly.loop_table VALUES (1, DEFAULT), (2, 'x');
-- Unique constraints: deferrable, NULLS NOT DISTINCT, with INCLUDE, made from
-- an index; exclusion constraints.
CREATE TABLE ugly.uniques (a int, b int, c text, d int, e int,
    CONSTRAINT u_deferrable UNIQUE (a) DEFERRABLE INITIALLY DEFERRED, CONSTRAINT u_nulls UNIQUE NULLS NOT DISTINCT (b, c),
    CONSTRAINT u_include UNIQUE (c, d) INCLUDE (e, a) WITH (fillfactor = 80), CONSTRAINT p_include PRIMARY KEY (e) INCLUDE (d));
CREATE UNIQUE INDEX "u made of an index" ON ugly.uniques (d, e, a);
ALTER TABLE ugly.uniques ADD CONSTRAINT "u of index" UNIQUE USING INDEX "u made of an index" DEFERRABLE;
INSERT INTO ugly.uniques VALUES (NULL, NULL, NULL, 1, 1), (NULL, NULL, 'x', 2, 2), (NULL, 1, NULL, 3, 3);
BEGIN;
INSERT INTO ugly.uniques VALUES (5, 5, 'five', 5, 5), (5, 6, 'six', 6, 6);
UPDATE ugly.uniques SET a = 6 WHERE e = 6;
COMMIT;
CREATE TABLE ugly.excluded (id int PRIMARY KEY, during daterange, area box, n int,
    CONSTRAINT no_overlap EXCLUDE USING gist (during WITH &&) WHERE (n > 0) DEFERRABLE INITIALLY DEFERRED,
    EXCLUDE USING gist (area WITH &&, during WITH &&), EXCLUDE USING btree (n ugly.rev_int_ops WITH =), EXCLUDE USING hash ((id % 1000) WITH =));
INSERT INTO ugly.excluded VALUES (1, '[2000-01-01,2000-02-01)', '(0,0),(1,1)', 1), (2, '[2000-02-01,)', '(2,2),(3,3)', 2), (3, 'empty', NULL, NULL), (4, '(,2000-01-01)', '(5,5),(6,6)', 4);
\if :ge18
-- Temporal keys, constraints not enforced (with rows which break them), named,
-- not valid and not inherited NOT NULL constraints (18).
CREATE TABLE ugly.temporal (k int4range, valid daterange, v text, CONSTRAINT temporal_pk PRIMARY KEY (k, valid WITHOUT OVERLAPS));
INSERT INTO ugly.temporal VALUES ('[1,2)', '[2000-01-01,2001-01-01)', 'a'), ('[1,2)', '[2001-01-01,)', 'b');
CREATE TABLE ugly.temporal_ref (k int4range, during daterange, FOREIGN KEY (k, PERIOD during) REFERENCES ugly.temporal (k, PERIOD valid));
INSERT INTO ugly.temporal_ref VALUES ('[1,2)', '[2000-06-01,2002-01-01)'), (NULL, '[1990-01-01,)');
CREATE TABLE ugly.not_enforced (id int PRIMARY KEY, r int CONSTRAINT fk_not_enforced REFERENCES ugly.fk_target NOT ENFORCED, v int CONSTRAINT ck_not_enforced CHECK (v > 0) NOT ENFORCED);
INSERT INTO ugly.not_enforced VALUES (1, 999, -1), (2, NULL, NULL);
CREATE TABLE ugly.not_nulls (a int CONSTRAINT "Named ""NN""" NOT NULL, b int, c int CONSTRAINT nn_no_inherit NOT NULL NO INHERIT, d int);
INSERT INTO ugly.not_nulls VALUES (1, NULL, 1, 1);
ALTER TABLE ugly.not_nulls ADD CONSTRAINT nn_not_valid NOT NULL b NOT VALID;
COMMENT ON CONSTRAINT nn_not_valid ON ugly.not_nulls IS 'not valid, and not true';
CREATE TABLE ugly.not_nulls_child (e int CONSTRAINT nn_child NOT NULL, CONSTRAINT nn_d NOT NULL d) INHERITS (ugly.not_nulls);
INSERT INTO ugly.not_nulls_child VALUES (1, 2, NULL, 4, 5);
CREATE TABLE ugly.not_nulls_partitioned (a int CONSTRAINT nn_part NOT NULL, b int) PARTITION BY LIST (a);
CREATE TABLE ugly.not_nulls_partition (b int, a int CONSTRAINT nn_other_name NOT NULL);
ALTER TABLE ugly.not_nulls_partitioned ATTACH PARTITION ugly.not_nulls_partition FOR VALUES IN (1);
INSERT INTO ugly.not_nulls_partitioned VALUES (1, 2);
\endif

------------------------------------------------------------------------------
-- 10. Indexes and statistics
------------------------------------------------------------------------------
CREATE TABLE ugly.indexed (id int PRIMARY KEY, t text, a int[], j jsonb, ts timestamptz, r int4range, p point, v tsvector, n numeric);
INSERT INTO ugly.indexed SELECT i, 'Text ' || i % 10, ARRAY[i, i + 1], jsonb_build_object('k', i), timestamptz '2020-01-01 00:00:00+00' + i * interval '1 hour',
    int4range(i, i + 2), point(i, -i), to_tsvector('simple', 'word' || i), i / 7.0 FROM generate_series(1, 200) i;
CREATE INDEX "expression index" ON ugly.indexed (lower(t) COLLATE "POSIX" text_pattern_ops DESC NULLS LAST, (id % 10), n ASC NULLS FIRST) INCLUDE (ts, j) WHERE t IS NOT NULL AND n > 0.5;
CREATE UNIQUE INDEX indexed_unique_partial ON ugly.indexed (t) WHERE id <= 5;
CREATE UNIQUE INDEX indexed_nulls ON ugly.indexed (id, n) NULLS NOT DISTINCT;
CREATE INDEX indexed_date_constant ON ugly.indexed (ts) WHERE ts > '2020-02-01 00:00:00+00' AND ts <> 'infinity';
CREATE INDEX indexed_own_function ON ugly.indexed (ugly."Twice""It"(id), ugly.rev_cmp(id, 5));
CREATE INDEX indexed_own_class ON ugly.indexed (id ugly.rev_int_ops DESC);
CREATE INDEX indexed_whole_row ON ugly.indexed USING hash ((indexed.* IS NULL)) WHERE false;
CREATE INDEX indexed_gin ON ugly.indexed USING gin (a, j jsonb_path_ops, v) WITH (fastupdate = off, gin_pending_list_limit = 128);
CREATE INDEX indexed_gist ON ugly.indexed USING gist (r, p, v tsvector_ops (siglen = 64)) WITH (buffering = on);
CREATE INDEX indexed_spgist ON ugly.indexed USING spgist (p kd_point_ops) INCLUDE (id);
CREATE INDEX indexed_brin ON ugly.indexed USING brin (ts timestamptz_minmax_multi_ops (values_per_range = 16), n, id int4_bloom_ops (false_positive_rate = 0.05)) WITH (pages_per_range = 8, autosummarize = on);
CREATE INDEX indexed_hash ON ugly.indexed USING hash (t) WITH (fillfactor = 90);
ALTER INDEX ugly."expression index" ALTER COLUMN 2 SET STATISTICS 77;
CREATE STATISTICS ugly."Stat x" (ndistinct, dependencies, mcv) ON t, n, id FROM ugly.indexed;
CREATE STATISTICS ugly.stat_expression ON (id % 10), lower(t), n FROM ugly.indexed;
CREATE STATISTICS "Ugly Schema".stat_one_expression ON (n * 2) FROM ugly.indexed;
ALTER STATISTICS ugly."Stat x" SET STATISTICS 55;
ALTER STATISTICS ugly.stat_expression OWNER TO ugly_owner;
COMMENT ON STATISTICS ugly."Stat x" IS 'statistics';
COMMENT ON INDEX ugly."expression index" IS 'an index';
ANALYZE ugly.indexed;
\if :{?ugly_no_invalid_index}
\else
-- An invalid index, left over by a concurrent build which failed.  A dump
-- leaves it out, so the restored database does not have it.  This is the one
-- place where loading must print an ERROR.
\warn 'ugly.sql: the next ERROR (could not create unique index "left invalid") is intended'
\set ON_ERROR_STOP off
CREATE UNIQUE INDEX CONCURRENTLY "left invalid" ON ugly.duplicates (a);
\set ON_ERROR_STOP on
-- If it did get built after all, something is wrong with this script.
DO $$
BEGIN
    IF (SELECT indisvalid FROM pg_index WHERE indexrelid = 'ugly."left invalid"'::regclass) THEN
        RAISE EXCEPTION 'the invalid index is valid';
    END IF;
END
$$;
\endif

------------------------------------------------------------------------------
-- 11. Functions, procedures, aggregates
------------------------------------------------------------------------------
-- Overloads, argument modes, defaults, VARIADIC, polymorphic, tables.
CREATE FUNCTION ugly.over(int) RETURNS text LANGUAGE sql AS $$ SELECT 'int' $$;
CREATE FUNCTION ugly.over(text) RETURNS text LANGUAGE sql AS $$ SELECT 'text' $$;
CREATE FUNCTION ugly.over(int, "Arg Two" text DEFAULT 'it''s \ "x"', c date DEFAULT DATE '2001-02-03', d interval DEFAULT '1 day -00:00:01') RETURNS text LANGUAGE sql AS $$ SELECT $2 $$;
CREATE FUNCTION ugly."Over"(INOUT a int, OUT "b c" text, IN d int DEFAULT 1, VARIADIC e text[] DEFAULT '{}') LANGUAGE plpgsql
    AS $$ BEGIN "b c" := e[1] || d; END $$;
CREATE FUNCTION ugly.poly(anyelement, anyarray, anyrange DEFAULT NULL::int4range) RETURNS anyarray LANGUAGE sql IMMUTABLE AS 'SELECT $2 || $1';
CREATE FUNCTION ugly.poly_compatible(VARIADIC anycompatiblearray) RETURNS anycompatible LANGUAGE sql AS 'SELECT $1[1]';
CREATE FUNCTION ugly.returns_table(n int) RETURNS TABLE (i int, "T x" text) LANGUAGE sql STABLE ROWS 7 COST 123.5 PARALLEL RESTRICTED AS 'SELECT g, g::text FROM generate_series(1, n) g';
CREATE FUNCTION ugly.returns_setof() RETURNS SETOF ugly.comp LANGUAGE sql STABLE AS 'SELECT c FROM ugly.v_composites';
CREATE FUNCTION ugly.empty_string_body() RETURNS void LANGUAGE sql AS '';
-- Bodies with dollar quotes, backslashes, CR LF, lines which look like the end
-- of COPY data or commands of psql.
CREATE FUNCTION ugly.dollars() RETURNS text LANGUAGE plpgsql AS $outer$
DECLARE
    x text := $$ $_$ $function$ it's \ $$;
BEGIN
    -- $_X$ $body$
    RETURN x || E'\n\\.\n' || '
\.
\connect nowhere
\unrestrict x
';
END
$outer$;
DO $$
BEGIN
    EXECUTE E'CREATE FUNCTION ugly.crlf() RETURNS text LANGUAGE plpgsql AS ''\r\nBEGIN\r\n\tRETURN ''''\r\r\n \\''''; \r\nEND\r\n''';
END
$$;
CREATE FUNCTION ugly."ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffF"("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" int)
    RETURNS int LANGUAGE "ugly PL" TRANSFORM FOR TYPE ugly.comp AS $$ BEGIN RETURN 1; END $$;
-- SET clauses: list settings with odd names, own settings, from the session.
SET ugly.odd_setting = 'it''s, "odd" \';
CREATE FUNCTION ugly.with_settings() RETURNS text LANGUAGE sql SECURITY DEFINER
    SET search_path = "Ugly Schema", "quote"" in schema", "a, b", '', pg_temp
    SET datestyle = 'German, DMY' SET "ugly.Odd" = 'x''y"z\' SET ugly.odd_setting FROM CURRENT SET work_mem = '7MB' SET statement_timeout = '1min'
    AS $$ SELECT current_setting('ugly.odd_setting') $$;
RESET ugly.odd_setting;
ALTER FUNCTION ugly.with_settings() OWNER TO "ugly_Mixed Case ""Rôle"" o'x $1 \n";
-- Leakproof, support function, window function, strict parallel safe.
CREATE FUNCTION ugly.leakproof(int) RETURNS int LANGUAGE sql IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE COST 0.5 AS 'SELECT $1';
CREATE FUNCTION ugly.with_support(int, int) RETURNS SETOF int LANGUAGE internal IMMUTABLE STRICT ROWS 9 SUPPORT generate_series_int4_support AS 'generate_series_int4';
CREATE FUNCTION ugly.my_row_number() RETURNS bigint LANGUAGE internal WINDOW IMMUTABLE STRICT AS 'window_row_number';
-- SQL-standard bodies: stored parsed, so they depend on tables, columns and
-- even on the primary key (grouping by it).
CREATE TABLE ugly.atomic_base (id int PRIMARY KEY, "N ame" text, amount numeric DEFAULT 0);
INSERT INTO ugly.atomic_base VALUES (1, 'one', 1.5), (2, 'two', 2.50), (3, NULL, NULL);
CREATE FUNCTION ugly.atomic_return(a int, b int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE RETURN a + b * 2;
CREATE FUNCTION ugly.atomic_body("Ä" int) RETURNS SETOF text LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT "N ame" FROM ugly.atomic_base WHERE id = "Ä" OR "N ame" IN ('a', E'\\x');
    SELECT b."N ame" || '!' FROM ugly.atomic_base b JOIN ugly."MixedCase" m ON m."Id" = b.id WHERE b.id > "Ä";
END;
CREATE FUNCTION ugly.atomic_key() RETURNS bigint LANGUAGE sql
BEGIN ATOMIC
    SELECT count(*) FROM (SELECT id, "N ame" FROM ugly.atomic_base GROUP BY id) s;
END;
CREATE PROCEDURE ugly.atomic_procedure(i int) LANGUAGE sql
BEGIN ATOMIC
    UPDATE ugly.atomic_base SET amount = amount + 0 WHERE id = i;
    DELETE FROM ugly.atomic_base WHERE false;
END;
CREATE PROCEDURE ugly."Proc edure"(INOUT a int, OUT b text, c int DEFAULT 1) LANGUAGE plpgsql AS $$ BEGIN COMMIT; b := 'x'; END $$;
-- A body which refers to what does not exist: valid when checks are off, as
-- they are during a restore.
SET check_function_bodies = off;
CREATE FUNCTION ugly.refers_to_nothing() RETURNS int LANGUAGE sql AS 'SELECT x FROM nowhere.nothing';
SET check_function_bodies = on;
COMMENT ON FUNCTION ugly.over(int, text, date, interval) IS 'an "overloaded" function';
COMMENT ON PROCEDURE ugly."Proc edure"(INOUT int, OUT text, int) IS 'a procedure';

-- Aggregates: plain with all options, moving, ordered-set, hypothetical-set,
-- without arguments, variadic, combined in parallel.
CREATE AGGREGATE ugly.sum_twice(int) (SFUNC = int4_sum, STYPE = bigint, COMBINEFUNC = int8pl, INITCOND = '0', PARALLEL = SAFE, SSPACE = 100);
CREATE AGGREGATE ugly.moving(float8) (SFUNC = float8pl, STYPE = float8, MSFUNC = float8pl, MINVFUNC = float8mi, MSTYPE = float8, INITCOND = '0', MINITCOND = '0', FINALFUNC_MODIFY = READ_ONLY, MFINALFUNC_MODIFY = SHAREABLE);
CREATE AGGREGATE ugly.my_percentile(float8 ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
CREATE AGGREGATE ugly.my_rank(VARIADIC "any" ORDER BY VARIADIC "any") (SFUNC = ordered_set_transition_multi, STYPE = internal, FINALFUNC = rank_final, FINALFUNC_EXTRA, HYPOTHETICAL);
CREATE AGGREGATE ugly."Count *"(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0');
CREATE FUNCTION ugly.variadic_add(int, VARIADIC int[]) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT coalesce($1, 0) + coalesce($2[1], 0)';
CREATE AGGREGATE ugly.variadic_sum(VARIADIC int[]) (SFUNC = ugly.variadic_add, STYPE = int, INITCOND = '0');
CREATE AGGREGATE ugly.my_max(ugly.weird_int) (SFUNC = ugly.weird_larger, STYPE = ugly.weird_int, SORTOP = OPERATOR(ugly.>));
COMMENT ON AGGREGATE ugly."Count *"(*) IS 'an aggregate without arguments';

-- A column default, an index, a policy etc. with a function need it to be
-- restored first; a view which needs a function which needs the view's type.
CREATE VIEW ugly.typed_view AS SELECT 1 AS a, 'x'::text AS b;
CREATE FUNCTION ugly.takes_view(ugly.typed_view) RETURNS text LANGUAGE sql STABLE AS 'SELECT ($1).b';
CREATE FUNCTION ugly.gives_view() RETURNS SETOF ugly.typed_view LANGUAGE sql STABLE AS 'SELECT * FROM ugly.typed_view';
CREATE OR REPLACE VIEW ugly.typed_view AS SELECT 1 AS a, 'x'::text AS b, ugly.takes_view(NULL) AS c;

------------------------------------------------------------------------------
-- 12. Views, materialized views, rules
------------------------------------------------------------------------------
CREATE VIEW ugly."View 1" AS SELECT *, a + 1 AS "A Plus", 'x' AS "?column?" FROM ugly.altered;
CREATE VIEW ugly.view_2 AS SELECT v."A Plus", m.* FROM ugly."View 1" v JOIN ugly."MixedCase" m ON m."Id" = v.a;
CREATE VIEW "Ugly Schema"."view 3" ("first", "2nd", "Third") AS SELECT v."A Plus", count(*), max(v."ID") FROM ugly.view_2 v GROUP BY 1;
-- Its columns were renamed after the view was made, and so were its tables'.
CREATE TABLE ugly.using_1 (x int, y int);
CREATE TABLE ugly.using_2 (x int, z int);
CREATE VIEW ugly.using_view AS SELECT * FROM ugly.using_1 JOIN ugly.using_2 USING (x) AS "both" LEFT JOIN ugly.using_1 t3 (a, y) USING (y);
ALTER TABLE ugly.using_2 RENAME x TO renamed;
ALTER TABLE ugly.using_1 ADD COLUMN z int;
ALTER VIEW ugly.using_view RENAME COLUMN z TO "z renamed";
INSERT INTO ugly.using_1 VALUES (1, 2, 3);
INSERT INTO ugly.using_2 VALUES (1, 5);
-- No columns; no FROM; all 1600 columns of the wide table.
CREATE VIEW ugly.no_columns_view AS SELECT FROM ugly.no_columns;
CREATE VIEW ugly.wide_view AS SELECT * FROM ugly.wide;
CREATE RECURSIVE VIEW ugly.recursive_view (n, path) AS VALUES (1, '1') UNION ALL SELECT n + 1, path || ',' || n + 1 FROM recursive_view WHERE n < 5;
CREATE VIEW ugly.search_cycle AS WITH RECURSIVE s (id, parent) AS (SELECT id, parent FROM ugly.tree WHERE id = 1 UNION ALL SELECT t.id, t.parent FROM ugly.tree t JOIN s ON t.parent = s.id)
    SEARCH DEPTH FIRST BY id SET ord CYCLE id SET is_cycle TO 1 DEFAULT 0 USING p SELECT id, is_cycle FROM s;
-- (String constants as cycle marks cannot be restored, hence the numbers: see
-- "Unrestorable".)
-- Everything the rule deparser knows about.
CREATE VIEW ugly.deparse AS
    WITH m AS MATERIALIZED (SELECT 1 AS x), nm AS NOT MATERIALIZED (SELECT 2 AS x)
    SELECT DISTINCT ON (i.id) i.id, sum(i.n) OVER w AS sum, rank() OVER (PARTITION BY i.t ORDER BY i.n DESC NULLS LAST ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) AS r,
        CASE i.t WHEN 'Text 1' THEN 'one' WHEN E'\\''' THEN NULL ELSE i.t COLLATE "C" END AS c, CASE WHEN i.id > 5 THEN 1 END AS c2, coalesce(i.t, 'x'), nullif(i.id, 5), greatest(1, i.id), i.a[1:2], (ROW(1, 'x'::text)).f2,
        i.j -> 'k' ->> 0 AS j, EXISTS (SELECT 1 FROM ugly.tree t WHERE t.id = i.id) AS ex, i.id IN (SELECT id FROM ugly.tree) AS inq, i.id = ANY (ARRAY(SELECT id FROM ugly.tree)) AS anyq, i.ts AT TIME ZONE 'Asia/Kathmandu' AS at,
        extract(epoch FROM i.ts) AS ep, overlay('abc' PLACING 'x' FROM 2), trim(LEADING 'x' FROM i.t) AS tr, position('x' IN i.t) AS po, i.t IS DISTINCT FROM 'a' AS dis, (i.id, i.n) < (5, 6) AS rc, i.* IS NULL AS wr, l.g, o.o, o.q, x.*, m.x + nm.x AS mx,
        interval '1 year -2 days 03:04:05' AS iv, DATE '2001-02-03' AS da, '\xdead'::bytea AS by, 1e300::float8 AS fl, B'101' AS bi, i.t SIMILAR TO 'a%' AS si, i.ts BETWEEN SYMMETRIC '2020-01-01' AND i.ts AS be, current_setting('server_encoding') AS cs, grouping_dummy.*,
        ugly.over(i.t), (ugly."Over"(i.id, 1, VARIADIC ARRAY['x']))."b c", ugly.over(1, c => '2000-01-01') AS named, 'x' OPERATOR("Ugly Schema".<#~@#>) 'y' AS opx, (i.id::ugly.weird_int) OPERATOR(ugly.=) '5' AS opy, xx.a AS "select"
    FROM ugly.indexed i CROSS JOIN LATERAL (SELECT i.id + 1 AS g OFFSET 0) l LEFT JOIN ROWS FROM (generate_series(1, 2), unnest(ARRAY['a', 'b'])) WITH ORDINALITY AS o (o, p, q) ON o.q = i.id,
        m, nm, (VALUES (1, 'a'), (2, NULL)) AS x (v1, "V 2"), (SELECT count(*) AS cnt, count(*) FILTER (WHERE id > 3) AS flt, array_agg(DISTINCT parent ORDER BY parent DESC) AS ag, percentile_cont(0.5) WITHIN GROUP (ORDER BY id) AS pc FROM ugly.tree) grouping_dummy,
        ugly.fk_target TABLESAMPLE system (100) REPEATABLE (1), jsonb_to_recordset('[{"a":1}]') AS xx (a int, "B" text)
    WHERE i.id <= 20 AND NOT i.id = 7 WINDOW w AS (ORDER BY i.id RANGE BETWEEN UNBOUNDED PRECEDING AND 1 FOLLOWING) ORDER BY i.id, i.n USING > LIMIT 5 OFFSET 1;
CREATE VIEW ugly.set_operations AS (SELECT 1 AS a, NULL AS b UNION ALL SELECT 2, 'x' ORDER BY 1 LIMIT 1) EXCEPT ((SELECT 3, 'y' INTERSECT SELECT 4, 'z') UNION SELECT 5, 'q') ORDER BY a DESC;
CREATE VIEW ugly.grouping_sets AS SELECT t, id % 2 AS odd, grouping(t, id % 2) AS g, count(*) FROM ugly.indexed GROUP BY GROUPING SETS ((t), CUBE (id % 2, t), ()), t HAVING count(*) > 1;
CREATE VIEW ugly.fetch_ties AS SELECT id FROM ugly.tree ORDER BY id FETCH FIRST 2 ROWS WITH TIES;
\if :ge16
CREATE VIEW ugly.sql_json AS SELECT JSON_OBJECT('a': 1, 'b': NULL ABSENT ON NULL WITH UNIQUE KEYS RETURNING jsonb) AS o, JSON_ARRAY(1, 'x' NULL ON NULL) AS a, '{}' IS JSON OBJECT AS isj, JSON_ARRAYAGG(id ORDER BY id DESC RETURNING text) AS agg FROM ugly.tree;
\endif
\if :ge17
CREATE VIEW ugly.json_table_view AS SELECT jt.* FROM JSON_TABLE(jsonb '[{"a":1,"b":["x"]}]', '$[*]' AS "Path x" PASSING 5 AS y COLUMNS (ord FOR ORDINALITY, a int PATH '$.a' DEFAULT 7 ON EMPTY, e boolean EXISTS PATH '$.q', NESTED PATH '$.b[*]' AS nb COLUMNS ("B b" text PATH '$'))) AS jt;
\endif
-- Updatable views: security barrier, check options, security invoker, column
-- defaults, INSTEAD OF triggers (below), not owned by us.
CREATE VIEW ugly.barrier WITH (security_barrier = true, security_invoker = true) AS SELECT * FROM ugly.checks WHERE id > 0;
CREATE VIEW ugly.check_local AS SELECT id, t FROM ugly.checks WHERE id < 100 WITH LOCAL CHECK OPTION;
CREATE VIEW ugly.check_cascaded AS SELECT id, t FROM ugly.check_local WHERE t <> 'x' WITH CASCADED CHECK OPTION;
ALTER VIEW ugly.check_cascaded ALTER COLUMN t SET DEFAULT 'view default';
ALTER VIEW ugly.check_local OWNER TO ugly_owner;
-- Views which depend on a primary key (grouping by it): views are restored
-- before keys, so they appear twice in a dump.
CREATE VIEW ugly.needs_key AS SELECT id, "N ame", amount, count(*) FROM ugly.atomic_base GROUP BY id;
CREATE VIEW ugly.needs_needs_key AS SELECT "N ame", count FROM ugly.needs_key;
COMMENT ON VIEW ugly.needs_key IS 'a view';
COMMENT ON COLUMN ugly.needs_key."N ame" IS 'a column of a view';
-- Materialized views: filled, not filled, indexed, on each other, needing a
-- key, with parameters, of another access method, in name order against the
-- order of dependency; on a function which reads a table the dump does not
-- know about.
CREATE MATERIALIZED VIEW ugly.mv_z_first AS SELECT id, t, n FROM ugly.indexed WHERE id <= 50;
CREATE MATERIALIZED VIEW ugly.mv_a_second WITH (fillfactor = 70) AS SELECT t, count(*) AS "C", sum(n) AS s FROM ugly.mv_z_first GROUP BY t;
CREATE UNIQUE INDEX "mv ix" ON ugly.mv_a_second (t) INCLUDE (s);
CREATE MATERIALIZED VIEW ugly.mv_unfilled AS SELECT * FROM ugly.mv_a_second WITH NO DATA;
CREATE INDEX ON ugly.mv_unfilled (t);
CREATE MATERIALIZED VIEW ugly.mv_needs_key AS SELECT id, "N ame", count(*) FROM ugly.atomic_base GROUP BY id;
CREATE FUNCTION ugly.hidden_dependency() RETURNS bigint LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT count(*) FROM ugly.zz_hidden); END $$;
CREATE TABLE ugly.zz_hidden (id int PRIMARY KEY);
INSERT INTO ugly.zz_hidden VALUES (1), (2), (3);
CREATE MATERIALIZED VIEW ugly.mv_hidden USING "ugly Heap" AS SELECT ugly.hidden_dependency() AS n;
CREATE MATERIALIZED VIEW ugly.mv_no_columns AS SELECT FROM ugly.no_columns;
ALTER MATERIALIZED VIEW ugly.mv_a_second ALTER s SET STATISTICS 12, CLUSTER ON "mv ix";
ALTER MATERIALIZED VIEW ugly.mv_unfilled OWNER TO ugly_owner;
COMMENT ON MATERIALIZED VIEW ugly.mv_a_second IS 'a materialized view';
-- Rules.  COPY does not follow them, INSERT does: a restore by INSERT loses
-- the rows of "ruled_nothing".
CREATE TABLE ugly.rule_log (what text, id int);
CREATE TABLE ugly.ruled (id int PRIMARY KEY, v text);
INSERT INTO ugly.ruled VALUES (1, 'one'), (2, 'two');
CREATE RULE "log it" AS ON INSERT TO ugly.ruled DO ALSO INSERT INTO ugly.rule_log VALUES ('must not happen in a restore', NEW.id);
CREATE RULE multi AS ON UPDATE TO ugly.ruled WHERE OLD.v <> NEW.v DO ALSO (INSERT INTO ugly.rule_log VALUES ('u' || E'\\', OLD.id); DELETE FROM ugly.rule_log WHERE id < -5);
CREATE RULE notify AS ON UPDATE TO ugly.ruled DO ALSO NOTIFY "Ugly Channel", 'it''s';
CREATE RULE disabled AS ON DELETE TO ugly.ruled DO INSTEAD NOTHING;
ALTER TABLE ugly.ruled DISABLE RULE disabled, ENABLE ALWAYS RULE multi;
CREATE TABLE ugly.ruled_nothing (id int PRIMARY KEY);
INSERT INTO ugly.ruled_nothing VALUES (1), (2), (3);
CREATE RULE nothing AS ON INSERT TO ugly.ruled_nothing DO INSTEAD NOTHING;
CREATE VIEW ugly.ruled_view AS SELECT id, v FROM ugly.ruled;
CREATE RULE ins AS ON INSERT TO ugly.ruled_view DO INSTEAD INSERT INTO ugly.ruled VALUES (NEW.id, NEW.v) RETURNING ruled.*;
CREATE RULE upd AS ON UPDATE TO ugly.ruled_view DO INSTEAD UPDATE ugly.ruled SET v = NEW.v WHERE id = OLD.id;
COMMENT ON RULE "log it" ON ugly.ruled IS 'a rule';

------------------------------------------------------------------------------
-- 13. Triggers
------------------------------------------------------------------------------
-- Triggers which do damage if they fire while data are restored: raise, add
-- rows elsewhere, change or drop rows; always, in replicas only, disabled.
CREATE FUNCTION ugly.raise_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trigger % of % must not fire', TG_NAME, TG_TABLE_NAME; END $$;
CREATE FUNCTION ugly.damage_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ugly.rule_log VALUES ('damage by ' || TG_NAME, 0);
    IF TG_LEVEL = 'ROW' AND TG_WHEN = 'BEFORE' THEN RETURN NULL; END IF;
    RETURN NEW;
END $$;
CREATE TABLE ugly.triggered (id int PRIMARY KEY, v text);
INSERT INTO ugly.triggered VALUES (1, 'one'), (2, 'two');
CREATE TRIGGER "Raise ""Always""" BEFORE INSERT OR UPDATE OR DELETE ON ugly.triggered FOR EACH ROW EXECUTE FUNCTION ugly.raise_trigger();
CREATE TRIGGER raise_truncate BEFORE TRUNCATE ON ugly.triggered EXECUTE FUNCTION ugly.raise_trigger();
CREATE TRIGGER raise_replica AFTER INSERT ON ugly.triggered FOR EACH STATEMENT EXECUTE FUNCTION ugly.raise_trigger();
CREATE TRIGGER raise_disabled AFTER INSERT ON ugly.triggered FOR EACH ROW EXECUTE FUNCTION ugly.raise_trigger();
ALTER TABLE ugly.triggered ENABLE ALWAYS TRIGGER "Raise ""Always""", ENABLE ALWAYS TRIGGER raise_truncate, ENABLE REPLICA TRIGGER raise_replica, DISABLE TRIGGER raise_disabled;
CREATE TABLE ugly.triggered_2 (id int PRIMARY KEY, v text, "W x" int);
INSERT INTO ugly.triggered_2 VALUES (1, 'one', 1), (2, 'two', 2);
-- Arguments with quotes, backslashes, nothing; WHEN; UPDATE OF; transition
-- tables; constraint trigger.
CREATE TRIGGER arguments AFTER UPDATE OF v, "W x" ON ugly.triggered_2 FOR EACH ROW WHEN (OLD.v IS DISTINCT FROM NEW.v AND NEW."W x" > 0 AND OLD.v <> E'\\''')
    EXECUTE FUNCTION ugly.damage_trigger('it''s', '\', '', '"x"', E'\n', 'é', 1, 2.50, 'NULL', '\000');
CREATE TRIGGER drop_row BEFORE INSERT ON ugly.triggered_2 FOR EACH ROW EXECUTE FUNCTION ugly.damage_trigger();
CREATE TRIGGER transition AFTER INSERT ON ugly.triggered_2 REFERENCING NEW TABLE AS "New Rows" FOR EACH STATEMENT EXECUTE FUNCTION ugly.damage_trigger();
CREATE CONSTRAINT TRIGGER constraint_trigger AFTER INSERT OR UPDATE ON ugly.triggered_2 FROM ugly.triggered DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ugly.damage_trigger('c');
COMMENT ON TRIGGER arguments ON ugly.triggered_2 IS 'a trigger';
CREATE FUNCTION ugly.instead_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN INSERT INTO ugly.mixedcase VALUES (NEW.id, NEW.note); END IF;
    RETURN NEW;
END $$;
CREATE VIEW ugly.instead_view AS SELECT id, note FROM ugly.mixedcase WHERE id < 1000;
CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE OR DELETE ON ugly.instead_view FOR EACH ROW EXECUTE FUNCTION ugly.instead_trigger();
-- On a partitioned table: the clones differ in being enabled.
CREATE TRIGGER partitioned_trigger AFTER INSERT ON ugly.p_list FOR EACH ROW EXECUTE FUNCTION ugly.damage_trigger();
ALTER TABLE ugly.p_list_true DISABLE TRIGGER partitioned_trigger;
ALTER TABLE ugly.p_list_false ENABLE ALWAYS TRIGGER partitioned_trigger;
-- Foreign keys whose triggers are disabled: rows may break them.
CREATE TABLE ugly.fk_disabled (id int PRIMARY KEY, r int REFERENCES ugly.fk_target);
INSERT INTO ugly.fk_disabled VALUES (1, 10);

------------------------------------------------------------------------------
-- 14. Row-level security
------------------------------------------------------------------------------
CREATE TABLE ugly."Secured" (id int PRIMARY KEY, who name, v text);
INSERT INTO ugly."Secured" VALUES (1, 'ugly_reader', 'for the reader'), (2, 'postgres', 'for nobody else'), (3, NULL, NULL);
ALTER TABLE ugly."Secured" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE ugly."Secured" OWNER TO ugly_owner;
CREATE POLICY "Pol ""1""" ON ugly."Secured" FOR SELECT TO ugly_reader, "ugly_Mixed Case ""Rôle"" o'x $1 \n" USING (who = current_user);
CREATE POLICY pol_2 ON ugly."Secured" AS RESTRICTIVE FOR INSERT TO PUBLIC WITH CHECK (id > 0 AND v <> E'\\');
CREATE POLICY pol_3 ON ugly."Secured" FOR UPDATE TO ugly_writer USING (id IN (SELECT a FROM ugly.ri_full)) WITH CHECK (true);
CREATE POLICY pol_4 ON ugly."Secured" FOR DELETE TO SESSION_USER USING (false);
CREATE POLICY "Pol ""1""" ON ugly.ri_full USING (a IS NOT NULL);
COMMENT ON POLICY pol_2 ON ugly."Secured" IS 'a policy';
-- Forced, not enabled; enabled without any policy (nobody sees a row).
ALTER TABLE ugly.ri_index FORCE ROW LEVEL SECURITY;
ALTER TABLE ugly.ri_nothing ENABLE ROW LEVEL SECURITY;

------------------------------------------------------------------------------
-- 15. Text search
------------------------------------------------------------------------------
CREATE TEXT SEARCH PARSER ugly."Parser" (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype, HEADLINE = prsd_headline);
CREATE TEXT SEARCH TEMPLATE ugly.template (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY ugly."Dict ionary" (TEMPLATE = ugly.template, Accept = false);
CREATE TEXT SEARCH DICTIONARY ugly.dict_simple (TEMPLATE = pg_catalog.simple, Accept = 'true');
CREATE TEXT SEARCH CONFIGURATION ugly."Con fig" (PARSER = ugly."Parser");
ALTER TEXT SEARCH CONFIGURATION ugly."Con fig" ADD MAPPING FOR asciiword, word, numword WITH ugly."Dict ionary", ugly.dict_simple;
ALTER TEXT SEARCH CONFIGURATION ugly."Con fig" ADD MAPPING FOR email WITH pg_catalog.simple;
\if :has_english
CREATE TEXT SEARCH CONFIGURATION ugly.copied (COPY = pg_catalog.english);
ALTER TEXT SEARCH CONFIGURATION ugly.copied ALTER MAPPING REPLACE english_stem WITH ugly.dict_simple;
ALTER TEXT SEARCH CONFIGURATION ugly.copied DROP MAPPING FOR url, host;
\endif
ALTER TEXT SEARCH CONFIGURATION ugly."Con fig" OWNER TO ugly_owner;
ALTER TEXT SEARCH DICTIONARY ugly.dict_simple OWNER TO ugly_owner;
COMMENT ON TEXT SEARCH PARSER ugly."Parser" IS 'a parser';
COMMENT ON TEXT SEARCH TEMPLATE ugly.template IS 'a template';
COMMENT ON TEXT SEARCH DICTIONARY ugly."Dict ionary" IS 'a dictionary';
COMMENT ON TEXT SEARCH CONFIGURATION ugly."Con fig" IS 'a configuration';
CREATE TABLE ugly.searched (id int PRIMARY KEY, body text, v tsvector GENERATED ALWAYS AS (to_tsvector('ugly."Con fig"'::regconfig, body)) STORED);
INSERT INTO ugly.searched VALUES (1, 'The Quick brown fox, fox@example.com'), (2, ''), (3, NULL);
CREATE INDEX ON ugly.searched USING gin (to_tsvector('ugly."Con fig"'::regconfig, body));

------------------------------------------------------------------------------
-- 16. Foreign data
------------------------------------------------------------------------------
-- A wrapper without handler: its tables can be defined but never read, so
-- whoever reads "all tables" fails on them.
CREATE FOREIGN DATA WRAPPER "ugly FDW" OPTIONS (debug 'it''s "true" \', "Opt ion" '');
CREATE SERVER "ugly Server" TYPE 'ty''pe' VERSION '1.0 "beta"' FOREIGN DATA WRAPPER "ugly FDW" OPTIONS (host '/no where', "pass word" 'x=''y''');
CREATE SERVER ugly_server_2 FOREIGN DATA WRAPPER "ugly FDW";
CREATE USER MAPPING FOR PUBLIC SERVER "ugly Server";
CREATE USER MAPPING FOR ugly_reader SERVER "ugly Server" OPTIONS (user 'x', password 'not ''a'' secret \');
CREATE USER MAPPING FOR "ugly_Mixed Case ""Rôle"" o'x $1 \n" SERVER ugly_server_2 OPTIONS ("a b" 'c');
CREATE USER MAPPING FOR CURRENT_USER SERVER ugly_server_2;
CREATE FOREIGN TABLE ugly."Foreign Table" (id int OPTIONS (column_name 'I "D"') NOT NULL, "T x" text OPTIONS (a '\') COLLATE "C" DEFAULT 'x', CHECK (id > 0), g int GENERATED ALWAYS AS (id * 2) STORED)
    SERVER "ugly Server" OPTIONS (table_name 'a."b c"', "Opt" 'it''s');
CREATE VIEW ugly.foreign_view AS SELECT * FROM ugly."Foreign Table";
CREATE MATERIALIZED VIEW ugly.mv_foreign AS SELECT id FROM ugly."Foreign Table" WITH NO DATA;
ALTER FOREIGN TABLE ugly."Foreign Table" OWNER TO ugly_owner;
ALTER SERVER ugly_server_2 OWNER TO "ugly_rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr";
GRANT USAGE ON FOREIGN DATA WRAPPER "ugly FDW" TO ugly_owner WITH GRANT OPTION;
GRANT USAGE ON FOREIGN SERVER "ugly Server" TO ugly_reader;
COMMENT ON FOREIGN DATA WRAPPER "ugly FDW" IS 'a wrapper';
COMMENT ON SERVER "ugly Server" IS 'a server';
COMMENT ON FOREIGN TABLE ugly."Foreign Table" IS 'a foreign table';
COMMENT ON COLUMN ugly."Foreign Table"."T x" IS 'a column of a foreign table';
\if :{?ugly_no_foreign_partition}
\else
-- A partitioned table with a foreign partition: its ordinary partitions can
-- be read, the partitioned table as a whole cannot (nor be analyzed).
CREATE TABLE ugly.p_foreign (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE ugly.p_foreign_local PARTITION OF ugly.p_foreign FOR VALUES FROM (0) TO (100);
CREATE FOREIGN TABLE ugly.p_foreign_remote PARTITION OF ugly.p_foreign FOR VALUES FROM (100) TO (200) SERVER "ugly Server";
INSERT INTO ugly.p_foreign_local VALUES (1, 'readable'), (2, 'too');
\endif

------------------------------------------------------------------------------
-- 17. Large objects
------------------------------------------------------------------------------
-- With content, empty, sparse (pages between are not stored here, a restored
-- copy has them as zeroes), ending in a hole, of exactly one and more pages,
-- with an unfinished page in the middle; with owner, privileges and comment;
-- referred to by an oid column.
DO $$
BEGIN
    PERFORM lo_from_bytea(990001, 'large object one');
    PERFORM lo_create(990002);
    PERFORM lo_create(990003), lo_put(990003, 3000000, '\x0102ff00'), lo_put(990003, 100, 'start');
    PERFORM lo_from_bytea(990004, decode(repeat('ab', 2048), 'hex'));
    PERFORM lo_from_bytea(990005, decode(repeat('00ff5c27', 25000), 'hex'));
    PERFORM lo_from_bytea(990006, 'short'), lo_put(990006, 10000, 'far');
    PERFORM lo_create(990007), lo_put(990007, 0, 'cut'), lo_truncate64(lo_open(990007, 131072 + 262144), 50000);
    PERFORM lo_from_bytea(4294967294, '\x00');
END
$$;
ALTER LARGE OBJECT 990003 OWNER TO ugly_owner;
ALTER LARGE OBJECT 990005 OWNER TO "ugly_Mixed Case ""Rôle"" o'x $1 \n";
GRANT SELECT ON LARGE OBJECT 990003 TO PUBLIC;
GRANT SELECT, UPDATE ON LARGE OBJECT 990003, 990004 TO ugly_reader WITH GRANT OPTION;
REVOKE ALL ON LARGE OBJECT 990007 FROM postgres;
COMMENT ON LARGE OBJECT 990003 IS 'sparse "large" object; it''s mostly nothing';
COMMENT ON LARGE OBJECT 990002 IS E'empty\n';
CREATE TABLE ugly.lo_references (id int PRIMARY KEY, lo oid, note text);
INSERT INTO ugly.lo_references VALUES (1, 990001, 'exists'), (2, 990003, 'sparse'), (3, 4000000000, 'does not exist'), (4, 0, 'zero'), (5, 4294967294, 'high');

------------------------------------------------------------------------------
-- 18. Comments, owners, privileges
------------------------------------------------------------------------------
COMMENT ON TABLE ugly."MixedCase" IS E'it''s "commented"\n\\. \n\\N\n$$ \n';
COMMENT ON COLUMN ugly."MixedCase"."iD" IS '';
COMMENT ON COLUMN ugly."MixedCase"."ID" IS E'\x01\x02 \\ \t';
COMMENT ON TABLE ugly."quote"" and 'single' and \back" IS 'quoted';
COMMENT ON CONSTRAINT "calls a ""function""" ON ugly.checks IS 'a check';
COMMENT ON CONSTRAINT "a to b" ON ugly.circle_a IS 'a foreign key';
COMMENT ON INDEX ugly."MixedCase_pkey" IS 'the index of a key';
COMMENT ON CONSTRAINT "MixedCase_pkey" ON ugly."MixedCase" IS 'the key';
COMMENT ON TABLE ugly.p_range IS 'partitioned';
COMMENT ON TABLE ugly.duplicates IS E'\u00a0 long: ';
DO $$
BEGIN
    EXECUTE format('COMMENT ON TABLE ugly.wide IS %L', repeat('long comment ', 1000));
    EXECUTE format('COMMENT ON DATABASE %I IS %L', current_database(), E'the "ugly" database; it''s not \\nice\n');
END
$$;

-- All kinds of privileges; grant options; grants by others than the owner
-- (order matters in a dump); columns; everything revoked, from the owner too
-- (an empty list is not the same as none); revoked defaults; functions and
-- tables of the system.
GRANT ALL ON ugly."MixedCase" TO ugly_reader WITH GRANT OPTION;
GRANT SELECT ON ugly."MixedCase" TO ugly_grantor WITH GRANT OPTION;
GRANT USAGE ON SCHEMA ugly TO ugly_grantor WITH GRANT OPTION;
SET SESSION AUTHORIZATION ugly_grantor;
GRANT SELECT ON ugly."MixedCase" TO ugly_writer WITH GRANT OPTION;
GRANT USAGE ON SCHEMA ugly TO ugly_writer;
SET SESSION AUTHORIZATION ugly_writer;
GRANT SELECT ON ugly."MixedCase" TO ugly_nobody;
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION ugly_reader;
GRANT INSERT, UPDATE ON ugly."MixedCase" TO PUBLIC;
GRANT REFERENCES ("Id", "ID"), SELECT ("iD") ON ugly."MixedCase" TO "ugly_Mixed Case ""Rôle"" o'x $1 \n";
RESET SESSION AUTHORIZATION;
GRANT SELECT (id, "v"), INSERT (id), UPDATE (v), REFERENCES (v) ON ugly.triggered TO ugly_writer WITH GRANT OPTION;
SET SESSION AUTHORIZATION ugly_writer;
GRANT UPDATE (v) ON ugly.triggered TO ugly_reader;
RESET SESSION AUTHORIZATION;
GRANT SELECT (" a ", "b  c") ON ugly." leading and trailing " TO PUBLIC;
GRANT TRUNCATE, TRIGGER ON ugly." " TO "ugly_rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr";
REVOKE ALL ON ugly.mixedcase FROM PUBLIC, postgres;
REVOKE DELETE ON ugly.no_rows FROM postgres;
ALTER TABLE ugly.tree OWNER TO "ugly_Mixed Case ""Rôle"" o'x $1 \n";
REVOKE ALL ON ugly.tree FROM "ugly_Mixed Case ""Rôle"" o'x $1 \n";
GRANT SELECT ON ugly.tree TO PUBLIC, ugly_owner;
\if :ge17
GRANT MAINTAIN ON ugly.clustered TO ugly_reader;
\endif
REVOKE EXECUTE ON FUNCTION ugly.with_settings() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ugly.with_settings() TO ugly_reader WITH GRANT OPTION;
REVOKE ALL ON PROCEDURE ugly."Proc edure"(INOUT int, OUT text, int) FROM PUBLIC, postgres;
REVOKE EXECUTE ON FUNCTION ugly."Count *"() FROM PUBLIC;
REVOKE USAGE ON TYPE ugly.comp FROM PUBLIC;
GRANT USAGE ON TYPE ugly.comp TO ugly_reader WITH GRANT OPTION;
REVOKE USAGE ON DOMAIN ugly."Small Posint" FROM PUBLIC, postgres;
GRANT USAGE ON TYPE ugly.mood, ugly.textrange TO ugly_writer;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_sleep(double precision) TO ugly_reader;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO ugly_owner;
GRANT SELECT ON pg_catalog.pg_statistic TO ugly_reader;
GRANT SELECT (rolname) ON pg_catalog.pg_authid TO ugly_reader;
REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;
GRANT USAGE ON LANGUAGE plpgsql TO ugly_owner WITH GRANT OPTION;
-- Default privileges, second part: other than those which made the ACLs above.
ALTER DEFAULT PRIVILEGES IN SCHEMA "Ugly Schema" REVOKE SELECT ON TABLES FROM ugly_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE ugly_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE ugly_owner GRANT ALL ON TABLES TO ugly_writer WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE ugly_owner REVOKE USAGE ON TYPES FROM PUBLIC, ugly_owner;
ALTER DEFAULT PRIVILEGES FOR ROLE ugly_owner GRANT CREATE ON SCHEMAS TO ugly_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE "ugly_Mixed Case ""Rôle"" o'x $1 \n" IN SCHEMA "select", ugly GRANT INSERT ON TABLES TO PUBLIC;
\if :ge18
ALTER DEFAULT PRIVILEGES FOR ROLE ugly_owner GRANT SELECT ON LARGE OBJECTS TO ugly_reader;
\endif
-- Objects whose owners differ from the owner of their schema.
ALTER TABLE "Ugly Schema".cross_default OWNER TO "ugly_Mixed Case ""Rôle"" o'x $1 \n";
ALTER TYPE ugly.mood OWNER TO ugly_owner;
ALTER DOMAIN ugly.posint OWNER TO ugly_reader;
ALTER OPERATOR ugly.~- (NONE, ugly.weird_int) OWNER TO ugly_owner;
ALTER COLLATION ugly.from_posix OWNER TO ugly_owner;
ALTER CONVERSION ugly."Conv ersion" OWNER TO ugly_owner;
ALTER OPERATOR CLASS ugly.weird_hash_ops USING hash OWNER TO ugly_owner;
ALTER AGGREGATE ugly.moving(float8) OWNER TO ugly_owner;
ALTER TABLE ugly.p_range_old OWNER TO ugly_owner;

------------------------------------------------------------------------------
-- 19. Publications and subscriptions
------------------------------------------------------------------------------
-- No update or delete of tables without key is published: it would fail.
SET client_min_messages = error;  -- wal_level need not be logical
CREATE PUBLICATION ugly_pub_all FOR ALL TABLES WITH (publish = 'insert, truncate');
CREATE TABLE ugly_pub.published (id int PRIMARY KEY, "V x" text, secret text, region int);
CREATE TABLE ugly_pub."Also Published" (id int PRIMARY KEY);
INSERT INTO ugly_pub.published VALUES (1, 'a', 'b', 3);
INSERT INTO ugly_pub."Also Published" VALUES (1);
CREATE PUBLICATION "ugly Pub ""Some""" FOR TABLE ugly_pub.published (id, "V x") WHERE (id > 10 OR id IN (1, 2)), ONLY ugly.inh_parent WHERE (a <> E'\\x'), ugly."MixedCase" ("Id", "iD") WITH (publish = 'insert');
CREATE PUBLICATION ugly_pub_schema FOR TABLES IN SCHEMA ugly_pub, "Ugly Schema", TABLE ugly.ruled WHERE (v IS NOT NULL) WITH (publish = 'insert');
CREATE PUBLICATION ugly_pub_root FOR TABLE ugly.p_range, "select"."select" WITH (publish_via_partition_root = true);
CREATE PUBLICATION ugly_pub_empty WITH (publish = 'delete, update');
\if :ge18
CREATE PUBLICATION ugly_pub_generated FOR TABLE ugly.generated WITH (publish_generated_columns = stored, publish = 'insert');
\endif
ALTER PUBLICATION ugly_pub_empty OWNER TO ugly_owner;
COMMENT ON PUBLICATION "ugly Pub ""Some""" IS 'a publication';
-- Never connected, disabled, without a slot.  DROP DATABASE refuses a database
-- as long as it has a subscription.
CREATE SUBSCRIPTION "ugly Sub" CONNECTION 'host=/nowhere dbname=''no where''' PUBLICATION pub_x, "Pub y" WITH (connect = false, enabled = false, slot_name = NONE, binary = true, streaming = true, synchronous_commit = 'local', disable_on_error = true);
\if :ge16
CREATE SUBSCRIPTION ugly_sub_2 CONNECTION 'dbname=nowhere' PUBLICATION pub_x WITH (connect = false, enabled = false, slot_name = NONE, origin = none, streaming = parallel, password_required = false, run_as_owner = true);
\endif
COMMENT ON SUBSCRIPTION "ugly Sub" IS 'a subscription';
SET client_min_messages = warning;

------------------------------------------------------------------------------
-- 20. Names of system objects
------------------------------------------------------------------------------
-- Found before those of pg_catalog by everybody who neither pins search_path
-- nor qualifies names (see the setting of the database below).
CREATE TABLE "ugly shadow".pg_class (oid oid, relname name, relnamespace oid, relkind "char");
CREATE TABLE "ugly shadow".pg_namespace (oid oid, nspname name);
CREATE TABLE "ugly shadow".pg_sequences (schemaname name, sequencename name, last_value bigint);
INSERT INTO "ugly shadow".pg_class VALUES (1, 'wrong', 2, 'r');
INSERT INTO "ugly shadow".pg_namespace VALUES (2, 'wrong');
CREATE FUNCTION "ugly shadow".md5(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a function of the user was called instead of pg_catalog.md5: search_path is not pinned'; END $$;
CREATE FUNCTION "ugly shadow".quote_ident(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a function of the user was called instead of pg_catalog.quote_ident: search_path is not pinned'; END $$;
CREATE FUNCTION "ugly shadow".hashtext(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a function of the user was called instead of pg_catalog.hashtext: search_path is not pinned'; END $$;
CREATE FUNCTION "ugly shadow".pg_get_viewdef(oid) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a function of the user was called instead of pg_catalog.pg_get_viewdef: search_path is not pinned'; END $$;

------------------------------------------------------------------------------
-- 21. Tables for traffic (see traffic.sql)
------------------------------------------------------------------------------
-- No materialized view reads them, so the views do not become stale.
CREATE SCHEMA "Traffic Lights";
CREATE TABLE "Traffic Lights".log (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), note text, payload jsonb, twice int GENERATED ALWAYS AS (length(note) * 2) STORED);
CREATE TABLE "Traffic Lights"."Counter" (k text PRIMARY KEY, n bigint NOT NULL DEFAULT 0, changed timestamptz);
INSERT INTO "Traffic Lights"."Counter" VALUES ('a', 0), ('b', 0), ('c "d"', 0);
CREATE TABLE "Traffic Lights".parent (id serial PRIMARY KEY, v text);
CREATE TABLE "Traffic Lights".child (id bigserial PRIMARY KEY, parent int REFERENCES "Traffic Lights".parent ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED, v numeric);
CREATE TABLE "Traffic Lights".parts (id bigint NOT NULL, kind int NOT NULL, v text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
CREATE TABLE "Traffic Lights".parts_0 PARTITION OF "Traffic Lights".parts FOR VALUES IN (0);
CREATE TABLE "Traffic Lights".parts_1 (v text, kind int NOT NULL, junk int, id bigint NOT NULL);
ALTER TABLE "Traffic Lights".parts_1 DROP COLUMN junk;
ALTER TABLE "Traffic Lights".parts ATTACH PARTITION "Traffic Lights".parts_1 FOR VALUES IN (1);
CREATE TABLE "Traffic Lights".parts_rest PARTITION OF "Traffic Lights".parts DEFAULT;
CREATE TABLE "Traffic Lights".audited (id int PRIMARY KEY, v text);
CREATE TABLE "Traffic Lights".audit (id bigserial PRIMARY KEY, op text, old jsonb, new jsonb);
-- A trigger which fires in normal work and must not fire in a restore: it
-- would double the rows of "audit".
CREATE FUNCTION "Traffic Lights".audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO "Traffic Lights".audit (op, old, new)
        VALUES (TG_OP, CASE WHEN TG_OP <> 'INSERT' THEN pg_catalog.to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN pg_catalog.to_jsonb(NEW) END);
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON "Traffic Lights".audited FOR EACH ROW EXECUTE FUNCTION "Traffic Lights".audit();
INSERT INTO "Traffic Lights".audited VALUES (1, 'one'), (2, 'two');
CREATE TABLE "Traffic Lights".big (id int PRIMARY KEY, t text);
ALTER TABLE "Traffic Lights".big ALTER t SET STORAGE EXTERNAL;
INSERT INTO "Traffic Lights".big VALUES (1, repeat('x', 20000));
CREATE UNLOGGED TABLE "Traffic Lights".unlogged (id int PRIMARY KEY, n bigint);
INSERT INTO "Traffic Lights".unlogged VALUES (1, 0);
CREATE SEQUENCE "Traffic Lights".seq_up;
CREATE SEQUENCE "Traffic Lights"."Seq Cycle" AS smallint MINVALUE -3 MAXVALUE 3 CYCLE;
CREATE SEQUENCE "Traffic Lights".seq_jump CACHE 10;
DO $$ BEGIN PERFORM lo_from_bytea(990100, 'traffic'); END $$;
-- Fixed values instead of the time of loading.
INSERT INTO "Traffic Lights".log (at, note, payload) VALUES ('2020-01-01 00:00:00+00', 'first', '{"a": 1}'), ('2020-01-02 00:00:00+00', '', NULL);
INSERT INTO "Traffic Lights".parent (v) VALUES ('p1'), ('p2');
INSERT INTO "Traffic Lights".child (parent, v) VALUES (1, 1.0), (1, 1.00), (2, NULL);
INSERT INTO "Traffic Lights".parts SELECT i, i % 4, 'part ' || i FROM generate_series(1, 40) i;

\if :{?ugly_differing}
------------------------------------------------------------------------------
-- 22. Differing (only if asked for)
------------------------------------------------------------------------------
-- What follows is legitimate, yet its content after a dump and restore is not
-- what it was.
CREATE SCHEMA ugly_differing;
-- Stale: filled when its table had other rows; a restore fills it anew.
CREATE TABLE ugly_differing.stale_base (id int);
INSERT INTO ugly_differing.stale_base VALUES (1);
CREATE MATERIALIZED VIEW ugly_differing.stale AS SELECT * FROM ugly_differing.stale_base;
INSERT INTO ugly_differing.stale_base VALUES (2);
-- Filled, on one which is not: a restore cannot fill it.
CREATE MATERIALIZED VIEW ugly_differing.emptied AS SELECT 1 AS a;
CREATE MATERIALIZED VIEW ugly_differing.on_emptied AS SELECT a FROM ugly_differing.emptied;
REFRESH MATERIALIZED VIEW ugly_differing.emptied WITH NO DATA;
-- Hash partitions of an enum: the hash is that of the value's object
-- identifier, so the rows move to other partitions (the whole is the same).
CREATE TABLE ugly_differing.enum_hash (m ugly.mood, id int) PARTITION BY HASH (m);
CREATE TABLE ugly_differing.enum_hash_0 PARTITION OF ugly_differing.enum_hash FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE ugly_differing.enum_hash_1 PARTITION OF ugly_differing.enum_hash FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE ugly_differing.enum_hash_2 PARTITION OF ugly_differing.enum_hash FOR VALUES WITH (MODULUS 3, REMAINDER 2);
INSERT INTO ugly_differing.enum_hash SELECT m, 1 FROM unnest(enum_range(NULL::ugly.mood)) m;
-- A table which belongs to an extension is not dumped.
CREATE TABLE ugly_differing.of_extension (id int);
INSERT INTO ugly_differing.of_extension VALUES (1);
ALTER EXTENSION plpgsql ADD TABLE ugly_differing.of_extension;
-- Nor is one which was put into a schema of the system.
CREATE TABLE information_schema.ugly_lost (id int PRIMARY KEY);
INSERT INTO information_schema.ugly_lost VALUES (1);
\endif

\if :{?ugly_unrestorable}
------------------------------------------------------------------------------
-- 23. Unrestorable (only if asked for)
------------------------------------------------------------------------------
-- What follows is legitimate, yet restoring a dump of it fails: a backup of
-- this database must be found unusable.
CREATE SCHEMA ugly_unrestorable;
-- Cycle marks given as strings are shown as 'Y'::text, which the clause does
-- not accept.
CREATE VIEW ugly_unrestorable.string_cycle AS WITH RECURSIVE s (id, parent) AS (SELECT id, parent FROM ugly.tree WHERE id = 1 UNION ALL SELECT t.id, t.parent FROM ugly.tree t JOIN s ON t.parent = s.id)
    CYCLE id SET is_cycle TO 'Y' DEFAULT 'N' USING p SELECT id, is_cycle FROM s;
-- A check which finds a table by search_path, which is empty in a restore.
CREATE FUNCTION ugly_unrestorable.unqualified(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN EXISTS (SELECT FROM zz_hidden WHERE id = $1); END $$;
SET search_path = ugly;
CREATE TABLE ugly_unrestorable.unqualified (id int CHECK (ugly_unrestorable.unqualified(id)));
INSERT INTO ugly_unrestorable.unqualified VALUES (1);
SET search_path = pg_catalog;
\if :ge17
-- The index of an exclusion constraint on a partitioned table cannot be
-- attached.
CREATE TABLE ugly_unrestorable.p_exclusion (r int4range, EXCLUDE USING gist (r WITH =)) PARTITION BY LIST (r);
CREATE TABLE ugly_unrestorable.p_exclusion_1 PARTITION OF ugly_unrestorable.p_exclusion DEFAULT;
\endif
\endif

\if :{?ugly_no_db_settings}
\else
------------------------------------------------------------------------------
-- 24. Settings of the database
------------------------------------------------------------------------------
-- They apply to whoever connects to this database, not to one restored
-- without CREATE DATABASE: a tool which does not pin them for its own session
-- reads the same data as different texts, stops early, or calls the wrong
-- functions.
DO $do$
DECLARE
    s text;
BEGIN
    FOREACH s IN ARRAY ARRAY[
        -- how values are shown
        $$datestyle = 'SQL, DMY'$$, $$intervalstyle = 'sql_standard'$$, $$timezone = 'Asia/Kathmandu'$$,
        $$bytea_output = 'escape'$$, $$extra_float_digits = -3$$, $$xmloption = 'document'$$,
        -- how definitions are shown and literals read
        $$quote_all_identifiers = on$$, $$standard_conforming_strings = off$$, $$escape_string_warning = off$$,
        -- where names are looked up: user's objects hide those of the system
        $$search_path = "ugly shadow", "Ugly Schema", "a, ""b""", public, pg_catalog$$,
        -- sessions which wait or idle are ended
        $$statement_timeout = '5min'$$, $$lock_timeout = '2min'$$, $$idle_in_transaction_session_timeout = '30s'$$,
        -- own setting with an odd value
        $$"ugly.Custom" = E'it''s "odd" \\ value\n'$$]
    LOOP
        EXECUTE format('ALTER DATABASE %I SET %s', current_database(), s);
    END LOOP;
    EXECUTE format('ALTER ROLE ugly_owner IN DATABASE %I SET search_path = "Ugly Schema", ''''', current_database());
    EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 777', current_database());
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO ugly_owner WITH GRANT OPTION', current_database());
END
$do$;
\endif

------------------------------------------------------------------------------
-- 25. Event triggers
------------------------------------------------------------------------------
-- Made last, since they forbid DDL: so a restore must make them last, too,
-- and whoever adds helper tables to the database fails.  Temporary tables are
-- let through, and everything if ugly.permit_ddl is on.
CREATE FUNCTION ugly.forbid_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.current_setting('ugly.permit_ddl', true) = 'on' THEN
        RETURN;
    ELSIF TG_EVENT = 'ddl_command_end' THEN
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp') THEN
            RETURN;
        END IF;
    ELSIF TG_EVENT = 'sql_drop' THEN
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger_dropped_objects() WHERE NOT is_temporary) THEN
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION '% is forbidden here by an event trigger', TG_TAG
        USING HINT = 'SET ugly.permit_ddl = ''on''';
END $$;
CREATE FUNCTION ugly.nothing_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE EVENT TRIGGER "ugly Disabled" ON ddl_command_start EXECUTE FUNCTION ugly.forbid_ddl();
ALTER EVENT TRIGGER "ugly Disabled" DISABLE;
CREATE EVENT TRIGGER ugly_replica ON ddl_command_end EXECUTE FUNCTION ugly.nothing_event();
ALTER EVENT TRIGGER ugly_replica ENABLE REPLICA;
CREATE EVENT TRIGGER ugly_rewrite ON table_rewrite EXECUTE FUNCTION ugly.nothing_event();
ALTER EVENT TRIGGER ugly_rewrite OWNER TO postgres;
\if :ge17
CREATE EVENT TRIGGER ugly_login ON login EXECUTE FUNCTION ugly.nothing_event();
ALTER EVENT TRIGGER ugly_login ENABLE ALWAYS;
\endif
COMMENT ON EVENT TRIGGER "ugly Disabled" IS 'an event trigger';
SET client_min_messages = warning;
CREATE EVENT TRIGGER ugly_forbid_start ON ddl_command_start WHEN TAG IN ('CREATE SCHEMA', 'DROP SCHEMA', 'ALTER TYPE', 'CREATE DOMAIN') EXECUTE FUNCTION ugly.forbid_ddl();
CREATE EVENT TRIGGER ugly_forbid_end ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'CREATE INDEX', 'CREATE VIEW', 'CREATE MATERIALIZED VIEW', 'CREATE SEQUENCE') EXECUTE FUNCTION ugly.forbid_ddl();
ALTER EVENT TRIGGER ugly_forbid_end ENABLE ALWAYS;
CREATE EVENT TRIGGER ugly_forbid_drop ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP INDEX', 'DROP VIEW', 'ALTER TABLE') EXECUTE FUNCTION ugly.forbid_ddl();
