"""Random requests, as bytes: calls of the document, with random values in each part."""

import json
import random
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from api.http.calls import OPS, Call
from api.http.probes import METRICS, PROBES
from api.resources import CALLS

JUNK = (
    *(
        "",
        "0",
        "-1",
        "1",
        "x",
        "null",
        "true",
        "9" * 40,
        "1e9",
        "NaN",
        "../..",
        "%",
        "a b",
        "\x00",
        "\x7f",
        "\r\n",
        "ÿ",
    ),
    *("é" * 300, "🎉", "<script>", "${jndi:x}", "' or 1=1 --", "A" * 9000, "2026-01-01T00:00:00Z", "completed"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**53 + 1, 2**63, 10**400, float("nan"), float("inf"), [], {}, [[]]),
    *({"a": {"b": [1, None]}}, ["x"] * 500, *JUNK),
)
RAW_BODIES = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": "\\ud800"}', b'{"a":1,"a":2}', b"[" * 20_000, b"0" * 70_000),
    *(b'{"server_id": 1e400}', b"\xef\xbb\xbf{}", b"server_id=1&name=x", b" " * 3000),
)
PLACES = (
    *(probe.path for probe in PROBES),
    METRICS,
    "/",
    "/docs",
    "/docs/errors/",
    "/docs/search/?q=busy",
    "/api/v1/openapi.json",
    "/ops/",
    "/ops/login/",
    "//",
    "*",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "G\x00T")
TYPES = (
    "application/json",
    "application/json; charset=utf-8",
    "text/plain",
    "multipart/form-data; boundary=x",
    "",
    "\xff",
)
HEADERS = (
    *("X-Account-Id", "X-Request-Id", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Cookie"),
    *("Expect", "Range", "Accept", "Accept-Encoding", "Content-Encoding", "X-Forwarded-For", "Origin", "traceparent"),
    *("Connection", "Upgrade", "Host", "Transfer-Encoding", "Content-Length", "Authorization"),
)
_CALLS = [call for call in CALLS if call.id != "ops_revoke_token"]  # would revoke the fuzzer's own tokens
_ID = re.compile(r"[0-9a-f]{1,32}")
FRAMING = frozenset(
    {"Connection", "Upgrade", "Transfer-Encoding", "Content-Length"}
)  # after these, no further call may succeed


@dataclass(frozen=True, kw_only=True)
class Request:
    """`ends`: nothing can follow it on its connection."""

    head: str
    body: bytes
    is_head: bool
    ends: bool

    @property
    def raw(self) -> bytes:
        return self.head.encode("utf-8", "surrogateescape") + self.body


@dataclass(kw_only=True)
class Fuzzer:
    """`ids`: the existing IDs, by their name in paths; answers add to them."""

    chance: random.Random
    customer: str  # token
    operator: str  # token
    ids: dict[str, list[str]] = field(default_factory=dict)

    def request(self) -> Request:
        call = self.chance.choice(_CALLS)
        method = self._mostly(call.method, METHODS)
        path = self._mostly(self._path(call), PLACES)
        fitting = self.operator if call.path.startswith(OPS) else self.customer
        token = self._mostly(fitting, (self.customer, self.operator, *JUNK))
        headers = {"Host": "localhost", "Authorization": f"Bearer {token}"}
        body = b""
        if call.changes or self.chance.random() < 0.05:
            body = self._body(call)
            headers["Content-Type"] = self._mostly("application/json", TYPES)
        headers["Content-Length"] = str(len(body))
        framed = True
        for _ in range(self.chance.choice((0, 0, 1, 1, 2, 5))):
            name = self.chance.choice(HEADERS)
            headers[name] = self._text(call)
            framed = framed and name not in FRAMING
        lines = "".join(f"{name}: {_on_one_line(value)}\r\n" for name, value in headers.items())
        return Request(
            head=f"{method} {path} HTTP/1.1\r\n{lines}\r\n",
            body=body,
            is_head=method == "HEAD",
            ends=not framed or path == "*" or method not in METHODS[:7],
        )

    def learn(self, body: bytes) -> None:
        """Read the IDs in an answer."""
        try:
            found = json.loads(body)
        except ValueError:
            return
        for name, value in _ids(found):
            known = self.ids.setdefault(name, [])
            if value not in known:
                known.append(value)
                del known[:-200]

    def _mostly(self, usual: str, others: tuple[str, ...]) -> str:
        return usual if self.chance.random() < 0.9 else self.chance.choice(others)

    def _path(self, call: Call[Any]) -> str:
        parts = []
        for part in call.path.split("/"):
            known = self.ids.get(part.strip("{}")) or self.ids.get("id") or ["1"]
            parts.append(
                quote(self._mostly(self.chance.choice(known), JUNK), safe="") if part.startswith("{") else part
            )
        path = "/".join(parts)
        if call.query is not None and self.chance.random() < 0.6:
            names = self.chance.choices([*call.query.model_fields, "x"], k=self.chance.randrange(1, 4))
            path += "?" + "&".join(f"{name}={quote(self._text(call), safe='')}" for name in names)
        return path

    def _text(self, call: Call[Any]) -> str:
        known = self.chance.choice([*self.ids.values(), ["1", "true", call.id, "*", "100-continue", "chunked"]])
        return self.chance.choice([*known[:20], *JUNK])

    def _body(self, call: Call[Any]) -> bytes:
        if not call.examples or self.chance.random() < 0.05:
            return self.chance.choice(RAW_BODIES)
        example = self.chance.choice([*call.examples.values()]).model_dump(mode="json")
        if "server_id" in example:
            example["server_id"] = int(self.chance.choice(self.ids["server_id"]))
        if "name" in example:
            example["name"] = f"n{self.chance.randrange(10**6)}"
        while self.chance.random() < 0.4:
            self._spoil(example)
        return json.dumps(example).encode("utf-8", "replace")

    def _spoil(self, example: dict[str, Any]) -> None:
        name = self.chance.choice([*example, "x"])
        if isinstance(example.get(name), dict) and example[name] and self.chance.random() < 0.5:
            self._spoil(example[name])
        elif self.chance.random() < 0.2:
            example.pop(name, None)
        else:
            example[name] = self.chance.choice(VALUES)


def _on_one_line(value: str) -> str:
    return value.replace("\r", "").replace("\n", "")


def _ids(found: Any, name: str = "") -> list[tuple[str, str]]:
    """Each field whose name ends with `id`: its name and value."""
    if isinstance(found, dict):
        return [one for key, value in found.items() for one in _ids(value, key)]
    if isinstance(found, list):
        return [one for value in found for one in _ids(value, name)]
    is_id = name.endswith("id") and name != "server_id" and _ID.fullmatch(str(found))
    return [(name, str(found))] if is_id else []
