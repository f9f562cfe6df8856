"""The report: what it says in each of its forms, what others wrote in it, and its limits."""

import os
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.attempts import Attempts
from kyb_backup_pipeline.engine.errors import BackupFailed
from kyb_backup_pipeline.engine.manifest import Proof
from kyb_backup_pipeline.engine.pictures import series
from kyb_backup_pipeline.engine.printable import markdown_text, printable
from kyb_backup_pipeline.engine.report import Report, make_report
from kyb_backup_pipeline.engine.report_page import html_page, keep_report
from kyb_backup_pipeline.engine.report_text import markdown_page, text_page
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.survey import Fact, ProofFact, Survey
from kyb_backup_pipeline.sandbox.invented import manifest_of, publish
from kyb_backup_pipeline_tests.running import Cli

NOW = datetime(2026, 3, 4, 7, 0, tzinfo=UTC)
EVIL = "<script>alert(1)</script> \"'`|*[x](http://192.0.2.1)\n\x1b[31m\x07\x9b2J \u202egpj\u202c <img src=x onerror=y>"  # fmt: skip
"""A tag, quotes, a cell's end, a link, a new line, colours and a bell of terminals, another direction."""


class _Tags(HTMLParser):
    """What a browser would make of a page: its tags and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.load(environment={"BACKUP_DIR": str(tmp_path / "backups")})


@pytest.fixture
def evil(settings: Settings) -> Report:
    """A repository in which everything that somebody else names is meant badly."""
    repository = Repository(settings.repository)
    made = NOW - timedelta(hours=2)
    backup = manifest_of("full", "backup_1", made, label=EVIL, deployment=EVIL)
    publish(repository, backup, {"content": b"x"})
    state = manifest_of("application_state", "app_1", made, deployment=EVIL)
    publish(repository, state, {"content": b"x"})
    repository.records.keep(
        Proof(backup_id="backup_1", proof="restore_test", verdict="failed", summary=EVIL, started_at=made,
              finished_at=made)
    )  # fmt: skip
    Attempts(repository.root).keep("base", "base_1", BackupFailed(EVIL, hint=EVIL), NOW)
    (repository.folder("full") / "torn").mkdir()
    (repository.folder("full") / "torn" / "backup_metadata.json").write_text(f'{{"{EVIL!r}": ')
    strange = os.fsencode(repository.folder("full")) + b"/.\xff<script>\x1b[2J.partial"
    os.mkdir(strange)
    os.utime(strange, (0, 0))
    return make_report(settings, Survey(repository), now=NOW)


def test_what_others_wrote_is_no_markup_in_the_page(evil: Report, settings: Settings) -> None:
    page = html_page(evil)
    assert page.encode()  # half characters of file names are spelled out
    seen, clean = _Tags(page), _Tags(html_page(empty_report(settings)))
    assert seen.tags - clean.tags <= {
        "section",
        "ul",
        "li",
        "h3",
    }  # the findings, and nothing of theirs
    assert not {a for a in seen.attributes if a.startswith("on")}
    assert not {"src", "style"} & seen.attributes
    assert "script" not in seen.tags
    assert seen.text.count("<script>alert(1)</script> \"'`|*[x](http://192.0.2.1)") >= 5
    assert not invisible(page)


def empty_report(settings: Settings) -> Report:
    nowhere = settings.model_copy(update={"repository": settings.repository / "nowhere"})
    return make_report(nowhere, Survey(Repository(nowhere.repository)), now=NOW)


def invisible(text: str) -> list[str]:
    """Characters that terminals obey or nobody sees."""
    return [c for c in text if not c.isprintable() and c != "\n"]


def test_what_others_wrote_moves_no_terminal(evil: Report) -> None:
    text = text_page(evil)
    assert not invisible(text)
    assert text.count(r"\x1b[31m\x07\x9b2J \u202egpj\u202c") >= 4
    assert r"\udcff<script>\x1b[2J.partial" in text
    titles = [line for line in text.splitlines() if line.startswith("[")]
    assert len(titles) == len(evil.health.troubles)  # none made a line of its own


def test_status_and_list_show_what_others_wrote_and_do_not_obey_it(
    evil: Report, settings: Settings
) -> None:
    cli = Cli(None, {"BACKUP_DIR": str(settings.repository)})
    for verb in ("status", "list"):
        run = cli.run(verb)
        assert r"\x1b[31m\x07" in run.stdout
        assert not invisible(run.stdout)


def test_what_others_wrote_is_no_markup_in_the_ui(evil: Report) -> None:
    page = markdown_page(evil)
    assert not invisible(page)
    assert "<" not in page.replace("&lt;", "")
    assert not re.search(r"(?<!\\)\[x(?<!\\)\]", page)
    assert re.findall(r"!\[[^\]]*\]\((.{9})", page) == ["data:imag"] * page.count("![")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for row in rows:
        cells = len(re.findall(r"(?<!\\)\|", row)) - 1
        assert cells in (3, 4, 6), row
    for row in rows:
        assert not re.search(r"(?<!\\)`", row)


def test_text_of_others_keeps_its_letters() -> None:
    assert printable("Größe  – 東京 \t ✓") == "Größe – 東京 ✓"
    assert printable("a\x00b\u200bc\udcff") == r"a\x00b\u200bc\udcff"
    assert markdown_text("a|b`c`*d*[e](f)<g>&\\") == r"a\|b\`c\`\*d\*\[e\](f)&lt;g>&amp;\\"


def test_a_repository_that_is_not_there_has_a_report_too(settings: Settings) -> None:
    report = empty_report(settings)
    for page in (html_page(report), text_page(report), markdown_page(report)):
        assert "1 critical: the repository cannot be read" in page


def test_pictures_have_round_axes_and_say_what_they_show() -> None:
    points = [(NOW + timedelta(days=n), 1e8 * (1 + n)) for n in range(5)]
    svg = series(points, "Size", "B", bad={points[1][0]})
    assert ">MB<" in svg
    ticks = re.findall(r"text-anchor='end'[^>]*>([\d.]+)<", svg)
    assert ticks == ["0", "200", "400", "600"]
    assert svg.count("✕") == 1
    assert "aria-label='Size from 2026-03-04 to 2026-03-08: newest 500.0 MB, most 500.0 MB'" in svg
    assert "too few" in series(points[:1], "Size", "B")
    assert ">0<" in series([(NOW, 0.0), (NOW, 0.0)], "Size", "B")
    minutes = series([(NOW, 20.0), (NOW + timedelta(days=1), 600.0)], "Time", "s")
    assert ">min<" in minutes


def facts(count: int) -> tuple[Fact, ...]:
    proof = ProofFact("passed", NOW, "5 files, 1200 bytes read, all as written", 3.0, 12.0, 1000)
    return tuple(
        Fact(f"backup_20260101_{n:06}", "full", NOW - timedelta(hours=n), size=10**9, seconds=60.0, rows=10**6,
             label="before the migration of the documents", verification=proof, restore_test=proof)
        for n in range(count)
    )  # fmt: skip


def test_ten_thousand_backups_make_a_page_that_a_phone_opens(settings: Settings) -> None:
    report = empty_report(settings)
    page = html_page(
        Report(repository="/backups", health=report.health, facts=facts(10_000), tests=())
    )
    assert 200_000 < len(page.encode()) < 2_000_000
    assert "and 8000 older ones: kyb-backup list" in page


def test_the_newest_sixty_reports_are_kept(settings: Settings) -> None:
    kept = [
        keep_report(settings.repository, make_report(settings, Survey(Repository(settings.repository)),
                                                     now=NOW + timedelta(minutes=n)))
        for n in range(62)
    ]  # fmt: skip
    there = sorted(kept[0].parent.glob("*.html"))
    assert there == kept[2:]
    assert len(list(kept[0].parent.iterdir())) == 120
