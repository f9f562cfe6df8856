"""Opening an off-site place: the right kind of target, known to be what it was, and probed."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from kyb_backup_pipeline.engine.errors import KybError
from kyb_backup_pipeline.engine.offsite_folder import FolderTarget
from kyb_backup_pipeline.engine.offsite_probe import Probe, check_marker, fingerprint, probe
from kyb_backup_pipeline.engine.offsite_target import (
    Target,
    TargetFull,
    TargetMisconfigured,
    TargetRefuses,
    TargetUnreachable,
    chosen,
)
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, View, Views
from kyb_backup_pipeline.engine.settings import OffsiteTargetSettings, Settings

_log = logging.getLogger(__name__)

_ITS_FAULT = (TargetUnreachable, TargetMisconfigured, TargetRefuses, TargetFull)


@dataclass
class Place:
    """An open target and what is known of it; ``see`` adds to that and writes it down."""

    target: Target
    view: View
    views: Views

    @property
    def probe(self) -> Probe | None:
        """What the probe found, if these are still the settings that it was made with."""
        found = self.view.probe
        return found if found is not None and found.options == fingerprint(self.target) else None

    def require_probe(self, now: datetime, *, anew: bool = False) -> Probe:
        """What the target can be trusted with; tried now where that is not known."""
        known = self.probe
        if known is None or anew:
            known = probe(self.target, now)
            for weakness in known.weaknesses():
                _log.warning("%s: %s; what goes there is read back", self.target.url, weakness)
            self.see(probe=known)
        return known

    def see(self, **changes: object) -> None:
        """Write down what was seen; the place answers, then."""
        self._change(lambda view: view.model_copy(update={"trouble": None, **changes}))

    def saw(
        self,
        copies: Mapping[str, SeenCopy] | None = None,
        *,
        damaged: Mapping[str, str] | None = None,
        gone: Iterable[str] = (),
        **changes: object,
    ) -> None:
        """Write down what was seen of some copies; of the others everything stays."""
        anew = {**(copies or {})}, {**(damaged or {})}
        not_copies, not_damaged = {*gone, *anew[1]}, {*gone, *anew[0]}

        def add(view: View) -> View:
            stay = {i: seen for i, seen in view.copies.items() if i not in not_copies}
            bad = {i: why for i, why in view.damaged.items() if i not in not_damaged}
            found = {"copies": {**stay, **anew[0]}, "damaged": {**bad, **anew[1]}}
            return view.model_copy(update={"trouble": None, **found, **changes})

        self._change(add)

    def fails(self, error: KybError, now: datetime) -> None:
        """Write down that the place could not be used."""
        self.view = self.views.failed(self.target.name, self.target.url, error, now)

    def _change(self, how: Callable[[View], View]) -> None:
        self.view = self.views.change(self.target.name, self.target.url, how)


@contextmanager
def opened(settings: Settings, name: str, now: datetime, *, anew: bool = False) -> Iterator[Place]:
    """Open the target of this name for the block. What the target itself fails with is written down.

    ``anew``: it may be another place than before. Raises SettingsInvalid, NotFound and what the target raises.
    """
    options = chosen(settings.offsite, name)[name]
    target = target_of(name, options, now)
    views = Views(settings.repository)
    place = Place(target=target, view=views.read(name, target.url), views=views)
    try:
        check_apart(target, settings)
        if not anew:
            check_marker(target, place.view.probe)
        yield place
    except KybError as error:
        if isinstance(error, _ITS_FAULT):
            place.fails(error, now)
        raise


def check_apart(target: Target, settings: Settings) -> None:
    """Raise TargetMisconfigured for a folder that is the repository, lies in it, or holds it."""
    if not isinstance(target, FolderTarget):
        return
    there, home = target.root.resolve(), settings.repository.resolve()
    same = False
    with suppress(OSError):  # what is not there, or closed to us, is told by whoever needs it
        same = there.samefile(home)
    if same or there.is_relative_to(home) or home.is_relative_to(there):
        raise TargetMisconfigured(
            f"{target.url} and the repository {settings.repository} lie in each other: no copy would be elsewhere",
            hint="offsite.url: a folder of its own, on another disk. Only to read copies from there: let BACKUP_DIR name "
            "an empty folder elsewhere",
        )


def target_of(name: str, options: OffsiteTargetSettings, now: datetime) -> Target:
    """The target behind an address. ``now``: from when on objects are locked."""
    assert options.url is not None
    if options.url.startswith(("/", "file://")):
        return FolderTarget(name, options)
    from kyb_backup_pipeline.engine.offsite_objects import ObjectTarget  # slow to import

    return ObjectTarget(name, options, now)
