"""Examples of schedules, for the document."""

from datetime import UTC, datetime

from api.jobs.examples import ASKED, JOB_ID, SERVER_NAME
from api.schedules.bodies import (
    CoveredServer,
    CoveredServerList,
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
BY_LABEL = ScheduleBody(
    server_labels={"backup": "nightly"},
    name="nightly",
    when="0 3 * * *",
    time_zone="Europe/Berlin",
    window_minutes=120,
    expire_after_hours=72,
)
KEEP_LESS = ScheduleEditBody(keep=2)
SCHEDULE = Schedule(
    id=SCHEDULE_ID,
    server=SERVER_NAME,
    server_labels=None,
    name=NIGHTLY.name,
    when=NIGHTLY.when,
    time_zone=NIGHTLY.time_zone,
    window_minutes=None,
    keep=NIGHTLY.keep,
    expire_after_hours=None,
    enabled=True,
    consistency="stop",
    created_at=ASKED,
    next_run_at=datetime(2025, 1, 18, 3, tzinfo=UTC),
    last_run=ScheduleRun(at=datetime(2025, 1, 17, 3, tzinfo=UTC), job_id=JOB_ID, error=None),
    window=None,
)
COVERED = CoveredServerList(
    count=None,
    after=None,
    results=(CoveredServer(server=SERVER_NAME, starts_at=None, last_run=SCHEDULE.last_run),),
)
OPS_SCHEDULES = OpsScheduleList(count=None, after=None, results=(OpsSchedule(account_id=77, **dict(SCHEDULE)),))
SCHEDULES = ScheduleList(count=1, results=(SCHEDULE,))
