"""The caller of a request, from its token and its X-Account-Id."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from aiohttp import web
from structlog.contextvars import bind_contextvars

from api.http import addresses, reading
from api.http.addresses import Network
from api.http.marks import ACCOUNT, ALLOWANCE, TOKEN
from api.http.problems import FieldError, Problem, invalid, rate_limited, unauthenticated
from worker.store.access.tokens import OPERATORS, Authenticated, Limits, Permission, Token, Tokens
from worker.store.model import AccountId

ACCOUNT_HEADER = "X-Account-Id"


@dataclass(frozen=True, kw_only=True)
class Caller:
    account_id: AccountId
    token: Token


class Callers:
    """Authenticates callers by their tokens."""

    def __init__(self, tokens: Tokens, limits: Limits, *, trusted_proxies: Sequence[Network]) -> None:
        self._tokens = tokens
        self._limits = limits
        self._trusted_proxies = trusted_proxies

    async def identify(self, request: web.Request, permission: Permission) -> Caller:
        """The caller, if the token has that permission. Raises Problem (400, 401, 403, 429) or StoreUnavailable."""
        token = await self._allowed(request, permission)
        account_id = _account(token, request)
        bind_contextvars(account=account_id)
        request[ACCOUNT] = account_id
        return Caller(account_id=account_id, token=token)

    async def operator(self, request: web.Request, permission: Permission) -> Token:
        """The token of an operator, who acts for no account. Raises what `identify` raises."""
        token = await self._allowed(request, permission)
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

    async def _allowed(self, request: web.Request, permission: Permission) -> Token:
        token = await self._token(request)
        if not token.allows(permission):
            raise Problem(403, "permission_denied", f"The token lacks the permission {permission}.")
        return token

    async def _token(self, request: web.Request) -> Token:
        for header in ("Authorization", ACCOUNT_HEADER):
            if len(request.headers.getall(header, [])) > 1:  # two parts of a proxy chain may read different ones
                raise invalid(FieldError(field=header, detail="Send it once."))
        return await self.authenticate(request, bearer(request))

    async def authenticate(self, request: web.Request, secret: str) -> Token:
        """The token with that secret. Raises Problem (401, 429) or StoreUnavailable."""
        named = reading.account_id(request.headers.get(ACCOUNT_HEADER, ""))
        home = addresses.home(self.address(request))
        authenticated = await self._tokens.authenticate(secret, address=home, named=named, limits=self._limits)
        token = authenticated.token
        if token is not None:
            request[ALLOWANCE] = self._allowance(authenticated)
        if not authenticated.allowed:
            which = "with this token" if token else "without a valid token from this address"
            raise rate_limited(which, authenticated.more_in)
        if token is None:
            raise unauthenticated(secret)
        bind_contextvars(token=token.id, token_name=token.name)
        request[TOKEN] = token
        return token

    def _allowance(self, authenticated: Authenticated) -> dict[str, str]:
        """The headers of draft-ietf-httpapi-ratelimit-headers-10."""
        window = round(self._limits.window.total_seconds())
        return {
            "RateLimit-Policy": f'"token";q={self._limits.calls};w={window}',
            "RateLimit": f'"token";r={authenticated.left};t={ceil(authenticated.more_in.total_seconds())}',
        }


def bearer(request: web.Request) -> str:
    """The secret of the Authorization header; '' if there is none."""
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
        detail = "Required with a service token: the account that it acts for, a positive integer."
        raise invalid(FieldError(field=ACCOUNT_HEADER, detail=detail))
    return named
