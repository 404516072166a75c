"""Sessions of the operators' dashboard: a browser sends a session's ID instead of a token.

Redis stores only the SHA-256 of the ID, in the key `token:session:<sha256>`; the gateways' account cannot read keys
that begin with `t`. A session ends after its lifetime, after a period without activity, or with its token, whichever
comes first.

While Redis refuses writes, a login gets a read-only session that is not stored: its ID contains the token's ID and the
session's end, signed with the key of the token's record. It ends when Redis accepts writes again. Someone who can
read that key in Redis could forge such a session, but would only see what they can already read there.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.asyncio import Redis

from worker.store import records
from worker.store.access.tokens import Authenticated, Limits, Token, key_of
from worker.store.calls import Scripts

_ID_BYTES = 32
_ID = re.compile(r"[A-Za-z0-9_-]{43}")  # that many bytes in URL-safe base64
_READING = "reading."  # prefix of the ID of a session that is not stored; other IDs have no dot
_SIGNED = re.compile(r"reading\.([0-9a-f]{12})\.([0-9]{13})")  # the token's ID, and the Unix time in milliseconds
_READING_AT_MOST = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class SessionLifetime:
    """How long a session lasts."""

    at_most: timedelta
    idle: timedelta  # time without activity; accurate to a minute


@dataclass(frozen=True, kw_only=True)
class Session:
    """An open session. `csrf`: the token that every change must send; other sites cannot read it. `only_reads`: the
    session is read-only."""

    csrf: str
    only_reads: bool = False
    authenticated: Authenticated
    token: Token


@dataclass(frozen=True, kw_only=True)
class NewSession:
    """A new session. Its ID is not stored and cannot be read again."""

    id: str
    csrf: str


class Sessions(Scripts):
    """Every call may raise StoreUnavailable."""

    def __init__(self, redis: Redis, *, lifetime: SessionLifetime, limits: Limits) -> None:
        super().__init__(redis)
        self._lifetime = lifetime
        self._limits = limits

    async def open(self, secret: str) -> NewSession:
        """Open a session of the token with this secret, which the caller has checked. Raises StoreReadOnly."""
        new = NewSession(id=secrets.token_urlsafe(_ID_BYTES), csrf=secrets.token_urlsafe(_ID_BYTES))
        ask = {
            "key": _key(new.id),
            "record": {"v": "1", "token": key_of(secret), "csrf": new.csrf},
            "at_most_ms": round(self._lifetime.at_most.total_seconds() * 1000),
        }
        await self._call("access/open_session", ask)
        return new

    def open_for_reading(self, secret: str, token: Token) -> str:
        """The ID of a read-only session of that token. It lasts while Redis refuses writes, at most an hour."""
        ends = datetime.now(UTC) + min(_READING_AT_MOST, self._lifetime.at_most)
        signed = f"{_READING}{token.id}.{records.milliseconds(ends)}"
        return f"{signed}.{_signature(key_of(secret), signed)}"

    async def find(self, session_id: str, *, by_person: bool) -> Session | None:
        """The session; None if it has ended or the text is not a session's ID. Counts the call toward its
        token's limit. `by_person`: the call counts as activity."""
        if session_id.startswith(_READING) and session_id.isascii():
            return await self._look_for_reading(session_id)
        if not _ID.fullmatch(session_id):
            return None
        ask = {
            "key": _key(session_id),
            "by_person": by_person,
            "idle_ms": round(self._lifetime.idle.total_seconds() * 1000),
            **self._limits.of_calls(),
        }
        answer = await self._call("access/session", ask)
        if not answer:
            return None
        found = await self._many(self._session, [answer], kind="token", key_of=lambda _: _key(session_id))
        return found[0] if found else None

    def _session(self, answer: list[Any]) -> Session:
        flat, token_flat, refused, *counted = answer
        record, token = records.pairs(flat), Token.of(records.pairs(token_flat))
        return Session(
            csrf=record["csrf"],
            authenticated=self._limits.call_of(token, "", refused, counted),
            token=token,
        )

    async def _look_for_reading(self, session_id: str) -> Session | None:
        signed, _, signature = session_id.rpartition(".")
        found = _SIGNED.fullmatch(signed)
        if found is None or int(found[2]) < int(records.milliseconds(datetime.now(UTC))):
            return None
        token_id = found[1]
        answer = await self._call("access/reading_session", {"token": token_id, **self._limits.of_calls()})
        if not answer:
            return None
        key, flat, refused, *counted = answer
        is_signed = hmac.compare_digest(signature.encode(), _signature(key.decode(), signed).encode())
        if not is_signed or not refused:
            return None
        tokens = await self._many(Token.of, [records.pairs(flat)], kind="token", key_of=lambda _: str(key.decode()))
        if not tokens:
            return None
        return Session(
            csrf=_signature(key.decode(), f"csrf.{signed}"),
            only_reads=True,
            authenticated=self._limits.call_of(tokens[0], "", refused, counted),
            token=tokens[0],
        )

    async def close(self, session_id: str) -> None:
        if session_id.startswith(_READING):
            return
        await self._call("access/close_session", {"key": _key(session_id)})


def _signature(key: str, text: str) -> str:
    return hmac.digest(key.encode(), text.encode(), hashlib.sha256).hex()


def _key(session_id: str) -> str:
    return f"token:session:{hashlib.sha256(session_id.encode()).hexdigest()}"
