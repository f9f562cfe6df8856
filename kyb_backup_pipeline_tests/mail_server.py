"""A real SMTP server on loopback, and what arrived there."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller

from kyb_backup_pipeline.sandbox.cluster import free_port

_TAKEN = "250 taken"


@dataclass
class MailServer:
    """``verdicts`` are answers by address, such as ``554 no``; all others are taken into ``inbox``."""

    port: int
    verdicts: dict[str, str] = field(default_factory=dict)
    inbox: list[tuple[str, EmailMessage]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def to(self, address: str) -> list[EmailMessage]:
        """What arrived for one address."""
        return [mail for whom, mail in self.inbox if whom == address]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        (address,) = envelope.rcpt_tos
        verdict = self.verdicts.get(address, _TAKEN)
        if verdict == _TAKEN:
            mail = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(mail, EmailMessage)
            self.inbox.append((address, mail))
        return verdict


@contextlib.contextmanager
def mail_server(**options: Any) -> Iterator[MailServer]:
    """Run one; ``options`` are aiosmtpd's, for encryption and logins."""
    server = MailServer(free_port())
    controller = Controller(server, hostname="127.0.0.1", port=server.port, **options)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()


def body(mail: EmailMessage, kind: str) -> str:
    """The part ``plain`` or ``html``, decoded."""
    part = mail.get_body((kind,))
    assert part is not None
    content = part.get_content()
    assert isinstance(content, str)
    return content
