"""What is wrong with off-site copies: judged from facts and from what was seen of each place; nothing is asked."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kyb_backup_pipeline.engine.health import ELSE, STALE, Health
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.metrics import exposition
from kyb_backup_pipeline.engine.offsite_probe import Probe
from kyb_backup_pipeline.engine.offsite_view import SeenCopy, Trouble, View
from kyb_backup_pipeline.engine.report import Report, as_document
from kyb_backup_pipeline.engine.report_page import html_page
from kyb_backup_pipeline.engine.report_text import markdown_page, text_page
from kyb_backup_pipeline.engine.survey import Fact
from kyb_backup_pipeline_tests.test_health import AROUND, full, hours, judged, passed, sound, told

DATABASE: tuple[Kind, ...] = ("full", "base", "incremental")


def copy(fact: Fact, **changes: Any) -> SeenCopy:
    """The sound copy of a backup, pushed at once and verified in the night."""
    assert fact.at is not None
    seen = SeenCopy(kind=fact.kind, finished_at=fact.at, pushed_at=fact.at, verified_at=hours(2.5),
                    verdict="passed", summary="5 objects there")  # fmt: skip
    return seen.model_copy(update=changes)


def view(*facts: Fact, **changes: Any) -> View:
    """A place that was looked at in the night and has copies of these."""
    copies = {fact.backup_id: copy(fact) for fact in facts}
    known = View(target="offsite", url="s3://kyb/x", looked_at=hours(2.5), copies=copies, deletable=False,
                 locked_until=hours(-24 * 30))  # fmt: skip
    return known.model_copy(update=changes)


def looked(*views: View, facts: list[Fact] | None = None, **environment: str) -> Health:
    wanted = {"OFFSITE__URL": "s3://kyb/x", "OFFSITE__LOCK": "bucket", **environment}
    return judged(facts, replace(AROUND, views=views), **wanted)


def offsite(health: Health) -> dict[str, str]:
    """The troubles of copies alone: what is wrong at home is told elsewhere. Each belongs to a sensor."""
    assert all(key.startswith((*STALE, *ELSE)) for key in told(health))
    return {k.removeprefix("offsite:"): s for k, s in told(health).items() if k.startswith("offsite:")}  # fmt: skip


def test_where_every_backup_has_a_sound_copy_that_is_locked_nothing_is_said() -> None:
    health = looked(view(*sound()))
    assert (health.troubles, health.well) == ((), True)
    assert [place.newest["full"][0] for place in health.places] == ["full_1"]


def test_without_a_place_there_is_nothing_to_find_though_a_view_lies_there() -> None:
    health = judged(None, replace(AROUND, views=(view(),)))
    assert (health.troubles, health.places) == ((), ())


def test_a_place_that_was_never_looked_at_is_a_warning_until_a_copy_is_due() -> None:
    unseen = View(target="offsite", url="s3://kyb/x")
    young = [replace(fact, at=hours(5)) for fact in sound() if fact.kind == "full"]
    assert offsite(looked(unseen, facts=young)) == {"offsite:unseen": "warning"}
    assert offsite(looked(unseen)) == {"offsite:unseen": "critical"}  # and not once for each kind
    empty = view(looked_at=hours(1), deletable=None, locked_until=None)
    assert "offsite:unseen" not in offsite(looked(empty))


@pytest.mark.parametrize(("since", "severity"), [(1, "warning"), (25.9, "warning"), (26.1, "critical")])  # fmt: skip
def test_a_place_out_of_sight_becomes_critical_with_its_time(since: float, severity: str) -> None:
    away = Trouble(since=hours(since), message="s3://kyb/x: no answer", hint="is it up?")
    health = looked(view(*sound(), trouble=away))
    assert offsite(health) == {"offsite:unreachable": severity}
    (trouble,) = health.troubles
    assert (trouble.text, trouble.hint) == ("s3://kyb/x: no answer", "is it up?")


@pytest.mark.parametrize("kind", ["full", "base", "incremental", "configuration", "application_state"])  # fmt: skip
def test_the_newest_copy_of_each_kind_is_watched(kind: Kind) -> None:
    (one,) = (fact for fact in sound() if fact.kind == kind)
    newer = replace(one, backup_id="newer", at=hours(27))
    older = replace(one, backup_id="older", at=hours(60))
    others = [fact for fact in sound() if fact.kind != kind]
    severity = "critical" if kind in DATABASE else "warning"
    found = looked(view(*others, older), facts=[*others, newer, older])
    alone = {"offsite:baseless:newer": "critical"} if kind == "base" else {}  # of the increment
    assert offsite(found) == {f"offsite:stale:{kind}": severity, **alone}
    assert found.troubles[0].backup_id == "newer" or not found.well
    # still in time; and with a copy of its own
    young = replace(newer, at=hours(25))
    assert offsite(looked(view(*others, older), facts=[*others, young, older])) == {}
    assert offsite(looked(view(*others, older, newer), facts=[*others, newer, older])) == {}
    # none of this kind was ever copied
    assert offsite(looked(view(*others), facts=[*others, newer]))[f"offsite:stale:{kind}"] == severity  # fmt: skip


def test_the_limit_is_that_of_the_place() -> None:
    facts = [*sound(), full("newer", 3)]
    assert offsite(looked(view(*sound()), facts=facts)) == {}
    health = looked(view(*sound()), facts=facts, OFFSITE__MAX_AGE="7200")
    assert offsite(health) == {"offsite:stale:full": "critical"}


def test_what_was_saved_before_a_restore_and_what_cannot_be_copied_need_no_copy() -> None:
    safety = full("pre_restore_x", 30)
    old = Fact("app_old", "application_state", hours(29), legacy=True, verification=passed(hours(3)))  # fmt: skip
    assert offsite(looked(view(*sound()), facts=[*sound(), safety, old])) == {}
    legacy = replace(full("by_the_script", 27), legacy=True)  # which has a manifest
    older = full("older", 50)
    others = [fact for fact in sound() if fact.kind != "full"]
    assert offsite(looked(view(*others, older), facts=[*others, legacy, older])) == {
        "offsite:stale:full": "critical"
    }


def test_a_copy_that_is_missing_is_told_unless_retention_there_took_it() -> None:
    oldest, hole = full("full_0", 100), full("full_hole", 50)
    facts = [*sound(), hole, oldest]
    health = looked(view(*sound(), oldest), facts=facts)
    assert offsite(health) == {"offsite:missing:full": "warning"}
    assert health.troubles[0].text == "full_hole"
    assert offsite(looked(view(*sound(), oldest), facts=facts, OFFSITE__RETENTION__FULL_DAYS="2")) == {}  # fmt: skip


def test_copies_that_went_from_the_old_end_are_told() -> None:
    facts = [*sound(), full("full_hole", 50), full("full_0", 100)]
    health = looked(view(*sound()), facts=facts)
    assert offsite(health) == {"offsite:missing:full": "warning"}
    assert health.troubles[0].text == "full_hole, full_0"


def test_of_a_new_place_older_backups_are_not_missing_before_their_time() -> None:
    facts = [*sound(), full("full_hole", 50), full("full_0", 100)]

    def since(ago: float) -> View:
        copies = {f.backup_id: copy(f, pushed_at=hours(ago)) for f in sound()}
        return view(copies=copies)

    assert offsite(looked(since(25), facts=facts)) == {}
    both = {**since(25).copies, "full_0": copy(facts[-1], pushed_at=hours(25))}
    assert offsite(looked(view(copies=both), facts=facts)) == {
        "offsite:missing:full": "warning"
    }  # in between
    assert offsite(looked(since(27), facts=facts)) == {"offsite:missing:full": "warning"}
    known = Probe(at=hours(27), options="", create_only=True, listed_at_once=True)
    pushed_anew = since(1).model_copy(update={"probe": known})
    assert offsite(looked(pushed_anew, facts=facts)) == {"offsite:missing:full": "warning"}


def test_what_failed_its_verification_at_home_needs_no_copy() -> None:
    rotten = replace(passed(hours(3)), verdict="failed")
    facts = [*sound(), full("full_rotten", 50, verification=rotten)]
    assert offsite(looked(view(*sound()), facts=facts)) == {}


def test_increments_without_a_copy_of_their_base_are_critical() -> None:
    at = hours(0.4)
    earlier = [
        Fact("base_0", "base", hours(200), size=900, verification=passed(hours(3))),
        Fact("incr_0", "incremental", hours(190), verification=passed(at), restore_test=passed(at)),
    ]
    facts = [*sound(), *earlier]
    assert offsite(looked(view(*facts), facts=facts)) == {}
    kept = {"OFFSITE__RETENTION__INCREMENTAL_DAYS": "5"}  # so that it is no missing copy
    without_base = view(*sound(), earlier[1])
    health = looked(without_base, facts=facts, **kept)
    assert offsite(health) == {"offsite:baseless:base_0": "critical"}
    assert health.troubles[0].text.startswith("incr_0: ")
    assert health.troubles[0].hint == "kyb-backup offsite push base_0"
    rotten = replace(earlier[0], verification=replace(passed(at), verdict="failed"))
    health = looked(without_base, facts=[*sound(), rotten, earlier[1]], **kept)
    (trouble,) = (one for one in health.troubles if one.key == "offsite:offsite:baseless:base_0")
    assert trouble.hint == "kyb-backup backup base", "what is bad is not pushed"
    left = Fact("base_left", "base", hours(195), size=900, verification=passed(hours(3)))
    two = [*facts, left]  # of a timeline that was left: the increment does not go on from it
    aside = view(*facts).copies
    named = {**aside, "incr_0": aside["incr_0"].model_copy(update={"base": "base_0"})}
    assert offsite(looked(view(copies=named), facts=two, **kept)) == {}
    assert offsite(looked(view(copies=aside), facts=two, **kept)) == {"offsite:baseless:base_left": "critical"}  # fmt: skip
    gone = looked(without_base, facts=[*sound(), earlier[1]], **kept)  # at home, too
    assert offsite(gone) == {"offsite:baseless:incr_0": "critical"}
    new = {i: seen.model_copy(update={"pushed_at": hours(1)}) for i, seen in without_base.copies.items()}  # fmt: skip
    assert offsite(looked(view(copies=new), facts=facts, **kept)) == {"offsite:baseless:base_0": "warning"}  # fmt: skip


def test_a_missing_increment_breaks_what_is_behind_it_up_to_the_next_base() -> None:
    at = hours(0.4)
    increments = [Fact(f"incr_{ago}", "incremental", hours(ago), verification=passed(at),
                       restore_test=passed(at)) for ago in (76, 50, 30)]  # fmt: skip
    facts = [*sound(), *increments]
    behind = view(*sound(), increments[0], increments[2])
    assert offsite(looked(behind, facts=facts)) == {"offsite:missing:incremental": "critical"}
    newer_base = replace(sound()[-1], backup_id="base_2", at=hours(40))
    both = behind.model_copy(update={"copies": {**behind.copies, "base_2": copy(newer_base)}})
    assert offsite(looked(both, facts=[*facts, newer_base])) == {
        "offsite:missing:incremental": "warning"
    }


def test_a_copy_that_differs_is_critical_and_one_that_could_not_be_verified_a_warning() -> None:
    sound_ones = view(*sound()).copies
    differs = copy(full(), verdict="failed", summary="database.sql.zst/00003 is missing")
    health = looked(view(copies={**sound_ones, "full_1": differs}))
    assert offsite(health) == {"offsite:bad:full_1": "critical"}
    assert health.troubles[0].text == "database.sql.zst/00003 is missing"
    assert "offsite push full_1 --again" in (health.troubles[0].hint or "")
    unsure = copy(full(), verdict="could_not_verify", summary="503")
    assert offsite(looked(view(copies={**sound_ones, "full_1": unsure}))) == {
        "offsite:unsure": "warning"
    }
    without = {i: seen for i, seen in sound_ones.items() if i != "full_1"}
    damaged = view(copies=without, damaged={"full_1": "offsite_copy.json cannot be read"})
    assert offsite(looked(damaged)) == {"offsite:bad:full_1": "critical"}


def test_copies_that_nobody_verifies_any_more_are_told() -> None:
    old = {f.backup_id: copy(f, verified_at=hours(50)) for f in sound()}
    assert offsite(looked(view(copies=old))) == {"offsite:unverified": "warning"}
    assert offsite(looked(view(copies=old), HEALTH__VERIFIED_MAX_AGE="0")) == {}
    never = {f.backup_id: copy(f, verified_at=None, verdict=None) for f in sound()}
    assert offsite(looked(view(copies=never))) == {"offsite:unverified": "warning"}
    pushed_now = {i: seen.model_copy(update={"pushed_at": hours(1)}) for i, seen in never.items()}
    assert offsite(looked(view(copies=pushed_now))) == {}


@pytest.mark.parametrize(
    ("lock", "deletable", "until", "told"),
    [
        ("bucket", True, None, "warning"),
        ("none", True, None, "info"),
        ("bucket", False, -24.0, None),
        ("bucket", False, 1.0, "warning"),  # the lock that was seen is over
        ("none", None, None, None),  # the service cannot be asked
    ],
)
def test_whether_the_newest_copy_can_be_deleted_today(
    lock: str, deletable: bool | None, until: float | None, told: str | None
) -> None:
    locked = None if until is None else hours(until)
    health = looked(view(*sound(), deletable=deletable, locked_until=locked), OFFSITE__LOCK=lock)
    assert offsite(health) == ({"offsite:deletable": told} if told else {})
    assert health.well == (told != "warning")


def test_each_place_has_troubles_of_its_own() -> None:
    second = view(target="second", url="/mnt/second", looked_at=None, copies={}, locked_until=None,
                  deletable=None)  # fmt: skip
    health = looked(view(*sound()), second, OFFSITE__TARGETS='{"second": {"url": "/mnt/second"}}')
    assert offsite(health) == {"second:unseen": "critical"}
    assert [place.name for place in health.places] == ["offsite", "second"]
    text = exposition(health).decode()
    assert 'kyb_backup_offsite_reachable{target="offsite"} 1.0' in text
    name = 'kyb_backup_offsite_newest_copy_timestamp_seconds{kind="full",target="offsite"} '
    (value,) = (line.removeprefix(name) for line in text.splitlines() if line.startswith(name))
    assert float(value) == hours(4.9).timestamp()
    assert 'kyb_backup_offsite_copies{kind="full",target="offsite"} 1.0' in text
    assert 'kyb_backup_offsite_copies{kind="full",target="second"} 0.0' in text


def test_the_report_names_each_place_and_the_copies_and_obeys_nothing_in_them() -> None:
    bad = copy(full(), verdict="failed", summary="<b>00003</b> | is missing")
    other = view(target="second", url="/mnt/<i>second</i>", copies={"full_1": copy(full())})
    health = looked(view(copies={**view(*sound()).copies, "full_1": bad}), other,
                    OFFSITE__TARGETS='{"second": {"url": "/mnt/<i>second</i>"}}')  # fmt: skip
    report = Report(repository="/backups", health=health, facts=tuple(sound()), tests=())
    page = html_page(report)
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;b&gt;00003&lt;/b&gt; | is missing" in page
    assert "/mnt/&lt;i&gt;second&lt;/i&gt;" in page
    assert '<td data-name="Copy" class="failed">offsite failed, second</td>' in page
    assert '<td data-name="Copy" class="passed">offsite</td>' in page
    text = text_page(report)
    assert "Off-site offsite: s3://kyb/x, reachable: yes; 5 copies, verified 2 h ago, locked until 2026-04-03 07:00" in text  # fmt: skip
    assert "copy offsite failed, second" in text
    assert "<b>00003</b> | is" not in markdown_page(report)
    document = as_document(report)
    copies = {backup["id"]: backup["offsite"] for backup in document["backups"]}
    assert copies == {**{f.backup_id: ["offsite"] for f in sound()}, "full_1": ["offsite", "second"]}  # fmt: skip
    assert [place["newest"]["full"]["verification"] for place in document["offsite"]] == ["failed", "passed"]  # fmt: skip
    without = html_page(replace(report, health=judged()))
    assert 'id="offsite"' not in without and "<th>Copy" not in without


def test_a_lock_is_over_when_its_time_is() -> None:
    until = hours(0) + timedelta(seconds=1)
    assert offsite(looked(view(*sound(), locked_until=until))) == {}
    assert offsite(looked(view(*sound(), locked_until=hours(0)))) == {"offsite:deletable": "warning"}  # fmt: skip
