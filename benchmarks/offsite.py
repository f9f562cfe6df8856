"""The tables about off-site copies: an upload beside the service's own client, and its memory.

The server is OpenStack Swift with s3api on loopback, as in the tests. ``aws s3 cp`` is the client of those who
made S3; ``rclone copyto`` stands beside it. All send the same file of random bytes, each to a bucket that is empty;
ours hashes it, holds it against the manifest, has each object's SHA-256 checked by the server, and commits.
A client that is not installed is left out, and the table says so.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import obstore

from benchmarks.measure import Contender, Figures, run
from benchmarks.stage import ENVIRONMENT, Plan, Stage
from benchmarks.table import Ratio, Table, judge, judged, within
from kyb_backup_pipeline.engine.encryption import new_key_pair
from kyb_backup_pipeline.engine.manifest import Manifest, utc_now
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline_tests.s3_server import KEY, SECRET, Bucket, S3Server, running_s3_server

_RATE_LIMIT = 0.8
_PEAK_LIMIT = 200.0
_BLOCK = 1 << 20


def upload(plan: Plan) -> Table:
    """The rate of ``offsite push`` beside that of the clients, for one file of the chosen size."""
    with _server(plan.stage) as server:
        ours = _Ours(plan.stage, server, plan.size)
        contenders = [ours.contender("ours")]
        notes = ["the server is not counted as ours: its share is in the noise"]
        for name, peer in (("aws", _aws), ("rclone", _rclone)):
            program = shutil.which(name)
            if program is None:
                notes.append(f"{name} is not installed: left out")
            else:
                contenders.append(peer(program, server, ours.file))
        contenders.append(ours.contender("encrypted", encrypted=True))
        rounds = plan.run(contenders)
    lines = [
        Ratio("rate, ours : aws s3 cp", over=("aws",), under=("ours",), limit=_RATE_LIMIT, sense="at least"),
        Ratio("rate, ours : rclone", over=("rclone",), under=("ours",), limit=_RATE_LIMIT, sense="at least"),
        Ratio("encrypted : plain", over=("encrypted",), under=("ours",)),
    ]  # fmt: skip
    peak = Ratio("peak memory", over=("ours, MB",), under=("ours, MB",))
    outcomes = (*judged(lines, rounds), within(peak, rounds, limit=_PEAK_LIMIT, unit="MB"))
    return Table(title="upload to a local S3 server", outcomes=outcomes, rounds=rounds,
                 notes=tuple(notes))  # fmt: skip


def memory(plan: Plan) -> Table:
    """Peak memory of ``offsite push`` at the chosen sizes."""
    sizes = sorted({plan.size, *plan.memory_sizes})
    with _server(plan.stage) as server:
        contenders = [
            _Ours(plan.stage, server, size).contender(f"{size >> 20} MB", peak_only=True)
            for size in sizes
        ]
        rounds = plan.run(contenders)
    first = f"{sizes[0] >> 20} MB"
    outcomes = []
    for size in sizes:
        name = f"{size >> 20} MB"
        same = Ratio(f"{name} : {first}", over=(name,), under=(first,))
        outcomes.append(within(same, rounds, limit=_PEAK_LIMIT, unit="MB"))
        if name != first:
            outcomes.append(judge(same, rounds, unit="MB"))
    return Table(title="peak memory of a push", outcomes=tuple(outcomes), rounds=rounds)


@contextlib.contextmanager
def _server(stage: Stage) -> Iterator[S3Server]:
    root = stage.folder / "s3"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    try:
        with running_s3_server(root) as server:
            yield server
    finally:
        shutil.rmtree(root, ignore_errors=True)


class _Ours:
    """A repository with one backup of one file, and the command that copies it."""

    def __init__(self, stage: Stage, server: S3Server, size: int) -> None:
        self._stage = stage
        self._server = server
        self._root = stage.folder / f"offsite-{size >> 20}"
        if not self._root.exists():
            _backup(self._root, size)
        self.file = self._root / "database/full/full_1/database.sql.zst"

    def contender(
        self, name: str, *, encrypted: bool = False, peak_only: bool = False
    ) -> Contender:
        environment = ENVIRONMENT | {"BACKUP_DIR": str(self._root)}
        for inherited in ("PYTHONPATH",):
            if inherited in os.environ:
                environment[inherited] = os.environ[inherited]
        if encrypted:
            keys = self._root.parent / "keys"
            shutil.rmtree(keys, ignore_errors=True)
            pair = new_key_pair(keys, utc_now())
            environment |= {"KYB_ENCRYPTION__DATABASE": "offsite",
                            "KYB_ENCRYPTION__RECIPIENTS": pair.recipient}  # fmt: skip

        def measure(number: int) -> Figures:
            with _bucket(self._server) as bucket:
                argv = [self._stage.kyb_backup, "offsite", "push"]
                sample = run(argv, env=environment | bucket.environment(), chatty=True)
            if peak_only:
                return {name: sample.peak / 1e6}
            return {name: sample.seconds, f"{name}, MB": sample.peak / 1e6}

        return measure


def _backup(root: Path, size: int) -> None:
    repository = Repository(root)
    repository.create()
    block = os.urandom(_BLOCK)
    now = utc_now()
    with repository.writing("full", "full_1", now=now) as staging:
        with open(staging.folder / "database.sql.zst", "wb") as out:
            for number in range(-(-size // _BLOCK)):
                piece = number.to_bytes(8, "big") + block[8:]
                out.write(piece[: min(_BLOCK, size - number * _BLOCK)])
        staging.publish(
            Manifest(backup_id="full_1", timestamp=now, type="full", backup_file="database.sql.zst",
                     file_size=size, format_version=1, finished_at=now)
        )  # fmt: skip


@contextlib.contextmanager
def _bucket(server: S3Server) -> Iterator[Bucket]:
    """A bucket, and room again after it."""
    bucket = server.bucket()
    try:
        yield bucket
    finally:
        for key in bucket.objects(""):
            obstore.delete(bucket.whole, [key])


def _aws(program: str, server: S3Server, file: Path) -> Contender:
    environment = ENVIRONMENT | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
                                 "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip

    def measure(number: int) -> Figures:
        with _bucket(server) as bucket:
            argv: list[str | Path] = [program, "--endpoint-url", server.endpoint, "s3", "cp", "--no-progress",
                                      file, f"s3://{bucket.name}/file"]  # fmt: skip
            sample = run(argv, env=environment, chatty=True)
        return {"aws": sample.seconds}

    return measure


def _rclone(program: str, server: S3Server, file: Path) -> Contender:
    environment = ENVIRONMENT | {
        "RCLONE_CONFIG": "/dev/null", "RCLONE_CONFIG_B_TYPE": "s3", "RCLONE_CONFIG_B_PROVIDER": "Other",
        "RCLONE_CONFIG_B_ACCESS_KEY_ID": KEY, "RCLONE_CONFIG_B_SECRET_ACCESS_KEY": SECRET,
        "RCLONE_CONFIG_B_ENDPOINT": server.endpoint, "RCLONE_CONFIG_B_REGION": "us-east-1",
    }  # fmt: skip

    def measure(number: int) -> Figures:
        with _bucket(server) as bucket:
            argv: list[str | Path] = [program, "copyto", file, f"b:{bucket.name}/file"]
            sample = run(argv, env=environment, chatty=True)
        return {"rclone": sample.seconds}

    return measure
