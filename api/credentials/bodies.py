"""The bodies of the credentials of nodes."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field

from api.http import fields
from api.http.answers import Open, Timestamp, from_record
from worker.store.access import credentials as records

OVERLAP_MINUTES = records.OVERLAP // timedelta(minutes=1)
OVERLAP_MINUTES_MAX = 10_080  # a week

Lifetime = Annotated[
    Annotated[int, Field(ge=1, le=87_600), BeforeValidator(fields.whole)] | None,
    Field(description="null: the credential is valid until it is revoked"),
]


class CredentialBody(fields.RequestBody):
    """The credential to create."""

    lifetime_hours: Lifetime = None

    @property
    def lifetime(self) -> timedelta | None:
        return timedelta(hours=self.lifetime_hours) if self.lifetime_hours else None


class RotationBody(CredentialBody):
    """The credential to create, and how long the former one is valid alongside it."""

    overlap_minutes: Annotated[
        int,
        Field(ge=0, le=OVERLAP_MINUTES_MAX, description="how long the former credential stays valid"),
        BeforeValidator(fields.whole),
    ] = OVERLAP_MINUTES

    @property
    def overlap(self) -> timedelta:
        return timedelta(minutes=self.overlap_minutes)


class Credential(Open):
    """A valid credential of a node, without its secret."""

    id: str
    node: str
    created_at: Timestamp
    expires_at: Annotated[Timestamp | None, Field(description="null: it does not expire")]


class NewCredential(Credential):
    """The credential that was created."""

    secret: Annotated[str, Field(description="shown only in this response")]


class CredentialList(Open):
    """The valid credentials of a node, oldest first."""

    results: tuple[Credential, ...]


def credential(record: records.Credential) -> Credential:
    return from_record(Credential, record, expires_at=record.ends_at)


def credentials(found: Iterable[records.Credential]) -> CredentialList:
    return CredentialList(results=tuple(map(credential, found)))


def new_credential(new: records.NewCredential) -> NewCredential:
    return NewCredential(**dict(credential(new.credential)), secret=new.secret)
