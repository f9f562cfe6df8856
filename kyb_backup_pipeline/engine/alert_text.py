"""What an alert says: one message for all that is new to a channel, as text and as HTML.

The worst comes first and gives the subject. Both forms say the same and read well on a phone; everything
that was found is escaped. Nothing here knows channels or secrets.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from kyb_backup_pipeline.engine.alert_memory import What
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.trouble import SEVERITIES, Severity, Trouble

_SHOWN = 20
"""So many pieces of news are spelled out in one message; a hundred bad backups are one trouble."""
_TITLE, _TEXT = 150, 2000
_ORDER: tuple[What, ...] = ("event", "new", "worse", "reminder", "test", "over")
_ASSETS: Mapping[Kind, str] = {
    "full": "full_backup",
    "base": "base_backup",
    "incremental": "incremental_backup",
    "application_state": "application_state",
    "configuration": "configuration_archive",
}
"""The Dagster asset whose partitions are the backups of a kind."""
_COLOURS: Mapping[Severity, str] = {"critical": "#b91c1c", "warning": "#b45309", "info": "#1d4ed8"}
_OVER_COLOUR = "#15803d"

_HTML = """\
<!DOCTYPE html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ subject }}</title></head>
<body style="margin:0;padding:12px;font:16px/1.45 -apple-system,'Segoe UI',Roboto,sans-serif;color:#111827">
<div style="max-width:640px;margin:0 auto">
{% for part in parts %}
<div style="border-left:5px solid {{ part.colour }};padding:2px 0 2px 12px;margin:0 0 18px">
<p style="margin:0 0 4px"><b style="color:{{ part.colour }}">{{ part.head }}</b> <b>{{ part.title }}</b></p>
{% if part.text %}<p style="margin:0 0 4px;white-space:pre-wrap;overflow-wrap:anywhere">{{ part.text }}</p>{% endif %}
{% if part.hint %}<p style="margin:0 0 4px;overflow-wrap:anywhere"><b>HINT:</b> {{ part.hint }}</p>{% endif %}
{% for label, value, link in part.facts %}<p style="margin:0;font-size:14px;color:#4b5563;overflow-wrap:anywhere">{{ label }}
{% if link %}<a href="{{ link }}">{{ value }}</a>{% else %}{{ value }}{% endif %}</p>
{% endfor %}</div>
{% endfor %}
{% if left_out %}<p>… and {{ left_out }} more.</p>{% endif %}
<p style="margin:0;font-size:13px;color:#6b7280">{{ footer }}</p>
</div></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class News:
    """One thing that a channel is to be told. ``since``: when the trouble was first seen."""

    what: What
    trouble: Trouble
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A file that goes with a mail; a picture of its HTML part where it has a ``cid``."""

    name: str
    content: bytes
    type: str
    cid: str | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one channel gets. ``worst`` is None where there is nothing left but good news. Attachments are for
    mail only.
    """

    subject: str
    text: str
    html: str
    worst: Severity | None
    attachments: tuple[Attachment, ...] = ()


KindOf = Callable[[str], Kind | None]
"""What kind of backup has this id; None where there is none (any more)."""


def compose(news: Sequence[News], settings: Settings, kind_of: KindOf = lambda _: None) -> Message:
    """One message for all of it."""
    ordered = sorted(news, key=_urgency)
    parts = [_part(each, settings.alerts.ui_url, kind_of) for each in ordered[:_SHOWN]]
    left_out = len(ordered) - len(parts)
    first = ordered[0]
    others = f", and {len(ordered) - 1} more" if len(ordered) > 1 else ""
    subject = f"[KYB backups] {_head(first)} {_line(first.trouble.title)}{others} ({_host()})"
    footer = f"{_host()}, database {settings.database.name}, repository {settings.repository}"
    text = "\n\n".join(_as_text(part) for part in parts)
    if left_out:
        text += f"\n\n… and {left_out} more."
    bad = [each.trouble.severity for each in news if each.what != "over"]
    return Message(
        subject=subject,
        text=f"{text}\n\n-- \n{footer}\n",
        html=_as_html(subject=subject, parts=parts, left_out=left_out, footer=footer),
        worst=max(bad, key=SEVERITIES.index, default=None),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One piece of news, ready to be shown; ``facts`` are label, value and link."""

    head: str
    title: str
    text: str
    hint: str | None
    facts: list[tuple[str, str, str | None]]
    colour: str


def _part(news: News, ui_url: str | None, kind_of: KindOf) -> _Part:
    trouble, over = news.trouble, news.what == "over"
    ui = ui_url.rstrip("/") if ui_url else None
    facts: list[tuple[str, str, str | None]] = []
    if trouble.backup_id:
        kind = kind_of(trouble.backup_id) if ui else None
        link = (
            f"{ui}/assets/{_ASSETS[kind]}?view=partitions&partition={quote(trouble.backup_id)}"
            if kind
            else None
        )
        facts.append(("backup", trouble.backup_id, link))
    if trouble.run_id:
        facts.append(("run", trouble.run_id, f"{ui}/runs/{quote(trouble.run_id)}" if ui else None))
    facts.append(("since", f"{news.since:%Y-%m-%d %H:%M} UTC", None))
    return _Part(
        head=_head(news),
        title=_line(trouble.title),
        text="" if over else trouble.text[:_TEXT],
        hint=None if over or not trouble.hint else trouble.hint[:_TEXT],
        facts=facts,
        colour=_OVER_COLOUR if over else _COLOURS[trouble.severity],
    )


def _head(news: News) -> str:
    if news.what == "over":
        return "over:"
    prefix = {"reminder": "still ", "worse": "now ", "test": "test, "}.get(news.what, "")
    return f"{prefix}{news.trouble.severity}:"


def _urgency(news: News) -> tuple[bool, int, int]:
    worst_first = -SEVERITIES.index(news.trouble.severity)
    return news.what == "over", worst_first, _ORDER.index(news.what)


def _as_text(part: _Part) -> str:
    lines = [f"{part.head} {part.title}", *part.text.splitlines()]
    if part.hint:
        lines.append(f"HINT: {part.hint}")
    lines += [
        f"{label} {value}" + (f"  {link}" if link else "") for label, value, link in part.facts
    ]
    return "\n".join(lines)


def _as_html(**content: object) -> str:
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_HTML)
    return template.render(**content)


def _line(text: str) -> str:
    """In one line, and not too long for a subject."""
    line = " ".join(text.split())
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 1]}…"


def _host() -> str:
    return socket.gethostname()
