"""The errors that calls raise."""

from typing import Any

from .models import Conflict, FieldError, Job


class SnapshotsError(Exception):
    """Any error of this package."""


class Unreachable(SnapshotsError):
    """The service did not respond. A POST may have taken effect; to find out, repeat the call with the same key."""


class ApiError(SnapshotsError):
    """The service refused the request. `code` is stable; `detail` is for people."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code: str = problem.get("code", "unknown")
        self.detail: str = problem.get("detail", "")
        self.request_id: str = problem.get("request_id", "")
        self.errors: list[FieldError] = problem.get("errors", [])
        self.conflicts_with: Conflict | None = problem.get("conflicts_with")
        super().__init__(f"{status} {self.code}: {self.detail} (request {self.request_id})")


class InvalidRequest(ApiError):
    """The request has invalid fields: `errors` names each."""


class AccessDenied(ApiError):
    """The token is missing, invalid, or lacks a permission."""


class NotFound(ApiError):
    """The object does not exist, or it belongs to another account."""


class ServerBusy(ApiError):
    """Another job is using the server: `conflicts_with` names it."""


class NameTaken(ApiError):
    """Another snapshot of the server has the name: `conflicts_with` names it."""


class LimitReached(ApiError):
    """The server or the account has reached a limit."""


class RateLimited(ApiError):
    """Too many calls, even after retries."""


class Unavailable(ApiError):
    """The service or the server's node is unavailable, even after retries."""


class JobFailed(SnapshotsError):
    """The job has failed. If it `is_stranded`, an operator must repair the server."""

    def __init__(self, job: Job) -> None:
        self.job = job
        error = job["error"]
        self.code = error["code"] if error else "unknown"
        self.detail = error["detail"] if error else ""
        self.is_stranded = error["stranded"] if error else False
        super().__init__(f"{job['kind']} {job['id']} failed: {self.code}: {self.detail}")


class StillRunning(SnapshotsError):
    """The job has not ended within the given time. It continues."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(f"{job['kind']} {job['id']} is still {job['state']}")


_BY_CODE: dict[str, type[ApiError]] = {"server_busy": ServerBusy, "name_taken": NameTaken}
_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    429: RateLimited,
    503: Unavailable,
}


def of_problem(status: int, problem: dict[str, Any]) -> ApiError:
    code = str(problem.get("code", ""))
    kind = LimitReached if code.endswith("_limit_reached") else _BY_CODE.get(code, _BY_STATUS.get(status, ApiError))
    return kind(status, problem)
