"""Examples of schedules, for the document."""

from datetime import UTC, datetime

from api.jobs.examples import ASKED, JOB_ID, SERVER_NAME
from api.schedules.bodies import (
    OpsSchedule,
    OpsScheduleList,
    Schedule,
    ScheduleBody,
    ScheduleEditBody,
    ScheduleList,
    ScheduleRun,
)
from worker.store.model import ServerId

SCHEDULE_ID = "5c1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e"

NIGHTLY = ScheduleBody(server_id=ServerId(12345), name="nightly", when="0 3 * * *", keep=3)
KEEP_LESS = ScheduleEditBody(keep=2)
SCHEDULE = Schedule(
    id=SCHEDULE_ID,
    server=SERVER_NAME,
    name=NIGHTLY.name,
    when=NIGHTLY.when,
    keep=NIGHTLY.keep,
    expire_after_hours=None,
    enabled=True,
    consistency="stop",
    created_at=ASKED,
    next_run_at=datetime(2025, 1, 18, 3, tzinfo=UTC),
    last_run=ScheduleRun(at=datetime(2025, 1, 17, 3, tzinfo=UTC), job_id=JOB_ID, error=None),
)
OPS_SCHEDULES = OpsScheduleList(count=None, after=None, results=(OpsSchedule(account_id=77, **dict(SCHEDULE)),))
SCHEDULES = ScheduleList(count=1, results=(SCHEDULE,))
