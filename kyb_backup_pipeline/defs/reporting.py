"""Proofs that were not made by the step of their own asset, reported to their partitions.

Two runs do that: the nightly verification of all backups, and the one that takes over what the
command line did. Both report every proof before they fail, so that one bad backup hides no other.

Learned from Dagster 1.13, and pinned by tests:

- The UI counts a partitioned check only if its evaluation names the newest materialization of that
  partition; otherwise the partition shows no result at all.
- A partition that was materialized stays green when a later proof is bad. It turns red only if a
  materialization was planned in a run that then fails; so for a bad proof one is planned here.
- Evaluations need a run: of those reported without one (``SensorResult``,
  ``report_runless_asset_event``) the second for the same check and partition violates a unique index.

Dagster exports neither of the two classes imported from its inside.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import AssetMaterializationPlannedData

from kyb_backup_pipeline.defs.copy_view import copy_check, verified_metadata, worst_of
from kyb_backup_pipeline.defs.partitions import FAMILIES, Family
from kyb_backup_pipeline.defs.proof_view import PASSED, bad_proofs, proof_checks, proof_metadata
from kyb_backup_pipeline.engine.manifest import Proof
from kyb_backup_pipeline.engine.offsite_verify import CopyProof

Reported = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


def report_proofs(
    context: dg.OpExecutionContext, proofs: Iterable[tuple[Family, Proof]]
) -> Iterator[Reported]:
    """Yield the events of each proof. Raises dg.Failure at the end if there were bad ones."""
    bad = []
    for family, proof in proofs:
        asset, partition = family.proofs[proof.proof], proof.backup_id
        if proof.verdict == "passed":
            yield dg.AssetMaterialization(
                asset,
                partition=partition,
                metadata=proof_metadata(proof),
                tags=versions_of(family.parent(proof.proof)),
            )
        else:
            bad.append(proof)
            _plan(context, asset, partition)
            yield dg.AssetObservation(asset, partition=partition, metadata=proof_metadata(proof))
        yield from report_checks(context, asset, partition, proof_checks(proof, family.kind))
    if bad:
        raise bad_proofs(bad)


def report_copies(
    context: dg.OpExecutionContext,
    proofs: Sequence[CopyProof],
    at_home: Collection[str],
    places: Collection[str],
) -> Iterator[Reported]:
    """Yield what was found of off-site copies, to the partitions of backups that are ``at_home``.

    A copy is green where every one of the ``places`` has it as it was pushed. Of one that is not at every place
    nothing is said here: it is brought there, or the health model tells of it. The caller fails the run for bad ones.
    """
    for kind, family in FAMILIES.items():
        found: dict[str, list[CopyProof]] = {}
        for proof in proofs:
            if proof.kind == kind and proof.backup_id in at_home:
                found.setdefault(proof.backup_id, []).append(proof)
        family.register(context.instance, list(found))
        green = _materialized(context.instance, family, list(found))
        for backup_id, looks in found.items():
            if worst_of(looks) != "passed":
                _plan(context, family.copy, backup_id)
            elif {proof.target for proof in looks} != set(places):
                continue
            elif backup_id not in green:
                yield dg.AssetMaterialization(
                    family.copy, partition=backup_id, metadata=verified_metadata(looks),
                    tags=versions_of(family.proofs["verification"]),
                )  # fmt: skip
            yield from report_checks(
                context, family.copy, backup_id, [copy_check(family.copy, looks)]
            )


def _materialized(
    instance: dg.DagsterInstance, family: Family, backup_ids: Sequence[str]
) -> set[str]:
    """Whose copies are green: their materialization has more to say than a verification, and stays the newest."""
    found = instance.get_status_by_partition(family.copy, backup_ids, family.partitions) or {}
    return {i for i, status in found.items() if status and status.value == "MATERIALIZED"}


def report_checks(
    context: dg.OpExecutionContext,
    asset: dg.AssetKey,
    partition: str,
    results: Iterable[dg.AssetCheckResult],
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield evaluations of an asset's checks, bound to the newest materialization."""
    target = _newest_materialization(context.instance, asset, partition)
    for result in results:
        assert result.check_name is not None
        yield dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=result.check_name,
            passed=result.passed,
            metadata=result.metadata,
            target_materialization_data=target,
            severity=result.severity,
            description=result.description,
            blocking=False,
            partition=partition,
        )


def versions_of(parent: dg.AssetKey) -> dict[str, str]:
    """The tags by which Dagster knows versions, as a step of the asset would have them.

    Without them the UI goes by time, and calls a restore test "unsynced" as soon as its backup has
    been verified once more.
    """
    name = parent.to_user_string()
    return {
        "dagster/data_version": PASSED,
        "dagster/code_version": "reported",
        f"dagster/input_data_version/{name}": PASSED,
        f"dagster/input_event_pointer/{name}": "NULL",
    }


def _newest_materialization(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
    records = instance.fetch_materializations(wanted, limit=1).records
    if not records:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=records[0].storage_id,
        run_id=records[0].run_id,
        timestamp=records[0].timestamp,
    )


def _plan(context: dg.OpExecutionContext, asset: dg.AssetKey, partition: str) -> None:
    """Plan a materialization that this run, which is going to fail, will not make."""
    event = dg.DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value,
        job_name=context.job_name,
        step_key=str(context.op_handle),
        event_specific_data=AssetMaterializationPlannedData(asset, partition=partition),
    )
    context.instance.report_dagster_event(event, context.run_id)
