"""The checks that both kinds of encrypted archives have."""

from collections.abc import Sequence

import dagster as dg

from kyb_backup_pipeline.defs.partitions import Family, partitioned_check


def backup_checks_of(asset: str, family: Family) -> Sequence[dg.AssetCheckSpec]:
    """What is looked at when the archive was made."""
    return [
        partitioned_check(
            "size_against_previous",
            asset=asset,
            family=family,
            description="Warns where an archive has less than half the median size of up to seven "
            "earlier ones.",
        ),
        partitioned_check(
            "nothing_left_out",
            asset=asset,
            family=family,
            description="Warns where something was left out: a socket, what a link out of the folder "
            "leads to, logs that are not there.",
        ),
    ]


def verification_checks_of(asset: str, family: Family) -> Sequence[dg.AssetCheckSpec]:
    """What is asked of the archive later, with the key and without it."""
    return [
        partitioned_check(
            "files_as_written",
            asset=asset,
            family=family,
            description="Every archive has the size and SHA-256 of the manifest.",
        ),
        partitioned_check(
            "content_as_recorded",
            asset=asset,
            family=family,
            description="Every member of the archive, decrypted to nowhere, has the SHA-256 that was "
            "recorded. Not answered where this host does not have the key.",
        ),
    ]
