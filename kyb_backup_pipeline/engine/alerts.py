"""Alerts that arrive, and arrive once: the one place from which anybody is told of a trouble.

Everybody who looks (the sensors, ``status --alert``, a failed run) hands over what is wrong now. ``decide``
compares that with what each channel was told and says what is new to it; a channel that did not take its
message has simply not been told, and gets it at the next look. So delivery is at least once for each channel,
and a kill between sending and remembering tells again rather than never. A channel that keeps failing is
asked less often, up to ten minutes apart.

Where to look next: ``alert_memory`` remembers, ``alert_text`` words, ``alert_channels`` sends.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from kyb_backup_pipeline.engine.alert_channels import Channel, Delivery, channels, deliver, within
from kyb_backup_pipeline.engine.alert_memory import (
    AlertStore,
    Entry,
    Failing,
    Had,
    Item,
    Known,
    Memory,
    alert_store,
)
from kyb_backup_pipeline.engine.alert_text import KindOf, Message, News, compose
from kyb_backup_pipeline.engine.config import AlertSettings, Settings
from kyb_backup_pipeline.engine.errors import InvalidRequest, KybError, SettingsInvalid
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.trouble import SEVERITIES, Severity, Trouble

_log = logging.getLogger(__name__)

EVERYTHING = ("",)
"""The prefix of every key: a look that knows of all troubles."""
EVENT_TRIED = timedelta(hours=24)
"""How long an event is offered to a channel that does not take it."""
EVENT_KEPT = timedelta(days=7)
"""How long it is remembered, so that it is not told twice."""
GONE_KEPT = timedelta(days=7)
"""How long a channel that takes nothing is owed the end of a trouble."""
_EVENTS = 1000
_IN_HISTORY = 50
_LONGEST_REST = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is known now, and what each channel is to be told of it."""

    memory: Memory
    news: Mapping[str, Sequence[News]]


def look(
    settings: Settings,
    troubles: Iterable[Trouble],
    *,
    now: datetime,
    covers: Collection[str] = EVERYTHING,
) -> list[Delivery]:
    """Tell what is new about these troubles to whom it is new; what was sent, and what became of it.

    ``covers`` are prefixes of the keys that this look would have found, such as ``{"stale:"}``: of these,
    and only of these, a trouble that is not there is over. Returns within about ``alerts.timeout``.
    """
    with alert_store(settings, _patience(settings.alerts)) as store:
        decision = decide(
            store.memory, [_writable(each) for each in troubles], channels(settings.alerts),
            now=now, settings=settings.alerts, covers=covers,
        )  # fmt: skip
        return _tell(settings, store, decision, now)


def one_off(settings: Settings, event: Trouble, *, now: datetime) -> list[Delivery]:
    """Tell of something that happened (a run failed): once by its key, and it is never over.

    What no channel took is told by the next ``look`` or ``one_off``, for a day.
    """
    event = _writable(event)
    with alert_store(settings, _patience(settings.alerts)) as store:
        if event.key not in store.memory.events:
            happened = Known(trouble=event, since=now, changed=now)
            events = {**store.memory.events, event.key: happened}
            store.keep(store.memory.model_copy(update={"events": events}), now)
        decision = decide(
            store.memory,
            [],
            channels(settings.alerts),
            now=now,
            settings=settings.alerts,
            covers=(),
        )
        return _tell(settings, store, decision, now)


def send_test(settings: Settings, *, now: datetime, name: str | None = None) -> list[Delivery]:
    """Send a test to each channel, or to that one, and wait for what they answer."""
    there = channels(settings.alerts)
    chosen = [channel for channel in there if name in (None, channel.name)]
    if not there:
        raise SettingsInvalid("no alert channel is set", hint="ALERT_EMAIL, or alerts.channels")
    if not chosen:
        names = ", ".join(channel.name for channel in there)
        raise InvalidRequest(f"there is no alert channel {name!r}", hint=f"there are: {names}")
    test = Trouble(
        key="test", severity="info", title="alerts arrive here",
        text="This is a test: nothing is wrong.", hint="kyb-backup alert history",
    )  # fmt: skip
    news = [News(what="test", trouble=test, since=now)]
    message = compose(news, settings)
    with alert_store(settings, _patience(settings.alerts)) as store:
        deliveries = []
        for delivery in deliver({channel: message for channel in chosen}, settings.alerts, now):
            store.note(_entry(delivery, message, news, now))
            deliveries.append(delivery)
    return deliveries


def ping_when_well(settings: Settings) -> bool | None:
    """Ask ``alerts.ping_url``, so that its owner knows that we live and all is well; None if it is not set.

    A failure is a warning in the log: the other side notices by itself.
    """
    url = settings.alerts.ping_url
    if url is None:
        return None
    seconds = settings.alerts.timeout

    def ping() -> str:
        import requests

        with requests.Session() as session:
            session.trust_env = False  # no proxy and no netrc of whoever started us
            try:
                with session.get(url.get_secret_value(), timeout=seconds, stream=True,
                                 allow_redirects=False) as answer:  # fmt: skip
                    status = answer.status_code
            except (requests.RequestException, ValueError) as error:
                raise KybError(type(error).__name__) from None
        if not 200 <= status < 300:
            raise KybError(f"answered {status}")
        return "well"

    ((_, well, answer),) = within({"ping": ping}, seconds)
    if not well:
        _log.warning("the dead man's switch (alerts.ping_url) did not hear from us: %s", answer)
    return well


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
    after = memory.model_copy(deep=True)
    seen = _observe(after, troubles, now, covers)
    _forget(after, now)
    news: dict[str, list[News]] = {}
    for channel in to:
        found = [
            News(what="event", trouble=event.trouble, since=event.since)
            for event in after.events.values()
            if _wants(channel, event.trouble) and channel.name not in event.had
            and now - event.since < EVENT_TRIED
        ]  # fmt: skip
        for key, known in after.known.items():
            if key in seen or known.gone:
                found += _news_of(known, channel, now, settings)
        if found and not _rests(after.failing.get(channel.name), now):
            news[channel.name] = found
    return Decision(memory=after, news=news)


def _observe(
    memory: Memory, troubles: Sequence[Trouble], now: datetime, covers: Collection[str]
) -> set[str]:
    """Bring what is known up to now; the keys of what is there."""
    worst_last = sorted(troubles, key=lambda trouble: _rank(trouble.severity))
    seen = {trouble.key: trouble for trouble in worst_last}
    for key, trouble in seen.items():
        known = memory.known.get(key)
        if known is None:
            memory.known[key] = Known(trouble=trouble, since=now, changed=now)
            continue
        if known.gone or known.trouble.severity != trouble.severity:
            known.changed = now
        known.gone, known.trouble = False, trouble
    for key, known in memory.known.items():
        if not known.gone and key not in seen and key.startswith(tuple(covers)):
            known.gone, known.changed = True, now
    return set(seen)


def _news_of(known: Known, channel: Channel, now: datetime, settings: AlertSettings) -> list[News]:
    """What this channel is to be told of one trouble: nothing, or one thing."""

    def tell(what: Literal["new", "worse", "reminder", "over"]) -> list[News]:
        return [News(what=what, trouble=known.trouble, since=known.since)]

    had = known.had.get(channel.name)
    settled = now - known.changed >= timedelta(seconds=settings.settle)
    if known.gone:
        return tell("over") if had is not None and settled else []
    if had is not None and settled and _rank(known.trouble.severity) < _rank(had.severity):
        had.severity = known.trouble.severity  # so that it is told when it gets worse again
    if not _wants(channel, known.trouble):
        return []
    if had is None:
        return tell("new")
    if _rank(known.trouble.severity) > _rank(had.severity):
        return tell("worse")
    if now - had.at >= timedelta(seconds=settings.remind_after):
        return tell("reminder")
    return []


def _forget(memory: Memory, now: datetime) -> None:
    """Drop what nobody is owed any more."""
    memory.known = {
        key: known
        for key, known in memory.known.items()
        if not known.gone or (known.had and now - known.changed < GONE_KEPT)
    }
    young = [(key, event) for key, event in memory.events.items() if now - event.since < EVENT_KEPT]
    memory.events = dict(young[-_EVENTS:])


def _rests(failing: Failing | None, now: datetime) -> bool:
    """Whether a channel that failed again and again is left alone for a while."""
    if failing is None or failing.times < 2:
        return False
    return now - failing.at < min(timedelta(minutes=2 ** min(failing.times - 2, 10)), _LONGEST_REST)


def _tell(
    settings: Settings, store: AlertStore, decision: Decision, now: datetime
) -> list[Delivery]:
    """Send, and after each answer remember who has had what."""
    if decision.memory != store.memory:
        store.keep(decision.memory, now)
    messages = {
        channel: compose(decision.news[channel.name], settings, _kinds(settings))
        for channel in channels(settings.alerts)
        if channel.name in decision.news
    }
    by_name = {channel.name: message for channel, message in messages.items()}
    deliveries = []
    for delivery in deliver(messages, settings.alerts, now):
        news, message = decision.news[delivery.channel], by_name[delivery.channel]
        store.keep(remembered(store.memory, delivery, news, now), now)
        store.note(_entry(delivery, message, news, now))
        deliveries.append(delivery)
    return deliveries


def remembered(memory: Memory, delivery: Delivery, news: Sequence[News], now: datetime) -> Memory:
    """The memory after one channel has answered."""
    after = memory.model_copy(deep=True)
    name = delivery.channel
    if not delivery.delivered:
        before = after.failing.get(name)
        after.failing[name] = Failing(times=before.times + 1 if before else 1, at=now)
        return after
    after.failing.pop(name, None)
    for each in news:
        place = after.events if each.what == "event" else after.known
        known = place[each.trouble.key]
        if each.what == "over":
            known.had.pop(name, None)
        else:
            known.had[name] = Had(severity=each.trouble.severity, at=now)
    return after


def _entry(delivery: Delivery, message: Message, news: Sequence[News], now: datetime) -> Entry:
    items = [
        Item(
            what=each.what,
            key=each.trouble.key,
            severity=each.trouble.severity,
            title=each.trouble.title,
        )
        for each in news[:_IN_HISTORY]
    ]
    return Entry(
        at=now, channel=delivery.channel, delivered=delivery.delivered, answer=delivery.answer,
        subject=message.subject, items=items,
    )  # fmt: skip


def _kinds(settings: Settings) -> KindOf:
    repository = Repository(settings.repository)

    def kind_of(backup_id: str) -> Kind | None:
        try:
            return repository.find(backup_id).kind
        except (KybError, OSError):
            return None  # gone, or the repository is: then there is no link

    return kind_of


def _writable(trouble: Trouble) -> Trouble:
    """The same without what no file and no message can hold: half characters, as names of files have them."""
    whole: dict[str, Any] = {
        name: text.encode("utf-8", "replace").decode()
        for name, text in vars(trouble).items()
        if isinstance(text, str)
    }
    return replace(trouble, **whole)


def _wants(channel: Channel, trouble: Trouble) -> bool:
    return _rank(trouble.severity) >= _rank(channel.minimum)


def _rank(severity: Severity) -> int:
    return SEVERITIES.index(severity)


def _patience(alerts: AlertSettings) -> float:
    """How long somebody else may be sending: two of them, whose channels all hang, and a little."""
    return 3 * (alerts.timeout + 1)
