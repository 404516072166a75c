"""The audit log in words: "token ops-night paused node-17: kernel upgrade"."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Method and path below /api/v1/ or /ops/, the text of a success, and the text of a refusal. {name}: a group of the
# path, or a field of the entry.
_SAYINGS = tuple(
    (method, re.compile(path), past, infinitive)
    for method, path, past, infinitive in (
        ("POST", "login/", "logged in to the dashboard", "log in to the dashboard"),
        ("POST", "logout/", "logged out of the dashboard", "log out of the dashboard"),
        ("POST", "snapshots/", "created {made} of {server}", "create a snapshot of {server}"),
        ("PATCH", "snapshots/(?P<snapshot>[^/]+)/", "changed {snapshot}", "change {snapshot}"),
        ("DELETE", "snapshots/(?P<snapshot>[^/]+)/", "deleted {snapshot}", "delete {snapshot}"),
        ("POST", "snapshots/(?P<snapshot>[^/]+)/restore/", "restored {snapshot}", "restore {snapshot}"),
        ("POST", "restores/(?P<job>[^/]+)/undo/", "undid the restore {job}", "undo the restore {job}"),
        ("POST", "jobs/(?P<job>[^/]+)/retry/", "retried {job}", "retry {job}"),
        ("POST", "jobs/(?P<job>[^/]+)/cancel/", "cancelled {job}", "cancel {job}"),
        ("POST", "jobs/(?P<job>[^/]+)/resolve/", "resolved {job}", "resolve {job}"),
        ("POST", "nodes/(?P<node>[^/]+)/pause/", "paused {node}", "pause {node}"),
        ("POST", "nodes/(?P<node>[^/]+)/resume/", "resumed {node}", "resume {node}"),
        ("POST", "nodes/(?P<node>[^/]+)/reconcile/", "had {node} reconciled", "have {node} reconciled"),
        (
            "POST",
            "nodes/(?P<node>[^/]+)/credentials/(?:rotate/)?",
            "created {made} for {node}",
            "create a credential for {node}",
        ),
        (
            "DELETE",
            "nodes/(?P<node>[^/]+)/credentials/",
            "revoked the credentials of {node}",
            "revoke the credentials of {node}",
        ),
        ("PATCH", "servers/(?P<server>[^/]+)/", "changed the settings of {server}", "change {server}"),
        (
            "PUT",
            "servers/(?P<server>[^/]+)/",
            "declared {server} on {made}, of {account}",
            "declare {server} on {made}",
        ),
        ("PUT", "servers/(?P<server>[^/]+)/node/", "placed {server} on {made}", "place {server} on {made}"),
        ("PUT", "servers/(?P<server>[^/]+)/account/", "gave {server} to {account}", "give {server} to {account}"),
        ("PUT", "accounts/[^/]+/", "set {made} for {account}", "set the limits of {account}"),
        ("POST", "drain/", "paused or resumed several nodes", "pause or resume several nodes"),
        ("POST", "servers/(?P<server>[^/]+)/take/", "took {server} to repair it", "take {server} to repair it"),
        ("POST", "servers/(?P<server>[^/]+)/release/", "released {server}", "release {server}"),
        ("POST", "tokens/", "created {made}", "create a token"),
        ("DELETE", "tokens/(?P<token>[^/]+)/", "revoked {token}", "revoke {token}"),
        ("POST", "tokens/(?P<token>[^/]+)/revoke/", "revoked {token}", "revoke {token}"),
        ("POST", "schedules/", "created {made}", "create a schedule"),
        ("PATCH", "schedules/(?P<schedule>[^/]+)/", "changed {schedule}", "change {schedule}"),
        ("DELETE", "schedules/(?P<schedule>[^/]+)/", "deleted {schedule}", "delete {schedule}"),
        ("POST", "webhooks/", "created {made}", "create a webhook"),
        ("PATCH", "webhooks/(?P<webhook>[^/]+)/", "changed {webhook}", "change {webhook}"),
        ("DELETE", "webhooks/(?P<webhook>[^/]+)/", "deleted {webhook}", "delete {webhook}"),
        ("POST", "webhooks/(?P<webhook>[^/]+)/test/", "tested {webhook}", "test {webhook}"),
        (
            "POST",
            "webhooks/(?P<webhook>[^/]+)/rotate-secret/",
            "rotated the secret of {webhook}",
            "rotate the secret of {webhook}",
        ),
        (
            "POST",
            "webhooks/(?P<webhook>[^/]+)/deliveries/(?P<delivery>[^/]+)/redeliver/",
            "had {delivery} of {webhook} sent again",
            "have {delivery} of {webhook} sent again",
        ),
        (
            "POST",
            "webhooks/(?P<webhook>[^/]+)/redeliver/",
            "had the deliveries of {webhook} sent again",
            "have the deliveries of {webhook} sent again",
        ),
        ("SERVICE", "nodes/(?P<node>[^/]+)/resume/", "ended the pause of {node}", "end the pause of {node}"),
        ("CLI", "token create", "created {token} on a front end", "create a token on a front end"),
        ("CLI", "token revoke", "revoked {token} on a front end", "revoke a token on a front end"),
        ("CLI", "restore", "restored a backup on a front end", "restore a backup on a front end"),
        (
            "CLI",
            r"credential (?:create|rotate) (?P<node>\S+)",
            "created a credential for {node} on a gateway",
            "create a credential for {node} on a gateway",
        ),
        (
            "CLI",
            r"credential revoke (?P<node>\S+)",
            "revoked the credentials of {node} on a gateway",
            "revoke the credentials of {node} on a gateway",
        ),
        (
            "CLI",
            r"credential restore (?P<node>\S+)",
            "made a credential of {node} valid again on a gateway",
            "make a credential of {node} valid again on a gateway",
        ),
    )
)
_BELOW = re.compile(r"/(?:api/v1/)?(?:ops/)?")
_BULK = re.compile(r"(?P<action>retry|cancel)(?P<how>, forced)?")
_PAST = {"retry": "retried", "cancel": "cancelled"}
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


def said(fields: Mapping[str, str]) -> Said:
    """An entry of the audit log in words. A call without a text here is described by its method and path."""
    refusal = fields.get("code")
    parts, reason = _deed(fields, is_refused=bool(refusal))
    if refusal:
        parts = ("tried to ", *parts, f", refused: {refusal.replace('_', ' ')}")
    if reason:
        parts = (*parts, f": {reason}")
    return Said(actor=_actor(fields), parts=parts)


def _actor(fields: Mapping[str, str]) -> str:
    if fields.get("method") == "CLI":  # a person on a host; `token` is the one that was created or revoked
        return fields.get("address") or "someone"
    name = fields.get("token_name") or fields.get("token")
    return f"token {name}" if name else "the service" if fields.get("method") == "SERVICE" else "someone"


def _deed(fields: Mapping[str, str], *, is_refused: bool) -> tuple[tuple[str | Named, ...], str]:
    """What was done or attempted, and the given reason."""
    path, reason = _BELOW.sub("", fields.get("path", ""), count=1), fields.get("reason", "")
    if path == "jobs/bulk/" and (bulk := _BULK.fullmatch(reason)) and "job" in fields:
        verb = bulk["action"] if is_refused else _PAST[bulk["action"]]
        made = (" as ", _named(fields["made"])) if "made" in fields else ()
        return (f"{verb} ", Named(kind="job", id=fields["job"]), *made), (bulk["how"] or "").removeprefix(", ")
    for method, pattern, past, infinitive in _SAYINGS:
        if method == fields.get("method") and (found := pattern.fullmatch(path)):
            named = {kind: Named(kind=kind, id=one) for kind, one in found.groupdict().items()}
            return tuple(_filled(infinitive if is_refused else past, named, fields)), reason
    return (f"{'call' if is_refused else 'called'} {fields.get('method', '')} {fields.get('path', '')}",), reason


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
