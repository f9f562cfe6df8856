"""What the story says of its off-site place: copies, one of them altered, one missing.

As invented as the rest: the place is at ``story.invalid``, which no name server knows.
"""

from datetime import timedelta

from kyb_backup_pipeline.engine.manifest import Kind, Manifest
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, View
from kyb_backup_pipeline.engine.request import SAFETY_PREFIX
from kyb_backup_pipeline.sandbox.story import LABEL, Story, looked_at

URL = "s3://story.invalid/kyb"
SETTINGS = f"""\
[offsite]
url = "{URL}"
endpoint = "https://story.invalid"
lock = "governance"
lock_days = 30
retries = 0
"""
_SINCE = timedelta(days=38)
"""What is older was brought in the first night."""
_LOCKED = timedelta(days=30)
_ALTERED, _LOST = 3, 5
"""Of the full backups, counted from the newest."""


def view_of(story: Story) -> View:
    """What was seen in the last night."""
    looked = looked_at(story.now)
    regular = [m for m in story.backups if not m.backup_id.startswith(SAFETY_PREFIX)]
    fulls = [m.backup_id for m in reversed(regular) if m.type == "full"]
    copies: dict[str, SeenCopy] = {}
    for manifest in regular:
        if manifest.backup_id not in fulls[_LOST : _LOST + 1]:
            altered = manifest.backup_id in fulls[_ALTERED : _ALTERED + 1]
            copies[manifest.backup_id] = _copy(manifest, story, altered)
    return View(target="offsite", url=URL, looked_at=looked, copies=copies, deletable=False,
                locked_until=looked + _LOCKED)  # fmt: skip


def _copy(manifest: Manifest, story: Story, altered: bool) -> SeenCopy:
    kind: Kind = manifest.type
    looked = looked_at(story.now)
    pushed = max(manifest.completed_at + timedelta(minutes=1), looked - _SINCE)
    seen = SeenCopy(kind=kind, finished_at=manifest.completed_at, pushed_at=pushed)
    if pushed > looked:
        return seen
    said = "database.sql.zst/00002 is not what was pushed" if altered else "all objects there"
    return seen.model_copy(
        update={"verdict": "failed" if altered else "passed", "verified_at": looked, "summary": f"{LABEL}: {said}"}
    )  # fmt: skip
