"""What is told to whom, as a pure decision: no channel, no disk and no clock in it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from kyb_backup_pipeline.engine.alert_channels import Channel, Delivery
from kyb_backup_pipeline.engine.alert_decision import (
    EVENT_KEPT,
    EVENT_TRIED,
    decide,
    remembered,
)
from kyb_backup_pipeline.engine.alert_memory import Known, Memory
from kyb_backup_pipeline.engine.settings import AlertSettings
from kyb_backup_pipeline.engine.trouble import Severity, Trouble

START = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
MAIL = Channel(name="mail", minimum="warning")
PAGER = Channel(name="pager", minimum="critical")


def trouble(severity: Severity = "warning", key: str = "stale:full") -> Trouble:
    return Trouble(key=key, severity=severity, title=f"{key} is {severity}")


class Story:
    """Looks one after the other; each gives what was told, such as ``mail new stale:full``."""

    def __init__(self, *to: Channel, **settings: float) -> None:
        self.to = to or (MAIL,)
        self.settings = AlertSettings(**settings)
        self.memory = Memory()

    def look(
        self,
        hours: float,
        *troubles: Trouble,
        covers: Sequence[str] = ("",),
        failing: Sequence[str] = (),
    ) -> list[str]:
        now = START + timedelta(hours=hours)
        decision = decide(self.memory, troubles, self.to, now=now, settings=self.settings, covers=covers)  # fmt: skip
        self.memory = Memory.model_validate_json(decision.memory.model_dump_json())
        for name, news in decision.news.items():
            delivery = Delivery(channel=name, delivered=name not in failing, answer="")
            self.memory = remembered(self.memory, delivery, news, now)
        return [f"{name} {each.what} {each.trouble.key}"
                for name, news in decision.news.items() for each in news]  # fmt: skip


def test_a_trouble_is_told_once_and_its_end_once() -> None:
    story = Story()
    assert story.look(0, trouble()) == ["mail new stale:full"]
    assert story.look(1, trouble()) == []
    assert story.look(2) == ["mail over stale:full"]
    assert story.look(3) == []
    assert story.memory.known == {}
    assert story.look(4, trouble()) == ["mail new stale:full"]


def test_it_is_told_again_after_the_set_time_and_counted_from_the_last_time() -> None:
    story = Story(remind_after=24 * 3600)
    assert story.look(0, trouble()) == ["mail new stale:full"]
    assert story.look(23.9, trouble()) == []
    assert story.look(25, trouble()) == ["mail reminder stale:full"]
    assert story.look(48, trouble()) == []
    assert story.look(49, trouble()) == ["mail reminder stale:full"]


def test_what_gets_worse_is_told_and_what_gets_better_is_told_when_it_gets_worse_again() -> None:
    story = Story(MAIL, PAGER)
    assert story.look(0, trouble("warning")) == ["mail new stale:full"]
    assert story.look(1, trouble("critical")) == ["mail worse stale:full", "pager new stale:full"]
    assert story.look(2, trouble("warning")) == []
    assert story.look(3, trouble("critical")) == ["mail worse stale:full", "pager worse stale:full"]
    assert story.look(4) == ["mail over stale:full", "pager over stale:full"]


def test_a_channel_hears_nothing_below_its_severity_and_no_end_of_what_it_never_had() -> None:
    story = Story(MAIL, PAGER)
    assert story.look(0, trouble("info", "a"), trouble("warning", "b"), trouble("critical", "c")) == [
        "mail new b", "mail new c", "pager new c",
    ]  # fmt: skip
    assert story.look(1) == ["mail over b", "mail over c", "pager over c"]


def test_what_failed_is_told_at_the_next_look_to_that_channel_only() -> None:
    story = Story(MAIL, PAGER)
    critical = trouble("critical")
    assert story.look(0, critical, failing=["pager"]) == ["mail new stale:full", "pager new stale:full"]  # fmt: skip
    assert story.look(0.01, critical) == ["pager new stale:full"]
    assert story.look(0.02, critical) == []
    assert story.look(0.03, failing=["mail"]) == ["mail over stale:full", "pager over stale:full"]
    assert story.look(0.04) == ["mail over stale:full"]
    assert story.look(0.05) == []


def test_what_never_arrived_anywhere_has_no_end() -> None:
    story = Story()
    assert story.look(0, trouble(), failing=["mail"]) == ["mail new stale:full"]
    assert story.look(1) == []
    assert story.memory.known == {}


def test_what_comes_back_before_its_end_arrived_is_not_new() -> None:
    story = Story()
    story.look(0, trouble())
    assert story.look(1, failing=["mail"]) == ["mail over stale:full"]
    assert story.look(2, trouble()) == []
    assert story.look(3) == ["mail over stale:full"]


def test_a_channel_that_keeps_failing_is_asked_less_often_but_within_ten_minutes() -> None:
    story = Story()
    asked = [
        minute
        for minute in range(60)
        if story.look(minute / 60, trouble(), failing=["mail"])
    ]  # fmt: skip
    assert asked[:5] == [0, 1, 2, 4, 8]
    assert max(b - a for a, b in pairwise(asked)) == 10
    assert story.look(2, trouble()) == ["mail new stale:full"]
    assert story.memory.failing == {}


def test_a_look_ends_only_what_it_covers() -> None:
    story = Story()
    story.look(0, trouble(key="stale:full"), trouble(key="space:disk"))
    assert story.look(1, covers=["stale:"]) == ["mail over stale:full"]
    assert story.look(2, trouble(key="stale:base"), covers=["stale:"]) == ["mail new stale:base"]
    assert story.look(3, covers=[]) == []
    assert story.look(26, trouble(key="stale:base"), covers=["stale:"]) == ["mail reminder stale:base"]  # fmt: skip
    assert story.look(27) == ["mail over space:disk", "mail over stale:base"]


def test_a_trouble_that_comes_and_goes_is_told_once_if_it_must_settle() -> None:
    story = Story(settle=600)
    minute = 1 / 60
    assert story.look(0, trouble()) == ["mail new stale:full"]
    for n in range(1, 9, 2):
        assert story.look(n * minute) == []
        assert story.look((n + 1) * minute, trouble()) == []
    assert story.look(9 * minute) == []
    assert story.look(18 * minute) == []
    assert story.look(19 * minute) == ["mail over stale:full"]


def test_two_of_one_key_count_as_the_worse() -> None:
    story = Story(MAIL, PAGER)
    assert story.look(0, trouble("critical"), trouble("warning")) == [
        "mail new stale:full", "pager new stale:full",
    ]  # fmt: skip


def test_an_event_is_offered_for_a_day_and_remembered_for_a_week() -> None:
    story = Story(MAIL, PAGER)
    event = Known(trouble=trouble("critical", "run:1"), since=START, changed=START)  # fmt: skip
    story.memory = Memory(events={"run:1": event})
    assert story.look(0, failing=["pager"]) == ["mail event run:1", "pager event run:1"]
    assert story.look(EVENT_TRIED / timedelta(hours=1)) == []
    assert "run:1" in story.memory.events
    assert story.look(EVENT_KEPT / timedelta(hours=1)) == []
    assert story.memory.events == {}


def test_the_memory_is_bounded() -> None:
    story = Story()
    happened = {
        f"run:{n}": Known(trouble=trouble(key=f"run:{n}"), since=START, changed=START)
        for n in range(1500)
    }
    story.memory = Memory(events=happened)
    story.look(0, trouble())
    assert len(story.memory.events) == 1000
    assert "run:1499" in story.memory.events
    story.look(1, failing=["mail"])
    assert set(story.memory.known) == {"stale:full"}, "its end is owed"
    for day in range(2, 9):
        story.look(24 * day, failing=["mail"])
    assert story.memory.known == {}
