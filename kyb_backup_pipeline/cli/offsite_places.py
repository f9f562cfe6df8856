"""What the verbs of ``offsite`` share: which places, and errors of one that must not hide the next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kyb_backup_pipeline.cli.session import size
from kyb_backup_pipeline.engine.backup import Backup
from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.manifest import Kind, utc_now
from kyb_backup_pipeline.engine.store import Repository

if TYPE_CHECKING:
    from kyb_backup_pipeline.engine.settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


def target_option(command: _Command) -> _Command:
    """Let a verb be told which place."""
    option = click.option(
        "--target", metavar="NAME", help="Only this place. Default: all, or the first that has it."
    )
    return option(command)


def from_option(command: _Command) -> _Command:
    """Let a verb read a backup from its copy."""
    option = click.option(
        "--from",
        "where",
        metavar="offsite[:NAME]",
        help="From the copy in an off-site place. Default: the backup in the repository.",
    )
    return option(command)


@contextmanager
def chosen_backup(
    settings: "Settings", where: str | None, backup_id: str | None
) -> Iterator[Backup]:
    """A backup (None: the newest full one) from the repository, or from ``--from``, for the block."""
    if where is None:
        repository = Repository(settings.repository)
        yield repository.find(backup_id) if backup_id else repository.newest("full")
        return
    from kyb_backup_pipeline.engine.offsite_backup import backup_from

    with backup_from(settings, where, backup_id, utc_now()) as backup:
        yield backup


def copies_to_choose(settings: "Settings", where: str, kind: Kind) -> list[str]:
    """A line for each copy of a kind, in the place that has the newest. Raises NotFound without any."""
    from kyb_backup_pipeline.engine.offsite_backup import holding, readable_copies

    with holding(
        settings, where, lambda target: readable_copies(target, kind), utc_now(),
        newest=lambda copies: copies[0].manifest.completed_at,
    ) as (place, copies):  # fmt: skip
        name = place.target.name
    return [
        f"{copy.backup_id}  {copy.manifest.completed_at:%Y-%m-%d %H:%M:%S} UTC  {size(copy.size)}  "
        f"in {name}"
        for copy in copies
    ]


@contextmanager
def each(name: str, failed: list[KybError]) -> Iterator[None]:
    """One place that fails does not keep the next from being looked at."""
    try:
        yield
    except KybError as error:
        failed.append(told(error, name))


def told(error: KybError, what: str) -> KybError:
    """Say on stderr what failed, and go on."""
    click.echo(f"error: {what}: {error.message}", err=True)
    if error.hint:
        click.echo(f"HINT: {error.hint}", err=True)
    return error
