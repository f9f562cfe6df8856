"""Everything Dagster knows, on one page.

Assets with their checks, jobs, schedules and sensors come from the pages of ``defs``; what they do is
in ``engine``. Every job runs in one process: a run is a process of its own already.
"""

import dagster as dg

from kyb_backup_pipeline.defs.application import (
    application_state,
    application_state_verification,
    pre_deployment_backup,
)
from kyb_backup_pipeline.defs.configuration import (
    configuration_archive,
    configuration_job,
    configuration_schedule,
    configuration_verification,
)
from kyb_backup_pipeline.defs.full_backup import (
    full_backup,
    full_backup_job,
    full_backup_restore_test,
    full_backup_schedule,
    full_backup_verification,
)
from kyb_backup_pipeline.defs.health import (
    backup_health_sensor,
    failed_check_alert,
    health_report,
    health_report_job,
    health_report_schedule,
    run_failure_alert,
    stale_backup_sensor,
)
from kyb_backup_pipeline.defs.incremental import (
    base_backup,
    base_backup_job,
    base_backup_schedule,
    base_backup_sensor,
    base_backup_verification,
    incremental_backup,
    incremental_backup_job,
    incremental_backup_schedule,
    incremental_backup_verification,
    point_in_time_restore_test,
    point_in_time_test_job,
    point_in_time_test_schedule,
    wal_store,
)
from kyb_backup_pipeline.defs.offsite import (
    application_state_offsite_copy,
    base_backup_offsite_copy,
    configuration_archive_offsite_copy,
    full_backup_offsite_copy,
    incremental_backup_offsite_copy,
    offsite_restore_test,
    offsite_restore_test_schedule,
    offsite_retention,
    offsite_retention_job,
    offsite_retention_schedule,
    offsite_verification,
    offsite_verification_schedule,
)
from kyb_backup_pipeline.defs.recovery import (
    restore_application,
    restore_at_work,
    restore_database,
    restore_point_in_time,
)
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.defs.retention import retention, retention_job, retention_schedule
from kyb_backup_pipeline.defs.sensors import follow_repository, repository_sensor
from kyb_backup_pipeline.defs.verify_all import verify_all_backups, verify_all_schedule

defs = dg.Definitions(
    assets=[
        full_backup,
        full_backup_verification,
        full_backup_restore_test,
        base_backup,
        base_backup_verification,
        wal_store,
        incremental_backup,
        incremental_backup_verification,
        point_in_time_restore_test,
        application_state,
        application_state_verification,
        configuration_archive,
        configuration_verification,
        full_backup_offsite_copy,
        base_backup_offsite_copy,
        incremental_backup_offsite_copy,
        application_state_offsite_copy,
        configuration_archive_offsite_copy,
        retention,
        offsite_retention,
        health_report,
    ],
    jobs=[
        full_backup_job,
        base_backup_job,
        incremental_backup_job,
        point_in_time_test_job,
        pre_deployment_backup,
        configuration_job,
        verify_all_backups,
        offsite_verification,
        offsite_restore_test,
        retention_job,
        offsite_retention_job,
        health_report_job,
        follow_repository,
        restore_database,
        restore_point_in_time,
        restore_application,
    ],
    schedules=[
        full_backup_schedule,
        base_backup_schedule,
        incremental_backup_schedule,
        point_in_time_test_schedule,
        configuration_schedule,
        verify_all_schedule,
        offsite_verification_schedule,
        offsite_restore_test_schedule,
        retention_schedule,
        offsite_retention_schedule,
        health_report_schedule,
    ],
    sensors=[
        repository_sensor,
        base_backup_sensor,
        stale_backup_sensor,
        backup_health_sensor,
        run_failure_alert,
        failed_check_alert,
    ],
    resources={"engine": EngineResource(), "at_work": restore_at_work},
    executor=dg.in_process_executor,
)
