"""``kyb-backup down``: stop the services of the sandbox."""

from pathlib import Path

import click

from kyb_backup_pipeline.cli.session import sandbox_folder
from kyb_backup_pipeline.sandbox.place import find_place
from kyb_backup_pipeline.sandbox.services import stop_sandbox


@click.command(name="down", epilog="\b\nExample:\n  kyb-backup down")
@sandbox_folder
def command(folder: Path | None) -> None:
    """Stop the services of the sandbox; its data stay under .kyb."""
    place = find_place(folder)
    if not place.root.exists():
        click.echo("there is no sandbox here")
        return
    stop_sandbox(place, lambda text: click.echo(f"• {text}"))
