"""Sessions of the operators' dashboard: a browser sends a session's ID instead of a token.

Redis has only the SHA-256 of the ID, in the key `token:session:<sha256>`: nodes may not read keys that begin with `t`.
A session ends after its lifetime, after a period without activity, or with its token, whichever comes first.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from arq.connections import ArqRedis

from worker.store import records
from worker.store.access.tokens import Authenticated, Limits, Token, authenticated, key_of
from worker.store.calls import Scripts, redis_answers

_ID_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class SessionLifetime:
    """How long a session lasts."""

    at_most: timedelta
    idle: timedelta  # without activity; accurate to a minute


@dataclass(frozen=True, kw_only=True)
class Session:
    """An open session. `csrf`: the token that every change must send; other sites cannot read it."""

    csrf: str
    authenticated: Authenticated
    token: Token


@dataclass(frozen=True, kw_only=True)
class NewSession:
    """A new session. Its ID is not stored and cannot be read again."""

    id: str
    csrf: str


class Sessions(Scripts):
    """Every call may raise StoreUnavailable."""

    def __init__(self, redis: ArqRedis, *, lifetime: SessionLifetime, limits: Limits) -> None:
        super().__init__(redis)
        self._lifetime = lifetime
        self._limits = limits

    async def open(self, secret: str) -> NewSession:
        """Open a session of the token with this secret, which the caller has checked."""
        new = NewSession(id=secrets.token_urlsafe(_ID_BYTES), csrf=secrets.token_urlsafe(_ID_BYTES))
        now = datetime.now(UTC)
        record = {
            "v": "1",
            "token": key_of(secret),
            "csrf": new.csrf,
            "seen_ms": records.milliseconds(now),
            "ends_ms": records.milliseconds(now + self._lifetime.at_most),
        }
        with redis_answers():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(_key(new.id), mapping=record)
                pipe.pexpireat(_key(new.id), now + min(self._lifetime.idle, self._lifetime.at_most))
                await pipe.execute()
        return new

    async def look(self, session_id: str, *, by_person: bool) -> Session | None:
        """The session; None if it has ended. Counts the call on its token. `by_person`: the call is activity."""
        ask = {
            "key": _key(session_id),
            "by_person": by_person,
            "idle_ms": round(self._lifetime.idle.total_seconds() * 1000),
            "calls": self._limits.calls,
            "window_ms": round(self._limits.window.total_seconds() * 1000),
        }
        answer = await self._call("access/session", ask)
        if not answer:
            return None
        found = await self._many(_session, [answer], kind="token", key_of=lambda _: _key(session_id))
        return found[0] if found else None

    async def close(self, session_id: str) -> None:
        with redis_answers():
            await self._redis.delete(_key(session_id))


def _session(answer: list[Any]) -> Session:
    flat, token_flat, *counted = answer
    record, token = records.pairs(flat), Token.of(records.pairs(token_flat))
    return Session(
        csrf=record["csrf"],
        authenticated=authenticated(token, *counted),
        token=token,
    )


def _key(session_id: str) -> str:
    return f"token:session:{hashlib.sha256(session_id.encode()).hexdigest()}"
