"""The audit log in words: "token ops-night paused node-17: kernel upgrade". The words of a call are in its row."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from api.http.calls import Call, Phrase

# What is no call of the API: method, path below /api/v1/ or /ops/, and its words.
_OTHERS = (
    ("POST", "login/", Phrase("logged in to the dashboard", "log in to the dashboard")),
    ("POST", "logout/", Phrase("logged out of the dashboard", "log out of the dashboard")),
    ("POST", "drain/", Phrase("paused or resumed several nodes", "pause or resume several nodes")),
    ("POST", "tokens/{token_id}/revoke/", Phrase("revoked {token}", "revoke {token}")),
    ("SERVICE", "nodes/{node}/resume/", Phrase("ended the pause of {node}", "end the pause of {node}")),
    ("CLI", "token create", Phrase("created {token} on a front end", "create a token on a front end")),
    ("CLI", "token revoke", Phrase("revoked {token} on a front end", "revoke a token on a front end")),
    ("CLI", "restore", Phrase("restored a backup on a front end", "restore a backup on a front end")),
    *(
        (
            "CLI",
            f"credential {command} {{node}}",
            Phrase("created a credential for {node} on a gateway", "create a credential for {node} on a gateway"),
        )
        for command in ("create", "rotate")
    ),
    (
        "CLI",
        "credential revoke {node}",
        Phrase("revoked the credentials of {node} on a gateway", "revoke the credentials of {node} on a gateway"),
    ),
    (
        "CLI",
        "credential restore {node}",
        Phrase(
            "made a credential of {node} valid again on a gateway",
            "make a credential of {node} valid again on a gateway",
        ),
    ),
)
_BELOW = re.compile(r"/(?:api/v1/)?(?:ops/)?")
_BULK = re.compile(r"(?P<action>retry|cancel)(?P<how>, forced)?")
_PAST = {"retry": "retried", "cancel": "cancelled"}
_ID = re.compile(r"\{(\w+?)(?:_id)?\}")  # in a path
_PLACE = re.compile(r"\{(\w+)\}")
_UNKNOWN = {"made": "something", "server": "a server", "account": "an account", "token": "a token"}
_PAGES = {"server", "snapshot", "job", "account", "node", "token"}  # kinds of objects that have a page


@dataclass(frozen=True, kw_only=True)
class Named:
    """An object that an entry names. `kind`: server, snapshot, job, account, node, token, or another kind, which has no
    page."""

    kind: str
    id: str

    @property
    def has_page(self) -> bool:
        return self.kind in _PAGES

    def __str__(self) -> str:
        if self.kind == "node":
            return self.id
        return f"{self.kind} {self.id[:8] if self.kind == 'job' else self.id}"


@dataclass(frozen=True, kw_only=True)
class Said:
    """An entry in words. `actor`: who made the call. `parts`: the action, as texts and the objects that it names."""

    actor: str
    parts: tuple[str | Named, ...]

    def __str__(self) -> str:
        return f"{self.actor} {''.join(map(str, self.parts))}"


class AuditWords:
    """Describes entries of the audit log."""

    def __init__(self, calls: Iterable[Call[Any]]) -> None:
        of_calls = ((call.method, _BELOW.sub("", call.path, count=1), call.audit) for call in calls if call.audit)
        self._phrases = [(method, _pattern(path), phrase) for method, path, phrase in (*of_calls, *_OTHERS)]

    def said(self, fields: Mapping[str, str]) -> Said:
        """An entry in words. A call without a phrase is described by its method and path."""
        refusal = fields.get("code")
        parts, reason = self._deed(fields, is_refused=bool(refusal))
        if refusal:
            parts = ("tried to ", *parts, f", refused: {refusal.replace('_', ' ')}")
        if reason:
            parts = (*parts, f": {reason}")
        return Said(actor=_actor(fields), parts=parts)

    def _deed(self, fields: Mapping[str, str], *, is_refused: bool) -> tuple[tuple[str | Named, ...], str]:
        """What was done or attempted, and the given reason."""
        path, reason = _BELOW.sub("", fields.get("path", ""), count=1), fields.get("reason", "")
        if path == "jobs/bulk/" and (bulk := _BULK.fullmatch(reason)) and "job" in fields:
            verb = bulk["action"] if is_refused else _PAST[bulk["action"]]
            made = (" as ", _named(fields["made"])) if "made" in fields else ()
            return (f"{verb} ", Named(kind="job", id=fields["job"]), *made), (bulk["how"] or "").removeprefix(", ")
        for method, pattern, phrase in self._phrases:
            if method == fields.get("method") and (found := pattern.fullmatch(path)):
                named = {kind: Named(kind=kind, id=one) for kind, one in found.groupdict().items()}
                return tuple(_filled(phrase.infinitive if is_refused else phrase.past, named, fields)), reason
        return (f"{'call' if is_refused else 'called'} {fields.get('method', '')} {fields.get('path', '')}",), reason


def _pattern(path: str) -> re.Pattern[str]:
    """Matches the path. Each ID of it is a group with the name of its kind."""
    return re.compile(_ID.sub(r"(?P<\1>[^/\\s]+)", path))


def _actor(fields: Mapping[str, str]) -> str:
    if fields.get("method") == "CLI":  # a person on a host; `token` is the one that was created or revoked
        return fields.get("address") or "someone"
    name = fields.get("token_name") or fields.get("token")
    return f"token {name}" if name else "the service" if fields.get("method") == "SERVICE" else "someone"


def _filled(saying: str, named: Mapping[str, Named], fields: Mapping[str, str]) -> list[str | Named]:
    parts: list[str | Named] = []
    for n, text in enumerate(_PLACE.split(saying)):
        if n % 2 == 0:
            parts.append(text)
        elif text in named:
            parts.append(named[text])
        elif text == "made":
            parts.append(_named(fields["made"]) if "made" in fields else _UNKNOWN["made"])
        else:
            parts.append(Named(kind=text, id=fields[text]) if text in fields else _UNKNOWN[text])
    return [part for part in parts if part != ""]


def _named(made: str) -> str | Named:
    """The object that a call created: "token 0a1b2c3d4e5f"."""
    kind, _, found = made.partition(" ")
    return Named(kind=kind, id=found) if found else made
