"""Everything Dagster knows, on one page.

Assets with their checks, jobs, schedules and sensors come from the pages of ``defs``; what they do is
in ``engine``. Every job runs in one process: a run is a process of its own already.
"""

import dagster as dg

from kyb_backup_pipeline.defs.full_backup import (
    full_backup,
    full_backup_job,
    full_backup_restore_test,
    full_backup_schedule,
    full_backup_verification,
    verify_all_backups,
    verify_all_schedule,
)
from kyb_backup_pipeline.defs.resources import EngineResource
from kyb_backup_pipeline.defs.sensors import follow_repository, repository_sensor

defs = dg.Definitions(
    assets=[
        full_backup,
        full_backup_verification,
        full_backup_restore_test,
    ],
    jobs=[
        full_backup_job,
        verify_all_backups,
        follow_repository,
    ],
    schedules=[
        full_backup_schedule,
        verify_all_schedule,
    ],
    sensors=[
        repository_sensor,
    ],
    resources={"engine": EngineResource()},
    executor=dg.in_process_executor,
)
