"""Encrypted base backups and WAL: recovered to every moment with the key, and nothing begun without it."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kyb_backup_pipeline import archiver
from kyb_backup_pipeline.engine.encryption import new_key_pair
from kyb_backup_pipeline.engine.errors import CouldNotVerify, RestoreFailed
from kyb_backup_pipeline.engine.manifest import Manifest, utc_now
from kyb_backup_pipeline.engine.point_in_time import recover_into
from kyb_backup_pipeline.engine.recovery_plan import coverages, parse_moment, plan_recovery
from kyb_backup_pipeline.engine.settings import EncryptionSettings
from kyb_backup_pipeline.engine.verify import verify_backup
from kyb_backup_pipeline.engine.wal import Segment
from kyb_backup_pipeline.engine.wal_store import WalConflict, WalDamaged, WalStore
from kyb_backup_pipeline.sandbox.cluster import Cluster
from kyb_backup_pipeline_tests.conftest import execute
from kyb_backup_pipeline_tests.keys import PASSPHRASE, Keys, flip, keys_in, seal_anew
from kyb_backup_pipeline_tests.plants import plant_in
from kyb_backup_pipeline_tests.wal_clusters import Primary, primary_of, running_cluster

_numbers = itertools.count()
MEGABYTE = 1 << 20


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return keys_in(tmp_path / "keys")


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    """One server for the tests of this file; each has a repository and a slot of its own."""
    with running_cluster(place, 18, arguments=("--no-locale", "--wal-segsize=1")) as cluster:
        execute(cluster.target(), "CREATE TABLE t (n int)")
        yield cluster


@pytest.fixture
def primary(cluster: Cluster, tmp_path: Path, drills: Path) -> Iterator[Callable[..., Primary]]:
    """The server with the variables of some keys."""
    slot = f"sealed_{next(_numbers)}"
    execute(cluster.target(), "TRUNCATE t")
    yield lambda variables: primary_of(
        cluster, tmp_path / "backups", drills, KYB_WAL__SLOT=slot, **variables
    )
    execute(
        cluster.target(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
    )


def rows(primary: Primary, count: int) -> None:
    primary.sql(f"INSERT INTO t SELECT n FROM generate_series(1, {count}) AS n")


def verdict(primary: Primary, manifest: Manifest) -> tuple[str, str]:
    backup = primary.repository.find(manifest.backup_id)
    proof = verify_backup(primary.repository, backup, settings=primary.settings, now=utc_now())
    return proof.verdict, proof.summary


def stored(primary: Primary) -> set[str]:
    """How what is in the store ends."""
    return {"".join(path.suffixes) for path in primary.repository.wal.root.glob("0*/*")}


@pytest.mark.parametrize("method", ["age", "gpg"])
def test_a_base_and_increments_lead_to_each_moment_with_the_key_only(
    primary: Callable[..., Primary], keys: Keys, method: str
) -> None:
    here = primary(keys.opens(method))
    base = here.base()
    rows(here, 500)
    first = here.increment()
    rows(here, 250)
    second = here.increment()
    assert [file.path for file in base.files] == [f"base.tar.zst.{method}"]
    assert stored(here) == {f".zst.{method}"}
    assert second.encryption == base.encryption
    for manifest in (base, first, second):
        assert verdict(here, manifest)[0] == "passed"
    for at, expected in (("latest", 750), (first.require_wal().markers[0].lsn, 500)):
        proof = here.drill(at)
        assert (proof.verdict, proof.findings) == ("passed", ()), proof.summary
        assert proof.figures["rows"] == expected
    for variables in (keys.none(method), keys.wrong(method)):
        there = primary(variables)
        for manifest in (base, second):
            said, summary = verdict(there, manifest)
            assert (said, "checksum passed" in summary) == ("could_not_verify", True), summary
        proof = there.drill()
        assert (proof.verdict, proof.steps, bool(proof.hint)) == ("could_not_verify", {}, True)
    # neither the list of what is covered nor an increment needs the key
    without = primary(keys.seals(method))
    assert len(coverages(without.repository)[0].increments) == 2
    if method == "age":
        without.increment()
        assert here.drill().verdict == "passed"


@pytest.mark.parametrize("method", ["age", "gpg"])
def test_damage_is_found_with_the_key_and_without(
    primary: Callable[..., Primary], keys: Keys, method: str
) -> None:
    here, there = primary(keys.opens(method)), primary(keys.none(method))
    base = here.base()
    rows(here, 500)
    increment = here.increment()
    archive = here.repository.find(base.backup_id).folder / base.files[0].path
    segment = here.repository.wal.find(increment.require_wal().segments[0].name)
    assert segment is not None
    for path, manifest in ((archive, base), (segment.path, increment)):
        whole = flip(path, -5)
        for primary_ in (here, there):
            assert verdict(primary_, manifest)[0] == "failed"
        assert here.drill().verdict == "failed"
        path.write_bytes(whole[:-1])
        assert verdict(there, manifest)[0] == "failed"
        path.write_bytes(whole)
    # also where the manifest was made to fit: the encryption itself must tell, and nothing is recovered
    backup = here.repository.find(base.backup_id)
    flip(archive, -5)
    seal_anew(backup)
    said, summary = verdict(here, base)
    assert (said, "is damaged: cannot be decrypted" in summary) == ("failed", True), summary
    proof = here.drill()
    assert (proof.verdict, "replay" in proof.steps) == ("failed", False)
    plan = plan_recovery(here.repository, parse_moment("latest"))
    with pytest.raises(RestoreFailed, match="is bad"):
        recover_into(here.settings, plan, here.cluster.folder / "r", now=utc_now())
    assert not (here.cluster.folder / "r").exists()


@pytest.mark.parametrize("first", ["plain", "sealed"])
def test_plain_and_encrypted_parts_of_one_chain_are_used_together(
    primary: Callable[..., Primary], keys: Keys, first: str
) -> None:
    key = keys.opens()
    plain, sealed = primary(key | {"KYB_ENCRYPTION__DATABASE": "false"}), primary(key)
    one, other = (plain, sealed) if first == "plain" else (sealed, plain)
    base = one.base()
    rows(one, 100)
    increments = [one.increment()]
    for way in (other, one, other):
        rows(way, 100)
        increments.append(way.increment())
    assert stored(one) == {".zst", ".zst.age"}
    assert [m.encryption is None for m in (base, *increments)] == [
        way is plain for way in (one, one, other, one, other)
    ]
    for manifest in (base, *increments):
        assert verdict(one, manifest)[0] == "passed"
    proof = one.drill()
    assert (proof.verdict, proof.figures["rows"]) == ("passed", 400), proof.summary
    without = primary({})
    found = [verdict(without, manifest)[0] for manifest in (base, *increments)]
    assert found == [
        "passed" if m.encryption is None else "could_not_verify" for m in (base, *increments)
    ]
    assert without.drill().verdict == "could_not_verify"


def test_a_key_that_changed_between_base_and_increments_needs_both_identities(
    primary: Callable[..., Primary], keys: Keys, tmp_path: Path, place: Path
) -> None:
    new = new_key_pair(tmp_path / "new", utc_now())
    here = primary(keys.opens())
    here.base()
    rows(here, 100)
    here.increment()
    changed = keys.seals() | {"KYB_ENCRYPTION__RECIPIENTS": new.recipient}
    later = primary(changed | {"KYB_ENCRYPTION__IDENTITY_FILE": str(new.file)})
    rows(later, 100)
    later.increment()
    for way in (here, later):
        proof = way.drill()
        assert (proof.verdict, proof.steps) == ("could_not_verify", {}), proof.summary
        plan = plan_recovery(way.repository, parse_moment("latest"))
        with pytest.raises(CouldNotVerify, match="another key"):
            recover_into(way.settings, plan, place / "nowhere", now=utc_now())
        assert not list(place.glob("*nowhere*"))
    both = tmp_path / "both.txt"
    both.write_text(keys.pair.file.read_text() + "\n" + new.file.read_text())
    proof = primary(changed | {"KYB_ENCRYPTION__IDENTITY_FILE": str(both)}).drill()
    assert (proof.verdict, proof.figures["rows"]) == ("passed", 200), proof.summary


def test_tablespaces_that_lie_elsewhere_are_encrypted_each(
    primary: Callable[..., Primary], keys: Keys, cluster: Cluster
) -> None:
    here = primary(keys.opens())
    elsewhere = cluster.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if cluster.account is not None:
        os.chown(elsewhere, cluster.account.uid, cluster.account.gid)
    here.sql(f"CREATE TABLESPACE elsewhere LOCATION '{elsewhere}'")
    try:
        here.sql("CREATE TABLE away TABLESPACE elsewhere AS SELECT generate_series(1, 100) AS n")
        base = here.base()
        backup = here.repository.find(base.backup_id)
        names = sorted(file.path for file in base.files)
        assert len(names) == 3
        assert {"backup_manifest.age", "base.tar.zst.age"} < set(names)
        assert all(name.endswith(".age") for name in names)
        assert {p.name for p in backup.folder.iterdir() if "metadata" not in p.name} == set(names)
        assert verdict(here, base)[0] == "passed"
        assert verdict(primary(keys.none()), base)[0] == "could_not_verify"
        proof = here.drill()
        assert (proof.verdict, proof.figures["rows"]) == ("passed", 100), proof.summary
    finally:
        here.sql("DROP TABLE away", "DROP TABLESPACE elsewhere")


def test_a_switch_without_the_key_is_refused_before_anything_is_stopped(
    place: Path, tmp_path: Path, drills: Path, keys: Keys
) -> None:
    with plant_in(place, tmp_path, drills) as plant:
        plant.primary.base()
        plant.primary.increment()
        for variables in (keys.none(), keys.wrong()):
            # the base is plain: it is what is still to come that counts
            with pytest.raises(CouldNotVerify):
                plant.restore("latest", **variables)
            assert (plant.calls(), plant.beside()) == ([], [])
        plant.with_settings(**keys.seals()).base()
        without = keys.none() | {"KYB_ENCRYPTION__DATABASE": "false"}
        run = plant.cli(**without).run(
            "restore", "point-in-time", "--at", "latest", "--switch", "--yes"
        )
        assert (run.returncode, "HINT: encryption.identity_file" in run.stderr) == (10, True)
        assert (plant.calls(), plant.beside()) == ([], [])
        plant.primary.sql("INSERT INTO t SELECT n FROM generate_series(1, 7) AS n")
        assert plant.restore("latest", **keys.opens()).state == "done"
        assert plant.rows() == 1007
        assert "server-stop" in plant.calls()


# The store


@pytest.fixture
def store(tmp_path: Path) -> WalStore:
    store = WalStore(tmp_path / "wal")
    store.create()
    return store


def settings_of(variables: dict[str, str]) -> EncryptionSettings:
    from kyb_backup_pipeline.engine import config

    return config.load(environment=variables).encryption


def segment(place: Path, number: int = 1, seed: int = 0) -> Path:
    import random

    path = place / Segment(1, number, MEGABYTE).name
    path.write_bytes(random.Random(seed).randbytes(MEGABYTE // 2) + bytes(MEGABYTE // 2))
    return path


def test_the_store_knows_what_it_has_without_the_key(
    tmp_path: Path, store: WalStore, keys: Keys
) -> None:
    source, seals, opens = segment(tmp_path), settings_of(keys.seals()), settings_of(keys.opens())
    first = store.add(source, source.name, seals)
    assert store.add(source, source.name, seals) == first
    assert store.add(source, source.name) == first  # encryption was switched off since
    segment(tmp_path, seed=1)
    with pytest.raises(WalConflict, match="other content"):
        store.add(source, source.name, seals)
    segment(tmp_path)
    flip(first.path, 1000)
    with pytest.raises(WalDamaged, match="another SHA-256"):
        store.extract(first, None, seals)
    second = store.add(source, source.name, seals)  # a damaged one makes room
    assert (second.sha256, second.path != first.path, first.path.exists()) == (
        first.sha256, True, False,
    )  # fmt: skip
    assert store.extract(second, tmp_path / "out", opens) == MEGABYTE
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    with pytest.raises(CouldNotVerify):
        store.extract(second, tmp_path / "not", seals)
    assert not (tmp_path / "not").exists()
    assert list(store.root.rglob("*.tmp")) == []


def test_history_files_and_labels_stay_plain_and_partial_segments_do_not(
    tmp_path: Path, store: WalStore, keys: Keys
) -> None:
    seals = settings_of(keys.seals())
    name = Segment(1, 1, MEGABYTE).name
    for each in ("00000002.history", f"{name}.00000028.backup", f"{name}.partial"):
        (tmp_path / each).write_text("1\t0/3000000\tno recovery target specified\n")
        store.add(tmp_path / each, each, seals)
    assert store.history(2).startswith("1\t0/3000000")
    ends = {path.name.partition("-")[0]: path.suffix for path in store.root.glob("0*/*")}
    assert ends == {
        "00000002.history": ".zst", f"{name}.00000028.backup": ".zst", f"{name}.partial": ".age",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["age", "gpg"])
def test_kyb_wal_fetch_opens_what_is_encrypted(
    tmp_path: Path, store: WalStore, keys: Keys, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = segment(tmp_path)
    added = store.add(source, source.name, settings_of(keys.seals(method)))
    out = tmp_path / "fetched"

    def fetch(*options: str, isolated: str = "-I") -> int:
        program = Path(archiver.__file__).parent / "fetch.py"
        argv = [sys.executable, isolated, str(program), "--store", str(store.root), *options]
        run = subprocess.run([*argv, source.name, str(out)], capture_output=True, text=True)
        assert PASSPHRASE not in run.stderr
        return run.returncode

    option, file = {
        "age": ("--identity", keys.pair.file), "gpg": ("--passphrase-file", keys.passphrase()),
    }[method]  # fmt: skip
    wrong = keys.other.file if method == "age" else keys.passphrase("something else")
    assert fetch(option, str(file)) == 0
    assert out.read_bytes() == source.read_bytes()
    out.unlink()
    assert fetch() == 200
    assert fetch(option, str(wrong)) == 200
    assert fetch(option, str(tmp_path / "nowhere")) == 200
    if method == "age":  # the program of that name does it where the library is not
        assert shutil.which("age")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
        (tmp_path / "without" / "pyrage").mkdir(parents=True)
        (tmp_path / "without" / "pyrage" / "__init__.py").write_text("raise ImportError")
        assert fetch(option, str(file), isolated="-B") == 0
        assert out.read_bytes() == source.read_bytes()
        out.unlink()
        assert fetch(option, str(wrong), isolated="-B") == 200
    flip(added.path, -5)
    assert fetch(option, str(file)) == 200
    assert not out.exists()
