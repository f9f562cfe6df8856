"""Measure the project side by side with what it replaces, and print ratios.

``python -m benchmarks.run --size 1G --rounds 5`` takes about an hour on two cores; ``--only NAME`` runs one
table. Ends with 0 whether or not the limits are met: what it prints is the result.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import archives, backups, footprint, offsite, proofs, recovery, wal, watching
from benchmarks.stage import Plan, Stage, prepared
from benchmarks.table import Table, render

CASES: Mapping[str, Callable[[Plan], Table]] = {
    "backup": backups.plain,
    "directory": backups.directory,
    "verification": proofs.verification,
    "restore": proofs.restore_test,
    "memory": footprint.memory,
    "startup": footprint.startup,
    "levels": backups.levels,
    "base": wal.base,
    "archiver": wal.archiver,
    "archive": archives.archive,
    "files": archives.files,
    "recovery": recovery.restore,
    "switch": recovery.switch,
    "watching": watching.watching,
    "offsite": offsite.upload,
    "offsite-memory": offsite.memory,
}

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    began = time.monotonic()
    tables: dict[str, Table] = {}
    try:
        with prepared(options.keep, options.program, options.patience) as stage:
            machine = _machine(stage)
            print("  ".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
            for name in options.only or CASES:

                def progress(text: str, name: str = name) -> None:
                    seconds = time.monotonic() - began
                    print(f"{seconds:7.0f} s  {name}: {text}", file=sys.stderr, flush=True)

                plan = Plan(stage, options.size, options.rounds, options.memory_size, progress)
                tables[name] = CASES[name](plan)
                print(f"\n{render(tables[name])}", flush=True)
    except KeyboardInterrupt:
        print("interrupted; everything temporary is removed", file=sys.stderr)
        return 130
    _conclude(tables)
    if options.json:
        _write(options.json, machine, options.size, tables)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--size", type=_bytes, default="1G", help="of the plain dump; default 1G")
    parser.add_argument("--rounds", type=int, default=5, help="after one to warm up; default 5")
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be repeated")
    parser.add_argument(
        "--memory-size", type=_bytes, action="append", default=[], help="one more size for memory"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how long to wait, before each measurement, for others to be quiet; default 0",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it there")
    parser.add_argument(
        "--program",
        type=Path,
        default=Path(sys.executable).with_name("kyb-backup"),
        help="the kyb-backup to measure; default: the one beside this Python",
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if not os.access(options.program, os.X_OK):
        parser.error(f"no program {options.program}: install the project, or name it by --program")
    options.keep = options.keep and options.keep.absolute()
    return options


def _bytes(text: str) -> int:
    """A size such as 100M or 1G."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    return int(float(number) * (_UNITS[unit] if unit else 1))


def _machine(stage: Stage) -> dict[str, str]:
    zstd = shutil.which("zstd")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = subprocess.run([zstd, "--version"], capture_output=True, text=True) if zstd else None
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
        "postgresql": stage.cluster.programs.version,
        "zstd program": said.stdout.split(",")[0].split()[-1] if said else "NONE",
        "load at start": f"{os.getloadavg()[0]:.1f}",
    }


def _conclude(tables: Mapping[str, Table]) -> None:
    lines = [line for table in tables.values() for line in table.outcomes if line.met is not None]
    missed = [line for line in lines if not line.met]
    print(f"{len(lines) - len(missed)} of {len(lines)} limits met")
    for line in missed:
        print(f"  NOT met: {line.label}: {line.median:.2f}, {line.limit}")


def _write(path: Path, machine: Mapping[str, str], size: int, tables: Mapping[str, Table]) -> None:
    document = {
        "machine": machine,
        "size": size,
        "tables": {name: dataclasses.asdict(table) for name, table in tables.items()},
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
