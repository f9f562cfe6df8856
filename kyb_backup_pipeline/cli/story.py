"""``kyb-backup demo --story``: what was invented, and what to look at it with."""

from collections import Counter
from pathlib import Path

import click

from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.sandbox.story import DAYS, Story, tell
from kyb_backup_pipeline.sandbox.story_shelf import write_story

_COMMANDS = ("status", "report", "report --html story.html", "prune --dry-run", "list", "hold")
_SAID = """\
All of it is invented, and its manifests and records say so (label: story). None of these backups was
taken, verified or restored: "verify" calls them bad, and rightly. Look at it with:
"""


def write_story_to(folder: Path, seed: int) -> None:
    """Write the story that ends now, and print what it is and which commands to try."""
    story = tell(utc_now(), seed)
    settings = write_story(story, folder)
    click.echo(f"{DAYS} days of backups that never were, in {folder}:")
    for count, what in _made(story):
        click.echo(f"  {count:>5,} {what}")
    click.echo(_SAID)
    for command in _COMMANDS:
        click.echo(f"  kyb-backup --config {settings} {command}")


def _made(story: Story) -> list[tuple[int, str]]:
    kinds = Counter(manifest.type for manifest in story.backups)
    pruned = [gone for gone in story.pruned.deleted if gone.kind != "wal"] if story.pruned else []
    return [
        (
            kinds["full"] + 1,
            "full backups; two were saved before a restore, one is of the old scripts",
        ),
        (kinds["base"], "base backups"),
        (kinds["incremental"], "increments"),
        (len(story.segments), "WAL segments, and one that is missing"),
        (kinds["configuration"] + len(story.old_archives), "configuration archives"),
        (kinds["application_state"], "application states"),
        (len(story.proofs), "records of verifications and restore tests"),
        (len(story.failures), "failed backups, and one that was killed"),
        (len(story.holds), "hold"),
        (len(pruned), "backups that a prune had deleted"),
    ]
