"""The sandbox: `demo` twice, `up`, a launch through Dagster's API with an own id, `down`.

A real Dagster instance with PostgreSQL storage, its webserver and its daemon.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.sandbox.cluster import free_port
from kyb_backup_pipeline_tests.running import Cli, wait_until
from kyb_backup_pipeline_tests.s3_server import Bucket

LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_PARTITIONS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
  ... on AssetNode { assetPartitionStatuses {
    ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } } } } }"""
_ASSETS = ("full_backup", "full_backup_verification", "full_backup_restore_test")


@pytest.fixture(scope="module")
def folder(place: Path) -> Iterator[Path]:
    """A sandbox of our own, away from the checkout's."""
    folder = place / "sandbox"
    yield folder
    assert Cli(None).run("down", "--folder", str(folder)).returncode == 0
    assert not list(folder.glob("run/*.pid"))
    assert not list(folder.glob("clusters/*/data/postmaster.pid"))


def test_the_demo_proves_a_backup_through_dagster_and_can_run_again(
    folder: Path, bucket: Bucket
) -> None:
    cli = Cli(None)
    ids = []
    for rows, place in (("340,000", "a folder"), ("340,000", "a bucket")):
        # what came behind the full backup went with the database
        if place == "a bucket":
            (folder / "offsite.toml").write_text(bucket.table())
        run = cli.run("demo", "--folder", str(folder))
        assert run.returncode == 0, run.stdout + run.stderr
        assert re.search(r"verified +passed", run.stdout)
        assert re.search(r"restored +passed", run.stdout)
        assert f"{rows} rows, 0 differ" in run.stdout
        assert re.search(r"point in time +passed: \d+ markers committed, [\d,]+ rows", run.stdout)
        assert re.search(
            r"DROP DATABASE kyb_platform\n +recovered +340000 rows in \d+ tables equal", run.stdout
        )
        copies = re.findall(r"^  \S+ +passed: \d+ objects there", run.stdout, re.M)
        assert len(copies) == 5, run.stdout
        ids += re.findall(r"^(backup_\d+_\d+)$", run.stdout, re.M)
        (page,) = re.findall(r"^The health report: (.*)$", run.stdout, re.M)
        assert ids[-1] in Path(page).read_text()
    assert len(set(ids)) == 2
    mine = Cli(folder / "kyb_backup.toml")
    listed = json.loads(mine.run("list", "--json").stdout)
    tested = {line["id"]: line["restore_test"] for line in listed if line["kind"] == "full"}
    assert tested == dict.fromkeys(ids, "passed")
    assert {tuple(line["offsite"]) for line in listed} == {("offsite",)}
    parts = [*(folder / "offsite").glob("database/full/*/database.sql.zst/00000-*")]
    keys = [key for key in bucket.objects() if "/database.sql.zst/00000-" in key]
    assert (len(parts), len(keys)) == (1, 2), "what has no copy in the new place was brought there"
    for first in (parts[0].read_bytes(), *map(bucket.read, keys)):
        assert first.startswith(b"age-encryption.org/"), "what leaves is encrypted"
    verified = [(line["kind"], line["verification"]) for line in listed]
    assert sorted(verified) == [
        (kind, "passed")
        for kind in ("application_state", "base", "configuration", "full", "incremental")
        for _ in range(2)
    ]
    assert mine.run("check").returncode == 0
    port = (folder / "run" / "platform.port").read_text().strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert json.load(answer) == {"status": "ok"}


def test_the_ui_shows_backups_of_the_command_line_and_launches_one_with_an_own_id(
    folder: Path,
) -> None:
    port = free_port()
    cli = Cli(None)
    run = cli.run("up", "--folder", str(folder), "--port", str(port))
    assert run.returncode == 0, run.stdout + run.stderr
    mine = Cli(folder / "kyb_backup.toml")
    for command in (
        ["backup", "full", "--id", "by_hand"],
        ["verify", "by_hand"],
        ["drill", "by_hand"],
    ):
        assert mine.run(*command).returncode == 0
    began = time.monotonic()
    launched = ask(
        port,
        LAUNCH,
        params={
            "selector": {
                "repositoryLocationName": "kyb_backup_pipeline",
                "repositoryName": "__repository__",
                "jobName": "full_backup_job",
            },
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "own_id"}]},
        },
    )["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched

    def status() -> str:
        run = ask(port, RUN, id=launched["run"]["runId"])["runOrError"]
        return str(run["status"])

    wait_until(lambda: status() in ("SUCCESS", "FAILURE", "CANCELED"), "the run ends", 180)
    assert status() == "SUCCESS"
    assert time.monotonic() - began > 0
    for asset in _ASSETS:
        green = partial(are_green, port, asset, {"own_id", "by_hand"})
        wait_until(green, f"both backups are green in {asset}", 120)
    pages = json.dumps(ask(port, "{ runsOrError { ... on Runs { results { runConfigYaml tags "
                                 "{ key value } } } } instance { info } }"))  # fmt: skip
    for secret in (folder / "secrets").iterdir():
        assert secret.read_text().splitlines()[-1] not in pages
    a_pipeline_stops_where_the_state_could_not_be_saved(folder, port)


def a_pipeline_stops_where_the_state_could_not_be_saved(folder: Path, port: int) -> None:
    """The very lines of the runbook, against this Dagster."""
    runbook = (Path(__file__).parent.parent / "docs" / "runbook.md").read_text()
    (script,) = [
        part for part in re.findall(r"```sh\n(.*?)```", runbook, re.S) if "launchRun" in part
    ]
    environment = {"PATH": os.environ["PATH"], "DAGSTER": f"http://127.0.0.1:{port}"}

    def pipeline(version: str) -> int:
        variables = {**environment, "VERSION": version}
        return subprocess.run(["bash", "-c", script], env=variables, check=False).returncode

    assert pipeline("v5.0.0") == 0
    mine = Cli(folder / "kyb_backup.toml")
    saved = json.loads(mine.run("show", "app_v5.0.0", "--json").stdout)
    assert (saved["deployment"], saved["components"]["sessions"]) == ("v5.0.0", True)
    service = [sys.executable, "-m", "kyb_backup_pipeline.sandbox.service"]
    subprocess.run([*service, "stop", "--root", str(folder)], check=True)
    assert pipeline("v5.0.1") == 1
    assert mine.run("show", "app_v5.0.1").returncode == 9
    run = mine.run("restore", "application", "app_v5.0.0", "--yes")
    assert run.returncode == 0, run.stderr  # which starts it again
    assert pipeline("v5.0.1-again") == 0


def are_green(port: int, asset: str, partitions: set[str]) -> bool:
    """Whether these partitions of an asset are materialized."""
    node = ask(port, _PARTITIONS, key={"path": [asset]})["assetNodeOrError"]
    return partitions <= set(node["assetPartitionStatuses"]["materializedPartitions"])


def ask(port: int, query: str, **variables: Any) -> Any:
    """A question to Dagster's API."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        document = json.load(answer)
    assert "errors" not in document, document
    return document["data"]
