"""The time zone of the times on a page: UTC, or the zone in the browser's cookie."""

import re
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from aiohttp import web

COOKIE = "ops-zone"  # written by ops.js
UTC_NAME = "UTC"
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
_DATETIME_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


def name_of(request: web.Request) -> str:
    """The zone's IANA name; UTC if this host does not know the zone in the cookie."""
    name = request.cookies.get(COOKIE, UTC_NAME)
    return name if _NAME.fullmatch(name) and _zone(name) else UTC_NAME


def of(request: web.Request) -> tzinfo:
    return _zone(name_of(request)) or UTC


def _zone(name: str) -> tzinfo | None:
    try:
        return UTC if name == UTC_NAME else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, not a zone file, or a folder
        return None


def with_zone(text: object, zone: tzinfo) -> object:
    """Interpret the value of a `datetime-local` input in that zone. The value has no zone, and no seconds if they are
    0."""
    if not isinstance(text, str) or not _DATETIME_LOCAL.fullmatch(text):
        return text
    try:
        return f"{datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"
    except (ValueError, OverflowError):
        return text
