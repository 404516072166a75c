"""The procedures: the steps of each kind of job."""

from collections.abc import Mapping

from worker.procedures.create import CHECK_CREATE, CREATE
from worker.procedures.delete import DELETE
from worker.procedures.restore import CHECK_RESTORE, RESTORE
from worker.procedures.work import Procedure
from worker.store.model import JobKind

PROCEDURES: Mapping[JobKind, Procedure] = {
    JobKind.CREATE: CREATE,
    JobKind.RESTORE: RESTORE,
    JobKind.DELETE: DELETE,
    JobKind.CHECK_CREATE: CHECK_CREATE,
    JobKind.CHECK_RESTORE: CHECK_RESTORE,
    JobKind.UNDO: RESTORE,  # to the safety snapshot; it takes its own safety snapshot, so an undo can be undone
}
