"""Negative controls of the restore test: what is altered in a dump must turn it red, by name.

A real backup is altered in its text and then *sealed* again (sizes, checksums and manifest fit), so
that verification passes it and only the comparison with the evidence can find what is wrong. Beside
them stand the controls that must stay green, and what must end in *could not verify*.
"""

import gzip
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from kyb_backup_pipeline.engine.comparison import _within, compare
from kyb_backup_pipeline.engine.compression import (
    BLOCK,
    CorruptStream,
    Decompressor,
    Method,
    compressor,
)
from kyb_backup_pipeline.engine.database import _setting_value, read_database
from kyb_backup_pipeline.engine.evidence import Evidence, SequenceState
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.manifest import Proof, utc_now
from kyb_backup_pipeline.engine.postgres import connect
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.sql_script import statements
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import (
    create_database,
    drop_database,
    execute,
    settings_file,
    settings_for,
)
from kyb_backup_pipeline_tests.test_verification_faults import (
    FORMS,
    Copy,
    assert_clean,
    blamed,
    change_manifest,
    copy_of,
    kyb,
    pack,
    reseal,
    said,
    unpack,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ROWS = (
    "removed",
    "added",
    "doubled",
    "altered",
    "emptied",
    "nulled",
    "swapped",
    "crossed",
    "lost",
)
"""Tables of the same five rows, one for each way to alter rows."""

PLATFORM = """
CREATE ROLE fault_reader;
CREATE ROLE fault_idle;
CREATE ROLE fault_member;
GRANT fault_reader TO fault_member;
CREATE SCHEMA kyb;
CREATE TYPE kyb.state AS ENUM ('draft', 'active', 'closed');
CREATE TABLE kyb.companies (
    id integer PRIMARY KEY, name varchar(40) NOT NULL, note text, city text DEFAULT 'Paris',
    rank smallint NOT NULL, CONSTRAINT companies_named CHECK (name <> ''));
INSERT INTO kyb.companies VALUES (1, 'Alpine Ltd', 'first', 'Oslo', 4),
    (2, 'Borealis AS', NULL, 'Bergen', 5), (3, 'Cedar GmbH', 'third', 'Kiel', 6),
    (4, 'Delta SA', E'two\\nlines', 'Lille', 7), (5, 'Eagle BV', '', 'Gent', 8);
CREATE INDEX companies_city ON kyb.companies (city);
CREATE INDEX companies_note ON kyb.companies (note);
CREATE TABLE kyb.owners (
    id integer, company integer CONSTRAINT owners_company_fkey REFERENCES kyb.companies,
    partner integer CONSTRAINT owners_partner_fkey REFERENCES kyb.companies ON DELETE CASCADE,
    share numeric(5,2));
INSERT INTO kyb.owners VALUES (1, 1, 2, 50), (2, 1, NULL, 50), (3, 2, 1, 100);
ALTER TABLE kyb.owners ENABLE ROW LEVEL SECURITY;
CREATE POLICY owners_visible ON kyb.owners FOR SELECT USING (company > 0);
CREATE POLICY owners_read ON kyb.owners FOR SELECT TO fault_reader USING (company > 1);
GRANT SELECT (share) ON kyb.owners TO fault_reader;
CREATE TABLE kyb.guarded (a integer);
ALTER TABLE kyb.guarded ENABLE ROW LEVEL SECURITY;
CREATE TABLE kyb.lonely ();
CREATE TABLE kyb.readable (a integer);
GRANT SELECT ON kyb.readable TO fault_reader;
CREATE TABLE kyb.closed (a integer);
GRANT SELECT ON kyb.closed TO fault_reader;
CREATE TABLE kyb.owned (a integer);
CREATE TABLE kyb.events (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE kyb.events_2025 PARTITION OF kyb.events
    FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO kyb.events VALUES ('2025-05-05', 'founded');
CREATE SEQUENCE kyb.case_number;
SELECT setval('kyb.case_number', 41);
CREATE SEQUENCE kyb.letter_number;
SELECT setval('kyb.letter_number', 41);
CREATE VIEW kyb.known AS SELECT id, name FROM kyb.companies WHERE note <> '';
CREATE MATERIALIZED VIEW kyb.by_city AS SELECT city, count(*) AS companies FROM kyb.companies
    GROUP BY city;
CREATE FUNCTION kyb.fee(amount integer) RETURNS integer LANGUAGE sql AS 'SELECT amount / 10';
CREATE FUNCTION kyb.tax(amount integer) RETURNS integer LANGUAGE sql AS 'SELECT amount / 20';
CREATE FUNCTION kyb.guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER companies_guard BEFORE UPDATE ON kyb.companies
    FOR EACH ROW EXECUTE FUNCTION kyb.guard();
CREATE TRIGGER companies_stamp BEFORE DELETE ON kyb.companies
    FOR EACH ROW EXECUTE FUNCTION kyb.guard();
GRANT USAGE ON SCHEMA kyb TO fault_reader;
SELECT lo_from_bytea(90001, 'a scanned passport'), lo_from_bytea(90002, 'a certificate');
""" + "".join(
    f"CREATE TABLE kyb.{name} AS SELECT id, name, note, city FROM kyb.companies;" for name in _ROWS
)

Edit = Callable[[str], str]


def alter(pattern: str, replacement: str) -> Edit:
    """Replace the one place that matches (``^`` and ``$`` are ends of lines)."""

    def edit(text: str) -> str:
        changed, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, f"{pattern} stands {count} times in the dump"
        return changed

    return edit


def leave_out(kind: str, name: str) -> Edit:
    """Leave out an entry of the dump, with its owner and all that belongs to it."""
    header = rf"^--\n-- (?:Data for )?Name: {re.escape(name)}; Type: {kind};"
    return alter(header + r"[^\n]*\n--\n(?:.|\n)*?(?=^--\n-- )", "")


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(text: str) -> str:
        for each in edits:
            text = each(text)
        return text

    return edit


def tampered(copy: Copy, edit: Edit) -> Copy:
    """Edit the dump, make everything fit it, and see that verification finds nothing."""
    path = copy.dump()
    pack(path, edit(unpack(path).decode()).encode())
    return sealed(copy)


def sealed(copy: Copy) -> Copy:
    """Make everything fit what lies there, and see that verification finds nothing."""
    reseal(copy.folder)
    assert_clean(copy.verify())
    return copy


@pytest.fixture(scope="module")
def platform(server: Cluster) -> Iterator[str]:
    """A small database with one object of each kind that matters."""
    name = "restore_faults"
    create_database(server.target(), name)
    execute(server.target(name), PLATFORM)
    yield name
    drop_database(server.target(), name)
    execute(server.target(), "DROP ROLE fault_member, fault_idle, fault_reader")


@pytest.fixture(scope="module")
def original_of(
    server: Cluster, platform: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Copy]:
    """A backup of that database in a form, taken at its first use and never altered."""
    taken: dict[str, Copy] = {}
    place = tmp_path_factory.mktemp("originals")

    def get(form: str) -> Copy:
        if form not in taken:
            chosen = settings_for(server.target(platform), place / form, place, **FORMS[form])
            backup = take_full_backup(chosen, Request(backup_id="b"), now=utc_now())
            taken[form] = Copy(chosen, backup.backup_id)
        return taken[form]

    return get


@pytest.fixture
def copy(original_of: Callable[[str], Copy], tmp_path: Path) -> Copy:
    """A copy of the backup in plain format."""
    return copy_of(original_of("plain zstd"), tmp_path / "r")


# --- what must turn red ----------------------------------------------------------------------------


def rows_of(name: str, edit: Edit) -> tuple[Edit, str]:
    """``edit`` within the rows of a table, and the table's name in a finding."""

    def within(text: str) -> str:
        begin = text.index(f"\nCOPY kyb.{name} (")
        end = text.index("\n\\.\n", begin) + 4
        return text[:begin] + edit(text[begin:end]) + text[end:]

    return within, f"table kyb.{name}"


ALTERATIONS: Mapping[str, tuple[Edit, str]] = {
    "a row removed": rows_of("removed", alter(r"^3\tCedar.*\n", "")),
    "a row added": rows_of("added", alter(r"^3(\tCedar.*\n)", r"3\g<1>6\g<1>")),
    "a row twice in the place of another": rows_of(
        "doubled", alter(r"^(1\tAlpine.*\n)2\tBorealis.*\n", r"\1\1")
    ),
    "a value altered": rows_of("altered", alter(r"third", "thirD")),
    "a NULL turned into an empty string": rows_of("emptied", alter(r"Borealis AS\t\\N", "Borealis AS\t")),
    "an empty string turned into NULL": rows_of("nulled", alter(r"Eagle BV\t\t", r"Eagle BV\t\\N\t")),
    "two values swapped between rows": rows_of(
        "swapped", alter(r"Bergen(\n.*\t)Kiel", r"Kiel\1Bergen")
    ),
    "two values swapped within a row": rows_of("crossed", alter(r"third\tKiel", "Kiel\tthird")),
    "all rows of a table lost": (leave_out("TABLE DATA", "lost"), "table kyb.lost"),
    "a sequence off by one": (
        alter(r"setval\('kyb.case_number', 41, true\)", "setval('kyb.case_number', 40, true)"),
        "sequence kyb.case_number",
    ),
    "a sequence that would give a number twice": (
        alter(r"setval\('kyb.letter_number', 41, true\)", "setval('kyb.letter_number', 41, false)"),
        "sequence kyb.letter_number",
    ),
    "a table missing": (
        both(leave_out("TABLE", "lonely"), leave_out("TABLE DATA", "lonely")),
        "table kyb.lonely",
    ),
    "a table too many": (
        alter(r"^(CREATE TABLE kyb.companies)", r"CREATE TABLE kyb.intruder ();\n\1"),
        "table kyb.intruder",
    ),
    "an index missing": (leave_out("INDEX", "companies_city"), "index kyb.companies_city"),
    "a foreign key missing": (
        leave_out("FK CONSTRAINT", "owners owners_company_fkey"),
        "constraint owners_company_fkey on kyb.owners",
    ),
    "a check missing": (
        alter(r",\n    CONSTRAINT companies_named CHECK.*", ""),
        "constraint companies_named on kyb.companies",
    ),
    "a NOT NULL missing": (
        alter(r"rank smallint NOT NULL", "rank smallint"), "column kyb.companies.rank",
    ),
    "a default missing": (alter(r" DEFAULT 'Paris'::text", ""), "column kyb.companies.city"),
    "the length of a column changed": (
        alter(r"name character varying\(40\) NOT NULL", "name character varying(60) NOT NULL"),
        "column kyb.companies.name",
    ),
    "the type of a column changed": (
        alter(r"^(CREATE TABLE kyb.guarded \(\n    a) integer", r"\1 bigint"),
        "column kyb.guarded.a",
    ),
    "a label of an enumeration changed": (alter(r"^    'closed'$", "    'shut'"), "type kyb.state"),
    "a view missing": (leave_out("VIEW", "known"), "view kyb.known"),
    "a materialized view not populated": (
        leave_out("MATERIALIZED VIEW DATA", "by_city"), "materialized view kyb.by_city",
    ),
    "a function missing": (leave_out("FUNCTION", "fee(integer)"), "function kyb.fee(integer)"),
    "the body of a function altered": (
        alter(r"amount / 20", "amount / 19"), "function kyb.tax(integer)",
    ),
    "a trigger missing": (
        leave_out("TRIGGER", "companies companies_guard"),
        "trigger companies_guard on kyb.companies",
    ),
    "a policy missing": (
        leave_out("POLICY", "owners owners_visible"), "policy owners_visible on kyb.owners",
    ),
    "row security off": (leave_out("ROW SECURITY", "guarded"), "table kyb.guarded"),
    "a grant missing": (
        alter(r"^GRANT SELECT ON TABLE kyb.readable TO fault_reader;$", ""), "table kyb.readable",
    ),
    "a grant too many": (
        alter(r"^GRANT SELECT ON TABLE kyb.closed", "GRANT SELECT,DELETE ON TABLE kyb.closed"),
        "table kyb.closed",
    ),
    "another owner": (
        alter(r"^(ALTER TABLE kyb.owned OWNER TO) .*;$", r"\1 fault_idle;"), "table kyb.owned",
    ),
    "a large object altered": (
        alter(b"a scanned passport".hex(), b"a scanned Passport".hex()), "large objects",
    ),
    "an index on another column": (
        alter(r"^(CREATE INDEX companies_note .*)\(note\);$", r"\1(city);"),
        "index kyb.companies_note",
    ),
    "a trigger at another event": (
        alter(r"BEFORE DELETE ON kyb.companies", "BEFORE INSERT ON kyb.companies"),
        "trigger companies_stamp on kyb.companies",
    ),
    "a foreign key that does not cascade": (
        alter(r" ON DELETE CASCADE", ""), "constraint owners_partner_fkey on kyb.owners",
    ),
    "a policy for everybody": (
        alter(r"FOR SELECT TO fault_reader USING", "FOR SELECT USING"),
        "policy owners_read on kyb.owners",
    ),
    "a partition that is not attached": (
        leave_out("TABLE ATTACH", "events_2025"), "table kyb.events_2025",
    ),
    "a grant on a column missing": (
        alter(r"^GRANT SELECT\(share\) ON TABLE kyb.owners TO fault_reader;$", ""),
        "column kyb.owners.share",
    ),
}  # fmt: skip
"""What is altered, how, and the object that a finding must name: each alters an object of its own."""


@pytest.fixture(scope="module")
def altered(
    original_of: Callable[[str], Copy], tmp_path_factory: pytest.TempPathFactory, place: Path
) -> Proof:
    """The restore test of a dump with all those alterations at once."""
    copy = copy_of(original_of("plain zstd"), tmp_path_factory.mktemp("altered"))
    tampered(copy, both(*(edit for edit, _ in ALTERATIONS.values())))
    return copy.drill(place)


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_object_is_named(altered: Proof, alteration: str) -> None:
    _, named = ALTERATIONS[alteration]
    assert named in blamed(altered), altered.summary


def test_no_sound_object_is_named_beside_the_altered_ones(altered: Proof) -> None:
    assert altered.verdict == "failed"
    assert blamed(altered) - {named for _, named in ALTERATIONS.values()} == set()


@pytest.mark.parametrize(
    "alteration",
    ["a row removed", "a NULL turned into an empty string", "two values swapped between rows",
     "a sequence off by one", "an index missing", "a large object altered"],
)  # fmt: skip
def test_one_alteration_is_enough_to_fail(copy: Copy, drills: Path, alteration: str) -> None:
    edit, named = ALTERATIONS[alteration]
    proof = tampered(copy, edit).drill(drills)
    assert proof.verdict == "failed", proof.summary
    assert blamed(proof) == {named}
    assert proof.summary.startswith(f"{named} ")


def test_a_large_object_that_is_missing_fails(copy: Copy, drills: Path) -> None:
    created = alter(r"^SELECT pg_catalog.lo_create\('90002'\);$", "")
    owned = alter(r"^ALTER LARGE OBJECT 90002 OWNER TO .*;$", "")
    filled = alter(r"^SELECT pg_catalog.lo_open\('90002', 131072\);\n.*\n.*\n", "")
    proof = tampered(copy, both(created, owned, filled)).drill(drills)
    assert proof.verdict == "failed", proof.summary
    assert said(proof) == "large objects are 1, the source had 2"


def _edit_globals(copy: Copy, pattern: str) -> None:
    path = copy.folder / "globals.sql"
    text, count = re.subn(pattern, "", path.read_text(), flags=re.MULTILINE)
    assert count > 0
    path.write_text(text)


def test_a_role_that_is_missing_fails_and_is_named(copy: Copy, drills: Path) -> None:
    _edit_globals(copy, r"^(?:CREATE|ALTER) ROLE fault_idle\b.*\n")
    proof = sealed(copy).drill(drills)
    assert proof.verdict == "failed", proof.summary
    assert blamed(proof) == {"role fault_idle"}


def test_a_membership_that_is_missing_fails_and_its_role_is_named(copy: Copy, drills: Path) -> None:
    _edit_globals(copy, r"^GRANT fault_reader TO fault_member\b.*\n")
    proof = sealed(copy).drill(drills)
    assert proof.verdict == "failed", proof.summary
    assert "fault_member" in said(proof)


def test_a_role_that_is_missing_and_needed_fails_and_is_named(copy: Copy, drills: Path) -> None:
    _edit_globals(copy, r"^.*\bfault_reader\b.*\n")
    proof = sealed(copy).drill(drills)
    assert proof.verdict == "failed"
    assert 'role "fault_reader" does not exist' in proof.summary


def test_altered_tables_in_a_directory_fail_and_are_named(
    original_of: Callable[[str], Copy], tmp_path: Path, drills: Path
) -> None:
    copy = copy_of(original_of("directory"), tmp_path / "r")
    texts = {path: unpack(path) for path in copy.folder.glob("database.dir/[0-9]*.dat.*")}
    alike = sorted(path for path, text in texts.items() if b"\tCedar GmbH\tthird\tKiel\n" in text)
    assert len(alike) == len(_ROWS)
    changes = [(b"third", b"thirD"), (b"AS\t\\N", b"AS\t"), (b"3\tCedar GmbH\tthird\tKiel\n", b"")]
    for path, (before, after) in zip(alike, changes, strict=False):
        assert texts[path].count(before) == 1
        pack(path, texts[path].replace(before, after))
    proof = sealed(copy).drill(drills)
    assert proof.verdict == "failed"
    assert len(blamed(proof)) == len(changes)
    assert blamed(proof) <= {f"table kyb.{name}" for name in _ROWS}
    assert sorted(finding.message for finding in proof.findings) == [
        "has 4 rows, the source had 5 (-1)",
        "has 5 rows as the source, but their content differs",
        "has 5 rows as the source, but their content differs",
    ]


def test_evidence_that_counts_one_row_more_fails_and_the_table_is_named(
    copy: Copy, drills: Path
) -> None:
    path = copy.folder / "evidence.json"
    evidence = json.loads(path.read_bytes())
    evidence["tables"]["kyb.companies"]["rows"] += 1
    path.write_text(json.dumps(evidence))
    proof = sealed(copy).drill(drills)
    assert proof.verdict == "failed"
    assert said(proof) == "table kyb.companies has 5 rows, the source had 6 (-1)"


_EAGLE = r"^5\tEagle BV\t\tGent\t8$"

BROKEN: Mapping[str, Edit] = {
    "a statement": alter(r"^CREATE VIEW kyb.known", "CREATE VEIW kyb.known"),
    "a row with a column too few": alter(_EAGLE, "5\tEagle BV\t\tGent"),
    "a row that is there twice": alter(f"({_EAGLE})", r"\1\n\1"),
    "a row that others refer to is gone": alter(r"^1\tAlpine Ltd\tfirst\tOslo\t4\n", ""),
    "a row whose text speaks of ICU": alter(_EAGLE, "5\tICU ward"),
    "a row whose text speaks of room": alter(_EAGLE, "5\tNo space left on device"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_dump_that_does_not_load_fails_and_does_not_pass_as_could_not_verify(
    copy: Copy, drills: Path, what: str
) -> None:
    proof = tampered(copy, BROKEN[what]).drill(drills)
    assert proof.verdict == "failed"
    assert "the dump does not load" in proof.summary
    assert "ERROR" in proof.summary


# --- what must stay green --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain zstd", "directory"])
def test_a_sealed_copy_without_alteration_passes(
    original_of: Callable[[str], Copy], tmp_path: Path, drills: Path, form: str
) -> None:
    copy = copy_of(original_of(form), tmp_path / "r")
    for path in copy.folder.rglob("*"):
        if path.suffix in (".zst", ".gz"):
            pack(path, unpack(path))
    assert_clean(sealed(copy).drill(drills))


def test_sequences_that_move_while_the_dump_runs_stay_green(
    server: Cluster, tmp_path: Path, drills: Path
) -> None:
    name = "restore_sequences"
    create_database(server.target(), name)
    target = server.target(name)
    done = threading.Event()
    try:
        execute(
            target,
            "CREATE SEQUENCE up; CREATE SEQUENCE down INCREMENT -3; CREATE SEQUENCE still;"
            "CREATE SEQUENCE round START 1999000 MAXVALUE 2000000 CYCLE;"
            "CREATE SEQUENCE dial MAXVALUE 7 CYCLE; CREATE TABLE one AS SELECT 1 AS id",
        )

        def drive() -> None:
            with connect(target) as connection:
                while not done.is_set():
                    connection.execute(
                        "SELECT nextval('up'), nextval('down'), nextval('round'), nextval('dial')"
                    )

        driver = threading.Thread(target=drive)
        driver.start()
        try:
            chosen = settings_for(target, tmp_path / "r", drills)
            backup = take_full_backup(chosen, Request(backup_id="b"), now=utc_now())
        finally:
            done.set()
            driver.join()
    finally:
        drop_database(server.target(), name)
    evidence = Evidence.model_validate_json((backup.folder / "evidence.json").read_bytes())
    moved = {n for n, state in evidence.sequences.items() if state.before != state.after}
    assert {"public.up", "public.down"} <= moved
    assert "public.still" not in moved
    proof = Copy(chosen, "b").drill(drills)
    assert (proof.verdict, proof.findings) == ("passed", ())
    assert proof.notes == ("1 sequences cycle within few values: their position not compared",)


# --- could not verify ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lack:
    """What this machine cannot offer: how the backup asks for it, and what is said."""

    tamper: Callable[[Copy], object]
    summary: str
    hint: str


def _require(**changes: Any) -> Callable[[Copy], object]:
    def tamper(copy: Copy) -> None:
        change_manifest(copy.folder, lambda manifest: manifest["requirements"].update(changes))

    return tamper


def _extension_in_the_dump(copy: Copy) -> None:
    """Without evidence, so that only the restore itself can notice."""
    (copy.folder / "evidence.json").unlink()
    change_manifest(copy.folder, lambda manifest: manifest.update(evidence={"mode": "none"}))
    tampered(copy, alter(r"^(CREATE SCHEMA kyb;)$", r"CREATE EXTENSION nosuchext;\n\1"))


_INSTALL = "install the server packages"

LACKS: Mapping[str, Lack] = {
    "an extension that the manifest names": Lack(
        _require(extensions={"plpgsql": "1.0", "nosuchext": "1.0"}), "extension nosuchext", _INSTALL
    ),
    "an extension that only the dump names": Lack(
        _extension_in_the_dump, "extension nosuchext is not installed", _INSTALL
    ),
    "a locale": Lack(_require(collate="xx_XX.utf8", ctype="xx_XX.utf8"), "xx_XX.utf8", _INSTALL),
    "a collation": Lack(_require(collations=["xx_XX"]), "collation xx_XX", _INSTALL),
    "a major version": Lack(
        lambda copy: change_manifest(copy.folder, lambda m: m.update(server_version="99.1")),
        "no PostgreSQL 99 server programs",
        "install postgresql-99",
    ),
    "room": Lack(
        _require(database_bytes=1 << 60), "GiB are free in", "set restore_test.directory"
    ),
}  # fmt: skip


@pytest.mark.parametrize("lack", LACKS)
def test_what_this_machine_lacks_is_not_a_bad_backup(
    copy: Copy, drills: Path, tmp_path: Path, lack: str
) -> None:
    LACKS[lack].tamper(copy)
    assert_clean(copy.verify())
    configuration = settings_file(copy.drilling_in(drills), tmp_path / "kyb.toml")
    done = kyb("--config", configuration, "drill", copy.backup_id)
    assert done.returncode == 10, done.stdout + done.stderr
    assert "could not verify" in done.stdout
    assert LACKS[lack].summary in done.stdout
    assert f"HINT: {LACKS[lack].hint}" in done.stdout
    record = copy.repository.records.latest(copy.backup_id)["restore_test"]
    assert (record.verdict, record.findings) == ("could_not_verify", ())
    assert list(drills.iterdir()) == []


# --- the parts that judge, over anything -----------------------------------------------------------

anything = settings(deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Counter:
    """A sequence as PostgreSQL counts, between bounds."""

    start: int
    increment: int
    bound: int
    cycle: bool

    @property
    def period(self) -> int | None:
        return 2 * self.bound // abs(self.increment) + 1 if self.cycle else None

    def states(self) -> list[tuple[int, bool]]:
        """What it shows when it is new, and after each of 40 calls."""
        value = self.start
        seen = [(value, False)]
        for _ in range(40):
            seen.append((value, True))
            value += self.increment
            if self.cycle and abs(value) > self.bound:
                value = -self.bound if self.increment > 0 else self.bound
        return seen

    def expected(self, before: tuple[int, bool], after: tuple[int, bool]) -> SequenceState:
        return SequenceState(
            before=before, after=after, increment=self.increment, period=self.period
        )


def _counters(bound: int, *, cycle: bool) -> st.SearchStrategy[Counter]:
    starts = st.integers(-bound, bound)
    steps = st.integers(-9, 9).filter(bool)
    return st.builds(
        Counter, start=starts, increment=steps, bound=st.just(bound), cycle=st.just(cycle)
    )


_endless = _counters(10**12, cycle=False)
_slow = _counters(10**8, cycle=True)
_fast = _counters(20, cycle=True)
_moments = st.lists(st.integers(0, 40), min_size=3, max_size=3, unique=True).map(sorted)


def _evidence(state: SequenceState) -> Evidence:
    return Evidence(
        server_version="18.1", tables={}, sequences={"public.s": state}, objects={}, roles={},
        large_objects=None, populated={}, seconds=0,
    )  # fmt: skip


def _restored(state: tuple[int, bool]) -> Evidence:
    return _evidence(SequenceState(before=state, after=state, increment=1))


@anything
@given(_endless | _slow | _fast, _moments)
@example(Counter(10**8 - 5, 1, 10**8, True), [0, 3, 20])
@example(Counter(0, 2, 20, True), [0, 2, 22])
def test_a_sequence_read_at_any_moment_of_the_dump_passes(
    counter: Counter, moments: list[int]
) -> None:
    before, seen, after = (counter.states()[moment] for moment in moments)
    expected = counter.expected(before, after)
    for state in (before, seen, after):
        assert _within(expected, state)
        assert compare(_evidence(expected), _restored(state)).differences == ()


@anything
@given(_endless, _moments, st.booleans())
def test_a_sequence_that_stands_before_or_after_the_dump_is_named(
    counter: Counter, moments: list[int], later: bool
) -> None:
    states = [counter.states()[moment] for moment in moments]
    elsewhere = states.pop(2 if later else 0)
    expected = counter.expected(*states)
    assert not _within(expected, elsewhere)
    (difference,) = compare(_evidence(expected), _restored(elsewhere)).differences
    assert difference.object == "sequence public.s"


@anything
@given(
    _endless | _slow,
    st.integers(0, 40),
    st.integers(-60, 60),
    st.booleans(),
)
def test_a_sequence_that_stood_still_must_be_restored_to_the_letter(
    counter: Counter, moment: int, off: int, called: bool
) -> None:
    state = counter.states()[moment]
    seen = (state[0] + off, called)
    expected = counter.expected(state, state)
    assert _within(expected, state)
    assert _within(expected, seen) == (seen == state)


def test_a_sequence_that_is_missing_is_named() -> None:
    state = SequenceState(before=(1, True), after=(9, True), increment=1)
    restored = _evidence(state).model_copy(update={"sequences": {}})
    (difference,) = compare(_evidence(state), restored).differences
    assert difference.object == "sequence public.s"


def test_a_sequence_that_cycles_fast_is_not_compared_and_that_is_said() -> None:
    state = Counter(0, 1, 20, True).expected((3, True), (3, True))
    result = compare(_evidence(state), _restored((7, True)))
    assert result.differences == ()
    assert result.notes == ("1 sequences cycle within few values: their position not compared",)


_text = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from(list("""'";\\-$, \n"""))
)
_names = _text.filter(bool).map(lambda text: '"' + text.replace('"', '""') + '"')
_strings = _text.map(lambda text: "'" + text.replace("'", "''") + "'").map(
    lambda text: "E" + text.replace("\\", "\\\\") if "\\" in text else text
)
"""Quoted as pg_dumpall does it."""
_statements = st.one_of(
    st.builds("CREATE ROLE {}".format, _names),
    st.builds("ALTER ROLE {} SET {} TO {}".format, _names, _names, _strings),
    st.builds("COMMENT ON ROLE {} IS {}".format, _names, _strings),
    st.builds("CREATE TABLESPACE {} OWNER {} LOCATION {}".format, _names, _names, _strings),
    st.builds("GRANT {} TO {} WITH INHERIT TRUE GRANTED BY {}".format, _names, _names, _names),
)
_between = st.sampled_from(
    ["", "\n\n", "--\n-- Roles; with 'an apostrophe and \"a quote\n--\n\n", "\\restrict aB3;x\n"]
)


@anything
@given(st.lists(st.tuples(_between, _statements)))
def test_a_script_of_globals_falls_into_its_statements(script: list[tuple[str, str]]) -> None:
    text = "".join(f"{between}{statement};\n" for between, statement in script)
    assert list(statements(text + "\n\\unrestrict aB3\n\n")) == [s for _, s in script]


@settings(anything, max_examples=60)
@given(value=_text)
def test_a_setting_of_the_database_is_written_as_it_was(
    server: Cluster, platform: str, value: str
) -> None:
    with connect(server.target(platform)) as connection:
        change = sql.SQL("ALTER DATABASE {} SET kyb.note TO ").format(sql.Identifier(platform))
        connection.execute(change + sql.Literal(value))
        stored = read_database(connection).settings
        assert stored == ((None, "kyb.note", value),)
        connection.execute(change + sql.Literal("lost"))
        connection.execute(change.as_string(connection) + _setting_value("kyb.note", value))
        assert read_database(connection).settings == stored
        connection.execute(f"ALTER DATABASE {platform} RESET ALL")


@settings(anything, max_examples=60)
@given(names=st.lists(_text, min_size=1, max_size=4))
@example(names=[""])
@example(names=["$user", "public", "Two Words", "a,b", "c, d", 'e"f', "user"])
def test_a_list_of_names_among_the_settings_is_written_as_it_was(
    server: Cluster, platform: str, names: list[str]
) -> None:
    with connect(server.target(platform)) as connection:
        change = sql.SQL("ALTER DATABASE {} SET search_path TO ").format(sql.Identifier(platform))
        connection.execute(change + sql.SQL(", ").join(map(sql.Literal, names)))
        ((role, name, value),) = stored = read_database(connection).settings
        assert (role, name) == (None, "search_path")
        connection.execute(change + sql.Literal("lost"))
        connection.execute(change.as_string(connection) + _setting_value(name, value))
        assert read_database(connection).settings == stored
        connection.execute(f"ALTER DATABASE {platform} RESET ALL")


_methods: st.SearchStrategy[Method] = st.sampled_from(["zstd", "gzip"])
_payloads = st.lists(
    st.binary(max_size=400)
    | st.builds(bytes.__mul__, st.binary(min_size=1, max_size=40), st.integers(1, 9000)),
    min_size=1,
    max_size=5,
)


def _members(method: Method, payloads: list[bytes]) -> list[bytes]:
    if method == "gzip":
        return [gzip.compress(payload, mtime=0) for payload in payloads]
    return [zstd.compress(payload) for payload in payloads]


def _fed(method: Method, stream: bytes, sizes: list[int]) -> tuple[bytes, bool]:
    """What comes out when ``stream`` goes in, in blocks of these sizes, and whether it is whole."""
    machine = Decompressor(method)
    out = b""
    chunk = itertools.cycle(sizes)
    position = 0
    while position < len(stream):
        size = next(chunk)
        for piece in machine.feed(stream[position : position + size]):
            assert 0 < len(piece) <= BLOCK
            out += piece
        position += size
    return out, machine.complete


_sizes = st.lists(st.integers(1, 5000), min_size=1, max_size=5)


@anything
@given(_methods, _payloads, _sizes)
def test_a_stream_of_several_members_comes_out_whole_in_any_chunks(
    method: Method, payloads: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(_members(method, payloads))
    assert _fed(method, stream, sizes) == (b"".join(payloads), True)


@anything
@given(_methods, _payloads, _sizes, st.data())
def test_a_stream_that_was_cut_is_never_complete(
    method: Method, payloads: list[bytes], sizes: list[int], data: st.DataObject
) -> None:
    members = _members(method, payloads)
    ends = set(itertools.accumulate(map(len, members)))
    stream = b"".join(members)
    cut = data.draw(st.integers(0, len(stream) - 1).filter(lambda n: n not in ends))
    out, complete = _fed(method, stream[:cut], sizes)
    assert not complete
    assert b"".join(payloads).startswith(out)


@anything
@given(_methods, _payloads, _sizes, st.data())
def test_a_stream_with_a_flipped_bit_never_passes_with_other_content(
    method: Method, payloads: list[bytes], sizes: list[int], data: st.DataObject
) -> None:
    content = b"".join(payloads)
    machine = compressor(method, level=None, threads=1)
    stream = bytearray(machine.compress(content) + machine.flush())
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        out, complete = _fed(method, bytes(stream), sizes)
    except CorruptStream:
        return
    assert out == content or not complete


@pytest.mark.parametrize("method", ["zstd", "gzip"])
def test_a_small_stream_that_grows_enormous_comes_in_small_blocks(method: Method) -> None:
    (stream,) = _members(method, [bytes(64 << 20)])
    machine = Decompressor(method)
    sizes = [len(piece) for piece in machine.feed(stream)]
    assert machine.complete
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= BLOCK
