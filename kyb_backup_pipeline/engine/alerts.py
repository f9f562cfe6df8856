"""Alerts that arrive, and arrive once: the one place from which anybody is told of a trouble.

Everybody who looks (the sensors, ``status --alert``, a failed run) hands over what is wrong now. A channel
that did not take its message has simply not been told, and gets it at the next look. So delivery is at least
once for each channel, and a kill between sending and remembering tells again rather than never. A channel
that keeps failing is asked less often, up to ten minutes apart.

Where to look next: ``alert_decision`` says what is told to whom, ``alert_memory`` remembers, ``alert_text``
words, ``alert_channels`` sends.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from kyb_backup_pipeline.engine.alert_channels import Delivery, channels, deliver, within
from kyb_backup_pipeline.engine.alert_decision import EVERYTHING, Decision, decide, remembered
from kyb_backup_pipeline.engine.alert_memory import AlertStore, Entry, Item, Known, alert_store
from kyb_backup_pipeline.engine.alert_text import KindOf, Message, News, compose
from kyb_backup_pipeline.engine.errors import InvalidRequest, KybError, SettingsInvalid
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.settings import AlertSettings, Settings
from kyb_backup_pipeline.engine.store import Repository
from kyb_backup_pipeline.engine.trouble import Trouble

_log = logging.getLogger(__name__)

_IN_HISTORY = 50
_LONGEST = 4000


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
        to = channels(settings.alerts)
        decision = decide(store.memory, [], to, now=now, settings=settings.alerts, covers=())
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
    """The same without what no file and no message holds: half characters (names of files have them), books."""
    whole: dict[str, Any] = {
        name: text[:_LONGEST].encode("utf-8", "replace").decode()
        for name, text in vars(trouble).items()
        if isinstance(text, str)
    }
    return replace(trouble, **whole)


def _patience(alerts: AlertSettings) -> float:
    """How long somebody else may be sending: two of them, whose channels all hang, and a little."""
    return 3 * (alerts.timeout + 1)
