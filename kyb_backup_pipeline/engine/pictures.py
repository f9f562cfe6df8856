"""Small pictures as SVG: crisp on a phone and on paper, in the colours of whatever page they stand on.

Colours are CSS variables with a fallback, so a page can have them light and dark, and Dagster's UI, which
shows a picture by itself, has them too. Every picture says in words what it shows.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape

from kyb_backup_pipeline.engine.trouble import lasting

INK, MUTED, LINE = "var(--ink, #333)", "var(--muted, #777)", "var(--line, #ccc)"
GOOD, BAD, UNSURE, ACCENT = (
    "var(--good, #2e7d32)", "var(--bad, #c62828)", "var(--unsure, #b26a00)", "var(--accent, #2b5c8a)",
)  # fmt: skip
_WIDTH = 420
"""Of the drawing: narrow, so that its words can be read on a phone."""
_FONT = "font-family='system-ui, sans-serif' font-size='13'"


def ages(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """One bar a kind: (name, hours old, hours allowed). The mark is the limit."""
    height, step = 30 * len(rows) + 10, 30
    left, right = 128, 106
    room = _WIDTH - left - right
    parts = []
    for number, (name, age, limit) in enumerate(rows):
        y = 8 + number * step
        full = limit * 1.25 if limit else max(age or 1, 1)
        late = limit is not None and (age is None or age > limit)
        parts.append(_text(0, y + 15, name, INK))
        parts.append(_rect(left, y + 4, room, 14, LINE, opacity=0.45))
        if age is not None:
            width = room * min(age / full, 1)
            parts.append(_rect(left, y + 4, max(width, 2), 14, BAD if late else GOOD))
        if limit:
            x = left + room / 1.25
            parts.append(f"<path d='M{x:.1f} {y + 1}v20' stroke='{INK}' stroke-width='2'/>")
        said = "never" if age is None else span(age)
        allowed = f" / {span(limit)}" if limit else ""
        parts.append(_text(_WIDTH - right + 8, y + 15, f"{said}{allowed}", BAD if late else INK))
    words = "; ".join(
        f"{n}: {'never' if a is None else span(a)} old, {span(lim) if lim else 'any'} allowed"
        for n, a, lim in rows
    )
    return _svg(height, words, parts)


def series(
    points: Sequence[tuple[datetime, float]], what: str, unit: str, *, height: int = 150
) -> str:
    """A line over time, from zero. Shown as it is with fewer than two points."""
    if len(points) < 2:
        return _svg(40, f"{what}: too few to show", [_text(0, 24, "too few to show yet", MUTED)])
    left, top, bottom = 62, 12, 26
    first, last = points[0][0], points[-1][0]
    span_ = max((last - first).total_seconds(), 1)
    most = max(value for _, value in points) or 1
    plot_w, plot_h = _WIDTH - left - 12, height - top - bottom

    def place(at: datetime, value: float) -> tuple[float, float]:
        x = left + plot_w * (at - first).total_seconds() / span_
        return x, top + plot_h * (1 - value / most)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts = []
    for share in (0, 0.5, 1):
        y = top + plot_h * (1 - share)
        parts.append(f"<path d='M{left} {y:.1f}h{plot_w}' stroke='{LINE}'/>")
        parts.append(_text(left - 6, y + 4, amount(most * share, unit), MUTED, "end"))
    parts.append(f"<polyline points='{line}' fill='none' stroke='{ACCENT}' stroke-width='2'/>")
    if len(points) <= 120:
        parts += [
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.5' fill='{ACCENT}'/>"
            for x, y in (place(*point) for point in points)
        ]
    parts.append(_text(left, height - 6, f"{first:%Y-%m-%d}", MUTED))
    parts.append(_text(_WIDTH - 12, height - 6, f"{last:%Y-%m-%d}", MUTED, "end"))
    words = f"{what} from {first:%Y-%m-%d} to {last:%Y-%m-%d}: last {amount(points[-1][1], unit)}, most {amount(most, unit)}"
    return _svg(height, words, parts)


def calendar(days: Sequence[tuple[datetime, Sequence[str]]]) -> str:
    """One square a day, a column a week: the worst verdict of the day's restore tests."""
    size, gap, left = 20, 4, 34
    offset = days[0][0].weekday() if days else 0
    weeks = (len(days) + offset + 6) // 7
    parts = [
        _text(0, 14 + row * (size + gap) + 6, name, MUTED)
        for row, name in ((0, "Mon"), (2, "Wed"), (4, "Fri"))
    ]
    counted = {"passed": 0, "failed": 0, "could_not_verify": 0, "none": 0}
    for number, (day, verdicts) in enumerate(days):
        worst = next((v for v in ("failed", "could_not_verify", "passed") if v in verdicts), "none")
        counted[worst] += 1
        colour = {"passed": GOOD, "failed": BAD, "could_not_verify": UNSURE, "none": LINE}[worst]
        x = left + ((number + offset) // 7) * (size + gap)
        y = 4 + ((number + offset) % 7) * (size + gap)
        said = f"{day:%Y-%m-%d}: {len(verdicts)} restore tests, {worst.replace('_', ' ')}"
        parts.append(
            f"<g><title>{escape(said)}</title>"
            f"{_rect(x, y, size, size, colour, opacity=0.5 if worst == 'none' else 1)}"
            f"{_mark(x, y, size, worst)}</g>"
        )
    words = (
        f"Restore tests of {len(days)} days: passed on {counted['passed']}, failed on {counted['failed']}, "
        f"could not verify on {counted['could_not_verify']}, none on {counted['none']}"
    )
    width = max(left + weeks * (size + gap), 300)
    return _svg(7 * (size + gap) + 6, words, parts, width=width)


def _mark(x: float, y: float, size: int, worst: str) -> str:
    """Not by colour alone."""
    sign = {"failed": "✕", "could_not_verify": "?"}.get(worst)
    if sign is None:
        return ""
    return f"<text x='{x + size / 2}' y='{y + 15}' text-anchor='middle' fill='#fff' {_FONT}>{sign}</text>"


def shares(parts_: Sequence[tuple[str, float, str]]) -> str:
    """One bar in parts: (name, bytes, colour)."""
    total = sum(value for _, value, _ in parts_) or 1
    x, drawn = 0.0, []
    for _, value, colour in parts_:
        width = _WIDTH * value / total
        drawn.append(_rect(x, 6, width, 22, colour))
        x += width
    step = _WIDTH / max(len(parts_), 1)
    for number, (name, value, colour) in enumerate(parts_):
        at = number * step
        drawn.append(_rect(at, 40, 11, 11, colour))
        drawn.append(_text(at + 17, 50, f"{name} {amount(value, 'B')}", INK))
    words = ", ".join(f"{name} {amount(value, 'B')}" for name, value, _ in parts_)
    return _svg(60, words, drawn)


def amount(value: float, unit: str) -> str:
    """A number for people: bytes by thousands, seconds, plain counts."""
    if unit == "B":
        for prefix in ("B", "kB", "MB", "GB", "TB"):
            if value < 1000 or prefix == "TB":
                return f"{value:.0f} {prefix}" if prefix == "B" else f"{value:.1f} {prefix}"
            value /= 1000
    if unit == "s":
        return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"
    return f"{value:,.0f} {unit}".strip()


def span(hours: float) -> str:
    """Hours for people."""
    return lasting(timedelta(hours=hours))


def _rect(x: float, y: float, w: float, h: float, fill: str, *, opacity: float = 1) -> str:
    faint = f" opacity='{opacity}'" if opacity != 1 else ""
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{max(w, 0):.1f}' height='{h:.1f}' rx='2' fill='{fill}'{faint}/>"


def _text(x: float, y: float, text: str, fill: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{fill}' {_FONT}>{escape(text)}</text>"


def _svg(height: float, words: str, parts: Sequence[str], *, width: float = _WIDTH) -> str:
    said = escape(words, quote=True)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' role='img' "
        f"aria-label='{said}'><title>{said}</title>{''.join(parts)}</svg>"
    )
