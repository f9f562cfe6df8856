"""Looking a place over: which copies there are, and whether the newest can be deleted, written down at home."""

from datetime import datetime

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.offsite_copy import Listed, OffsiteCopy, list_copies
from kyb_backup_pipeline.engine.offsite_lock import Safety, safety_of
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_view import SeenCopy


def look_over(place: Place, now: datetime) -> list[Listed]:
    """All copies of a place, the newest first. Raises what the target raises."""
    before = {*place.view.copies, *place.view.damaged}
    copies = list_copies(place.target)
    readable = [listed.copy_ for listed in copies if listed.copy_ is not None]
    known = place.view.copies
    seen = {copy.backup_id: known.get(copy.backup_id) or _as_seen(copy) for copy in readable}
    damaged = {c.backup_id: c.problem or "" for c in copies if c.copy_ is None}
    # what another run pushed while the list was read is neither in it nor gone
    place.saw(seen, damaged=damaged, gone=before - {*seen, *damaged}, looked_at=now)
    if readable:
        note_safety(place, readable[0], now)
    return copies


def note_safety(place: Place, newest: OffsiteCopy, now: datetime) -> Safety:
    """Whether the newest copy can be deleted today, asked of the place and written down.

    What does not let itself be asked is not known: a copy is no worse for that.
    """
    try:
        safety = safety_of(place.target, newest)
    except KybError:
        safety = Safety(known=False)
    place.see(deletable=safety.deletable(now), locked_until=safety.until)
    return safety


def _as_seen(copy: OffsiteCopy) -> SeenCopy:
    return SeenCopy(
        kind=copy.kind, finished_at=copy.manifest.completed_at, pushed_at=copy.pushed_at
    )
