"""The sensors that raise alerts, the report in the UI: against a real mail server and a real webhook."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import dagster as dg
import pytest

from kyb_backup_pipeline.definitions import defs
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.engine import health
from kyb_backup_pipeline.engine.full_backup import take_full_backup
from kyb_backup_pipeline.engine.health import ELSE, STALE
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.metrics import METRICS_FILE
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline_tests.conftest import settings_file
from kyb_backup_pipeline_tests.mail_server import MailServer, body, mail_server
from kyb_backup_pipeline_tests.platforms import Answers, answer, answering
from kyb_backup_pipeline_tests.running import Cli
from kyb_backup_pipeline_tests.test_dagster import new_instance, run


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


@pytest.fixture
def hook() -> Iterator[Answers]:
    def take(request: BaseHTTPRequestHandler, number: int) -> None:
        answer(request, 200, b"{}")

    with answering(take) as answers:
        yield answers


@pytest.fixture
def file(settings: Settings, tmp_path: Path, mail: MailServer, hook: Answers) -> Path:
    """Settings of a platform where only full backups are watched, with two channels."""
    path = settings_file(settings, tmp_path / "kyb_backup.toml")
    path.write_text(
        path.read_text()
        + "[health]\nbase_max_age = 0\nincremental_max_age = 0\nconfiguration_max_age = 0\n"
        "application_state_max_age = 0\n"
        f'[alerts]\nemail = ["ops@example.org"]\nsmtp = "{mail.address}"\n'
        f'[[alerts.channels]]\nname = "hook"\nurl = "{hook.url.replace("http://", "json://")}"\n'
    )
    return path


@pytest.fixture
def engine(file: Path) -> EngineResource:
    return EngineResource(config_file=str(file))


def tick(name: str, instance: dg.DagsterInstance, engine: EngineResource) -> str:
    """Evaluate a sensor; what it says."""
    sensor = defs.resolve_sensor_def(name)
    with dg.build_sensor_context(
        instance=instance, definitions=defs, resources={"engine": engine}
    ) as context:
        data = sensor.evaluate_tick(context)
    return str(data.skip_message)


def subjects(mail: MailServer) -> list[str]:
    return [str(message["Subject"]) for message in mail.to("ops@example.org")]


def test_stale_is_told_once_to_each_channel_and_so_is_its_end(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings, mail: MailServer,
    hook: Answers,
) -> None:  # fmt: skip
    Repository(settings.repository).create()
    for _ in range(3):
        assert "never been a full backup" in tick("stale_backup_sensor", instance, engine)
    assert len(subjects(mail)) == len(hook.seen) == 1
    assert "critical" in subjects(mail)[0]
    take_full_backup(settings, Request(backup_id="first"), now=utc_now())
    for _ in range(2):
        assert "nothing is wrong" in tick("stale_backup_sensor", instance, engine)
    assert len(subjects(mail)) == len(hook.seen) == 2
    assert "over" in body(mail.to("ops@example.org")[1], "plain").lower()


def test_both_sensors_and_the_command_line_share_one_memory(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings, file: Path,
    mail: MailServer,
) -> None:  # fmt: skip
    Repository(settings.repository).create()
    status = Cli(file).run("status", "--alert")
    assert status.returncode == 6
    assert len(subjects(mail)) == 1
    tick("stale_backup_sensor", instance, engine)
    tick("backup_health_sensor", instance, engine)
    assert len(subjects(mail)) == 1
    take_full_backup(settings, Request(backup_id="first"), now=utc_now())
    tick("backup_health_sensor", instance, engine)  # it does not know of ages, and ends nothing
    assert len(subjects(mail)) == 1
    assert Cli(file).run("status", "--alert").returncode == 0
    assert len(subjects(mail)) == 2
    tick("stale_backup_sensor", instance, engine)
    assert len(subjects(mail)) == 2
    assert (settings.repository / METRICS_FILE).exists()


def test_a_repository_out_of_sight_is_told_and_ends_nothing(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings, mail: MailServer,
) -> None:  # fmt: skip
    Repository(settings.repository).create()
    tick("stale_backup_sensor", instance, engine)
    away = settings.repository.with_name("away")
    settings.repository.rename(away)
    assert "cannot be read" in tick("stale_backup_sensor", instance, engine)
    assert "no repository" in tick("backup_health_sensor", instance, engine)
    told = subjects(mail)
    assert len(told) == 2
    away.rename(settings.repository)
    tick("backup_health_sensor", instance, engine)
    ended = body(mail.to("ops@example.org")[2], "plain").lower()
    assert "over" in ended
    assert "repository" in ended
    tick("stale_backup_sensor", instance, engine)
    assert len(subjects(mail)) == 3, "what was told before the repository went is not told again"


def test_a_run_that_failed_is_told_once_with_its_partition(
    instance: dg.DagsterInstance, engine: EngineResource, file: Path, mail: MailServer
) -> None:
    file.write_text(file.read_text().replace("[database]", '[database]\nsslmode = "disable"', 1))
    broken = file.with_name("broken.toml")
    text = file.read_text()
    start = text.index('name = "', text.index("[database]"))
    broken.write_text(f'{text[:start]}name = "nowhere"{text[text.index(chr(10), start) :]}')
    failed = run(instance, EngineResource(config_file=str(broken)), "full_backup_job", "wanted")
    assert not failed.success
    sensor = defs.resolve_sensor_def("run_failure_alert")
    event = failed.get_run_failure_event()
    for _ in range(2):
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_alert", dagster_instance=instance,
            dagster_run=failed.dagster_run, dagster_event=event, resources={"engine": engine},
        ).for_run_failure()  # fmt: skip
        sensor(context)
    (subject,) = subjects(mail)
    assert "full_backup_job for wanted failed" in subject
    text = body(mail.to("ops@example.org")[0], "plain")
    assert "nowhere" in text


def test_a_check_that_failed_in_a_run_that_did_not_is_told(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings, file: Path,
    mail: MailServer,
) -> None:  # fmt: skip
    text = file.read_text()
    assert 'evidence = "content"' in text
    file.write_text(text.replace('evidence = "content"', 'evidence = "none"'))
    done = run(instance, EngineResource(config_file=str(file)), "__ASSET_JOB", "bare",
               [dg.AssetKey("full_backup")])  # fmt: skip
    assert done.success
    sensor = defs.resolve_sensor_def("failed_check_alert")
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_check_alert", dagster_instance=instance, dagster_run=done.dagster_run,
        dagster_event=done.get_run_success_event(), resources={"engine": engine},
    )  # fmt: skip
    sensor(context)
    (subject,) = subjects(mail)
    assert "evidence_taken" in subject


def test_the_report_is_in_the_ui_and_in_the_repository(
    instance: dg.DagsterInstance, engine: EngineResource, settings: Settings
) -> None:
    take_full_backup(settings, Request(backup_id="first"), now=utc_now())
    result = run(instance, engine, "health_report_job")
    assert result.success
    (seen,) = [m for event in result.get_asset_materialization_events()
               for m in [event.materialization.metadata]]  # fmt: skip
    assert "data:image/svg+xml" in str(seen["report"].value)
    page = Path(str(seen["page"].value))
    assert page.parent == settings.repository / "monitoring" / "reports"
    assert "first" in page.read_text()
    document = json.loads(page.with_suffix(".json").read_text())
    assert document["backups"][0]["id"] == "first"
    assert "to nobody" in str(seen["mailed"].value)


def test_the_report_goes_by_mail_and_is_made_also_where_one_does_not_take_it(
    instance: dg.DagsterInstance,
    engine: EngineResource,
    file: Path,
    mail: MailServer,
    settings: Settings,
) -> None:
    Repository(settings.repository).create()
    wanted = 'report_email = ["audit@example.org", "gone@example.org"]'
    file.write_text(file.read_text().replace("[alerts]", f"[alerts]\n{wanted}"))
    mail.verdicts["gone@example.org"] = "550 no such user"
    result = run(instance, engine, "health_report_job")
    assert result.success
    (event,) = result.get_asset_materialization_events()
    said = str(event.materialization.metadata["mailed"].value)
    assert "audit@example.org: taken by" in said
    assert "550 no such user" in said
    (report,) = mail.to("audit@example.org")
    assert "there has never been a full backup" in body(report, "plain")
    assert subjects(mail) == []


def test_every_trouble_belongs_to_one_of_the_two_sensors() -> None:
    """Else nobody would say that it is over."""
    source = Path(health.__file__).read_text()
    keys = [line.split('key=f"' if 'key=f"' in line else 'key="')[1].split('"')[0].split("{")[0]
            for line in source.splitlines() if "key=f\"" in line or 'key="' in line]  # fmt: skip
    known = (*STALE, *ELSE)
    assert keys
    for key in filter(None, keys):  # a proof's name comes first in its key
        assert any(key.startswith(p) or (key and p.startswith(key)) for p in known), key
