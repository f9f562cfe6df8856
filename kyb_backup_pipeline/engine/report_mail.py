"""The health report by mail: findings and figures in the mail itself, the whole page attached.

Mail readers leave out SVG, style sheets and scripts. So this body is one of its own: styles at each element,
the calendar a table, what runs over time as PNG that the mail brings along. Sent as alerts are: by
``alerts.smtp``, each address alone, noted in the history.
"""

import socket
from datetime import datetime
from importlib.resources import files

from kyb_backup_pipeline.engine.alert_channels import Channel, Delivery, deliver
from kyb_backup_pipeline.engine.alert_memory import Entry, alert_store
from kyb_backup_pipeline.engine.alert_text import Attachment, Message
from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.printable import printable, shown
from kyb_backup_pipeline.engine.report import DAYS, Report, days_of
from kyb_backup_pipeline.engine.report_page import html_page
from kyb_backup_pipeline.engine.report_plots import Plot, plots_of
from kyb_backup_pipeline.engine.report_rows import figures, headline, kind_row
from kyb_backup_pipeline.engine.report_text import text_page
from kyb_backup_pipeline.engine.settings import AlertSettings, Settings
from kyb_backup_pipeline.engine.trouble import Severity

_BACKUPS, _TROUBLES, _SUBJECT = 50, 30, 150
_COLOURS: dict[Severity, str] = {"critical": "#b8261f", "warning": "#8f5400", "info": "#265a8c"}
_GOOD = "#2b742f"
_SQUARES = {"passed": (_GOOD, ""), "failed": (_COLOURS["critical"], "✕"),
            "could_not_verify": (_COLOURS["warning"], "?"), "none": ("#e4e8ec", "")}  # fmt: skip
_PATIENCE = 3.0


def mail_report(settings: Settings, report: Report, *, now: datetime) -> list[Delivery]:
    """Send it to ``alerts.report_email``, else to ``alerts.email``; what became of each.

    Raises SettingsInvalid where there is no address.
    """
    to = dict.fromkeys(settings.alerts.report_email or settings.alerts.email)
    if not to:
        raise SettingsInvalid("nobody gets the report: no address is set",
                              hint="alerts.report_email, or ALERT_EMAIL")  # fmt: skip
    message = compose_report(report, settings.alerts)
    messages = {Channel(name=address, minimum="info"): message for address in to}
    deliveries = list(deliver(messages, settings.alerts, now))
    with alert_store(settings, _PATIENCE) as store:
        for each in deliveries:
            entry = Entry(at=now, channel=each.channel, delivered=each.delivered, answer=each.answer,
                          subject=message.subject, items=[])  # fmt: skip
            store.note(entry)
    return deliveries


def compose_report(report: Report, alerts: AlertSettings) -> Message:
    """The mail: text, HTML with its pictures, and the page."""
    health = report.health
    plots = plots_of(report)
    pictures = [(plot, f"plot{number}@kyb-backup") for number, plot in enumerate(plots, start=1)]
    attachments = [
        Attachment(name=f"{cid.partition('@')[0]}.png", content=plot.png, type="image/png", cid=cid)
        for plot, cid in pictures
    ]
    if alerts.report_page:
        name = f"backup-health-{health.at:%Y%m%d-%H%M}.html"
        page = html_page(report).encode()
        attachments.append(Attachment(name=name, content=page, type="text/html"))
    said = printable(headline(health))
    return Message(
        subject=f"[KYB backups] report: {said[:_SUBJECT]} ({socket.gethostname()})",
        text=text_page(report, most=_BACKUPS),
        html=_html(report, pictures),
        worst=health.troubles[0].severity if health.troubles else None,
        attachments=tuple(attachments),
    )


def _html(report: Report, pictures: list[tuple[Plot, str]]) -> str:
    from jinja2 import Environment

    health = report.health
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=shown)
    source = files("kyb_backup_pipeline.engine").joinpath("templates/report_mail.html")
    calendar, counted = _calendar(report)
    return environment.from_string(source.read_text("utf-8")).render(
        at=f"{health.at:%Y-%m-%d %H:%M} UTC",
        headline=headline(health),
        colour=_COLOURS[health.troubles[0].severity] if not health.well else _GOOD,
        colours=_COLOURS,
        troubles=health.troubles[:_TROUBLES],
        troubles_left=max(len(health.troubles) - _TROUBLES, 0),
        figures=figures(health),
        kinds=[kind_row(one) for one in health.kinds.values()],
        days=DAYS,
        calendar=calendar,
        counted=counted,
        pictures=[(plot.title, cid, plot.words) for plot, cid in pictures],
        footer=f"{socket.gethostname()}, repository {report.repository}",
    )


def _calendar(report: Report) -> tuple[list[list[tuple[str, str]]], str]:
    """Seven rows of (colour, sign), a column a week, and how many days of each sort there were."""
    days = days_of(report.tests, report.health.at)
    rows: list[list[tuple[str, str]]] = [[] for _ in range(7)]
    for row in rows[: days[0][0].weekday()]:
        row.append(("", ""))
    counted = dict.fromkeys(_SQUARES, 0)
    for day, tests in days:
        verdicts = {test.verdict for test in tests}
        worst = next((v for v in ("failed", "could_not_verify", "passed") if v in verdicts), "none")
        counted[worst] += 1
        rows[day.weekday()].append(_SQUARES[worst])
    said = ", ".join(f"{verdict.replace('_', ' ')} on {n}" for verdict, n in counted.items() if n)
    return rows, said
