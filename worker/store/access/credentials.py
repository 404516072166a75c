"""Credentials of nodes: opaque and random, like tokens. Redis stores only their SHA-256.

Keys: `credential:<sha256>` is the record of a credential, `node:<node>:credentials` maps the IDs of a node's
credentials to their keys. Credentials and tokens cannot be confused: their secrets have different formats.
"""

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from worker.store import records
from worker.store.access.tokens import derived
from worker.store.calls import Idempotency, Scripts, accepted, for_script, reading, redis_answers
from worker.store.errors import CredentialExists
from worker.store.unreadable import Unreadable

OVERLAP = timedelta(minutes=10)  # how long the former credential is valid alongside the new one
PREFIX = "vpsnode_"  # lets secret scanners recognize a leaked credential
_SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")  # 256 random bits in URL-safe base64
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_AT_ONCE = 1000  # keys per command

_Row: TypeAlias = tuple[str, Any]  # a key, and Redis's reply


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A valid credential. `key`: where its record is."""

    id: str
    key: str
    node: str
    created_at: datetime
    ends_at: datetime | None  # None: it does not expire


@dataclass(frozen=True, kw_only=True)
class NewCredential:
    """A new credential. Its secret is not stored and cannot be read again."""

    credential: Credential
    secret: str


def key_of(secret: str) -> str:
    """The key of the credential's record; "" if the text cannot be a credential."""
    return f"credential:{hashlib.sha256(secret.encode()).hexdigest()}" if _SECRET.fullmatch(secret) else ""


class Credentials(Scripts):
    """The credentials of the cell's nodes. Every call may raise StoreUnavailable."""

    async def create(
        self, node: str, *, lifetime: timedelta | None = None, idempotency: Idempotency | None = None, seed: str = ""
    ) -> NewCredential:
        """Create a node's first credential. It expires after `lifetime`; None: never. Repeated with the same
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
        """Create another credential. The former ones end after the overlap, unless they expire before. Otherwise
        like `create`. Raises CredentialNotFound or IdempotencyKeyReused."""
        return await self._new(node, lifetime, {"overlap_ms": _milliseconds(overlap)}, idempotency, seed)

    async def restore(self, node: str, secret: str) -> None:
        """Make the credential that a node has valid again after the store has lost data. Does nothing if it is valid.
        Others of the node, such as one from before a rotation, end after OVERLAP. Raises ValueError if the text is not
        a credential, or that of another node."""
        if not key_of(secret):
            raise ValueError("not a credential")
        ask = {"key": key_of(secret), "salt": "", "overlap_ms": _milliseconds(OVERLAP), "may_be_first": True}
        try:
            await self._put(node, ask, None)
        except CredentialExists:
            raise ValueError("the credential of another node") from None

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
        """Write the record. Returns it and the salt of its secret."""
        record = {"v": "1", "id": secrets.token_hex(6), "node": node}
        asked = {"node": node, "record": record, "idempotency": for_script(idempotency), **ask}
        made, salt = accepted(await self._call("access/put_credential", asked), idempotency, id=node)
        return records.pairs(made), salt.decode()

    async def revoke(self, node: str) -> int:
        """Revoke all credentials of a node now. Returns how many were valid."""
        ended: int = await self._call("access/revoke_credentials", {"node": node})
        return ended

    async def find(self, secret: str) -> Credential | None:
        """The credential with that secret; None if it is unknown, revoked, expired or unreadable."""
        key = key_of(secret)
        found = await self._of([key]) if key else ()
        if not found:
            return None
        # A credential that is missing in its node's index could not be revoked, and may belong to another node.
        index = f"node:{found[0].node}:credentials"
        named = await self._unless_other_type(index, lambda: self._named(index, found[0].id), otherwise="")
        if named == key:
            return found[0]
        await self._tell_unreadable([Unreadable(key=key, reason=f"{index} does not contain it")])
        return None

    async def all(self, node: str | None = None) -> list[Credential]:
        """The valid credentials of one node or of all nodes, by node, oldest first."""
        nobody: set[bytes] = set()
        nodes = await self._unless_other_type("nodes:credentials", self._nodes, otherwise=nobody)
        indexes = [f"node:{one}:credentials" for one in ([node] if node else sorted(map(records.text, nodes)))]
        listed = await self._many(_keys, await self._hashes(indexes), kind="node", key_of=_key_of)
        valid = await self._of([key for keys in listed for key in keys])
        return sorted(valid, key=lambda credential: (credential.node, credential.created_at, credential.id))

    async def _named(self, index: str, credential_id: str) -> str:
        held = await self._redis.hget(index, credential_id)  # type: ignore[misc]  # typed for the blocking client too
        return records.text(held or b"")

    async def _nodes(self) -> set[bytes]:
        nodes: set[bytes] = await self._redis.smembers("nodes:credentials")  # type: ignore[misc]  # typed for the blocking client too
        return nodes

    async def _of(self, keys: Sequence[str]) -> tuple[Credential, ...]:
        """The credentials at these keys."""
        return await self._many(_read, await self._hashes(keys), kind="credential", key_of=_key_of)

    async def _hashes(self, keys: Sequence[str]) -> list[_Row]:
        """The existing keys with their contents, or with the error if a key is not a hash."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                return await pipe.execute(raise_on_error=False)

        return [(key, held) for key, held in zip(keys, await reading(ask), strict=True) if held]

    async def ended(self, keys: Collection[str]) -> set[str]:
        """The keys whose credential is no longer valid. Takes one command if all are valid."""
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


def _milliseconds(overlap: timedelta) -> int:
    return max(1, round(overlap.total_seconds() * 1000))


def _key_of(row: _Row) -> str:
    return row[0]


def _keys(row: _Row) -> list[str]:
    """The keys in an index."""
    if isinstance(row[1], Exception):
        raise row[1]
    return [key for key in map(records.text, row[1].values()) if key.startswith("credential:")]


def _read(row: _Row) -> Credential:
    if isinstance(row[1], Exception):
        raise row[1]
    return _credential(row[0], records.decoded(row[1]))


def _credential(key: str, record: records.Hash) -> Credential:
    if not NODE_NAME.fullmatch(record["node"]):
        raise ValueError(f"{record['node']} is not a node")
    return Credential(
        id=record["id"],
        key=key,
        node=record["node"],
        created_at=records.moment(record["created_ms"]),
        ends_at=records.moment(record["ends_ms"]) if record.get("ends_ms") else None,
    )
