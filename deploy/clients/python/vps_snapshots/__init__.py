"""A client of the snapshots API.

with Client(url, token) as client:
    created = client.snapshots.create(server_id=12345, name="before-update")
    client.wait_for_job(created.job_id)
"""

from . import models as models
from .client import Accepted as Accepted
from .client import Client as Client
from .errors import AccessDenied as AccessDenied
from .errors import ApiError as ApiError
from .errors import InvalidRequest as InvalidRequest
from .errors import JobFailed as JobFailed
from .errors import LimitReached as LimitReached
from .errors import NameTaken as NameTaken
from .errors import NotFound as NotFound
from .errors import RateLimited as RateLimited
from .errors import ServerBusy as ServerBusy
from .errors import SnapshotsError as SnapshotsError
from .errors import StillRunning as StillRunning
from .errors import Unavailable as Unavailable
from .errors import Unreachable as Unreachable
from .messages import InvalidSignature as InvalidSignature
from .messages import verify_message as verify_message
