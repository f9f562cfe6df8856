"""What each channel is to be told: pure, by what is wrong now and what the channel was told before.

"New", "worse", "reminder" and "over" are one question, asked for each channel. So a delivery that failed needs
no retry of its own, and the end of a trouble goes only to those who heard of it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kyb_backup_pipeline.engine.alert_channels import Channel, Delivery
from kyb_backup_pipeline.engine.alert_memory import Failing, Had, Known, Memory, What
from kyb_backup_pipeline.engine.alert_text import News
from kyb_backup_pipeline.engine.settings import AlertSettings
from kyb_backup_pipeline.engine.trouble import SEVERITIES, Severity, Trouble

EVERYTHING = ("",)
"""The prefix of every key: a look that knows of all troubles."""
EVENT_TRIED = timedelta(hours=24)
"""How long an event is offered to a channel that does not take it."""
EVENT_KEPT = timedelta(days=7)
"""How long it is remembered, so that it is not told twice."""
GONE_KEPT = timedelta(days=7)
"""How long a channel that takes nothing is owed the end of a trouble."""
_EVENTS = 1000
_LONGEST_REST = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is known now, and what each channel is to be told of it."""

    memory: Memory
    news: Mapping[str, Sequence[News]]


def decide(
    memory: Memory,
    troubles: Sequence[Trouble],
    to: Sequence[Channel],
    *,
    now: datetime,
    settings: AlertSettings,
    covers: Collection[str] = EVERYTHING,
) -> Decision:
    """What each channel is to be told, by what is wrong now and what it was told; nothing is sent."""
    seen = _by_key(troubles)
    known = {
        key: _eased(each, now, settings)
        for key, each in _observed(memory.known, seen, now, covers).items()
        if not each.gone or (each.had and now - each.changed < GONE_KEPT)
    }
    events = [
        (key, event) for key, event in memory.events.items() if now - event.since < EVENT_KEPT
    ]
    after = memory.model_copy(update={"known": known, "events": dict(events[-_EVENTS:])})
    news: dict[str, list[News]] = {}
    for channel in to:
        if _rests(memory.failing.get(channel.name), now):
            continue
        found = [
            News(what="event", trouble=event.trouble, since=event.since)
            for event in after.events.values()
            if _wants(channel, event.trouble) and channel.name not in event.had
            and now - event.since < EVENT_TRIED
        ]  # fmt: skip
        for key, each in known.items():
            what = _news_of(each, channel, now, settings) if key in seen or each.gone else None
            if what is not None:
                found.append(News(what=what, trouble=each.trouble, since=each.since))
        if found:
            news[channel.name] = found
    return Decision(memory=after, news=news)


def _by_key(troubles: Sequence[Trouble]) -> dict[str, Trouble]:
    """What is there; of two with one key the worse."""
    return {each.key: each for each in sorted(troubles, key=lambda each: _rank(each.severity))}


def _observed(
    before: Mapping[str, Known], seen: Mapping[str, Trouble], now: datetime, covers: Collection[str]
) -> dict[str, Known]:
    """What is known, brought up to now."""
    known = dict(before)
    for key, trouble in seen.items():
        old = before.get(key)
        if old is None:
            known[key] = Known(trouble=trouble, since=now, changed=now)
        elif old.gone or old.trouble != trouble:
            same = not old.gone and old.trouble.severity == trouble.severity
            changed = old.changed if same else now
            known[key] = old.model_copy(
                update={"trouble": trouble, "gone": False, "changed": changed}
            )
    for key, old in before.items():
        if not old.gone and key not in seen and key.startswith(tuple(covers)):
            known[key] = old.model_copy(update={"gone": True, "changed": now})
    return known


def _eased(known: Known, now: datetime, settings: AlertSettings) -> Known:
    """The same, where it is better than was told: so that it is told again when it gets worse again."""
    severity = known.trouble.severity
    better = [name for name, had in known.had.items() if _rank(severity) < _rank(had.severity)]
    if not better or known.gone or not _settled(known, now, settings):
        return known
    lower = {name: Had(severity=severity, at=known.had[name].at) for name in better}
    return known.model_copy(update={"had": {**known.had, **lower}})


def _settled(known: Known, now: datetime, settings: AlertSettings) -> bool:
    since = abs(now - known.changed)  # clocks are set back, too
    return since >= timedelta(seconds=settings.settle)


def _news_of(known: Known, channel: Channel, now: datetime, settings: AlertSettings) -> What | None:
    """What this channel is to be told of one trouble."""
    had = known.had.get(channel.name)
    if known.gone:
        return "over" if had is not None and _settled(known, now, settings) else None
    if not _wants(channel, known.trouble):
        return None
    if had is None:
        return "new"
    if _rank(known.trouble.severity) > _rank(had.severity):
        return "worse"
    due = abs(now - had.at) >= timedelta(seconds=settings.remind_after)
    return "reminder" if due else None


def _rests(failing: Failing | None, now: datetime) -> bool:
    """Whether a channel that failed again and again is left alone for a while."""
    if failing is None or failing.times < 2:
        return False
    doubled = timedelta(minutes=2 ** min(failing.times - 2, 10))
    return abs(now - failing.at) < min(doubled, _LONGEST_REST)


def remembered(memory: Memory, delivery: Delivery, news: Sequence[News], now: datetime) -> Memory:
    """The memory after one channel has answered."""
    name = delivery.channel
    failing = {each: how for each, how in memory.failing.items() if each != name}
    if not delivery.delivered:
        before = memory.failing.get(name)
        failing[name] = Failing(times=before.times + 1 if before else 1, at=now)
        return memory.model_copy(update={"failing": failing})
    known, events = dict(memory.known), dict(memory.events)
    for each in news:
        place, key = events if each.what == "event" else known, each.trouble.key
        had = {other: what for other, what in place[key].had.items() if other != name}
        if each.what != "over":
            had[name] = Had(severity=each.trouble.severity, at=now)
        place[key] = place[key].model_copy(update={"had": had})
    return memory.model_copy(update={"known": known, "events": events, "failing": failing})


def _wants(channel: Channel, trouble: Trouble) -> bool:
    return _rank(trouble.severity) >= _rank(channel.minimum)


def _rank(severity: Severity) -> int:
    return SEVERITIES.index(severity)
