"""Mail by the standard library: text and HTML in one message, and the server's own words when it refuses.

A message counts as taken when the server has said so to the whole of it; the farewell is not waited for.
"""

import contextlib
import smtplib
import socket
import ssl
from collections.abc import Iterable, Iterator
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

from kyb_backup_pipeline.engine.alert_text import Attachment, Message
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.settings import AlertSettings

_DEFAULT_PORT = 25
_TLS_OF_PORT = {465: "tls", 587: "starttls"}


class Undelivered(KybError):
    """A channel did not take a message, or does not answer."""


def send_mail(settings: AlertSettings, to: str, message: Message, now: datetime) -> str:
    """Send to one address; what the server answered. Raises Undelivered."""
    host = _own_name()
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = settings.email_from or f"kyb-backup@{host}"
    mail["To"] = to
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = make_msgid(domain=host)
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text, cte="quoted-printable")
    mail.add_alternative(message.html, subtype="html", cte="quoted-printable")
    _attach(mail, message.attachments)
    with _session(settings) as smtp:
        smtp.send_message(mail)
    return "taken by " + settings.smtp


def _attach(mail: EmailMessage, attachments: Iterable[Attachment]) -> None:
    """Put pictures beside the HTML that shows them, anything else behind all of it."""
    html = mail.get_body(("html",))
    for attachment in attachments:
        maintype, _, subtype = attachment.type.partition("/")
        if attachment.cid is not None and html is not None:
            html.add_related(attachment.content, maintype, subtype, cid=f"<{attachment.cid}>",
                             filename=attachment.name, disposition="inline")  # fmt: skip
        else:
            params = {"charset": "utf-8"} if maintype == "text" else {}
            mail.add_attachment(attachment.content, maintype, subtype, filename=attachment.name,
                                params=params)  # fmt: skip


def greet(settings: AlertSettings) -> str:
    """Say EHLO, log in, and leave; what answered. Raises Undelivered."""
    with _session(settings) as smtp:
        smtp.ehlo_or_helo_if_needed()
    return f"{settings.smtp} answers"


def smtp_address(settings: AlertSettings) -> tuple[str, int]:
    """Host and port of the mail server."""
    host, colon, port = settings.smtp.rpartition(":")
    if not colon or settings.smtp.endswith("]"):
        host, port = settings.smtp, str(_DEFAULT_PORT)
    return host.strip("[]"), int(port)


def smtp_tls(settings: AlertSettings) -> str:
    """``none``, ``starttls`` or ``tls``: as set, else what the port is for."""
    return settings.smtp_tls or _TLS_OF_PORT.get(smtp_address(settings)[1], "none")


@contextlib.contextmanager
def _session(settings: AlertSettings) -> Iterator[smtplib.SMTP]:
    """A session with the mail server; whatever goes wrong in it is Undelivered, in its words."""
    where = settings.smtp
    try:
        smtp = _connected(settings)
        try:
            if smtp_tls(settings) == "starttls":
                smtp.starttls(context=ssl.create_default_context())
            if settings.smtp_user is not None:
                password = settings.smtp_password
                smtp.login(settings.smtp_user, password.get_secret_value() if password else "")
            yield smtp
            with contextlib.suppress(smtplib.SMTPException, OSError):
                smtp.putcmd("quit")
        finally:
            smtp.close()
    except smtplib.SMTPRecipientsRefused as error:
        ((code, said),) = list(error.recipients.values())[:1]
        raise Undelivered(f"{where} refused the address: {code} {_words(said)}") from None
    except smtplib.SMTPAuthenticationError as error:
        raise Undelivered(
            f"{where} refused the login: {error.smtp_code} {_words(error.smtp_error)}",
            hint="alerts.smtp_user, alerts.smtp_password_file",
        ) from None
    except smtplib.SMTPResponseException as error:
        raise Undelivered(
            f"{where} answered {error.smtp_code} {_words(error.smtp_error)}"
        ) from None
    except smtplib.SMTPException as error:
        raise Undelivered(f"{where}: {error}") from None
    except TimeoutError:
        raise Undelivered(f"{where} did not answer within {settings.timeout:g} s") from None
    except OSError as error:
        raise Undelivered(
            f"{where}: {error.strerror or error}", hint="alerts.smtp names the mail server"
        ) from None


def _connected(settings: AlertSettings) -> smtplib.SMTP:
    host, port = smtp_address(settings)
    if smtp_tls(settings) == "tls":
        return smtplib.SMTP_SSL(host, port, local_hostname=_own_name(), timeout=settings.timeout,
                                context=ssl.create_default_context())  # fmt: skip
    return smtplib.SMTP(host, port, local_hostname=_own_name(), timeout=settings.timeout)


def _own_name() -> str:
    """Our name for the mail server, without asking a name server that may not answer."""
    return socket.gethostname()


def _words(said: bytes | str) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return " ".join(text.split())
