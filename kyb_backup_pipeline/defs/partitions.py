"""Backups as Dagster partitions: one partition a backup, keyed by its id, a set for each kind.

So each backup has a lineage of its own: ``full_backup[id]``, ``full_backup_verification[id]``,
``full_backup_restore_test[id]``; an increment ``incremental_backup[id]``, its verification and
``point_in_time_restore_test[id]``, on a base backup that it names; application states and configuration
archives each their verification; and every one its ``…_offsite_copy``. The sets are dynamic, and the
repository on disk is the truth: a run registers the key of the backup it is about to make, and
``sensors`` adds and removes the others.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from kyb_backup_pipeline.engine.backup import valid_id
from kyb_backup_pipeline.engine.manifest import Kind
from kyb_backup_pipeline.engine.request import Request


@dataclass(frozen=True)
class Family:
    """The assets of one kind of backup: the backup itself, its proofs by their name, and its off-site copy.

    Each proof stands on the one before it, the first on the backup; the copy stands on the verification.
    """

    kind: Kind
    partitions: dg.DynamicPartitionsDefinition
    backup: dg.AssetKey
    proofs: Mapping[str, dg.AssetKey]
    copy: dg.AssetKey

    @property
    def set_name(self) -> str:
        """The name of the partition set in Dagster's storage."""
        assert self.partitions.name is not None
        return self.partitions.name

    def register(self, instance: dg.DagsterInstance, backup_ids: Sequence[str]) -> None:
        """Add partitions for these (valid) ids; those that are there already stay."""
        instance.add_dynamic_partitions(self.set_name, backup_ids)

    def listed(self, instance: dg.DagsterInstance) -> set[str]:
        """The ids that have a partition."""
        return set(instance.get_dynamic_partitions(self.set_name))

    def request(self, context: dg.AssetExecutionContext) -> Request:
        """What the run of a backup's asset asks of the engine; its partition is registered first."""
        backup_id = valid_id(context.partition_key)
        self.register(context.instance, [backup_id])
        return Request(backup_id=backup_id, run_id=context.run.root_run_id or context.run.run_id)

    def parent(self, proof: str) -> dg.AssetKey:
        """What the asset of a proof stands on."""
        names = list(self.proofs)
        place = names.index(proof)
        return self.proofs[names[place - 1]] if place else self.backup


def _family(kind: Kind, partitions: str, backup: str, **proofs: str) -> Family:
    return Family(
        kind,
        dg.DynamicPartitionsDefinition(name=partitions),
        dg.AssetKey(backup),
        {name: dg.AssetKey(asset) for name, asset in proofs.items()},
        dg.AssetKey(f"{backup}_offsite_copy"),
    )


FULL = _family(
    "full",
    "full_backups",
    "full_backup",
    verification="full_backup_verification",
    restore_test="full_backup_restore_test",
)
BASE = _family("base", "base_backups", "base_backup", verification="base_backup_verification")
INCREMENTAL = _family(
    "incremental",
    "incremental_backups",
    "incremental_backup",
    verification="incremental_backup_verification",
    restore_test="point_in_time_restore_test",
)
APPLICATION = _family(
    "application_state",
    "application_states",
    "application_state",
    verification="application_state_verification",
)
CONFIGURATION = _family(
    "configuration",
    "configuration_archives",
    "configuration_archive",
    verification="configuration_verification",
)
FAMILIES: Mapping[Kind, Family] = {
    family.kind: family for family in (FULL, BASE, INCREMENTAL, APPLICATION, CONFIGURATION)
}


def partitioned_check(
    name: str, *, asset: str, description: str, family: Family = FULL
) -> dg.AssetCheckSpec:
    """A check with a result for each backup of a family.

    Dagster 1.13 calls partitioned checks a preview, and warns; it is pinned to that minor version,
    and tests pin what they do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, partitions_def=family.partitions
        )
