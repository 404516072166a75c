"""Access tokens: opaque and random. Redis stores only their SHA-256.

Keys: `token:<sha256>` is a token's record; `tokens` maps the ID that operators see to that key.
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any, Self

from worker.store import errors, records
from worker.store.access.local_rates import LocalRates
from worker.store.calls import Actor, Idempotency, Scripts, accepted, for_script, reading, redis_answers
from worker.store.model import AccountId

_INDEX = "tokens"
_NAMES = "tokens:by:name"  # name in lower case, NUL, ID: `shared/token_names` adds them
USED = "tokens:used"  # when each token was last used: see `usage`
_PARSED = 1024  # parsed records in the cache
_PREFIX = "vps_"
_SECRET = re.compile(_PREFIX + r"[A-Za-z0-9_-]{43}")  # 256 random bits in URL-safe base64


class Permission(StrEnum):
    """What a token allows."""

    SNAPSHOTS_READ = "snapshots:read"
    SNAPSHOTS_WRITE = "snapshots:write"
    SNAPSHOTS_CREATE = "snapshots:create"
    SNAPSHOTS_RESTORE = "snapshots:restore"
    SNAPSHOTS_DELETE = "snapshots:delete"
    OPERATOR = "operator"
    OPERATOR_READ = "operator:read"


OPERATORS = frozenset({Permission.OPERATOR, Permission.OPERATOR_READ})  # for tokens without an account
_WIDER = {
    Permission.SNAPSHOTS_CREATE: Permission.SNAPSHOTS_WRITE,
    Permission.SNAPSHOTS_RESTORE: Permission.SNAPSHOTS_WRITE,
    Permission.SNAPSHOTS_DELETE: Permission.SNAPSHOTS_WRITE,
    Permission.OPERATOR_READ: Permission.OPERATOR,
}


def granting(permission: Permission) -> tuple[Permission, ...]:
    """The permissions that include this one, the narrowest first; a token needs one of them."""
    return (permission, _WIDER[permission]) if permission in _WIDER else (permission,)


@cache
def words_granting(permission: Permission) -> tuple[str, ...]:
    """The same as plain text, because pydantic takes 1 us to write an enum's member for a script."""
    return tuple(map(str, granting(permission)))


_KNOWN = frozenset(map(str, Permission))  # a newer front end may have created a token with unknown ones


@dataclass(frozen=True, kw_only=True)
class Token:
    """A stored token. `account_id` None: a service token, which names the account in each request."""

    id: str
    name: str
    account_id: AccountId | None
    permissions: frozenset[Permission]
    created_at: datetime
    expires_at: datetime | None

    def allows(self, permission: Permission) -> bool:
        return not self.permissions.isdisjoint(granting(permission))

    @property
    def actor(self) -> Actor:
        return Actor(token=self.id, token_name=self.name)

    def record(self) -> dict[str, str]:
        return {
            "v": "1",
            "id": self.id,
            "name": self.name,
            "account": "" if self.account_id is None else str(self.account_id),
            "permissions": " ".join(sorted(self.permissions)),
            "created_at": self.created_at.isoformat(),
            "expires_at": self.expires_at.isoformat() if self.expires_at else "",
        }

    @classmethod
    def of(cls, text: records.Hash) -> Self:
        return cls(
            id=text["id"],
            name=text["name"],
            account_id=AccountId(records.whole(text["account"])) if text["account"] else None,
            permissions=frozenset(Permission(word) for word in text["permissions"].split() if word in _KNOWN),
            created_at=_moment(text["created_at"]),
            expires_at=_moment(text["expires_at"]) if text["expires_at"] else None,
        )


@dataclass(frozen=True, kw_only=True)
class NewToken:
    """A new token. Its secret is not stored and cannot be read again."""

    token: Token
    secret: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Rate limits per window. `local_rates` counts while Redis refuses writes."""

    calls: int  # per token
    failed_logins: int  # per address
    window: timedelta = timedelta(minutes=1)
    local_rates: LocalRates = field(default_factory=LocalRates, compare=False)

    def of_calls(self) -> dict[str, int]:
        """The limits in the form that scripts take."""
        return {"calls": self.calls, "window_ms": round(self.window.total_seconds() * 1000)}

    def call_of(self, token: "Token", account: str, refused: bytes, counted: Sequence[int]) -> "Authenticated":
        """Count a call with the token, for that account or ''. `refused`: why Redis did not count it, b'' if it did."""
        taken = self.local_rates.take(f"{token.id}:{account}", self.calls, self.window) if refused else counted
        return _authenticated(token, *taken)

    def failed_login(self, address: str, refused: bytes, counted: Sequence[int]) -> "Authenticated":
        """Count a call without a valid token from that address."""
        taken = self.local_rates.take(f"failed:{address}", self.failed_logins, self.window) if refused else counted
        return _authenticated(None, *taken)


@dataclass(frozen=True, kw_only=True)
class Authenticated:
    """The result of checking a caller's token."""

    token: Token | None
    allowed: bool  # within its limit
    left: int  # calls
    more_in: timedelta  # until the next call is allowed


def derived(prefix: str, seed: str, salt: str) -> str:
    """A secret that can be derived again only with the seed: 256 bits in URL-safe base64."""
    digest = hmac.digest(seed.encode(), salt.encode(), hashlib.sha256)
    return f"{prefix}{urlsafe_b64encode(digest).decode().rstrip('=')}"


def _authenticated(token: Token | None, allowed: int, left: int, more_ms: int) -> Authenticated:
    return Authenticated(token=token, allowed=bool(allowed), left=left, more_in=timedelta(milliseconds=more_ms))


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


def _token(row: list[Any]) -> Token:
    """`row`: the key, and the record as a script or Redis returns it."""
    flat = row[1]
    return Token.of(records.decoded(flat) if isinstance(flat, dict) else records.pairs(flat))


@lru_cache(_PARSED)
def _token_of(*flat: bytes) -> Token:
    """The token of a record, cached by the record's text."""
    return Token.of(records.pairs(flat))


def _key_of(row: list[Any]) -> str:
    return str(row[0])


def key_of(secret: str) -> str:
    """The key of the token's record."""
    return f"token:{hashlib.sha256(secret.encode()).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class Presented:
    """The caller's data in a request. `address`: where failed logins are counted; `named`: the account that the
    request names."""

    secret: str
    address: str
    named: AccountId | None = None

    @property
    def key(self) -> str:
        """The key of the token's record; '' if the secret is malformed."""
        return key_of(self.secret) if _SECRET.fullmatch(self.secret) else ""

    @property
    def account(self) -> str:
        return "" if self.named is None else str(self.named)

    def for_script(self, limits: Limits) -> dict[str, str | int]:
        return {
            "token": self.key,
            "address": self.address,
            "account": self.account,
            "failed_logins": limits.failed_logins,
            **limits.of_calls(),
        }


class Tokens(Scripts):
    """All tokens of the cell. Every call may raise `StoreUnavailable`."""

    async def create(
        self,
        *,
        name: str,
        account_id: AccountId | None,
        permissions: frozenset[Permission],
        lifetime: timedelta | None = None,
        idempotency: Idempotency | None = None,
        seed: str = "",
    ) -> NewToken:
        """Create a token that expires after `lifetime` (None: never); Redis then deletes it. Repeated with the same
        `idempotency`, it returns the same token, although its secret is not stored: the secret is derived from `seed`,
        which only the caller has, and a salt that is stored for a day. Raises IdempotencyKeyReused or
        TokenLimitReached."""
        created_at = datetime.now(UTC).replace(microsecond=0)
        token = Token(
            id=secrets.token_hex(6),
            name=name,
            account_id=account_id,
            permissions=permissions,
            created_at=created_at,
            expires_at=created_at + lifetime if lifetime is not None else None,
        )
        salt, seed = secrets.token_urlsafe(32), seed if idempotency else secrets.token_urlsafe(32)
        ask: dict[str, Any] = {
            "key": key_of(derived(_PREFIX, seed, salt)),
            "record": token.record(),
            "salt": salt,
            "idempotency": for_script(idempotency),
        }
        if lifetime is not None:  # a duration, because this process's clock may be wrong
            ask["lifetime_ms"] = round(lifetime.total_seconds() * 1000)
        made, first_salt = accepted(await self._call("access/put_token", ask), idempotency)
        return NewToken(token=Token.of(records.pairs(made)), secret=derived(_PREFIX, seed, first_salt.decode()))

    async def authenticate(self, by: Presented, limits: Limits) -> Authenticated:
        """Look up the token with this secret; it is None if unknown, revoked or expired. Counts the call for the token
        (for a service token, also by the named account), or for the address if there is no such token."""
        answer = await self._call("access/authenticate", by.for_script(limits))
        return await self.authenticated(by, limits, answer)

    async def authenticated(self, by: Presented, limits: Limits, answer: list[Any]) -> Authenticated:
        """The result of `authenticate`, from the answer of a script that has done the lookup."""
        flat, refused, *counted = answer
        token = await self._token(by, flat)
        if token is None:
            return limits.failed_login(by.address, refused, counted)
        return limits.call_of(
            token, by.account if token.account_id is None else str(token.account_id), refused, counted
        )

    async def _token(self, by: Presented, flat: list[bytes]) -> Token | None:
        """The token; None also if its record is unreadable."""
        if not flat:
            return None
        with suppress(Exception):  # the reason is reported below
            return _token_of(*flat)
        found = await self._many(lambda flat: _token_of(*flat), [flat], kind="token", key_of=lambda _: by.key)
        return found[0] if found else None

    async def all(self) -> list[Token]:
        """Every valid token, oldest first; expired ones are removed from the index."""
        nothing: dict[Any, Any] = {}
        index = await self._unless_other_type(_INDEX, self._index, otherwise=nothing)
        found = await reading(lambda: self._records(index.values()))
        if ended := [token_id for token_id, record in zip(index, found, strict=True) if not record]:
            with suppress(errors.StoreReadOnly), redis_answers():
                await self._redis.hdel(_INDEX, *ended)  # type: ignore[misc]  # typed for the blocking client too
                await self._redis.hdel(USED, *ended)  # type: ignore[misc]
                await self._unlist(set(ended))
        rows = [[key.decode(errors="replace"), flat] for key, flat in zip(index.values(), found, strict=True) if flat]
        valid = await self._many(_token, rows, kind="token", key_of=_key_of)
        return sorted(valid, key=lambda token: (token.created_at, token.id))

    async def _unlist(self, ended: Collection[bytes]) -> None:
        """Take the names of tokens that have expired from their list: it does not know an expired token's name."""
        names = await self._redis.zrange(_NAMES, 0, -1)
        if gone := [name for name in names if name.rpartition(b"\0")[2] in ended]:
            await self._redis.zrem(_NAMES, *gone)

    async def _index(self) -> dict[Any, Any]:
        """The keys of tokens, by ID."""
        index: dict[Any, Any] = await self._redis.hgetall(_INDEX)  # type: ignore[misc]  # typed for the blocking client too
        return index

    async def _records(self, keys: Iterable[Any]) -> list[Any]:
        """The records; an unreadable one is replaced by its error."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            return await pipe.execute(raise_on_error=False)

    async def revoke(self, token_id: str) -> bool:
        """Revoke a token now. False: there is no token with this ID."""
        return bool(await self._call("access/revoke_token", {"token": token_id}))
