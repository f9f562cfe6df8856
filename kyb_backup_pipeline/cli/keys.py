"""``kyb-backup keys init``: make the key pair that archives are encrypted with."""

from pathlib import Path

import click

from kyb_backup_pipeline.engine.manifest import utc_now


@click.group(name="keys")
def command() -> None:
    """The keys that configuration and application archives are encrypted with."""


@command.command(
    epilog="""\b
Examples:
  kyb-backup keys init
  kyb-backup keys init --into /media/safe_stick"""
)
@click.option(
    "--into",
    default=".",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for the private key. Default: this one.",
)
def init(into: Path) -> None:
    """Make a key pair of age: a private key in a file, and a public one for the settings.

    Never writes over a key. The host that backs up needs the public key only.
    """
    from kyb_backup_pipeline.engine.encryption import new_key_pair

    pair = new_key_pair(into, utc_now())
    click.echo(f"private key (identity)  {pair.file.absolute()}")
    click.echo(f"public key (recipient)  {pair.recipient}")
    click.echo(
        f"""
In the settings of the host that backs up:

  [encryption]
  recipients = ["{pair.recipient}"]

Now take the private key away from here: two copies offline, in two places (a safe, a password manager),
and none beside the backups. Without it no archive can be opened, by anybody; with it everybody can.
A machine that verifies contents or restores has it for as long as it needs it:

  [encryption]
  identity_file = "/path/to/{pair.file.name}\""""
    )
