"""What the verbs of ``offsite`` share: which places, and errors of one that must not hide the next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from kyb_backup_pipeline.engine.errors import KybError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def target_option(command: _Command) -> _Command:
    """Let a verb be told which place."""
    option = click.option(
        "--target", metavar="NAME", help="Only this place. Default: all, or the first that has it."
    )
    return option(command)


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
