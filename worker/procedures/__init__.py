"""The procedures: what is done for each kind of job, step by step."""

from collections.abc import Mapping

from worker.jobs.model import JobKind
from worker.procedures.create import CREATE
from worker.procedures.delete import DELETE
from worker.procedures.restore import RESTORE
from worker.procedures.work import Procedure

PROCEDURES: Mapping[JobKind, Procedure] = {
    JobKind.CREATE: CREATE,
    JobKind.RESTORE: RESTORE,
    JobKind.DELETE: DELETE,
    JobKind.UNDO: RESTORE,  # of the safety snapshot; it takes one of its own, so that an undo can be undone
}
