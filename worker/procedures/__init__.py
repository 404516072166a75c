"""The procedures: what is done for each kind of job, step by step."""

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
    JobKind.UNDO: RESTORE,  # of the safety snapshot; it takes one of its own, so that an undo can be undone
}
