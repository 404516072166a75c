"""Examples of the problems that are not a refusal of the store, for the OpenAPI document."""

from datetime import timedelta

from api.http.problems import FieldError, Problem, internal_error, invalid, rate_limited, unauthenticated
from api.http.reading import too_large

INVALID = invalid(FieldError(field="name", detail="Required."))
CALLERS = (
    unauthenticated(""),
    unauthenticated("a wrong one"),
    Problem(403, "permission_denied", "The token lacks the permission snapshots:write."),
    Problem(403, "account_mismatch", "X-Account-Id names another account than the token's."),
)
LIMITED = rate_limited("with this token", timedelta(seconds=1))
UNMATCHED = Problem(412, "precondition_failed", "If-Match is not supported. Nothing was changed.")
LATE = Problem(408, "request_timeout", "The body did not arrive within 10 seconds.")
TOO_LARGE = too_large()
INTERNAL = internal_error()
