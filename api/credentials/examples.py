"""Examples of the credentials of nodes, for the document."""

from datetime import timedelta

from api.credentials import bodies
from api.jobs.examples import ASKED

CREATE = bodies.CredentialBody(lifetime_hours=2160)
ROTATE = bodies.RotationBody(lifetime_hours=2160, overlap_minutes=10)
_CREDENTIAL = bodies.Credential(
    id="5f4e3d2c1b0a", node="node-17", created_at=ASKED, expires_at=ASKED + timedelta(hours=2160)
)
NEW = bodies.NewCredential(**dict(_CREDENTIAL), secret="vpsnode_…")  # noqa: S106 - an example
CREDENTIALS = bodies.CredentialList(results=(_CREDENTIAL,))
