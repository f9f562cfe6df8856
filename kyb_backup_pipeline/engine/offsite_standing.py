"""How each off-site place stands, by what was seen of it last. Pure: settings and views in, figures out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.offsite_target import target_settings
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, View
from kyb_backup_pipeline.engine.settings import OffsiteSettings, OffsiteTargetSettings

CopyState = Literal["passed", "failed", "could_not_verify", "unproved"]


@dataclass(frozen=True, kw_only=True)
class PlaceStanding:
    """One place. ``newest`` are the newest copies by kind, each with its id."""

    options: OffsiteTargetSettings
    view: View
    newest: Mapping[Kind, tuple[str, SeenCopy]]

    @property
    def name(self) -> str:
        return self.view.target

    @property
    def max_age(self) -> timedelta:
        """After so long a backup is to have a copy."""
        return timedelta(seconds=self.options.max_age)

    @property
    def ever_seen(self) -> bool:
        """Whether anything is known of it."""
        return self.view.looked_at is not None or bool(self.view.copies)

    @property
    def verified_at(self) -> datetime | None:
        """When a copy passed last."""
        passed = (c.verified_at for c in self.view.copies.values() if c.verdict == "passed")
        return max((at for at in passed if at is not None), default=None)

    def deletable(self, now: datetime) -> bool | None:
        """Whether the newest copy can be deleted now, as far as is known: a lock that was seen may be over."""
        until = self.view.locked_until
        return True if until is not None and until <= now else self.view.deletable

    def state(self, backup_id: str) -> CopyState | None:
        """How the copy of a backup stands here; None without one."""
        if backup_id in self.view.damaged:
            return "failed"
        seen = self.view.copies.get(backup_id)
        return None if seen is None else seen.verdict or "unproved"


def standings_of(settings: OffsiteSettings, views: Sequence[View]) -> tuple[PlaceStanding, ...]:
    """The places that are set, in their order, with what was seen of them."""
    options = target_settings(settings)
    return tuple(
        PlaceStanding(options=options[view.target], view=view, newest=_newest(view))
        for view in views
        if view.target in options
    )


def _newest(view: View) -> dict[Kind, tuple[str, SeenCopy]]:
    found: dict[Kind, tuple[str, SeenCopy]] = {}
    for backup_id, seen in view.copies.items():
        if seen.kind not in found or seen.finished_at > found[seen.kind][1].finished_at:
            found[seen.kind] = (backup_id, seen)
    return found
