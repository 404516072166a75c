"""A Redis data set as lines of JSON, one per key, that can be loaded again at a later time."""

import json
import math
import re
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

Row = dict[str, Any]  # key, type, pttl (ms; absent: it does not expire), value

STATS_MS = {"": 300_000, "hour:": 3_600_000}
_NUMBER = re.compile(r"(?<![\w.-])(1[789][0-9]{8})([0-9]{3}|\.[0-9]+)?(?![\w.])")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?=[.0-9]*(?:Z|\+00:00))")
_STATS = re.compile(r"^stats:(hour:)?([0-9]+)$")


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Moves the times in a recording, so that it looks as old as when it was made. `seconds`: a whole number."""

    seconds: int

    @classmethod
    def to_age(cls, recorded_at: int, *, age_seconds: int = 0) -> "Shift":
        """The shift for data that was recorded that long ago. `recorded_at`: Unix seconds."""
        return cls(seconds=round(time.time()) - age_seconds - recorded_at)

    def text(self, text: str) -> str:
        """Move Unix seconds and milliseconds from 2023 to 2033 and UTC times in ISO 8601; nothing else changes."""
        text = _NUMBER.sub(lambda found: f"{int(found[1]) + self.seconds}{found[2] or ''}", text)
        return _ISO.sub(lambda found: self._iso(found[0]), text)

    def value(self, value: Any) -> Any:
        """Move the times in all texts and numbers, including keys of mappings."""
        match value:
            case str():
                return self.text(value)
            case float() if math.isfinite(value):
                return float(self.text(f"{value:.0f}" if value.is_integer() else repr(value)))
            case list():
                return [self.value(one) for one in value]
            case dict():
                return {self.value(name): self.value(one) for name, one in value.items()}
        return value

    def key(self, key: str) -> str:
        """Move a key: keys of interval statistics contain the interval's number."""
        if not (found := _STATS.match(key)):
            return key
        period = found[1] or ""
        return f"stats:{period}{int(found[2]) + round(1000 * self.seconds / STATS_MS[period])}"

    def _iso(self, text: str) -> str:
        moved = datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(seconds=self.seconds)
        return f"{moved:%Y-%m-%dT%H:%M:%S}"


def packed(path: Path) -> str:
    """A file as text."""
    return b64encode(zlib.compress(path.read_bytes())).decode()


def unpack(text: str) -> bytes:
    return zlib.decompress(b64decode(text))


async def dumped(redis: Redis) -> list[Row]:
    """All keys, sorted, without the clock, which would be in the past."""
    rows = []
    for key in sorted({*_text(await redis.keys("*"))} - {"clock"}):
        kind, pttl = (await redis.type(key)).decode(), await redis.pttl(key)
        row: Row = {"key": key, "type": kind, "value": await _read(redis, key, kind)}
        rows.append(row | ({"pttl": pttl} if pttl >= 0 else {}))
    return rows


async def _read(redis: Redis, key: str, kind: str) -> Any:
    match kind:
        case "string":
            return _text(await redis.get(key))
        case "hash":
            return dict(sorted(_text(await redis.hgetall(key)).items()))  # type: ignore[misc] # redis-py: sync or async
        case "list":
            return _text(await redis.lrange(key, 0, -1))  # type: ignore[misc] # redis-py: sync or async
        case "set":
            return sorted(_text(await redis.smembers(key)))  # type: ignore[misc] # redis-py: sync or async
        case "zset":
            return [[member.decode(), score] for member, score in await redis.zrange(key, 0, -1, withscores=True)]
        case "stream":
            return [[entry_id.decode(), _text(fields)] for entry_id, fields in await redis.xrange(key)]
    raise ValueError(kind)


def _text(found: Any) -> Any:
    match found:
        case bytes():
            return found.decode()
        case dict():
            return {name.decode(): value.decode() for name, value in found.items()}
    return [one.decode() for one in found]


async def load(redis: Redis, rows: Iterable[Row], shift: Shift, *, age_seconds: int, texts: Mapping[str, str]) -> None:
    """Load the keys that still exist at that age. `texts`: replacements in all values, such as a URL."""
    for row in rows:
        left_ms = row.get("pttl", float("inf")) - 1000 * age_seconds
        if left_ms <= 0:
            continue
        value = json.dumps(row["value"])
        for before, after in texts.items():
            value = value.replace(before, after)
        key = shift.key(row["key"])
        await _write(redis, key, row["type"], shift.value(json.loads(value)))
        if "pttl" in row:
            await redis.pexpire(key, round(left_ms))


async def _write(redis: Redis, key: str, kind: str, value: Any) -> None:
    match kind:
        case "string":
            await redis.set(key, value)
        case "hash":
            await redis.hset(key, mapping=value)  # type: ignore[misc] # redis-py: sync or async
        case "list":
            await redis.rpush(key, *value)  # type: ignore[misc] # redis-py: sync or async
        case "set":
            await redis.sadd(key, *value)  # type: ignore[misc] # redis-py: sync or async
        case "zset":
            await redis.zadd(key, dict(value))
        case "stream":
            for entry_id, fields in value:
                await redis.xadd(key, fields, id=entry_id)
