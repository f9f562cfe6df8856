"""The report by mail, as a real mail server gets it: what mail readers show, what is attached, who refused."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.alert_memory import history
from kyb_backup_pipeline.engine.attempts import Attempts
from kyb_backup_pipeline.engine.errors import BackupFailed, SettingsInvalid
from kyb_backup_pipeline.engine.manifest import Proof
from kyb_backup_pipeline.engine.report import Report, make_report
from kyb_backup_pipeline.engine.report_mail import compose_report, mail_report
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.sandbox.invented import manifest_of, publish
from kyb_backup_pipeline_tests.browsing import browser
from kyb_backup_pipeline_tests.mail_server import MailServer, body, mail_server
from kyb_backup_pipeline_tests.running import Cli

NOW = datetime(2026, 3, 4, 7, 0, tzinfo=UTC)
EVIL = "<script>x</script>\r\nBcc: victim@example.org\x1b[2J"


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path, mail: MailServer) -> Path:
    """Settings of a repository with a week of backups, one test that failed, and something ill-meant."""
    repository = Repository(tmp_path / "backups")
    for day in range(7):
        made = NOW - timedelta(days=day, hours=5)
        backup = manifest_of("full", f"backup_{day}", made, started_at=made - timedelta(minutes=1))
        publish(repository, backup, {"database.sql.zst": b"x"}, said=10**8 + day * 10**6)
        repository.records.keep(
            Proof(backup_id=f"backup_{day}", proof="restore_test", summary="compared", started_at=made,
                  verdict="failed" if day == 3 else "passed", finished_at=made + timedelta(seconds=9),
                  figures={"recovery_seconds": 40.0 + day})
        )  # fmt: skip
    Attempts(repository.root).keep("full", "backup_9", BackupFailed(EVIL, hint=EVIL), NOW)
    file = tmp_path / "kyb_backup.toml"
    file.write_text(
        f'repository = "{repository.root}"\n[health]\n'
        + "".join(f"{kind}_max_age = 0\n" for kind in ("base", "incremental", "configuration", "application_state"))
        + f'[alerts]\nreport_email = ["audit@example.org", "boss@example.org"]\nsmtp = "{mail.address}"\n'
        'email = ["oncall@example.org"]\n'
    )  # fmt: skip
    return file


def send(file: Path) -> list[bool]:
    settings = config.load(file, environment={})
    return [each.delivered for each in mail_report(settings, report_of(settings), now=NOW)]


def report_of(settings: Settings) -> Report:
    return make_report(settings, Survey(Repository(settings.repository)), now=NOW)


def one(mail: MailServer, address: str = "audit@example.org") -> EmailMessage:
    (found,) = mail.to(address)
    return found


def test_each_address_gets_it_with_its_pictures_and_the_page(file: Path, mail: MailServer) -> None:
    assert send(file) == [True, True]
    assert [address for address, _ in mail.inbox if "oncall" in address] == []
    message = one(mail)
    assert message["To"] == "audit@example.org"
    assert "[KYB backups] report: 3 warnings" in message["Subject"]
    html, text = body(message, "html"), body(message, "plain")
    for said in ("backup_3 is bad: its restore test failed", "HINT:", "Recovery time: 40.0 s"):
        assert said in text
    assert "backup_3 is bad: its restore test failed" in html
    wanted = re.findall(r'src="cid:([^"]+)"', html)
    pictures = {
        part["Content-ID"]: part
        for part in message.walk()
        if part.get_content_maintype() == "image"
    }
    assert [f"<{cid}>" for cid in wanted] == list(pictures)
    assert len(pictures) == 2
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds == [
        "multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html",
        "image/png", "image/png", "text/html",
    ]  # fmt: skip
    for part in pictures.values():
        picture = Image.open(BytesIO(part.get_payload(decode=True)))  # type: ignore[arg-type]
        assert (picture.format, picture.size) == ("PNG", (840, 285))
    (page,) = message.iter_attachments()
    assert isinstance(page, EmailMessage)
    assert page.get_filename() == "backup-health-20260304-0700.html"
    assert page.get_content_type() == "text/html"
    assert "Every backup" in page.get_content()
    assert len(message.as_bytes()) < 300_000


def test_mail_readers_show_all_of_it_and_nothing_is_obeyed(file: Path, mail: MailServer, tmp_path: Path) -> None:  # fmt: skip
    send(file)
    message = one(mail)
    html = body(message, "html")
    assert not re.search(r"<(script|svg|style|link)|class=|var\(", html)
    assert message["Bcc"] is None
    assert "\x1b" not in html + body(message, "plain")
    assert r"Bcc: victim@example.org\x1b[2J" in body(message, "plain")
    cells = re.findall(r'<td width="15"[^>]*?(bgcolor="#\w+")?\s+style="[^"]*">(.?)</td>', html)
    assert len([colour for colour, _ in cells if colour]) == 60
    assert [sign for _, sign in cells if sign] == ["✕"]
    for part in message.walk():
        if part.get_content_maintype() == "image":
            name = f"{part['Content-ID'][1:-1]}.png"
            (tmp_path / name).write_bytes(part.get_payload(decode=True))  # type: ignore[arg-type]
            html = html.replace(f"cid:{part['Content-ID'][1:-1]}", name)
    (tmp_path / "mail.html").write_text(html)
    with browser() as page:
        for width in (375, 800):
            page.open(tmp_path / "mail.html", width=width)
            assert page.ask("document.documentElement.scrollWidth <= innerWidth")
            assert page.ask("[...document.images].map(i => i.naturalWidth)") == [840, 840]
            page.picture(tmp_path / f"mail-{width}.png")
        assert page.complaints == []


def test_the_page_is_left_out_where_a_gateway_refuses_it(file: Path, mail: MailServer) -> None:
    file.write_text(file.read_text() + "report_page = false\n")
    send(file)
    assert list(one(mail).iter_attachments()) == []
    assert len([p for p in one(mail).walk() if p.get_content_maintype() == "image"]) == 2


def test_who_refused_it_is_told_and_the_others_have_it(file: Path, mail: MailServer) -> None:
    mail.verdicts["boss@example.org"] = "552 too large"
    run = Cli(file).run("report", "--mail")
    assert run.returncode == 6
    assert "sent to audit@example.org: taken by" in run.stdout
    assert "error: not taken by boss@example.org" in run.stderr
    assert "552 too large" in run.stderr
    entries = history(config.load(file, environment={}))
    assert {(e.channel, e.delivered) for e in entries} == {
        ("audit@example.org", True), ("boss@example.org", False),
    }  # fmt: skip
    assert all("report:" in e.subject for e in entries)
    shown = json.loads(Cli(file).run("alert", "history", "--json").stdout)
    assert len(shown) == 2


def test_without_addresses_of_its_own_it_goes_where_alerts_go(file: Path, mail: MailServer) -> None:
    file.write_text(re.sub(r"report_email = .*\n", "", file.read_text()))
    assert Cli(file).run("report", "--mail").returncode == 0
    assert [address for address, _ in mail.inbox] == ["oncall@example.org"]
    settings = config.load(file, environment={})
    nobody = settings.alerts.model_copy(update={"email": ()})
    with pytest.raises(SettingsInvalid, match="nobody gets the report"):
        mail_report(settings.model_copy(update={"alerts": nobody}), report_of(settings), now=NOW)


def test_check_asks_the_mail_server_for_the_report_too(file: Path, mail: MailServer) -> None:
    file.write_text(re.sub(r"\nemail = .*\n", "\n", file.read_text()))
    lines = json.loads(Cli(file).run("check", "--json").stdout)
    said = [line for line in lines if "audit@example.org, boss@example.org" in json.dumps(line)]
    assert len(said) == 1
    assert "answers" in json.dumps(said)


def test_a_repository_out_of_sight_is_a_mail_too(tmp_path: Path) -> None:
    settings = config.load(environment={"BACKUP_DIR": str(tmp_path / "nowhere")})
    message = compose_report(report_of(settings), settings.alerts)
    assert "the repository cannot be read" in message.subject
    assert [a.type for a in message.attachments] == ["text/html"]
