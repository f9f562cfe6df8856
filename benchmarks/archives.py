"""The tables about encrypted archives of files.

``archive``: a tree of half the chosen size (500 MB of 1 GB), three quarters text as configuration is, one
quarter random bytes as keys and images are; ours with age and with gpg beside the procedures'
``tar -cz | gpg --symmetric``, each with a flush of what it wrote. ``files``: 100,000 small ones.
"""

import os
import random
import shutil
from pathlib import Path

from benchmarks.measure import Contender, Figures, run
from benchmarks.stage import ENVIRONMENT, Plan, Stage
from benchmarks.table import Ratio, Table, judge, judged, within
from kyb_backup_pipeline.engine.encryption import new_key_pair
from kyb_backup_pipeline.engine.manifest import utc_now

_AGE_FACTOR, _GPG_FACTOR = 6.0, 4.0
_PEAK_LIMIT = 150.0
_FILES = 100_000
_FILES_LIMIT = 60.0
_PASSPHRASE = "measured with this passphrase"
_WORDS = [
    "service",
    "host",
    "port",
    "timeout_ms",
    "enabled",
    "true",
    "false",
    "provider",
    "registry",
    "https",
    "example",
    "retry",
    "limit",
    "pool",
    "database",
    "user",
    "role",
    "region",
    "bucket",
    "retention",
    "level",
    "info",
    "warn",
    "name",
    "image",
    "replicas",
    "namespace",
]


def archive(plan: Plan) -> Table:
    """Ours with age and with gpg against the procedures' command, on the same tree."""
    tree = _tree(plan.stage.folder / "tree", plan.size // 2)
    contenders = [
        _procedures(plan.stage, tree),
        _ours(plan.stage, tree, "age"),
        _ours(plan.stage, tree, "gpg"),
    ]
    rounds = plan.run(contenders)
    lines = [
        Ratio("procedures : ours with age", over=("procedures",), under=("age",),
              limit=_AGE_FACTOR, sense="at least"),
        Ratio("procedures : ours with gpg", over=("procedures",), under=("gpg",),
              limit=_GPG_FACTOR, sense="at least"),
    ]  # fmt: skip
    size = Ratio("size, ours : procedures", over=("age, MB",), under=("procedures, MB",))
    peak = Ratio("peak memory", over=("peak, MB",), under=("peak, MB",), limit=1.0)
    outcomes = (
        *judged(lines, rounds),
        judge(size, rounds, unit="MB"),
        within(peak, rounds, limit=_PEAK_LIMIT, unit="MB"),
    )
    return Table(title="configuration archive", outcomes=outcomes, rounds=rounds)


def files(plan: Plan) -> Table:
    """100,000 small files: the time and the peak memory, backed up and verified."""
    tree = plan.stage.folder / "many"
    if not tree.exists():
        for number in range(_FILES):
            folder = tree / f"{number // 1000:03}"
            if number % 1000 == 0:
                folder.mkdir(parents=True)
            (folder / f"service-{number}.yaml").write_text(f"name: service-{number}\nport: 8080\n")
    ours = _ours(plan.stage, tree, "age", verify=True)
    procedures = _procedures(plan.stage, tree)
    rounds = plan.run([ours, procedures])
    time = Ratio("backup", over=("age",), under=("age",), limit=1.0)
    peak = Ratio("peak memory", over=("peak, MB",), under=("peak, MB",), limit=1.0)
    lines = [Ratio("procedures : ours with age", over=("procedures",), under=("age",))]
    outcomes = (
        within(time, rounds, limit=_FILES_LIMIT, unit="s"),
        within(peak, rounds, limit=_PEAK_LIMIT, unit="MB"),
        *judged(lines, rounds),
    )
    return Table(title="100,000 small files", outcomes=outcomes, rounds=rounds)


def _tree(folder: Path, size: int) -> Path:
    """The same tree for the same size, always."""
    if folder.exists():
        return folder
    chance = random.Random(size)
    written = 0
    building = folder.with_name("tree-building")
    shutil.rmtree(building, ignore_errors=True)
    while written < size:
        length = chance.randrange(1_000, 800_000)
        place = building / f"{written * 50 // size:02}"
        place.mkdir(parents=True, exist_ok=True)
        make = _random if written * 4 // size == 3 else _text
        content = make(chance, length)
        (place / f"{written}.yaml").write_bytes(content)
        written += len(content)
    building.rename(folder)
    return folder


def _random(chance: random.Random, length: int) -> bytes:
    return chance.randbytes(length)


def _text(chance: random.Random, length: int) -> bytes:
    lines, size = [], 0
    while size < length:
        indent = "  " * chance.randrange(4)
        line = f"{indent}{chance.choice(_WORDS)}_{chance.randrange(1000)}: {chance.choice(_WORDS)}"
        if chance.random() < 0.3:
            line += f" {chance.getrandbits(64):x}"
        lines.append(line)
        size += len(line) + 1
    return "\n".join(lines).encode()


def _procedures(stage: Stage, tree: Path) -> Contender:
    place = stage.folder / "procedures-files"
    place.mkdir(exist_ok=True)
    (place / "passphrase").write_text(_PASSPHRASE)
    home = place / "gnupg"
    home.mkdir(mode=0o700, exist_ok=True)
    out = place / "archive.tar.gz.gpg"
    gpg = f"gpg --batch --pinentry-mode loopback --passphrase-file {place}/passphrase"
    line = (
        f"set -e -o pipefail; tar -czf - -C {tree} . | {gpg} --symmetric --cipher-algo AES256 "
        f"--output {out}; sync {out}"
    )

    def take(number: int) -> Figures:
        out.unlink(missing_ok=True)
        environment = ENVIRONMENT | {"GNUPGHOME": str(home)}
        seconds = run(["bash", "-c", line], env=environment, chatty=True).seconds
        run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], env=ENVIRONMENT)
        return {"procedures": seconds, "procedures, MB": out.stat().st_size / 1e6}

    return take


def _ours(stage: Stage, tree: Path, method: str, *, verify: bool = False) -> Contender:
    place = stage.folder / f"files-{method}"
    keys = place / "keys"
    shutil.rmtree(keys, ignore_errors=True)
    pair = new_key_pair(keys, utc_now())
    environment = ENVIRONMENT | {
        "BACKUP_DIR": str(place / "backups"),
        "KYB_BACKUP__MINIMUM_FREE": "0",
        "KYB_CONFIGURATION__ROOT": str(tree),
        "KYB_CONFIGURATION__INCLUDE": "*",
        "KYB_CONFIGURATION__SIZE_LIMIT": str(1 << 40),
        "KYB_ENCRYPTION__METHOD": method,
        "KYB_ENCRYPTION__RECIPIENTS": pair.recipient,
        "KYB_ENCRYPTION__IDENTITY_FILE": str(pair.file),
        "KYB_ENCRYPTION__PASSPHRASE": _PASSPHRASE,
    }

    def take(number: int) -> Figures:
        shutil.rmtree(place / "backups", ignore_errors=True)
        name = f"c{number}"
        sample = run([stage.kyb_backup, "backup", "configuration", "--id", name], env=environment)
        folder = place / "backups" / "application" / "config" / name
        size = sum(os.path.getsize(path) for path in folder.iterdir())
        figures = {method: sample.seconds, f"{method}, MB": size / 1e6}
        peak = sample.peak
        if verify:
            checked = run([stage.kyb_backup, "verify", name], env=environment)
            figures["verify"] = checked.seconds
            peak = max(peak, checked.peak)
        if method == "age":
            figures["peak, MB"] = peak / 1e6
        return figures

    return take
