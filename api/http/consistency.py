"""Whether a create stops its server: what a request asks for, and what the provider allows."""

from typing import Annotated, Literal

from pydantic import Field

from api.http.answers import more_may_come
from api.http.fields import NOT_NULL
from api.http.problems import FieldError, invalid
from api.settings import Live
from worker.store.model import Consistency

FIELD = "consistency"
Asked = Annotated[
    Literal["stop", "live"] | None,
    *NOT_NULL,
    Field(
        description=(
            "`stop`: the server is shut down for the snapshot. `live`: it runs on, if the provider allows that, and its"
            " agent, if it has one, holds the file systems meanwhile. Left out: the provider's choice, usually `stop`"
        ),
        exclude_if=lambda asked: (
            asked is None
        ),  # the fingerprint of a request without it stays that of earlier versions
    ),
]
Label = Annotated[
    Annotated[str, more_may_come(Consistency)] | None,
    Field(description="how the guest's data got into the snapshot; null: unknown, or none was taken"),
]


def is_live(asked: Literal["stop", "live"] | None, live: Live) -> bool:
    """Whether the server is not stopped. Raises Problem if the provider does not allow what was asked for."""
    if asked == "live" and live is Live.REFUSED:
        raise invalid(FieldError(field=FIELD, detail="This provider takes no snapshots of running servers: use stop."))
    return asked == "live" or (asked is None and live is Live.DEFAULT)
