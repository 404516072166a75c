"""Credentials of nodes: opaque and random, as tokens are. Redis holds only their SHA-256.

Keys: `credential:<sha256>` is the record of one, `node:<node>:credentials` leads from the ids of a node's credentials
to their keys. A credential is no token, and a token is no credential: neither's secret has the form of the other.
"""

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.store import records
from worker.store.access.tokens import derived
from worker.store.calls import Idempotency, Scripts, accepted, for_script, reading, redis_answers

OVERLAP = timedelta(minutes=10)  # how long the former credential is valid beside the new one
PREFIX = "vpsnode_"  # so that a leaked one is found and its kind is known
_SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")  # 256 random bits in URL-safe base64
_AT_ONCE = 1000  # keys that one command looks at


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A valid credential. `key`: where its record is."""

    id: str
    key: str
    node: str
    created_at: datetime
    ends_at: datetime | None  # None: when it is revoked


@dataclass(frozen=True, kw_only=True)
class NewCredential:
    """A new credential. Its secret is not stored and cannot be read again."""

    credential: Credential
    secret: str


def key_of(secret: str) -> str:
    """The key of the record of the credential with that secret; "" for what can't be one."""
    return f"credential:{hashlib.sha256(secret.encode()).hexdigest()}" if _SECRET.fullmatch(secret) else ""


class Credentials(Scripts):
    """The credentials of the cell's nodes. Every call may raise StoreUnavailable."""

    async def create(
        self, node: str, *, lifetime: timedelta | None = None, idempotency: Idempotency | None = None, seed: str = ""
    ) -> NewCredential:
        """Make a node's first credential. It ends after `lifetime`; None: when it is revoked. Repeated with the same
        `idempotency`, it returns the same one; `seed` as in `Tokens.create`. Raises CredentialExists or
        IdempotencyKeyReused."""
        return await self._new(node, lifetime, {}, idempotency, seed)

    async def rotate(
        self,
        node: str,
        *,
        lifetime: timedelta | None = None,
        overlap: timedelta = OVERLAP,
        idempotency: Idempotency | None = None,
        seed: str = "",
    ) -> NewCredential:
        """Make another credential. The former ones end after the overlap, if they do not end before. Otherwise as
        `create`. Raises CredentialNotFound or IdempotencyKeyReused."""
        overlap_ms = max(1, round(overlap.total_seconds() * 1000))
        return await self._new(node, lifetime, {"overlap_ms": overlap_ms}, idempotency, seed)

    async def restore(self, node: str, secret: str) -> None:
        """Make the credential that a node has valid again, after the store has lost its data. Raises ValueError for
        what is no credential, and CredentialExists."""
        if not key_of(secret):
            raise ValueError("not a credential")
        await self._put(node, {"key": key_of(secret), "salt": ""}, None)

    async def _new(
        self, node: str, lifetime: timedelta | None, more: dict[str, Any], idempotency: Idempotency | None, seed: str
    ) -> NewCredential:
        salt, seed = secrets.token_urlsafe(32), seed if idempotency else secrets.token_urlsafe(32)
        ask = {"key": key_of(derived(PREFIX, seed, salt)), "salt": salt, **more}
        if lifetime is not None:
            ask["lifetime_ms"] = round(lifetime.total_seconds() * 1000)
        record, first_salt = await self._put(node, ask, idempotency)
        secret = derived(PREFIX, seed, first_salt)
        return NewCredential(credential=_credential(key_of(secret), record), secret=secret)

    async def _put(self, node: str, ask: dict[str, Any], idempotency: Idempotency | None) -> tuple[records.Hash, str]:
        """The record, and the salt of its secret."""
        record = {"v": "1", "id": secrets.token_hex(6), "node": node}
        asked = {"node": node, "record": record, "idempotency": for_script(idempotency), **ask}
        made, salt = accepted(await self._call("access/put_credential", asked), idempotency, id=node)
        return records.pairs(made), salt.decode()

    async def revoke(self, node: str) -> int:
        """End all credentials of a node now; how many were valid."""
        ended: int = await self._call("access/revoke_credentials", {"node": node})
        return ended

    async def find(self, secret: str) -> Credential | None:
        """The credential with that secret; None if there never was one, or it was revoked or has ended."""
        key = key_of(secret)
        if not key:
            return None
        with redis_answers():
            record = await self._redis.hgetall(key)  # type: ignore[misc]  # typed for the blocking client too
        return _credential(key, records.decoded(record)) if record else None

    async def all(self, node: str | None = None) -> list[Credential]:
        """The valid credentials of one node or of all nodes, by node, oldest first."""
        keys, found = await reading(lambda: self._found(node))
        valid = [_credential(key, records.decoded(record)) for key, record in zip(keys, found, strict=True) if record]
        return sorted(valid, key=lambda credential: (credential.node, credential.created_at, credential.id))

    async def _found(self, node: str | None) -> tuple[list[str], list[Any]]:
        """The keys of credentials, and their records."""
        nodes = [node] if node else sorted(one.decode() for one in await self._redis.smembers("nodes:credentials"))  # type: ignore[misc]
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in nodes:
                pipe.hvals(f"node:{one}:credentials")
            keys = [key.decode() for found in await pipe.execute() for key in found]
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            return keys, await pipe.execute()

    async def ended(self, keys: Collection[str]) -> set[str]:
        """Those of the keys whose credential is valid no longer. One command while there is none."""
        gone: set[str] = set()
        ordered = sorted(keys)
        for start in range(0, len(ordered), _AT_ONCE):
            some = ordered[start : start + _AT_ONCE]
            with redis_answers():
                if await self._redis.exists(*some) == len(some):
                    continue
                async with self._redis.pipeline(transaction=False) as pipe:
                    for key in some:
                        pipe.exists(key)
                    there = await pipe.execute()
            gone |= {key for key, exists in zip(some, there, strict=True) if not exists}
        return gone


def _credential(key: str, record: records.Hash) -> Credential:
    return Credential(
        id=record["id"],
        key=key,
        node=record["node"],
        created_at=records.moment(record["created_ms"]),
        ends_at=records.moment(record["ends_ms"]) if record.get("ends_ms") else None,
    )
