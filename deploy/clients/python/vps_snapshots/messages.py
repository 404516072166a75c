"""Messages of webhooks, signed according to Standard Webhooks."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import cast

from .errors import SnapshotsError
from .models import JobMessage, TestMessage

TOLERANCE_SECONDS = 300


class InvalidSignature(SnapshotsError):
    """The service did not send this message, or it is too old."""


def verify_message(secret: str, headers: Mapping[str, str], body: bytes) -> JobMessage | TestMessage:
    """Verifies a message and returns it. `headers`: the case of names does not matter; `body`: the bytes as
    they arrived. Raises InvalidSignature."""
    given = {name.lower(): value for name, value in headers.items()}
    try:
        sent_at, message_id = int(given["webhook-timestamp"]), given["webhook-id"]
        signatures = given["webhook-signature"].encode().split(b" ")
    except (KeyError, ValueError) as error:
        raise InvalidSignature("A header is missing or not valid.") from error
    if abs(time.time() - sent_at) > TOLERANCE_SECONDS:
        raise InvalidSignature("The message is not of the last five minutes.")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{sent_at}.".encode() + body, hashlib.sha256)
    expected = b"v1," + base64.b64encode(digest)
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        raise InvalidSignature("No signature is of this secret and this message.")
    return cast("JobMessage | TestMessage", json.loads(body))
