"""Whether a create stops its server: what a request asks for, and what the provider allows."""

from typing import Annotated, Literal

from pydantic import Field

from api.http.answers import more_may_come
from api.http.fields import NOT_NULL
from api.http.problems import FieldError, invalid
from api.settings import Live
from worker.store.model import Consistency

FIELD = "consistency"
Choice = Literal["stop", "live"]
Asked = Annotated[
    Choice | None,
    *NOT_NULL,
    Field(
        description=(
            "`stop`: the server is shut down for the snapshot. `live`: it runs on, if the provider allows that, and its"
            " agent, if it has one, holds the file systems meanwhile. Left out: as is set for the server, or else the"
            " provider's default, usually `stop`"
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


def allowed(asked: Choice | None, live: Live) -> Choice | None:
    """What was asked for; `stop` if nothing else is possible. Raises Problem if the provider does not allow it."""
    if live is not Live.REFUSED:
        return asked
    if asked == "live":
        raise invalid(FieldError(field=FIELD, detail="This provider takes no snapshots of running servers: use stop."))
    return "stop"


def is_live(asked: Choice | None, live: Live) -> bool | None:
    """Whether the server is not stopped; None: as is set for the server, or else by the provider. Raises Problem if the
    provider does not allow what was asked for."""
    choice = allowed(asked, live)
    return None if choice is None else choice == "live"
