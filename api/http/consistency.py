"""Whether a create stops its server: the request's choice, and what the provider allows."""

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
            "`stop`: the server is shut down for the snapshot. `live`: it keeps running, if the provider allows that,"
            " and its agent, if it has one, freezes the file systems meanwhile. If left out: the server's default, or"
            " else the provider's default, usually `stop`"
        ),
        exclude_if=lambda asked: (
            asked is None
        ),  # keeps the fingerprint of requests without it the same as in earlier versions
    ),
]
Label = Annotated[
    Annotated[str, more_may_come(Consistency)] | None,
    Field(description="the state of the guest's data in the snapshot; null: unknown, or no snapshot was taken"),
]


def allowed(asked: Choice | None, live: Live) -> Choice | None:
    """The requested consistency; `stop` if nothing else is possible. Raises Problem if the provider does not allow
    it."""
    if live is not Live.REFUSED:
        return asked
    if asked == "live":
        raise invalid(
            FieldError(field=FIELD, detail="This provider does not allow snapshots of running servers. Use stop.")
        )
    return "stop"


def is_live(asked: Choice | None, live: Live) -> bool | None:
    """Whether the server keeps running; None: the server's or else the provider's default applies. Raises Problem if
    the provider does not allow the requested consistency."""
    choice = allowed(asked, live)
    return None if choice is None else choice == "live"
