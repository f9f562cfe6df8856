"""The file for Prometheus and its rules: held to what Prometheus's own tool says of them."""

import re
import subprocess
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import yaml

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.health import judge
from kyb_backup_pipeline.engine.metrics import (
    METRICS_FILE,
    RULES_FILE,
    alert_rules,
    exposition,
    write_metrics,
)
from kyb_backup_pipeline_tests.test_health import AROUND, NOW, full, judged, sound, without


def promtool(*arguments: str, stdin: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, check=False)


def values(text: bytes) -> dict[str, float]:
    found = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text.decode(), re.M)
    return {name: float(value) for name, value in found}


def test_prometheus_finds_nothing_wrong_with_the_metrics() -> None:
    text = exposition(judged())
    run = promtool("check", "metrics", stdin=text)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (run.stdout + run.stderr).strip() == b""
    found = values(text)
    assert found['kyb_backup_stale{kind="full"}'] == 0
    assert found["kyb_backup_recovery_time_seconds"] == 42.5
    assert found["kyb_backup_metrics_timestamp_seconds"] == NOW.timestamp()
    assert found['kyb_backup_troubles{severity="critical"}'] == 0
    stale = values(exposition(judged([*without("full"), full(ago=26)])))
    assert stale['kyb_backup_stale{kind="full"}'] == 1
    assert stale['kyb_backup_troubles{severity="critical"}'] == 1
    empty = promtool("check", "metrics", stdin=exposition(judged([])))
    assert empty.returncode == 0, empty.stderr


def test_the_rules_are_rules_and_catch_stale_backups_and_a_dead_pipeline(tmp_path: Path) -> None:
    rules = tmp_path / "kyb_backup.rules.yml"
    rules.write_bytes(alert_rules(config.load(environment={})))
    run = promtool("check", "rules", str(rules))
    assert run.returncode == 0, run.stderr
    names = {rule["alert"] for rule in yaml.safe_load(rules.read_bytes())["groups"][0]["rules"]}
    assert {"KybBackupStaleFull", "KybBackupStaleApplicationState", "KybBackupMetricsOld",
            "KybBackupMetricsAbsent", "KybBackupTrouble"} <= names  # fmt: skip
    day = 24 * 60

    def case(
        series: dict[str, str], minutes: int, alert: str, fires: bool, **labels: str
    ) -> object:
        expected = [{"exp_labels": {"severity": "critical", **labels}}] if fires else []
        return {
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in series.items()],
            "alert_rule_test": [
                {"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": expected}
            ],
        }

    newest = 'kyb_backup_last_success_timestamp_seconds{kind="full"}'
    count = 'kyb_backups{kind="full"}'
    alive = "kyb_backup_metrics_timestamp_seconds"
    tests = [
        case({newest: f"0x{2 * day}"}, 24 * 60, "KybBackupStaleFull", False),
        case({newest: f"0x{2 * day}"}, 25 * 60 + 12, "KybBackupStaleFull", True, kind="full"),
        case({count: "0x60"}, 30, "KybBackupStaleFull", True, kind="full"),
        case({alive: f"0+60x{day}"}, 600, "KybBackupMetricsOld", False),
        case({alive: f"0x{day}"}, 130, "KybBackupMetricsOld", True),
        case({}, 20, "KybBackupMetricsAbsent", True),
        case({'kyb_backup_troubles{severity="critical"}': "1x60"}, 10, "KybBackupTrouble", True),
    ]
    for test in tests:  # the texts are not what is tested
        for wanted in test["alert_rule_test"][0]["exp_alerts"]:  # type: ignore[index]
            rule = next(r for r in yaml.safe_load(rules.read_bytes())["groups"][0]["rules"]
                        if r["alert"] == test["alert_rule_test"][0]["alertname"])  # type: ignore[index]  # fmt: skip
            wanted["exp_annotations"] = rule["annotations"]
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m",
                                    "tests": tests}))  # fmt: skip
    run = promtool("test", "rules", str(file))
    assert run.returncode == 0, run.stdout.decode() + run.stderr.decode()


def test_limits_that_are_not_watched_have_no_rule() -> None:
    text = alert_rules(config.load(environment={"KYB_HEALTH__BASE_MAX_AGE": "0"})).decode()
    assert "KybBackupStaleBase" not in text
    assert "> 90000" in text
    assert (
        "> 3600" in alert_rules(config.load(environment={"KYB_HEALTH__FULL_MAX_AGE": "1"})).decode()
    )


def test_a_reader_finds_a_whole_file_at_any_moment(tmp_path: Path) -> None:
    settings = config.load(environment={"BACKUP_DIR": str(tmp_path)})
    path = write_metrics(settings, judged())
    assert path == tmp_path / METRICS_FILE
    assert path.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / RULES_FILE).read_bytes() == alert_rules(settings)
    done = threading.Event()
    torn: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            text = path.read_bytes()
            if b"kyb_backup_metrics_timestamp_seconds " not in text or not text.endswith(b"\n"):
                torn.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for minute in range(200):
            now = NOW + timedelta(minutes=minute)
            write_metrics(settings, replace(judge(settings, sound(), AROUND, now)))
    finally:
        done.set()
        reader.join()
    assert torn == []
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    elsewhere = config.load(environment={
        "BACKUP_DIR": str(tmp_path), "KYB_METRICS__FILE": str(tmp_path / "textfile" / "kyb.prom")})  # fmt: skip
    assert write_metrics(elsewhere, judged()).exists()
