"""Examples of events, for the document."""

from api.events.bodies import Event, EventsMissed, JobChanged, NoData, OpsEvent, OpsJobChanged
from api.jobs.examples import JOB_ID, SERVER_NAME, SNAPSHOT_NAME
from worker.store.model import JobKind, JobState, Step

EVENT = Event(
    job_id=JOB_ID,
    kind=JobKind.CREATE,
    state=JobState.IN_PROGRESS,
    step=Step.STOPPING,
    server_id=SERVER_NAME.id,
    snapshot_id=SNAPSHOT_NAME.id,
    notes=(),
)
OPS_EVENT = OpsEvent(**dict(EVENT), account_id=77)

JOB = JobChanged(event="job", id="1737044100000-0", data=EVENT)
OPS_JOB = OpsJobChanged(event="job", id=JOB.id, data=OPS_EVENT)
MISSED = EventsMissed(event="missed", id=JOB.id, data=NoData())
