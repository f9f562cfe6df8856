"""Small pictures as SVG: crisp on a phone and on paper, in the colours of whatever page they stand on.

Colours are CSS variables with a fallback, so a page can have them light and dark, and Dagster's UI, which
shows a picture by itself, has them too. Every picture says in words what it shows, and nothing in it is told by
colour alone.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from html import escape

from kyb_backup_pipeline.engine.trouble import lasting

INK, MUTED, LINE = "var(--ink, #333)", "var(--muted, #777)", "var(--line, #ccc)"
GOOD, BAD, UNSURE, ACCENT = (
    "var(--good, #2e7d32)", "var(--bad, #c62828)", "var(--unsure, #b26a00)", "var(--accent, #2b5c8a)",
)  # fmt: skip
_PAPER = "var(--paper, #fff)"
_WIDTH = 420
"""Of the drawing: narrow, so that its words can be read on a phone."""
_FONT = "font-family='system-ui, sans-serif' font-size='13'"
_VERDICTS = (("passed", GOOD, "passed"), ("failed", BAD, "failed"), ("could_not_verify", UNSURE, "could not"),
             ("none", LINE, "none"))  # fmt: skip
_SIGNS = {"failed": "✕", "could_not_verify": "?"}
_STEPS = (1, 2, 2.5, 5, 10)


def ages(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """One bar a kind: (name, hours old, hours allowed). The mark is the limit."""
    step, left, right = 30, 124, 118
    room = _WIDTH - left - right
    limit_at = left + room / 1.25
    parts = [_text(limit_at, 12, "limit", MUTED, "middle")]
    for number, (name, age, limit) in enumerate(rows):
        y = 18 + number * step
        full = limit * 1.25 if limit else max(age or 1, 1)
        late = limit is not None and (age is None or age > limit)
        parts.append(_text(0, y + 15, name, INK))
        parts.append(_rect(left, y + 4, room, 14, LINE, opacity=0.45))
        if age is not None:
            width = room * min(age / full, 1)
            parts.append(_rect(left, y + 4, max(width, 2), 14, BAD if late else GOOD))
        if limit:
            parts.append(f"<path d='M{limit_at:.1f} {y + 1}v20' stroke='{INK}' stroke-width='2'/>")
        said = "never" if age is None else span(age)
        allowed = f" of {span(limit)}" if limit else ""
        parts.append(_text(_WIDTH - right + 8, y + 15, f"{said}{allowed}{' ✕' if late else ''}",
                           BAD if late else INK))  # fmt: skip
    words = "; ".join(
        f"{n}: {'never' if a is None else span(a)} old, {span(lim) if lim else 'any'} allowed"
        for n, a, lim in rows
    )
    return _svg(22 + step * len(rows), words, parts)


def series(
    points: Sequence[tuple[datetime, float]],
    what: str,
    unit: str,
    *,
    height: int = 176,
    bad: Collection[datetime] = (),
) -> str:
    """A line over time, from zero; those ``bad`` have a cross. Fewer than two points are not drawn."""
    if len(points) < 2:
        return _svg(40, f"{what}: too few to show", [_text(0, 24, "too few to show yet", MUTED)])
    left, right, top, bottom = 48, 12, 24, 26
    first, last = points[0][0], points[-1][0]
    seconds = max((last - first).total_seconds(), 1)
    factor, name = scale(max(value for _, value in points), unit)
    ticks = list(_ticks(max(value for _, value in points) / factor))
    plot_w, plot_h = _WIDTH - left - right, height - top - bottom

    def place(at: datetime, value: float) -> tuple[float, float]:
        x = left + plot_w * (at - first).total_seconds() / seconds
        return x, top + plot_h * (1 - value / factor / ticks[-1])

    parts = [_text(left - 6, 13, name, MUTED, "end")]
    for tick in ticks:
        y = top + plot_h * (1 - tick / ticks[-1])
        parts.append(f"<path d='M{left} {y:.1f}h{plot_w}' stroke='{LINE}'/>")
        parts.append(_text(left - 6, y + 4, f"{tick:g}", MUTED, "end"))
    parts += _days(first, last, left, plot_w, height)
    placed = [place(*point) for point in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts.append(f"<polyline points='{line}' fill='none' stroke='{ACCENT}' stroke-width='1.75' "
                 "stroke-linejoin='round'/>")  # fmt: skip
    for (x, y), (at, _) in zip(placed, points, strict=True):
        if at in bad:
            parts.append(_text(x, y + 5, "✕", BAD, "middle"))
    parts.append(
        f"<circle cx='{placed[-1][0]:.1f}' cy='{placed[-1][1]:.1f}' r='4' fill='{ACCENT}'/>"
    )
    newest = amount(points[-1][1], unit)
    parts.append(_text(_WIDTH - right, 13, f"newest {newest}", INK, "end"))
    most = amount(max(value for _, value in points), unit)
    words = f"{what} from {first:%Y-%m-%d} to {last:%Y-%m-%d}: newest {newest}, most {most}"
    return _svg(height, words, parts)


def scale(most: float, unit: str) -> tuple[float, str]:
    """What to divide by, and what the unit is then called."""
    scales = {"B": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
              "s": ((10_800, "h"), (180, "min"), (1, "s"))}  # fmt: skip
    for least, name in scales.get(unit, ()):
        if most >= least:
            return {"h": 3600.0, "min": 60.0}.get(name, float(least)), name
    return 1, unit


def _ticks(most: float) -> Iterator[float]:
    """From zero, in round steps, three to five of them, to where all is below."""
    if most <= 0:
        yield from (0, 1)
        return
    rough, power = most / 4, 1.0
    while power * 10 <= rough:
        power *= 10
    while power > rough:
        power /= 10
    step = next(power * s for s in _STEPS if power * s >= rough * 0.999)
    number = 0
    while (number - 1) * step < most:
        yield round(number * step, 12)
        number += 1


def _days(first: datetime, last: datetime, left: float, plot_w: float, height: int) -> list[str]:
    """Dates below a picture: the first, the last, and those between that fit."""
    count = 4 if last - first > timedelta(days=4) else 1
    form = "%d %b" if last - first < timedelta(days=300) else "%b %Y"
    anchors = {0: "start", count: "end"}
    return [
        _text(left + plot_w * n / count, height - 6, f"{first + (last - first) * n / count:{form}}",
              MUTED, anchors.get(n, "middle"))
        for n in range(count + 1)
    ]  # fmt: skip


def calendar(days: Sequence[tuple[datetime, Sequence[str]]]) -> str:
    """One square a day, a column a week: the worst verdict of the day's restore tests."""
    size, gap, left, top = 20, 4, 38, 22
    offset = days[0][0].weekday() if days else 0
    parts = [
        _text(0, top + row * (size + gap) + 15, name, MUTED)
        for row, name in ((0, "Mon"), (2, "Wed"), (4, "Fri"), (6, "Sun"))
    ]
    counted = dict.fromkeys((verdict for verdict, _, _ in _VERDICTS), 0)
    colours = {verdict: colour for verdict, colour, _ in _VERDICTS}
    named_at = -3
    for number, (day, verdicts) in enumerate(days):
        worst = next((v for v in ("failed", "could_not_verify", "passed") if v in verdicts), "none")
        counted[worst] += 1
        week = (number + offset) // 7
        x, y = left + week * (size + gap), top + ((number + offset) % 7) * (size + gap)
        if (number == 0 or day.day <= 7) and day.day + day.weekday() <= 13 and week - named_at >= 2:
            parts.append(_text(x, 13, f"{day:%b}", MUTED))
            named_at = week
        said = f"{day:%Y-%m-%d}: {len(verdicts)} restore tests, {worst.replace('_', ' ')}"
        square = _square(x, y, size, worst, colours[worst])
        parts.append(f"<g><title>{escape(said)}</title>{square}</g>")
    parts += _legend(counted, left + (len(days) + offset + 6) // 7 * (size + gap) + 14, top, size)
    words = (
        f"Restore tests of {len(days)} days: passed on {counted['passed']}, failed on {counted['failed']}, "
        f"could not verify on {counted['could_not_verify']}, none on {counted['none']}"
    )
    return _svg(top + 7 * (size + gap) + 4, words, parts)


def _legend(counted: dict[str, int], x: float, top: float, size: int) -> list[str]:
    """What the squares mean, and how many days of each there are."""
    parts = []
    for row, (verdict, colour, name) in enumerate(_VERDICTS):
        y = top + row * (size + 8)
        parts.append(_square(x, y, size, verdict, colour))
        parts.append(_text(x + size + 7, y + 15, f"{name} {counted[verdict]}", INK))
    return parts


def _square(x: float, y: float, size: int, verdict: str, colour: str) -> str:
    sign = _SIGNS.get(verdict)
    mark = (
        f"<text x='{x + size / 2}' y='{y + 15}' text-anchor='middle' fill='{_PAPER}' {_FONT}>{sign}</text>"
        if sign
        else ""
    )
    return _rect(x, y, size, size, colour, opacity=0.5 if verdict == "none" else 1) + mark


def shares(parts_: Sequence[tuple[str, float, str]], note: str = "") -> str:
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
    if note:
        drawn.append(_text(0, 76, note, MUTED))
    words = ", ".join(f"{name} {amount(value, 'B')}" for name, value, _ in parts_)
    return _svg(84 if note else 60, ". ".join(filter(None, (words, note))), drawn)


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
