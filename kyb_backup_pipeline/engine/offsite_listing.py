"""Looking a place over: which copies there are, and whether the newest can be deleted, written down at home.

Where the repository has a backup with a copy's id and another manifest, that is no copy of ours: it is told with
what cannot be read, and stands for nothing.
"""

import logging
from collections.abc import Iterable
from datetime import datetime

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.offsite_copy import Listed, OffsiteCopy, list_copies
from kyb_backup_pipeline.engine.offsite_lock import Safety, safety_of
from kyb_backup_pipeline.engine.offsite_opening import Place
from kyb_backup_pipeline.engine.offsite_own import is_of_home, of_another
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, as_seen
from kyb_backup_pipeline.engine.store import Repository

_log = logging.getLogger(__name__)


def look_over(place: Place, now: datetime) -> list[Listed]:
    """All copies of a place, the newest first. Raises what the target raises."""
    before = {*place.view.copies, *place.view.damaged}
    copies = told_apart(Repository(place.views.repository), list_copies(place.target))
    readable = [listed.copy_ for listed in copies if listed.copy_ is not None]
    known = place.view.copies
    seen = {copy.backup_id: _still(known.get(copy.backup_id), as_seen(copy)) for copy in readable}
    damaged = {c.backup_id: c.problem or "" for c in copies if c.copy_ is None}
    # what another run pushed while the list was read is neither in it nor gone
    place.saw(seen, damaged=damaged, gone=before - {*seen, *damaged}, looked_at=now)
    if readable:
        note_safety(place, readable[0], now)
    return copies


def told_apart(repository: Repository, copies: Iterable[Listed]) -> list[Listed]:
    """The same copies; of one that is of another backup than home has under its id, no more than what it is."""
    return [_foreign(repository, listed) or listed for listed in copies]


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


def _foreign(repository: Repository, listed: Listed) -> Listed | None:
    if listed.copy_ is None:
        return None
    try:
        ours = is_of_home(repository, listed.copy_)
    except OSError as error:
        _log.warning("the manifest of %s cannot be read: %s", listed.backup_id, error.strerror)
        return None
    if ours is not False:
        return None
    return Listed(backup_id=listed.backup_id, kind=listed.kind, problem=of_another(listed.copy_))


def _still(known: SeenCopy | None, now: SeenCopy) -> SeenCopy:
    """What was known of a copy, and what a look from before could not tell."""
    return known.model_copy(update={"base": now.base}) if known is not None else now
