"""The report in a real browser: phone and desk, light and dark, paper. What is looked for is also found.

The screenshots lie in the test's folder, for eyes.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.report import make_report
from kyb_backup_pipeline.engine.report_page import html_page
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Survey
from kyb_backup_pipeline.sandbox.story import tell
from kyb_backup_pipeline.sandbox.story_shelf import write_story
from kyb_backup_pipeline_tests.browsing import Page, browser

NOW = datetime(2026, 3, 4, 7, 0, tzinfo=UTC)
WINDOWS = [(width, scheme) for width in (375, 1280) for scheme in ("light", "dark")]
READABLE = 4.5
"""Contrast of text: WCAG 2.2, 1.4.3, level AA."""

_CONTRASTS = r"""(() => {
  const probe = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => { probe.clearRect(0, 0, 1, 1); probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const behind = el => { for (; el; el = el.parentElement) { const c = rgb(getComputedStyle(el).backgroundColor);
    if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const found = {};
  const note = (name, value) => { found[name] = Math.min(found[name] ?? 99, value); };
  for (const el of document.querySelectorAll("body *")) {
    if (![...el.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || ["STYLE", "SCRIPT", "title"].includes(el.tagName)) continue;
    const style = getComputedStyle(el), svg = el.namespaceURI.endsWith("svg");
    const square = svg && el.previousElementSibling?.tagName === "rect" && "✕?".includes(el.textContent) ? el.previousElementSibling : null;
    const back = square ? rgb(getComputedStyle(square).fill) : behind(svg ? el.closest("svg").parentElement : el);
    const name = svg ? "svg " + el.getAttribute("fill") : el.tagName.toLowerCase() + (el.className ? "." + el.className : "");
    note(name, ratio(rgb(svg ? style.fill : style.color), back));
  }
  return found; })()"""
"""The least contrast of each sort of element that has text of its own."""

_OUTSIDE = """[...document.querySelectorAll("body *")].filter(el => {
  if (el.closest("svg") && el.tagName !== "svg") return false;
  for (let up = el; up; up = up.parentElement) if (/auto|scroll/.test(getComputedStyle(up).overflowX)) return false;
  const box = el.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + .5 || box.left < -.5);
}).map(el => el.outerHTML.slice(0, 80))"""
"""What can be reached neither in the window nor by scrolling a part of the page."""

_HIDDEN = """[...document.querySelectorAll("td, th")].filter(el => {
  const box = el.getBoundingClientRect(), holder = el.closest(".wide").getBoundingClientRect();
  const scrolls = /auto|scroll/.test(getComputedStyle(el.closest(".wide")).overflowX);
  return el.innerText.trim() && box.width > 0 && !scrolls && box.right > holder.right + .5 || el.scrollWidth > el.clientWidth + 1 && getComputedStyle(el).display !== "inline";
}).map(el => el.innerText)"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end of the story, with names as long as they may be."""
    folder = tmp_path_factory.mktemp("kyb")
    story = tell(NOW)
    bad = {proof.backup_id for proof in story.proofs if proof.verdict != "passed"}
    backups = [m for m in story.backups[:-45] if m.backup_id in bad] + story.backups[-45:]
    longest = backups[-1].model_copy(update={"label": "<b>before</b> " + "migration" * 12})
    deployment = backups[-2].model_copy(update={"deployment": "v" + "9" * 99})
    long = backups[-3].model_copy(update={"backup_id": "b" * 100})
    backups = [*backups[:-3], long, deployment, longest]
    proofs = [p for p in story.proofs if p.finished_at.timestamp() > NOW.timestamp() - 86_400 * 3
              or p.verdict != "passed"]  # fmt: skip
    file = write_story(replace(story, backups=backups, proofs=proofs), folder / "story")
    settings = config.load(file, environment={})
    path = folder / "report.html"
    path.write_text(
        html_page(make_report(settings, Survey(Repository(settings.repository)), now=NOW))
    )
    return path


def look(page: Page, path: Path, width: int, scheme: str, **media: str) -> dict[str, Any]:
    """Open a page and gather what is judged of it."""
    page.open(path, width=width, scheme=scheme, **media)
    return {
        "overflow": page.ask("document.documentElement.scrollWidth > innerWidth"),
        "outside": page.ask(_OUTSIDE),
        "asked for": [url for url in page.requests if url != path.as_uri() and not url.startswith("data:")],
        "complaints": page.complaints,
        "contrast": page.ask(_CONTRASTS),
        "unnamed": unnamed_pictures(page),
    }  # fmt: skip


def unnamed_pictures(page: Page) -> int:
    """Pictures that say nothing to who does not see them, in the tree that screen readers are given."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    pictures = [n for n in nodes if not n["ignored"] and n["role"]["value"] in ("image", "img", "graphics-document")]  # fmt: skip
    shown = page.ask("document.querySelectorAll('svg, img').length")
    return shown - sum(1 for n in pictures if n.get("name", {}).get("value", "").strip())  # type: ignore[no-any-return]


def faults(seen: dict[str, Any]) -> dict[str, Any]:
    """What of it is wrong."""
    pale = {name: round(value, 2) for name, value in seen["contrast"].items() if value < READABLE}
    rest = {name: value for name, value in seen.items() if name != "contrast" and value}
    return {**rest, **({"pale": pale} if pale else {})}


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_it_reads_well(page: Page, report: Path, tmp_path: Path, width: int, scheme: str) -> None:
    seen = look(page, report, width, scheme)
    assert faults(seen) == {}
    sorts = set(seen["contrast"])
    assert {"div.severity critical", "div.severity warning", "div.severity info", "td.passed", "td.failed",
            "td.could_not_verify", "p.muted", "td.short stale"} <= sorts  # fmt: skip
    assert page.ask(_HIDDEN) == []
    dark = page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    assert dark == (scheme == "dark")
    picture = page.picture(tmp_path / f"report-{width}-{scheme}.png")
    assert picture.stat().st_size > 50_000


def test_findings_come_first(page: Page, report: Path) -> None:
    page.open(report, width=375)
    sections = page.ask("[...document.querySelectorAll('section')].map(s => s.id)")
    assert sections == ["findings", "figures", "kinds", "offsite", "pictures", "pruned", "backups"]
    tops = page.ask(
        "[...document.querySelectorAll('section')].map(s => s.getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    assert tops[0] < 300  # on the first screen of a phone
    severities = page.ask(
        "[...document.querySelectorAll('.severity')].map(s => s.innerText.toLowerCase())"
    )
    order = ["critical", "warning", "info"]
    assert severities == sorted(severities, key=order.index)
    assert set(severities) == set(order)
    links = page.ask(
        "[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null)"
    )
    assert links == [True] * 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_paper_nothing_essential_is_missing(page: Page, report: Path, scheme: str) -> None:
    texts = "[...document.querySelectorAll('h1, h2, h3, p, td, th, strong, figcaption, svg')].filter(e => e.checkVisibility({visibilityProperty: true, opacityProperty: true}) && e.getBoundingClientRect().height > 0).length"  # fmt: skip
    page.open(report, width=1280)
    on_screen = page.ask(texts)
    seen = look(page, report, 690, scheme, media="print")  # A4 within its margins
    assert faults(seen) == {}
    assert page.ask(texts) == on_screen
    assert (
        page.ask("getComputedStyle(document.querySelector('thead')).display")
        == "table-header-group"
    )
    assert page.ask("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]") == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]  # fmt: skip
    printed = base64.b64decode(page.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12


def test_what_is_looked_for_is_found_on_a_bad_page(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body><script>console.error('no')</script><p style='color:#999'>pale</p>"
        "<div style='width:3000px;height:9px;background:red'></div><svg role='img' width='9'></svg>"
        "<img src='http://192.0.2.1/x.png'>"
    )
    found = faults(look(page, bad, 375, "light"))
    assert found["overflow"] and found["outside"] and found["complaints"]
    assert found["asked for"] == ["http://192.0.2.1/x.png"]
    assert found["pale"] == {"p": 2.85}
    assert found["unnamed"] == 2
    assert json.dumps(found)


def test_text_of_others_is_shown_and_not_obeyed(page: Page, report: Path) -> None:
    page.open(report, width=1280)
    assert page.ask("document.querySelectorAll('td b').length") == 0
    assert page.ask("document.body.innerText.includes('<b>before</b>')")
