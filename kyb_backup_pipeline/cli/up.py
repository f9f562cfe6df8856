"""``kyb-backup up``: the Dagster UI on the sandbox."""

from pathlib import Path

import click

from kyb_backup_pipeline.cli.session import sandbox_folder
from kyb_backup_pipeline.sandbox.place import find_place
from kyb_backup_pipeline.sandbox.services import start_sandbox, start_ui


@click.command(
    name="up",
    epilog="""\b
Examples:
  kyb-backup up
  kyb-backup up --port 3001
  kyb-backup down""",
)
@click.option("--port", default=3000, show_default=True, help="The port of the UI on 127.0.0.1.")
@sandbox_folder
def command(folder: Path | None, port: int) -> None:
    """Start the sandbox with the Dagster UI and its daemon, which runs schedules and sensors.

    Dagster's UI has no login of its own: it listens on 127.0.0.1 only.
    """
    place = find_place(folder)
    start_sandbox(place, lambda text: click.echo(f"• {text}"))
    address = start_ui(place, port, lambda text: click.echo(f"• {text}"))
    click.echo(f"\n{address}  (stop it with: make down)")
