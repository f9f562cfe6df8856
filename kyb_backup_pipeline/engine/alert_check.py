"""Would an alert arrive? Each channel's address is looked at; no message is sent."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import SecretStr

from kyb_backup_pipeline.engine.alert_channels import channels, load_apprise, service, within
from kyb_backup_pipeline.engine.alert_mail import Undelivered, greet, smtp_address, smtp_tls
from kyb_backup_pipeline.engine.checkup import Line
from kyb_backup_pipeline.engine.settings import AlertSettings

_PATIENCE = 5.0
"""Seconds that a check waits for a mail server or a name server."""
_MAIL = "mail server"
_MAIL_HINT = "alerts.smtp, alerts.smtp_tls, alerts.smtp_user: docs/settings.md"
_URL_HINT = "alerts.channels: https://appriseit.com/services/ has the form of each address"


def alert_channels(settings: AlertSettings) -> Iterator[Line]:
    """A line for the mail server, and one for each other channel."""
    addresses = tuple(dict.fromkeys((*settings.email, *settings.report_email)))
    if not channels(settings):
        yield Line("warning", "alerts", "nobody is told of troubles: no channel is set",
                   "ALERT_EMAIL, or alerts.channels; docs/settings.md")  # fmt: skip
    brief = settings.model_copy(update={"timeout": min(settings.timeout, _PATIENCE)})
    looks: dict[str, Callable[[], str]] = {}
    if addresses:
        looks[_MAIL] = lambda: f"{greet(brief)}, for {', '.join(addresses)}"
    for channel in settings.channels:
        if channel.url is not None:
            load_apprise()
            looks[channel.name] = _look_at(channel.url)
    if _tells_the_password(settings):
        yield Line("warning", "alerts", f"the login goes to {settings.smtp} unencrypted",
                   "alerts.smtp_tls = \"starttls\"")  # fmt: skip
    for name, well, said in within(looks, brief.timeout):
        hint = _MAIL_HINT if name == _MAIL else _URL_HINT
        yield Line("ok" if well else "error", "alerts", f"{name}: {said}", None if well else hint)


def _look_at(url: SecretStr) -> Callable[[], str]:
    def look() -> str:
        found = service(url)
        host = _host_of(found)
        if host and not getproxies():
            try:
                socket.getaddrinfo(host, None)
            except OSError as error:
                raise Undelivered(
                    f"{found.service_name}: its host is not found: {error.strerror}"
                ) from None
        return f"an address of {found.service_name}"

    return look


def _host_of(found: object) -> str | None:
    """The host that a service of apprise talks to, as far as it tells."""
    if getattr(found, "template_tokens", {}).get("host", {}).get("required"):
        return getattr(found, "smtp_host", None) or getattr(found, "host", None)
    address = getattr(found, "notify_url", None)
    return urlsplit(address).hostname if isinstance(address, str) and "{" not in address else None


def _tells_the_password(settings: AlertSettings) -> bool:
    if settings.smtp_user is None or smtp_tls(settings) != "none":
        return False
    host = smtp_address(settings)[0]
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
