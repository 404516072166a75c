"""The caller of a request, from its token and its X-Account-Id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from aiohttp import web

from api.http import addresses, auditing, reading
from api.http.addresses import Network
from api.http.calls import Call
from api.http.marks import ACCOUNT, ALLOWANCE, AUDITED, TOKEN
from api.http.problems import FieldError, Problem, invalid, rate_limited, unauthenticated
from worker.program import log_fields
from worker.store.access.audit import NEW_MOST
from worker.store.access.tokens import (
    OPERATORS,
    Authenticated,
    Limits,
    Permission,
    Presented,
    Token,
    Tokens,
    words_granting,
)
from worker.store.calls import Entry
from worker.store.model import AccountId

ACCOUNT_HEADER = "X-Account-Id"


@dataclass(frozen=True, kw_only=True)
class Caller:
    account_id: AccountId
    token: Token


class Entering(Entry):
    """The caller of a request. The request's first script checks the caller, which saves a round trip to Redis. If
    the request is refused before that, `identify` checks the caller alone, so that an unauthenticated client does not
    learn what is wrong with it."""

    def __init__(self, callers: "Callers", request: web.Request, call: Call[Any], presented: Presented) -> None:
        self._callers = callers
        self._request = request
        self._call = call
        self._presented = presented
        self._is_checked = False

    def for_script(self) -> dict[str, Any]:
        caller: dict[str, Any] = {
            **self._callers.for_script(self._presented),
            "account_is_named": ACCOUNT_HEADER in self._request.headers,
            "permissions": words_granting(self._call.permission),
        }
        return caller | ({"audit": self._entry(), "audit_most": NEW_MOST} if self._call.changes else {})

    def _entry(self) -> dict[str, str]:
        """The audit log entry of the call if it is admitted, with the fields that are known now."""
        address = self._callers.address(self._request)
        return auditing.known(self._request, address, status=self._call.replies[0].status)

    async def entered(self, caller: list[Any], *, is_audited: bool) -> AccountId:
        self._is_checked, self._request[AUDITED] = True, is_audited
        token = await self._callers.authenticated(self._request, self._presented, caller)
        self.actor = token.actor
        return _acting_for(self._request, token, self._call.permission)

    async def identify(self) -> None:
        """Check the caller alone, if no script has. Raises Problem (400, 401, 403, 429) or StoreUnavailable."""
        if not self._is_checked:
            self._is_checked = True
            caller = await self._callers.identify(self._request, self._call.permission)
            self.account_id = caller.account_id
            self.actor = caller.token.actor


class Callers:
    """Authenticates callers by their tokens."""

    def __init__(
        self, tokens: Tokens, limits: Limits, *, trusted_proxies: Sequence[Network], used: Callable[[str], None]
    ) -> None:
        """`used` is called with the ID of each token that is used."""
        self._tokens = tokens
        self._limits = limits
        self._trusted_proxies = trusted_proxies
        self.used = used
        self._policy = f'"token";q={limits.calls};w={round(limits.window.total_seconds())}'

    async def identify(self, request: web.Request, permission: Permission) -> Caller:
        """The caller, if the token has that permission. Raises Problem (400, 401, 403, 429) or StoreUnavailable."""
        token = await self._token(request)
        return Caller(account_id=_acting_for(request, token, permission), token=token)

    def enter(self, request: web.Request, call: Call[Any]) -> "Entering":
        """The caller, to be checked by the call's script. Raises Problem if a header is sent twice."""
        return Entering(self, request, call, self.presented(request, _secret(request)))

    async def operator(self, request: web.Request, permission: Permission) -> Token:
        """The token of an operator, who acts for no account. Raises what `identify` raises."""
        token = await self._token(request)
        _ensure_allowed(token, permission)
        if token.account_id is not None:
            raise Problem(403, "permission_denied", "The token belongs to an account; operator tokens do not.")
        return token

    def address(self, request: web.Request) -> str:
        return addresses.of(request, trusted_proxies=self._trusted_proxies)

    async def is_still_allowed(self, request: web.Request, permission: Permission) -> bool:
        """Whether the caller still has that permission; being rate limited does not end it. Raises StoreUnavailable."""
        try:
            if permission in OPERATORS:
                await self.operator(request, permission)
            else:
                await self.identify(request, permission)
        except Problem as problem:
            return problem.status == web.HTTPTooManyRequests.status_code
        return True

    async def _token(self, request: web.Request) -> Token:
        return await self.authenticate(request, _secret(request))

    async def authenticate(self, request: web.Request, secret: str) -> Token:
        """The token with that secret. Raises Problem (401, 429) or StoreUnavailable."""
        presented = self.presented(request, secret)
        return self._welcome(request, presented, await self._tokens.authenticate(presented, self._limits))

    async def authenticated(self, request: web.Request, presented: Presented, answer: list[Any]) -> Token:
        """Like `authenticate`, from the answer of a script that has looked up the token and counted the call."""
        found = await self._tokens.authenticated(presented, self._limits, answer)
        return self._welcome(request, presented, found)

    def presented(self, request: web.Request, secret: str) -> Presented:
        header = request.headers.get(ACCOUNT_HEADER)
        named = None if header is None else reading.account_id(header)
        return Presented(secret=secret, address=addresses.home(self.address(request)), named=named)

    def for_script(self, presented: Presented) -> dict[str, str | int]:
        return presented.for_script(self._limits)

    def _welcome(self, request: web.Request, presented: Presented, authenticated: Authenticated) -> Token:
        token = authenticated.token
        if token is not None:
            request[ALLOWANCE] = self._allowance(authenticated)
        if not authenticated.allowed:
            which = "with this token" if token else "without a valid token from this address"
            raise rate_limited(which, authenticated.more_in)
        if token is None:
            raise unauthenticated(presented.secret)
        log_fields.bind(token=token.id, token_name=token.name)
        request[TOKEN] = token
        self.used(token.id)
        return token

    def _allowance(self, authenticated: Authenticated) -> dict[str, str]:
        """The headers of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": self._policy,
            "RateLimit": f'"token";r={authenticated.left};t={ceil(authenticated.more_in.total_seconds())}',
        }


def bearer(request: web.Request) -> str:
    """The secret of the Authorization header; '' if there is none."""
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _secret(request: web.Request) -> str:
    """Like `bearer`, but raises Problem if a header of the caller is sent twice."""
    for header in ("Authorization", ACCOUNT_HEADER):
        if len(request.headers.getall(header, ())) > 1:  # parts of a proxy chain may each read a different one
            raise invalid(FieldError(field=header, detail="Send it once."))
    return bearer(request)


def _ensure_allowed(token: Token, permission: Permission) -> None:
    if not token.allows(permission):
        raise Problem(403, "permission_denied", f"The token lacks the permission {permission}.")


def _acting_for(request: web.Request, token: Token, permission: Permission) -> AccountId:
    """The account that the token acts for. Checks that the token may make the call. Raises Problem (400, 403)."""
    _ensure_allowed(token, permission)
    account_id = _account(token, request)
    log_fields.bind(account=account_id)
    request[ACCOUNT] = account_id
    return account_id


def _account(token: Token, request: web.Request) -> AccountId:
    header = request.headers.get(ACCOUNT_HEADER)
    named = None if header is None else reading.account_id(header)
    if token.account_id is not None:
        if header is not None and named != token.account_id:
            raise Problem(403, "account_mismatch", f"{ACCOUNT_HEADER} names another account than the token's.")
        return token.account_id
    if named is None:
        detail = "Required with a service token: the account that it acts for, a positive integer."
        raise invalid(FieldError(field=ACCOUNT_HEADER, detail=detail))
    return named
