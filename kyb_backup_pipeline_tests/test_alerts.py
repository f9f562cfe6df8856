"""Alerts that arrive, and arrive once: real mail servers, real webhooks, real kills."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword

from kyb_backup_pipeline.engine import alert_memory, alerts, config
from kyb_backup_pipeline.engine.alert_channels import Delivery
from kyb_backup_pipeline.engine.alert_check import alert_channels
from kyb_backup_pipeline.engine.alert_memory import alert_store, history, places
from kyb_backup_pipeline.engine.alerts import look, one_off, ping_when_well, send_test
from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.file_backup import take_configuration_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.request import Request
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.trouble import Severity, Trouble
from kyb_backup_pipeline.sandbox.cluster import free_port
from kyb_backup_pipeline_tests.mail_server import MailServer, body, mail_server
from kyb_backup_pipeline_tests.platforms import Answers, Platform, answer, answering
from kyb_backup_pipeline_tests.running import Cli, wait_until

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
TOKEN = "tok-5f3a9c77e1"
"""Stands in for what a real address holds."""

STALE = Trouble(
    key="stale:full", severity="critical", title="no full backup for 31 h",
    text="The newest is backup_20260130_020000.", hint="kyb-backup backup full",
    backup_id="backup_20260130_020000", run_id="8c1f",
)  # fmt: skip


@dataclass
class Site:
    """A repository, a mail server and a webhook; ``down`` are the numbers of requests that get 500."""

    folder: Path
    mail: MailServer
    hook: Answers
    down: set[int]

    @property
    def url(self) -> str:
        return self.hook.url.replace("http://", "json://").replace("/flags", f"/hooks/{TOKEN}")

    def environment(self, **variables: str) -> dict[str, str]:
        """Mail and webhook; ``variables`` without ``KYB_ALERTS__``."""
        return {
            "BACKUP_DIR": str(self.folder / "backups"),
            "ALERT_EMAIL": "oncall@example.com",
            "KYB_ALERTS__SMTP": self.mail.address,
            "KYB_ALERTS__TIMEOUT": "5",
            "KYB_ALERTS__CHANNELS": json.dumps([{"name": "hook", "url": self.url}]),
            **{f"KYB_ALERTS__{name}": value for name, value in variables.items()},
        }

    def settings(self, **variables: str) -> Settings:
        return config.load(environment=self.environment(**variables))

    def posts(self) -> list[dict[str, Any]]:
        """What the webhook was sent."""
        return [json.loads(content) for _, _, content in self.hook.seen]

    @property
    def memory(self) -> Path:
        return self.folder / "backups/monitoring/alerts/memory.json"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "backups").mkdir()
    down: set[int] = set()

    def each(request: BaseHTTPRequestHandler, number: int) -> None:
        answer(request, 500 if number in down else 200, b"{}")

    with mail_server() as mail, answering(each) as hook:
        yield Site(tmp_path, mail, hook, down)


def hours(count: float) -> datetime:
    return NOW + timedelta(hours=count)


def outcomes(deliveries: list[Delivery]) -> dict[str, bool]:
    return {delivery.channel: delivery.delivered for delivery in deliveries}


def test_the_procedures_variable_alone_sends_mail_with_text_and_html(site: Site) -> None:
    settings = site.settings(CHANNELS="[]", UI_URL="https://dagster.internal/")
    assert outcomes(look(settings, [STALE], now=NOW)) == {"oncall@example.com": True}
    (mail,) = site.mail.to("oncall@example.com")
    host = socket.gethostname()
    assert mail["Subject"] == f"[KYB backups] critical: no full backup for 31 h ({host})"
    assert mail["From"] == f"kyb-backup@{host}"
    assert mail["To"] == "oncall@example.com"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content_type() == "multipart/alternative"
    for kind in ("plain", "html"):
        text = body(mail, kind)
        for part in ("critical:", "no full backup for 31 h", "The newest is backup_20260130_020000.",
                     "kyb-backup backup full", "https://dagster.internal/runs/8c1f", "2026-01-31 09:30 UTC",
                     str(settings.repository)):  # fmt: skip
            assert part in text, kind


def test_the_link_to_a_backup_leads_to_its_partition(site: Site, platform: Platform) -> None:
    settings = platform.settings
    backup = take_configuration_backup(settings, Request(backup_id="config_1"), now=utc_now())
    alerts = site.settings(UI_URL="https://dagster.internal").alerts
    bad = Trouble(
        key="bad:config_1", severity="critical", title="is bad", backup_id=backup.backup_id
    )
    look(settings.model_copy(update={"alerts": alerts}), [bad], now=NOW)
    (mail,) = site.mail.to("oncall@example.com")
    link = (
        "https://dagster.internal/assets/configuration_archive?view=partitions&partition=config_1"
    )
    assert link in body(mail, "plain")
    assert f'href="{link.replace("&", "&amp;")}"' in body(mail, "html")


def test_what_was_found_cannot_break_the_message(site: Site) -> None:
    ugly = Trouble(
        key="x", severity="warning", title="Prüfung\r\nBcc: all@example.com\n fehlgeschlagen 数据 " + "x" * 300,
        text="<script>alert('ü')</script> & " + "long " * 3000, hint="a\x00b caf\udce9 <b>",
    )  # fmt: skip
    look(site.settings(), [ugly], now=NOW)
    (mail,) = site.mail.to("oncall@example.com")
    assert mail["Bcc"] is None
    assert "Prüfung Bcc: all@example.com fehlgeschlagen 数据" in mail["Subject"]
    assert len(mail["Subject"]) < 250
    assert "<script>" in body(mail, "plain")
    assert "<script>" not in body(mail, "html")
    assert "&lt;script&gt;" in body(mail, "html")
    assert len(body(mail, "plain")) < 4000
    (post,) = site.posts()
    assert "fehlgeschlagen 数据" in post["title"]


def test_a_webhook_gets_it_with_its_severity_and_the_end(site: Site) -> None:
    settings = site.settings()
    look(settings, [STALE], now=NOW)
    assert look(settings, [STALE], now=hours(1)) == []
    look(settings, [], now=hours(2))
    assert look(settings, [], now=hours(3)) == []
    first, second = site.posts()
    assert (first["type"], second["type"]) == ("failure", "success")
    assert "HINT: kyb-backup backup full" in first["message"]
    assert second["title"].startswith("[KYB backups] over: no full backup for 31 h")
    assert len(site.mail.inbox) == 2


def test_five_at_once_are_one_message_the_worst_first(site: Site) -> None:
    severities: list[Severity] = ["info", "warning", "critical", "warning", "warning"]
    troubles = [
        Trouble(key=f"t:{n}", severity=severity, title=f"trouble {n}")
        for n, severity in enumerate(severities)
    ]
    settings = site.settings(EMAIL_MINIMUM="info")
    look(settings, troubles, now=NOW)
    ((_, mail),) = site.mail.inbox
    assert "critical: trouble 2, and 4 more" in mail["Subject"]
    assert [line for line in body(mail, "plain").splitlines() if " trouble " in line] == [
        "critical: trouble 2", "warning: trouble 1", "warning: trouble 3", "warning: trouble 4",
        "info: trouble 0",
    ]  # fmt: skip
    look(settings, troubles[:3], now=hours(1))
    assert "over: trouble 3, and 1 more" in site.mail.inbox[1][1]["Subject"]


def test_a_hundred_bad_backups_are_a_message_that_can_be_read(site: Site) -> None:
    many = [Trouble(key=f"bad:{n}", severity="warning", title=f"bad {n}") for n in range(100)]
    look(site.settings(), many, now=NOW)
    text = body(site.mail.inbox[0][1], "plain")
    assert text.count("warning: bad") == 20
    assert "… and 80 more." in text
    assert look(site.settings(), many, now=hours(1)) == []


def test_a_service_that_takes_little_gets_the_worst_of_it(site: Site) -> None:
    much = [
        Trouble(key=f"w:{n}", severity="warning", title=f"w {n}", text="x" * 3000)
        for n in range(30)
    ]
    look(site.settings(), [*much, STALE], now=NOW)
    (post,) = site.posts()
    assert post["message"].startswith("critical: no full backup for 31 h")
    assert 30000 < len(post["message"]) <= 32768, "as apprise knows of this service"


def test_severities_go_where_they_are_wanted(site: Site) -> None:
    pager = json.dumps([{"name": "pager", "url": site.url, "minimum": "critical"}])
    settings = site.settings(CHANNELS=pager)
    look(settings, [Trouble(key="w", severity="warning", title="a warning")], now=NOW)
    assert (len(site.mail.inbox), len(site.posts())) == (1, 0)
    look(settings, [STALE], now=hours(1))
    assert (len(site.mail.inbox), len(site.posts())) == (2, 1)
    assert "over: a warning" not in site.posts()[0]["message"]


def test_a_webhook_that_failed_gets_it_at_the_next_look_and_nobody_else_again(site: Site) -> None:
    site.down |= {0}
    settings = site.settings()
    first = look(settings, [STALE], now=NOW)
    assert outcomes(first) == {"oncall@example.com": True, "hook": False}
    (failed,) = (delivery for delivery in first if not delivery.delivered)
    assert "error=500" in failed.answer
    assert outcomes(look(settings, [STALE], now=hours(0.01))) == {"hook": True}
    assert look(settings, [STALE], now=hours(0.02)) == []
    assert (len(site.mail.inbox), len(site.posts())) == (1, 2)


def test_one_address_that_is_refused_does_not_tell_the_other_twice(site: Site) -> None:
    environment = site.environment(CHANNELS="[]") | {
        "ALERT_EMAIL": "gone@example.com, oncall@example.com"
    }
    settings = config.load(environment=environment)
    site.mail.verdicts["gone@example.com"] = "554 no such\r\n person"
    deliveries = look(settings, [STALE], now=NOW)
    assert outcomes(deliveries) == {"gone@example.com": False, "oncall@example.com": True}
    answers = {delivery.channel: delivery.answer for delivery in deliveries}
    assert "answered 554 no such" in answers["gone@example.com"]
    del site.mail.verdicts["gone@example.com"]
    look(settings, [STALE], now=hours(0.1))
    assert [address for address, _ in site.mail.inbox] == ["oncall@example.com", "gone@example.com"]


def test_a_mail_server_that_is_not_there_is_named(site: Site) -> None:
    port = free_port()
    settings = site.settings(SMTP=f"127.0.0.1:{port}", CHANNELS="[]")
    ((delivery),) = look(settings, [STALE], now=NOW)
    assert delivery.answer == f"127.0.0.1:{port}: Connection refused"
    look(settings, [STALE], now=hours(1))
    assert [entry.delivered for entry in history(settings)] == [False, False]
    assert outcomes(look(site.settings(CHANNELS="[]"), [STALE], now=hours(2))) == {"oncall@example.com": True}  # fmt: skip


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of a certificate for localhost, which we trust as one of the host's own."""
    key, file = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", str(key), "-out", str(file), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return context


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # aiosmtpd of "tls"
@pytest.mark.parametrize("mode", ["starttls", "tls"])
def test_mail_is_encrypted_and_the_login_told_to_a_server_that_proves_who_it_is(
    site: Site, certificate: ssl.SSLContext, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def login(
        server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword
    ) -> AuthResult:
        well = (data.login, data.password) == (b"kyb", TOKEN.encode())
        return AuthResult(success=well, handled=False)

    encryption = {"ssl_context" if mode == "tls" else "tls_context": certificate}
    # of TLS from the start aiosmtpd does not know, but there is nothing else there
    options = {
        "authenticator": login,
        "auth_required": True,
        "auth_require_tls": mode == "starttls",
    }
    with mail_server(**encryption, **options) as mail:
        variables = {
            "CHANNELS": "[]",
            "SMTP": f"localhost:{mail.port}",
            "SMTP_TLS": mode,
            "SMTP_USER": "kyb",
        }
        settings = site.settings(**variables, SMTP_PASSWORD=TOKEN)
        assert outcomes(look(settings, [STALE], now=NOW)) == {"oncall@example.com": True}
        assert len(mail.inbox) == 1
        (line,) = alert_channels(settings.alerts)
        assert line.level == "ok", line
        wrong = site.settings(**variables, SMTP_PASSWORD="wrong")
        (delivery,) = send_test(wrong, now=NOW)
        assert "refused the login: 535" in delivery.answer
        monkeypatch.delenv("SSL_CERT_FILE")
        (delivery,) = send_test(settings, now=NOW)
        assert "certificate verify failed" in delivery.answer
        assert len(mail.inbox) == 1


def test_somebody_who_hangs_with_the_lock_keeps_nobody_from_telling(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts, "_patience", lambda _: 0.2)
    with alert_store(site.settings(), 1):
        assert len(look(site.settings(), [STALE], now=NOW)) == 2
    assert "going on beside" in caplog.text


def test_channels_that_hang_are_given_up_and_hold_neither_the_others_nor_the_exit(
    site: Site,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        channels = [{"name": "slow", "url": f"json://127.0.0.1:{port}/{TOKEN}"}, {"name": "hook", "url": site.url}]  # fmt: skip
        environment = site.environment(SMTP=f"127.0.0.1:{port}", CHANNELS=json.dumps(channels), TIMEOUT="1")  # fmt: skip
        began = time.monotonic()
        run = Cli(None, environment).run("alert", "test", "--json", timeout=30)
        assert time.monotonic() - began < 8, "the exit was held"
    assert run.returncode == 6, run.stderr
    told = {line["channel"]: line for line in json.loads(run.stdout)}
    assert [name for name, line in told.items() if line["delivered"]] == ["hook"]
    assert re.search("timed out|no answer within", told["oncall@example.com"]["answer"])
    assert TOKEN not in run.stdout + run.stderr


@contextlib.contextmanager
def dripping(line: bytes) -> Iterator[int]:
    """A server that says ``line`` for ever, so that no time-out of a socket ends it; its port."""
    done = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while not done.wait(0.2):
                connection.sendall(line)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        yield listening.getsockname()[1]
        done.set()
        thread.join()


def test_servers_that_drip_are_given_up_and_do_not_hold_the_exit(site: Site) -> None:
    with dripping(b"220-wait\r\n") as smtp, dripping(b"HTTP/1.1 100 Continue\r\n\r\n") as web:
        channels = json.dumps([{"name": "slow", "url": f"json://127.0.0.1:{web}/x"}])
        environment = site.environment(SMTP=f"127.0.0.1:{smtp}", CHANNELS=channels, TIMEOUT="1")
        run = Cli(None, environment).run("alert", "test", "--json", timeout=30)
    answers = {line["answer"] for line in json.loads(run.stdout)}
    assert answers == {"no answer within 1 s"}


def test_an_event_is_told_once_whoever_reports_it_and_has_no_end(site: Site) -> None:
    site.down |= {0}
    failed = Trouble(key="run:8c1f", severity="critical", title="full_backup failed", run_id="8c1f")
    settings = site.settings()
    assert outcomes(one_off(settings, failed, now=NOW)) == {
        "oncall@example.com": True,
        "hook": False,
    }
    assert outcomes(one_off(settings, failed, now=hours(0.01))) == {"hook": True}
    assert one_off(settings, failed, now=hours(0.02)) == []
    assert look(settings, [], now=hours(1)) == []
    assert (len(site.mail.inbox), len(site.posts())) == (1, 2)


def test_an_event_that_nobody_took_is_told_by_the_next_look(site: Site) -> None:
    site.down |= {0}
    failed = Trouble(key="run:1", severity="critical", title="full_backup failed")
    pager = site.settings()
    mailless = pager.model_copy(update={"alerts": pager.alerts.model_copy(update={"email": ()})})
    assert outcomes(one_off(mailless, failed, now=NOW)) == {"hook": False}
    assert outcomes(look(mailless, [], now=hours(0.01), covers={"stale:"})) == {"hook": True}
    assert "full_backup failed" in site.posts()[1]["title"]


_LOOKING = """\
import os, signal, sys
from datetime import datetime
from kyb_backup_pipeline.engine import alerts, config
from kyb_backup_pipeline.engine.trouble import Trouble
if "rename" in sys.argv:
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
stale = Trouble(key="stale:full", severity="critical", title="no full backup for 31 h")
print(len(alerts.look(config.load(), [stale], now=datetime.fromisoformat(sys.argv[1]))))
"""


def looking(site: Site, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """A look in a process of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(site.folder), **site.environment(**variables)}  # fmt: skip
    command = [sys.executable, "-c", _LOOKING, NOW.isoformat(), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_between_sending_and_remembering_it_tells_again(tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    arrived, killed = threading.Event(), threading.Event()

    def each(request: BaseHTTPRequestHandler, number: int) -> None:
        arrived.set()
        assert killed.wait(30)
        answer(request, 200, b"{}")

    with mail_server() as mail, answering(each) as hook:
        site = Site(tmp_path, mail, hook, set())
        with looking(site) as child:
            assert arrived.wait(30)
            wait_until(lambda: "oncall" in site.memory.read_text(), "the mail is remembered")
            child.send_signal(signal.SIGKILL)
            child.wait(30)
        killed.set()
        assert outcomes(look(site.settings(), [STALE], now=hours(0.1))) == {"hook": True}
        assert look(site.settings(), [STALE], now=hours(0.2)) == []
        assert (len(mail.inbox), len(hook.seen)) == (1, 2)


def test_killed_in_mid_write_it_has_the_memory_of_before(site: Site) -> None:
    settings = site.settings()
    look(settings, [Trouble(key="other", severity="warning", title="other")], now=hours(-1))
    before = site.memory.read_bytes()
    with looking(site, "rename") as child:
        assert child.wait(30) == -signal.SIGKILL
    assert site.memory.read_bytes() == before
    assert site.memory.with_name(".memory.json.tmp").exists()
    look(settings, [STALE], now=NOW)
    assert "over: other" in body(site.mail.inbox[-1][1], "plain")
    assert look(settings, [STALE], now=hours(1)) == []


def test_two_who_look_at_once_tell_it_once(site: Site) -> None:
    def waits(child: "subprocess.Popen[str]") -> bool:
        files = Path(f"/proc/{child.pid}/fd")
        return any(os.readlink(file).endswith("memory.lock") for file in files.iterdir())

    with alert_store(site.settings(), 1):
        one, two = looking(site), looking(site)
        wait_until(lambda: waits(one) and waits(two), "both wait for the lock")
    told = sorted(int(child.communicate(timeout=60)[0]) for child in (one, two))
    assert told == [0, 2]
    assert (len(site.mail.inbox), len(site.posts())) == (1, 1)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"version": 2}', b"\xff\xfe", b'{"known": 3}']
)
def test_a_damaged_memory_has_a_copy_and_without_it_tells_again_and_says_so(
    site: Site, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    settings = site.settings()
    look(settings, [STALE], now=NOW)
    site.memory.write_bytes(damage)
    assert look(settings, [STALE], now=hours(1)) == [], "there is a copy"
    assert "it is damaged" in caplog.text
    for folder in places(settings):
        (folder / site.memory.name).write_bytes(damage)
    assert len(look(settings, [STALE], now=hours(1))) == 2
    assert look(settings, [STALE], now=hours(2)) == []


def test_without_a_repository_the_memory_is_in_the_users_state(site: Site) -> None:
    settings = site.settings()
    settings.repository.rmdir()
    assert len(look(settings, [STALE], now=NOW)) == 2
    assert look(settings, [STALE], now=hours(1)) == []
    assert not settings.repository.exists(), "it may be a disk that is not mounted"
    settings.repository.mkdir()
    assert look(settings, [STALE], now=hours(2)) == []
    assert len(look(settings, [], now=hours(3))) == 2
    assert site.memory.exists()


def test_a_memory_that_cannot_be_written_in_the_repository_goes_elsewhere(site: Site) -> None:
    (site.folder / "backups" / "monitoring").write_text("in the way, as a disk without room is")
    assert len(look(site.settings(), [STALE], now=NOW)) == 2
    assert look(site.settings(), [STALE], now=hours(1)) == []
    assert len(history(site.settings())) == 2


def test_a_disk_that_fills_up_and_is_emptied_again_tells_nothing_twice(site: Site) -> None:
    settings = site.settings()
    assert len(look(settings, [STALE], now=NOW)) == 2
    in_the_way = site.memory.with_name(".memory.json.tmp")
    in_the_way.mkdir()
    assert len(look(settings, [], now=hours(1))) == 2
    assert look(settings, [], now=hours(2)) == []
    in_the_way.rmdir()
    assert len(look(settings, [STALE], now=hours(3))) == 2
    assert look(settings, [STALE], now=hours(4)) == []
    assert '"gone": false' in site.memory.read_text()


def test_no_secret_is_in_any_text_log_history_error_or_argument(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger().setLevel(logging.DEBUG)
    site.down |= {0, 1, 2}
    bad = f"slack://T1JJ3T3L2/{TOKEN}/nonsense-{TOKEN}"
    channels = json.dumps([{"name": "hook", "url": site.url + "?+X-Key=" + TOKEN}, {"name": "bad", "url": bad},
                           {"name": "login", "url": f"mailto://me:{TOKEN}@127.0.0.1:1?to=a@b.example"}])  # fmt: skip
    variables = {"CHANNELS": channels, "SMTP_USER": "kyb", "SMTP_PASSWORD": TOKEN,
                 "PING_URL": f"http://127.0.0.1:1/{TOKEN}"}  # fmt: skip
    settings = site.settings(**variables)
    deliveries = look(settings, [STALE], now=NOW)
    assert {delivery.delivered for delivery in deliveries} == {False}
    assert ping_when_well(settings) is False
    assert ping_when_well(site.settings(PING_URL=site.hook.url + TOKEN)) is False
    texts = [
        repr(settings),
        str(settings),
        repr(deliveries),
        caplog.text,
        repr(settings.alerts.channels),
    ]
    log = site.folder / "backup.log"
    cli = Cli(None, {**site.environment(**variables), "LOG_FILE": str(log)})
    runs = [cli.run("-v", "alert", "test"), cli.run("alert", "test", "--json"), cli.run("alert", "history"),
            cli.run("alert", "history", "--json"), cli.run("check", "--json")]  # fmt: skip
    texts += [text for run in runs for text in (run.stdout, run.stderr)]
    texts += [str([line for line in alert_channels(settings.alerts)]), log.read_text()]
    texts += [path.read_text() for path in site.memory.parent.rglob("*") if path.is_file()]
    assert "did not arrive" in caplog.text
    assert not [text for text in texts if TOKEN in text]
    with pytest.raises(SettingsInvalid) as refused:
        site.settings(CHANNELS=json.dumps([{"name": "x y", "url": bad, "minimum": TOKEN}]))
    assert TOKEN not in str(refused.value)
    with pytest.raises(SettingsInvalid) as refused:
        site.settings(CHANNELS=f'[{{"url": "{TOKEN}]')
    assert TOKEN not in str(refused.value)


def test_the_history_is_bounded_and_survives_a_line_that_was_cut_short(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site.settings(CHANNELS="[]")
    for hour in range(4):
        look(settings, [STALE] if hour % 2 == 0 else [], now=hours(hour))
    path = site.memory.with_name("history.jsonl")
    with path.open("ab") as file:
        file.write(b'{"at": "2026-01-31T')
    look(settings, [STALE], now=hours(4))
    whats = [entry.items[0].what for entry in history(settings)]
    assert whats == ["new", "over", "new", "over", "new"]
    assert [entry.at for entry in history(settings, 2)] == [hours(4), hours(3)]
    monkeypatch.setattr(alert_memory, "_HISTORY_BYTES", 2000)
    for hour in range(5, 45):
        look(settings, [STALE] if hour % 2 == 0 else [], now=hours(hour))
    assert sum(each.stat().st_size for each in site.memory.parent.glob("history*")) < 6000
    assert history(settings)[0].at == hours(44)


def test_the_dead_mans_switch_is_asked_without_a_proxy_and_a_failure_is_a_warning(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ping_when_well(site.settings()) is None
    (site.folder / "ping").write_text(site.hook.url + "\n")
    file = site.folder / "kyb.toml"
    file.write_text('[alerts]\nping_url_file = "ping"\n')
    settings = config.load(file, environment={})
    assert ping_when_well(settings) is True
    assert [method for method, _, _ in site.hook.seen] == ["GET"]
    site.down |= {1}
    assert ping_when_well(settings) is False
    assert "did not hear from us: answered 500" in caplog.text


def test_a_test_goes_to_each_channel_whatever_it_wants_and_changes_nothing(site: Site) -> None:
    pager = json.dumps([{"name": "pager", "url": site.url, "minimum": "critical"}])
    settings = site.settings(CHANNELS=pager)
    assert outcomes(send_test(settings, now=NOW)) == {"oncall@example.com": True, "pager": True}
    assert outcomes(send_test(settings, now=NOW, name="pager")) == {"pager": True}
    assert "test, info: alerts arrive here" in site.mail.inbox[0][1]["Subject"]
    assert not site.memory.exists()
    assert len(history(settings)) == 3


def test_the_check_looks_at_each_address_and_sends_nothing(site: Site) -> None:
    nowhere = "json://no-such-host.invalid/x"
    channels = json.dumps([{"name": "hook", "url": site.url}, {"name": "odd", "url": "nonsense://x"},
                           {"name": "lost", "url": nowhere}])  # fmt: skip
    lines = {line.message.partition(":")[0]: line for line in alert_channels(site.settings(CHANNELS=channels).alerts)}  # fmt: skip
    assert {name: line.level for name, line in lines.items()} == {
        "mail server": "ok", "hook": "ok", "odd": "error", "lost": "error",
    }  # fmt: skip
    assert "none that apprise knows" in lines["odd"].message
    assert "host is not found" in lines["lost"].message
    assert all((line.hint is not None) == (line.level == "error") for line in lines.values())
    (dead,) = alert_channels(site.settings(CHANNELS="[]", SMTP="127.0.0.1:1").alerts)
    assert (dead.level, "Connection refused" in dead.message) == ("error", True)
    (none,) = alert_channels(config.load(environment={}).alerts)
    assert (none.level, "no channel is set" in none.message) == ("warning", True)
    open_login = site.settings(CHANNELS="[]", SMTP="mail.invalid:25", SMTP_USER="u")
    assert "unencrypted" in next(alert_channels(open_login.alerts)).message
    assert site.mail.inbox == [] and site.hook.seen == []


def test_channels_stand_in_the_file_with_their_addresses_in_files_of_their_own(site: Site) -> None:
    (site.folder / "url").write_text(f"{site.url}\n")
    file = site.folder / "kyb.toml"
    file.write_text(
        'repository = "backups"\n[[alerts.channels]]\nname = "hook"\nurl_file = "url"\nminimum = "info"\n'
    )
    settings = config.load(file, environment={})
    assert outcomes(look(settings, [STALE], now=NOW)) == {"hook": True}
    for text, problem in (
        ('name = "a"\n', r"alerts\.channels\.0 .*neither url nor url_file is set"),
        (
            'name = "a"\nurl_file = "gone"\n',
            r"alerts\.channels\.0\.url_file: file .*/gone: No such file",
        ),
        ('name = "a"\nurl = " "\n', "the address is empty"),
        ('name = "a"\nurl = "x"\n[[alerts.channels]]\nname = "a"\nurl = "y"\n', "the same name"),
        ('name = "a"\nurl = "x"\nsilent = 1\n', r"alerts\.channels\.0\.silent .*unknown setting"),
    ):
        file.write_text(f"[[alerts.channels]]\n{text}")
        with pytest.raises(SettingsInvalid, match=problem):
            config.load(file, environment={})


def test_the_command_line_tries_channels_and_shows_what_was_told(site: Site) -> None:
    cli = Cli(None, site.environment())
    run = cli.run("alert", "test")
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split("\n")[:-1]) == [
        "ok      hook: taken by JSON", f"ok      oncall@example.com: taken by {site.mail.address}",
    ]  # fmt: skip
    site.down |= {1}
    run = cli.run("alert", "test", "--channel", "hook")
    assert run.returncode == 6
    assert run.stdout.startswith("failed  hook: JSON did not take it: ")
    run = cli.run("alert", "test", "--channel", "nobody")
    assert run.returncode == 2
    assert "there are: oncall@example.com, hook" in run.stderr
    entries = json.loads(cli.run("alert", "history", "--json", "--newest", "1").stdout)
    assert [(entry["channel"], entry["delivered"]) for entry in entries] == [("hook", False)]
    assert "alerts arrive here" in cli.run("alert", "history").stdout
    run = Cli(None, {"BACKUP_DIR": str(site.folder / "backups")}).run("alert", "test")
    assert run.returncode == 3
    assert "HINT: ALERT_EMAIL" in run.stderr
