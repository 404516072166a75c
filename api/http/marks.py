"""Facts about a request, collected while it is answered, for its log line, its audit entry and its headers."""

from aiohttp import web

from worker.store.access.tokens import Token
from worker.store.calls import Idempotency
from worker.store.model import AccountId

REQUEST_ID = web.RequestKey("request_id", str)
SERVER_ID = web.RequestKey("server_id", int)
TOKEN = web.RequestKey("token", Token)
ACCOUNT = web.RequestKey("account", AccountId)
MADE = web.RequestKey("made", str)  # the object that a call created, unless it is a job: "token 0a1b2c3d4e5f"
REASON = web.RequestKey("reason", str)
EACH = web.RequestKey("each", list[dict[str, str]])  # the audit fields of each item of a bulk call
AUDITED = web.RequestKey("audited", bool)  # whether the audit log already has the call
ALLOWANCE = web.RequestKey("allowance", dict[str, str])  # the RateLimit headers
FROM_STRANGER = web.RequestKey("from_stranger", bool)  # set while the body of an unauthenticated request arrives
IDEMPOTENCY = web.RequestKey("idempotency", Idempotency)
PROBLEM = web.RequestKey("problem", str)  # the code
