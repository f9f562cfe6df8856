-- traffic.sql -- work to be done on the database of ugly.sql while it is
-- backed up and compared.
--
-- The statements are separated by lines which hold only the word marked with
-- an at sign below.  Each is one statement, stands alone (no session state is
-- needed from those before it), runs in autocommit mode, may be repeated for
-- ever by several sessions at once, and keeps the tables small.  None depends
-- on psql, on search_path or on how strings are escaped; none has a percent
-- sign, a colon or a question mark, so that no driver takes it for a
-- parameter.
--
-- Only tables which no materialized view reads are changed.

-- Identity, generated column, volatile default.
INSERT INTO "Traffic Lights".log (note, payload)
VALUES ('tick', pg_catalog.jsonb_build_object('pid', pg_catalog.pg_backend_pid(), 'at', pg_catalog.clock_timestamp()));
-- @step
-- Old rows go, so the table does not grow.
DELETE FROM "Traffic Lights".log
WHERE id IN (SELECT id FROM "Traffic Lights".log WHERE id < (SELECT max(id) - 500 FROM "Traffic Lights".log) ORDER BY id FOR UPDATE SKIP LOCKED);
-- @step
-- Insert or update.
INSERT INTO "Traffic Lights"."Counter" AS c (k, n, changed) VALUES ('a', 1, pg_catalog.clock_timestamp())
ON CONFLICT (k) DO UPDATE SET n = c.n + 1, changed = EXCLUDED.changed;
-- @step
UPDATE "Traffic Lights"."Counter" SET n = n + 1, changed = pg_catalog.clock_timestamp() WHERE k = 'c "d"';
-- @step
-- Rows of two tables which must be seen together or not at all.
WITH p AS (INSERT INTO "Traffic Lights".parent (v) VALUES (pg_catalog.clock_timestamp()) RETURNING id)
INSERT INTO "Traffic Lights".child (parent, v) SELECT p.id, g / 7.0 FROM p, pg_catalog.generate_series(1, 3) AS g;
-- @step
UPDATE "Traffic Lights".child SET v = coalesce(v, 0) + 1
WHERE id IN (SELECT id FROM "Traffic Lights".child ORDER BY id DESC LIMIT 5 FOR UPDATE SKIP LOCKED);
-- @step
-- Cascades to the children.
DELETE FROM "Traffic Lights".parent
WHERE id IN (SELECT id FROM "Traffic Lights".parent WHERE id < (SELECT max(id) - 50 FROM "Traffic Lights".parent) ORDER BY id FOR UPDATE SKIP LOCKED);
-- @step
-- Rows move between partitions.  The lock keeps sessions from moving the same
-- row, which would be an error.
DO $$
DECLARE
    highest bigint;
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock(990001);
    INSERT INTO "Traffic Lights".parts (id, kind, v)
        VALUES (1000 + pg_catalog.nextval('"Traffic Lights".seq_jump'), 0, 'new') RETURNING id INTO highest;
    UPDATE "Traffic Lights".parts SET kind = (kind + 1) & 3, v = 'moved'
        WHERE id IN (SELECT id FROM "Traffic Lights".parts ORDER BY id DESC LIMIT 3);
    DELETE FROM "Traffic Lights".parts WHERE id < highest - 400 AND id > 1000;
END
$$;
-- @step
-- These fire a trigger which writes to another table.
INSERT INTO "Traffic Lights".audited (id, v) VALUES (7, pg_catalog.clock_timestamp())
ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v;
-- @step
UPDATE "Traffic Lights".audited SET v = pg_catalog.clock_timestamp() WHERE id = 1;
-- @step
DELETE FROM "Traffic Lights".audited WHERE id = 7;
-- @step
DELETE FROM "Traffic Lights".audit
WHERE id IN (SELECT id FROM "Traffic Lights".audit WHERE id < (SELECT max(id) - 300 FROM "Traffic Lights".audit) ORDER BY id FOR UPDATE SKIP LOCKED);
-- @step
-- A value out of line.
UPDATE "Traffic Lights".big
SET t = pg_catalog.repeat(pg_catalog.chr(97 + CAST(pg_catalog.date_part('second', pg_catalog.clock_timestamp()) AS int) / 3), 20000) WHERE id = 1;
-- @step
UPDATE "Traffic Lights".unlogged SET n = n + 1 WHERE id = 1;
-- @step
-- Tables with generated columns, fast defaults and full replica identity.
UPDATE ugly.generated SET b = pg_catalog.mod(coalesce(b, 0), 1000) + 1 WHERE a = 1;
-- @step
UPDATE ugly.altered SET fast = pg_catalog.mod(coalesce(fast, 0), 1000) + 1 WHERE a = 2;
-- @step
UPDATE ugly.ri_full SET b = pg_catalog.clock_timestamp() WHERE a = 1;
-- @step
-- Sequences, outside of any transaction as far as rollback and snapshots go.
SELECT pg_catalog.nextval('"Traffic Lights".seq_up'), pg_catalog.nextval('"Traffic Lights"."Seq Cycle"'),
       pg_catalog.nextval('"Traffic Lights".seq_jump'), pg_catalog.nextval('ugly.seq_small'), pg_catalog.nextval('ugly.seq_descending');
-- @step
SELECT pg_catalog.setval('"Traffic Lights".seq_up', pg_catalog.nextval('"Traffic Lights".seq_up') + 10);
-- @step
-- A temporary table which lives until the next statement (or longer, if that
-- one runs in another session).
CREATE TEMPORARY TABLE IF NOT EXISTS ugly_traffic AS SELECT g AS id, 'temporary' AS v FROM pg_catalog.generate_series(1, 100) AS g;
-- @step
DROP TABLE IF EXISTS pg_temp.ugly_traffic;
-- @step
DO $$
BEGIN
    CREATE TEMPORARY TABLE "Ugly Temporary" (id serial PRIMARY KEY, v text);
    INSERT INTO pg_temp."Ugly Temporary" (v) VALUES ('x');
    DROP TABLE pg_temp."Ugly Temporary";
END
$$;
-- @step
-- A large object.  The lock keeps sessions from writing it at the same time,
-- which would be an error.
DO $$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock(990100);
    PERFORM pg_catalog.lo_put(990100, 0, pg_catalog.convert_to(CAST(pg_catalog.clock_timestamp() AS text), 'UTF8'));
END
$$;
