"""The calls of servers: those of customers, and those of operators."""

from aiohttp import web

from api.http import reading
from api.http.answers import answer, cursor_answer
from api.http.callers import Entering
from api.http.calls import API, FOR_OPERATORS, OPS, Phrase, Reply, Table, links
from api.http.consistency import allowed
from api.http.fields import SERVER_ID
from api.http.marks import ACCOUNT, MADE
from api.http.reading import in_path, operator_key
from api.servers import bodies, examples
from api.servers.bodies import AccountBody, NodeBody, OpsServersQuery, PlacementBody, ServerEdit
from api.settings import Live
from worker.store import errors
from worker.store.access.tokens import Token
from worker.store.calls import Cursor
from worker.store.customers.customer_store import CustomerStore, SnapshotFilter
from worker.store.model import SNAPSHOTS_PER_SERVER_MOST
from worker.store.operators.operator_store import JobFilter, OperatorStore

ONE_SERVER = f"{OPS}servers/{{server_id}}/"
LATEST_JOBS = Cursor(limit=100)
SNAPSHOTS_MAX = 2 * SNAPSHOTS_PER_SERVER_MOST  # includes failed ones

call: Table[Entering] = Table("servers", SERVER_ID, about="The state of servers that matters for snapshots.")
ops_call: Table[Token] = Table("operators", SERVER_ID, **FOR_OPERATORS)


class ServerCalls:
    """`live`: whether the provider allows snapshots of running servers."""

    def __init__(self, store: CustomerStore, *, live: Live = Live.REFUSED) -> None:
        self._store = store
        self._live = live

    @call(
        f"GET {API}servers/{{server_id}}/",
        Reply(200, {"restoring": examples.SERVER}, "The server."),
        refusals=(errors.ServerNotFound,),
    )
    async def show_server(self, request: web.Request, caller: Entering) -> web.Response:
        """Show a server.

        Shows its current status, how many snapshots it has, and whether it accepts new jobs.
        """
        found = await self._store.server(account_id=caller, server_id=in_path(request, SERVER_ID))
        return answer(bodies.server(found))

    @call(
        f"PATCH {API}servers/{{server_id}}/",
        Reply(200, {"restoring": examples.SERVER}, "The changed server."),
        body={"live": examples.EDIT},
        refusals=(errors.ServerNotFound,),
        audit=Phrase("changed the settings of {server}", "change {server}"),
    )
    async def edit_server(self, request: web.Request, caller: Entering) -> web.Response:
        """Edit a server.

        Sets the server's labels, by which schedules can select it, and whether creates stop the server by default. A
        schedule keeps its own value.
        """
        body = await reading.body(request, ServerEdit)
        if body.consistency is not None:
            allowed(body.consistency, self._live)
        edited = await self._store.edit_server(
            account_id=caller,
            server_id=in_path(request, SERVER_ID),
            consistency=(body.consistency or "") if "consistency" in body.model_fields_set else None,
            labels=body.labels,
        )
        return answer(bodies.server(edited))


class OpsServerCalls:
    def __init__(self, operators: OperatorStore, store: CustomerStore) -> None:
        self._operators = operators
        self._store = store

    @ops_call(
        f"GET {OPS}servers/",
        Reply(
            200,
            {"servers": examples.OPS_SERVERS},
            links=links("ops_show_server", server_id="$response.body#/results/0/id"),
        ),
        query=OpsServersQuery,
    )
    async def ops_list_servers(self, request: web.Request, _: Token) -> web.Response:
        """List all servers.

        Sorted by ID; with `stranded` or `off`, by how long the servers have been in that state, longest first.
        """
        query = reading.query(request, OpsServersQuery)
        page = await self._operators.servers(
            node=query.node,
            account_id=query.account_id,
            stranded=query.stranded,
            off=query.off,
            cursor=query.cursor,
            without_snapshot_of=query.without_snapshot_of,
        )
        return cursor_answer(request, page, bodies.OpsServerList, bodies.ops_server)

    @ops_call(
        f"GET {ONE_SERVER}",
        Reply(200, {"server_details": examples.OPS_DETAILS}),
        refusals=(errors.ServerNotFound,),
    )
    async def ops_show_server(self, request: web.Request, _: Token) -> web.Response:
        """Show any server.

        Shows the server with its snapshots and its latest jobs, including those of former owners.
        """
        server_id = in_path(request, SERVER_ID)
        found = await self._operators.server(server_id)
        snapshots = await self._store.snapshots(
            account_id=found.view.server.account_id,
            wanted=SnapshotFilter(server_id=server_id),
            offset=0,
            limit=SNAPSHOTS_MAX,
        )
        latest = await self._operators.jobs(JobFilter(server_id=server_id), LATEST_JOBS)
        return answer(bodies.ops_server_details(found, snapshots, latest))

    @ops_call(
        f"PUT {ONE_SERVER}",
        Reply(200, {"server": examples.OPS_SERVER}),
        body={"placement": examples.PLACEMENT},
        refusals=(errors.ServerNotFound, errors.NodeNotFound, errors.ServerOnLiveNode, errors.ServerBusy),
        audit=Phrase("declared {server} on {made}, of {account}", "declare {server} on {made}"),
    )
    async def ops_declare_server(self, request: web.Request, _: Token) -> web.Response:
        """Declare a server.

        Declares that the server exists, on which node it is, and which account owns it. It is `missing` until its node
        reports it. For a known server, this changes the node and the account, like the two calls below.
        """
        body = await reading.body(request, PlacementBody)
        request[ACCOUNT], request[MADE] = body.account_id, f"node {body.node}"
        server_id = in_path(request, SERVER_ID)
        placed = await self._operators.place(server_id, node=body.node, account_id=body.account_id)
        return answer(bodies.ops_server(placed))

    @ops_call(
        f"PUT {ONE_SERVER}node/",
        Reply(200, {"server": examples.OPS_SERVER}),
        body={"to_node": examples.TO_NODE},
        refusals=(errors.ServerNotFound, errors.NodeNotFound, errors.ServerOnLiveNode),
        audit=Phrase("placed {server} on {made}", "place {server} on {made}"),
    )
    async def ops_place_server(self, request: web.Request, _: Token) -> web.Response:
        """Place a server on another node.

        Assigns a server to another node after its own has failed. Its unfinished job fails. A migration does not
        need this call: the server moves when its node no longer reports it.
        """
        body = await reading.body(request, NodeBody)
        request[MADE] = f"node {body.node}"
        return answer(bodies.ops_server(await self._operators.place(in_path(request, SERVER_ID), node=body.node)))

    @ops_call(
        f"PUT {ONE_SERVER}account/",
        Reply(200, {"server": examples.OPS_SERVER}),
        body={"to_account": examples.TO_ACCOUNT},
        refusals=(errors.ServerNotFound, errors.ServerBusy),
        audit=Phrase("gave {server} to {account}", "give {server} to {account}"),
    )
    async def ops_give_server(self, request: web.Request, _: Token) -> web.Response:
        """Give a server to another account.

        Its snapshots move with it; its schedules are deleted. Its node writes the account into the domain.
        """
        body = await reading.body(request, AccountBody)
        request[ACCOUNT] = body.account_id
        given = await self._operators.place(in_path(request, SERVER_ID), account_id=body.account_id)
        return answer(bodies.ops_server(given))

    @ops_call(
        f"POST {ONE_SERVER}take/",
        Reply(200, {"taken": examples.TAKEN}),
        refusals=(errors.ServerNotFound, errors.ServerNotStranded),
        audit=Phrase("took {server} to repair it", "take {server} to repair it"),
    )
    async def ops_take_server(self, request: web.Request, token: Token) -> web.Response:
        """Take a stranded server.

        Tells the other operators who repairs it, until it is resolved. Replaces whoever took it before. Takes no body,
        or `{}`.
        """
        server_id, key = in_path(request, SERVER_ID), operator_key(request, token)
        return answer(bodies.ops_server(await self._operators.take(server_id, by=token.name, idempotency=key)))

    @ops_call(
        f"POST {ONE_SERVER}release/",
        Reply(200, {"server": examples.OPS_SERVER}),
        refusals=(errors.ServerNotFound, errors.ServerNotStranded),
        audit=Phrase("released {server}", "release {server}"),
    )
    async def ops_release_server(self, request: web.Request, token: Token) -> web.Response:
        """Release a stranded server.

        Nobody is repairing it then, and another operator can take it. Takes no body, or `{}`.
        """
        server_id, key = in_path(request, SERVER_ID), operator_key(request, token)
        return answer(bodies.ops_server(await self._operators.release(server_id, idempotency=key)))
