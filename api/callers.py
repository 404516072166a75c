"""Who calls: from the request's token to the account it acts for."""

from dataclasses import dataclass

from aiohttp import web
from structlog.contextvars import bind_contextvars

from api import requests
from api.problems import FieldError, Problem, invalid
from worker.jobs.model import AccountId
from worker.jobs.tokens import Permission, Token, Tokens

ACCOUNT_HEADER = "X-Account-Id"
_CHALLENGE = 'Bearer realm="vps-snapshots"'


@dataclass(frozen=True, kw_only=True)
class Caller:
    account_id: AccountId
    token: Token


class Callers:
    """Lets in whom a token lets in."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def identify(self, request: web.Request, permission: Permission) -> Caller:
        """The caller, with that permission. Raises Problem (400, 401, 403) or StoreUnavailable."""
        token = await self._token(request)
        bind_contextvars(token=token.id, token_name=token.name)
        if permission not in token.permissions:
            raise Problem(403, "permission_denied", f"The token lacks the permission {permission}.")
        account_id = _account(token, request)
        bind_contextvars(account=account_id)
        return Caller(account_id=account_id, token=token)

    async def still(self, request: web.Request, permission: Permission) -> bool:
        """Whether a caller that was let in would be let in again. Raises StoreUnavailable."""
        try:
            await self.identify(request, permission)
        except Problem:
            return False
        return True

    async def _token(self, request: web.Request) -> Token:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            detail = "Send an access token: Authorization: Bearer TOKEN."
            raise Problem(401, "token_missing", detail, headers={"WWW-Authenticate": _CHALLENGE})
        token = await self._tokens.find(secret.strip())
        if token is None:
            challenge = f'{_CHALLENGE}, error="invalid_token"'
            detail = "The access token is not valid: unknown, revoked or expired."
            raise Problem(401, "token_invalid", detail, headers={"WWW-Authenticate": challenge})
        return token


def _account(token: Token, request: web.Request) -> AccountId:
    header = request.headers.get(ACCOUNT_HEADER)
    named = None if header is None else requests.account_id(header)
    if token.account_id is not None:
        if header is not None and named != token.account_id:
            raise Problem(403, "account_mismatch", f"{ACCOUNT_HEADER} names another account than the token's.")
        return token.account_id
    if named is None:
        detail = "A service token names the account it acts for here, a positive integer."
        raise invalid(FieldError(field=ACCOUNT_HEADER, detail=detail))
    return named
