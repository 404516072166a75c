"""The calls of the credentials of nodes, for operators."""

from aiohttp import web

from api.credentials import bodies, examples
from api.credentials.bodies import CredentialBody, RotationBody
from api.http import reading
from api.http.answers import answer
from api.http.callers import bearer
from api.http.calls import FOR_OPERATORS, OPS, Phrase, Reply, Table, links
from api.http.fields import NODE
from api.http.marks import MADE
from api.http.reading import in_path, operator_key
from worker.store import errors
from worker.store.access.credentials import Credentials, NewCredential
from worker.store.access.tokens import Token

CREDENTIALS = f"{OPS}nodes/{{node}}/credentials/"
NEXT = links("ops_rotate_credential", "ops_revoke_credentials", "ops_list_credentials", node="$response.body#/node")

call: Table[Token] = Table("operators", NODE, **FOR_OPERATORS)


class CredentialCalls:
    """A node needs no record to get a credential, because it has a record only after its first report."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    @call(f"GET {CREDENTIALS}", Reply(200, {"one": examples.CREDENTIALS}), refusals=(errors.NodeNotFound,))
    async def ops_list_credentials(self, request: web.Request, _: Token) -> web.Response:
        """List a node's credentials.

        The valid credentials, without their secrets. An unknown node has none.
        """
        return answer(bodies.credentials(await self._credentials.all(in_path(request, NODE))))

    @call(
        f"POST {CREDENTIALS}",
        Reply(201, {"new": examples.NEW}, links=NEXT),
        body={"ninety_days": examples.CREATE},
        refusals=(errors.NodeNotFound, errors.CredentialExists),
        audit=Phrase("created {made} for {node}", "create a credential for {node}"),
    )
    async def ops_create_credential(self, request: web.Request, token: Token) -> web.Response:
        """Create a node's credential.

        Creates the node's first credential; the node need not have reported yet. The secret is shown only in this
        response.
        """
        node, body = in_path(request, NODE), await reading.body(request, CredentialBody)
        key = operator_key(request, token, body)
        new = await self._credentials.create(node, lifetime=body.lifetime, idempotency=key, seed=bearer(request))
        return _shown_once(request, new)

    @call(
        f"POST {CREDENTIALS}rotate/",
        Reply(201, {"new": examples.NEW}, links=NEXT),
        body={"ninety_days": examples.ROTATE},
        refusals=(errors.NodeNotFound, errors.CredentialNotFound),
        audit=Phrase("created {made} for {node}", "create a credential for {node}"),
    )
    async def ops_rotate_credential(self, request: web.Request, token: Token) -> web.Response:
        """Rotate a node's credential.

        Creates another credential; the former one ends after the overlap. Without `lifetime_hours`, the new one does
        not expire, even if the former one did. The secret is shown only in this response.
        """
        node, body = in_path(request, NODE), await reading.body(request, RotationBody)
        new = await self._credentials.rotate(
            node,
            lifetime=body.lifetime,
            overlap=body.overlap,
            idempotency=operator_key(request, token, body),
            seed=bearer(request),
        )
        return _shown_once(request, new)

    @call(
        f"DELETE {CREDENTIALS}",
        Reply(204, text="The credentials are revoked."),
        refusals=(errors.NodeNotFound, errors.CredentialNotFound),
        audit=Phrase("revoked the credentials of {node}", "revoke the credentials of {node}"),
    )
    async def ops_revoke_credentials(self, request: web.Request, _: Token) -> web.Response:
        """Revoke a node's credentials.

        Revokes all of them. Every gateway closes the node's connections within a second. Jobs that the node has started
        continue.
        """
        node = in_path(request, NODE)
        if not await self._credentials.revoke(node):
            raise errors.CredentialNotFound(f"Node {node} has no valid credential.")
        return web.Response(status=204)


def _shown_once(request: web.Request, new: NewCredential) -> web.Response:
    request[MADE] = f"credential {new.credential.id}"
    return answer(bodies.new_credential(new), status=201, headers={"Cache-Control": "no-store"})
