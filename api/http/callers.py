"""Who calls: from the request's token to the account it acts for."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from aiohttp import web
from structlog.contextvars import bind_contextvars

from api.http import addresses, reading
from api.http.addresses import Network
from api.http.problems import FieldError, Problem, invalid
from worker.store.access.tokens import Authenticated, Limits, Permission, Token, Tokens
from worker.store.model import AccountId

ACCOUNT_HEADER = "X-Account-Id"
# what is learnt of a request on the way, for its log line, its audit entry and its answer's headers
TOKEN = web.RequestKey("token", Token)
ACCOUNT = web.RequestKey("account", AccountId)
MADE = web.RequestKey("made", str)  # what a call made that no job stands for: "token 0a1b2c3d4e5f"
REASON = web.RequestKey("reason", str)
EACH = web.RequestKey("each", list[dict[str, str]])  # of what was done to many: fields of an entry of its own
ALLOWANCE = web.RequestKey("allowance", dict[str, str])

_CHALLENGE = 'Bearer realm="vps-snapshots"'


@dataclass(frozen=True, kw_only=True)
class Caller:
    account_id: AccountId
    token: Token


class Callers:
    """Lets in whom a token lets in."""

    def __init__(self, tokens: Tokens, limits: Limits, *, trusted_proxies: Sequence[Network]) -> None:
        self._tokens = tokens
        self._limits = limits
        self._trusted_proxies = trusted_proxies

    async def identify(self, request: web.Request, permission: Permission) -> Caller:
        """The caller, with that permission. Raises Problem (400, 401, 403, 429) or StoreUnavailable."""
        token = await self._allowed(request, permission)
        account_id = _account(token, request)
        bind_contextvars(account=account_id)
        request[ACCOUNT] = account_id
        return Caller(account_id=account_id, token=token)

    async def operator(self, request: web.Request) -> Token:
        """The token of an operator, who acts for no account. Raises as `identify` does."""
        token = await self._allowed(request, Permission.OPERATOR)
        if token.account_id is not None:
            raise Problem(403, "permission_denied", "The token is an account's; an operator's belongs to none.")
        return token

    def address(self, request: web.Request) -> str:
        return addresses.of(request, trusted_proxies=self._trusted_proxies)

    async def still(self, request: web.Request, permission: Permission) -> bool:
        """Whether a caller that was let in would be let in again, now or later. Raises StoreUnavailable."""
        try:
            if permission is Permission.OPERATOR:
                await self.operator(request)
            else:
                await self.identify(request, permission)
        except Problem as problem:
            return problem.status == web.HTTPTooManyRequests.status_code
        return True

    async def _allowed(self, request: web.Request, permission: Permission) -> Token:
        token = await self._token(request)
        if permission not in token.permissions:
            raise Problem(403, "permission_denied", f"The token lacks the permission {permission}.")
        return token

    async def _token(self, request: web.Request) -> Token:
        for header in ("Authorization", ACCOUNT_HEADER):
            if len(request.headers.getall(header, [])) > 1:  # whoever added one may mean the other
                raise invalid(FieldError(field=header, detail="Send it once."))
        return await self.authenticate(request, bearer(request))

    async def authenticate(self, request: web.Request, secret: str) -> Token:
        """The token of that secret, shown with that request. Raises Problem (401, 429) or StoreUnavailable."""
        named = reading.account_id(request.headers.get(ACCOUNT_HEADER, ""))
        home = addresses.home(self.address(request))
        authenticated = await self._tokens.authenticate(secret, address=home, named=named, limits=self._limits)
        token = authenticated.token
        if token is not None:
            request[ALLOWANCE] = self._allowance(authenticated)
        if not authenticated.allowed:
            wait = {"Retry-After": str(max(1, ceil(authenticated.more_in.total_seconds())))}
            what = "calls with this token" if token else "calls without a good token from this address"
            raise Problem(429, "rate_limited", f"There were too many {what} within a minute.", headers=wait)
        if token is None:
            raise _stranger(secret)
        bind_contextvars(token=token.id, token_name=token.name)
        request[TOKEN] = token
        return token

    def _allowance(self, authenticated: Authenticated) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers-10 has it."""
        window = round(self._limits.window.total_seconds())
        return {
            "RateLimit-Policy": f'"token";q={self._limits.calls};w={window}',
            "RateLimit": f'"token";r={authenticated.left};t={ceil(authenticated.more_in.total_seconds())}',
        }


def bearer(request: web.Request) -> str:
    """The secret that the caller shows; '' where it shows none."""
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _account(token: Token, request: web.Request) -> AccountId:
    header = request.headers.get(ACCOUNT_HEADER)
    named = None if header is None else reading.account_id(header)
    if token.account_id is not None:
        if header is not None and named != token.account_id:
            raise Problem(403, "account_mismatch", f"{ACCOUNT_HEADER} names another account than the token's.")
        return token.account_id
    if named is None:
        detail = "A service token names the account it acts for here, a positive integer."
        raise invalid(FieldError(field=ACCOUNT_HEADER, detail=detail))
    return named


def _stranger(secret: str) -> Problem:
    if not secret:
        detail = "Send an access token: Authorization: Bearer TOKEN."
        return Problem(401, "token_missing", detail, headers={"WWW-Authenticate": _CHALLENGE})
    challenge = f'{_CHALLENGE}, error="invalid_token"'
    detail = "The access token is not valid: unknown, revoked or expired."
    return Problem(401, "token_invalid", detail, headers={"WWW-Authenticate": challenge})
