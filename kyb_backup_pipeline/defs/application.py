"""The application's state before a deployment: an encrypted backup and its verification.

``pre_deployment_backup`` is for a deployment's pipeline: it succeeds if the backup is complete, as the
command line does, whether or not this host has the key to look into it, and whether or not the off-site
place answers: a deployment waits for neither. Its verification and its copy follow in the night, or at once where
their partitions are materialized.
Where to look next: ``engine/file_backup.py``, ``engine/verify_archive.py``.
"""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from kyb_backup_pipeline.defs.archive_checks import backup_checks_of, verification_checks_of
from kyb_backup_pipeline.defs.backup_view import backup_checks, backup_metadata
from kyb_backup_pipeline.defs.partitions import APPLICATION
from kyb_backup_pipeline.defs.proof_view import engine_errors
from kyb_backup_pipeline.defs.resources import EngineResource, freshness, health_settings
from kyb_backup_pipeline.defs.verify_all import verify_partition
from kyb_backup_pipeline.engine.file_backup import take_application_backup
from kyb_backup_pipeline.engine.manifest import utc_now
from kyb_backup_pipeline.engine.store import Repository

_OWNERS = ["team:platform"]
_TAGS = {"backup": "application_state"}
_MAX_RUNTIME = {"dagster/max_runtime": str(3600)}


class Deployment(dg.Config):
    """What the state is saved before."""

    deployment: str = Field(description="The version or tag that is about to be deployed.")


_LIMITS = health_settings()


@dg.asset(
    freshness_policy=freshness(_LIMITS.application_state_max_age),
    partitions_def=APPLICATION.partitions,
    group_name="application",
    owners=_OWNERS,
    kinds={"encrypted"},
    tags=_TAGS,
    description="The application's configuration, feature flags, sessions and logs, as they are before "
    "a deployment; encrypted on the way to the disk.",
    check_specs=backup_checks_of("application_state", APPLICATION),
)
def application_state(
    context: dg.AssetExecutionContext, config: Deployment, engine: EngineResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster wants it bare
    with engine_errors():
        settings = engine.settings()
        backup = take_application_backup(
            settings,
            APPLICATION.request(context),
            config.deployment,
            now=utc_now(),
            report=engine.reporter(),
        )
        backups = Repository(settings.repository).backups(("application_state",))
        checks = backup_checks(backup.require_manifest(), backups)
    return dg.MaterializeResult(metadata=backup_metadata(backup), check_results=checks)


@dg.asset(
    partitions_def=APPLICATION.partitions,
    deps=[application_state],
    group_name="application",
    owners=_OWNERS,
    kinds={"encrypted", "sha256"},
    tags=_TAGS,
    description="Are the archives what was written, and does every member have the content that was "
    "recorded? The second question needs the key.",
    check_specs=verification_checks_of("application_state_verification", APPLICATION),
)
def application_state_verification(
    context: dg.AssetExecutionContext, engine: EngineResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    yield from verify_partition(context, engine, APPLICATION)


pre_deployment_backup = dg.define_asset_job(
    "pre_deployment_backup",
    selection=[application_state],
    executor_def=dg.in_process_executor,
    tags={**_TAGS, **_MAX_RUNTIME},
    description="Save the application's state before a deployment. For a pipeline: launch it with the "
    "deployment in the run config, and deploy only after SUCCESS (docs/runbook.md has the calls).",
)
