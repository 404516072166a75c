"""The calls of snapshots."""

import asyncio

from aiohttp import web

from api.http import reading
from api.http.answers import answer, page_answer
from api.http.callers import Entering
from api.http.calls import API, JOB_HEADERS, Link, Phrase, Reply, Table
from api.http.consistency import is_live
from api.http.marks import MADE, REQUEST_ID, SERVER_ID
from api.http.reading import in_path
from api.jobs.bodies import job as job_body
from api.jobs.bodies import job_headers
from api.jobs.calls import FOLLOW, JOB_OF_HEADER, TO_CHANGE
from api.settings import Live
from api.snapshots import bodies, examples
from api.snapshots.bodies import SNAPSHOT_ID, CreateBody, DryRunQuery, EditBody, ListQuery, RestoreQuery
from worker.store import errors
from worker.store.access.tokens import Permission
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import Job

FULL = (errors.StoreNearlyFull, errors.TooManyDryRuns)
CHECK_POLLS, CHECK_POLL_SECONDS = 100, 0.05  # the checks take 0.02 s for two disks if the node is idle

SNAPSHOTS = f"{API}snapshots/"
ONE_SNAPSHOT = f"{SNAPSHOTS}{{snapshot_id}}/"

SNAPSHOT_OF_BODY = {"snapshot_id": "$response.body#/id"}
SHOW = Link("show_snapshot", SNAPSHOT_OF_BODY, "Show the snapshot.")
RESTORE = Link("restore_snapshot", SNAPSHOT_OF_BODY, "Restore it, once it is completed.")
DELETE = Link("delete_snapshot", SNAPSHOT_OF_BODY, "Delete it.")
UNDO = Link("undo_restore", JOB_OF_HEADER, "Undo the restore, once it is completed.")

DRY_RUN_DONE = "`completed`, or `failed` with the error that the real job would end with."
DRY_RUN_WAITS = "Dry run: the node is busy and will run the checks later; follow the job."

call: Table[Entering] = Table("snapshots", SNAPSHOT_ID, about="The snapshots of an account's servers.")


class SnapshotCalls:
    def __init__(self, store: CustomerStore, *, live: Live = Live.REFUSED) -> None:
        self._store = store
        self._live = live

    @call(
        f"GET {SNAPSHOTS}",
        Reply(
            200,
            {"two_snapshots": examples.SNAPSHOTS},
            "One page of the list.",
            links=(Link("show_snapshot", {"snapshot_id": "$response.body#/results/0/id"}, "Show the newest."),),
        ),
        query=ListQuery,
    )
    async def list_snapshots(self, request: web.Request, caller: Entering) -> web.Response:
        """List snapshots.

        Lists the account's snapshots, all or those of one server; newest first unless `sort` is given.
        """
        query = reading.query(request, ListQuery)
        page = await self._store.listed(
            account_id=caller, wanted=query.filter, offset=query.offset, limit=query.page_size
        )
        return page_answer(request, query, page, bodies.snapshot)

    @call(
        f"POST {SNAPSHOTS}",
        Reply(
            201,
            {"in_progress": examples.CREATED},
            "The snapshot is being created; follow the job.",
            headers=("Location", *JOB_HEADERS),
            links=(FOLLOW, SHOW, RESTORE, DELETE),
        ),
        Reply(
            200,
            {"checked": examples.CHECKED},
            f"Dry run: the job of the checks, {DRY_RUN_DONE}",
            headers=JOB_HEADERS,
            links=(FOLLOW,),
        ),
        Reply(202, {"waits": examples.CHECK_WAITS}, DRY_RUN_WAITS, headers=JOB_HEADERS, links=(FOLLOW,)),
        query=DryRunQuery,
        body={"before_update": examples.CREATE},
        refusals=(errors.ServerNotFound, errors.SnapshotLimitReached, errors.NameTaken, *FULL, *TO_CHANGE),
        permission=Permission.SNAPSHOTS_CREATE,
        audit=Phrase("created {made} of {server}", "create a snapshot of {server}"),
    )
    async def create_snapshot(self, request: web.Request, caller: Entering) -> web.Response:
        """Create a snapshot.

        The server is stopped, its disks are snapshotted, and the server is started again if it was running. With
        `"consistency": "live"` it is not stopped, if the provider allows that. A server has at most `snapshots_max`
        snapshots, usually 5; failed ones do not count.
        """
        body = await reading.body(request, CreateBody, if_too_large=reading.too_large_to_be_valid)
        request[SERVER_ID] = body.server_id
        live = is_live(body.consistency, self._live)
        if reading.query(request, DryRunQuery).dry_run:
            check = await self._store.check_create(
                account_id=caller,
                server_id=body.server_id,
                name=body.name,
                live=live,
                request_id=request[REQUEST_ID],
                idempotency=reading.idempotency(request, body),
            )
            return await self._checked(caller, check)
        admitted = await self._store.create(
            account_id=caller,
            server_id=body.server_id,
            name=body.name,
            description=body.description or "",
            live=live,
            request_id=request[REQUEST_ID],
            idempotency=reading.idempotency(request, body),
        )
        request[MADE] = f"snapshot {admitted.snapshot.id}"
        return answer(bodies.created(admitted), status=201, headers=bodies.admitted_headers(admitted))

    @call(
        f"GET {ONE_SNAPSHOT}",
        Reply(200, {"completed": examples.DETAILS}, "The snapshot.", links=(RESTORE, DELETE)),
        refusals=(errors.SnapshotNotFound,),
    )
    async def show_snapshot(self, request: web.Request, caller: Entering) -> web.Response:
        """Show a snapshot.

        A failed snapshot is kept for 7 days or until it is deleted.
        """
        snapshot_id = in_path(request, SNAPSHOT_ID)
        return answer(bodies.details(await self._store.snapshot(account_id=caller, snapshot_id=snapshot_id)))

    @call(
        f"PATCH {ONE_SNAPSHOT}",
        Reply(200, {"edited": examples.DETAILS}, "The changed snapshot."),
        body={"protect": examples.EDIT},
        refusals=(errors.SnapshotNotFound, errors.StoreNearlyFull),
        audit=Phrase("changed {snapshot}", "change {snapshot}"),
    )
    async def edit_snapshot(self, request: web.Request, caller: Entering) -> web.Response:
        """Edit a snapshot.

        Changes its description, labels, expiry and protection.
        """
        body = await reading.body(request, EditBody)
        edited = await self._store.edit(
            account_id=caller,
            snapshot_id=in_path(request, SNAPSHOT_ID),
            edit=body.edit,
            request_id=request[REQUEST_ID],
        )
        return answer(bodies.details(edited))

    @call(
        f"DELETE {ONE_SNAPSHOT}",
        Reply(
            204,
            text="The snapshot is gone. The headers name the job that frees its space, if its server still exists.",
            headers=JOB_HEADERS,
        ),
        refusals=(errors.SnapshotNotFound, errors.SnapshotProtected, errors.NodeUnavailable, errors.ServerBusy),
        permission=Permission.SNAPSHOTS_DELETE,
        audit=Phrase("deleted {snapshot}", "delete {snapshot}"),
    )
    async def delete_snapshot(self, request: web.Request, caller: Entering) -> web.Response:
        """Delete a snapshot.

        This cannot be undone. The snapshot is gone at once; its node frees the space. A running server is not stopped.
        """
        job = await self._store.delete(
            account_id=caller, snapshot_id=in_path(request, SNAPSHOT_ID), request_id=request[REQUEST_ID]
        )
        return web.Response(status=204, headers=job_headers(job.id) if job else {})

    @call(
        f"POST {ONE_SNAPSHOT}restore/",
        Reply(
            200,
            {"restoring": examples.RESTORING, "checked": examples.CHECKED_RESTORE},
            f"The server is being restored; follow the job. Dry run: the job of the checks, {DRY_RUN_DONE}",
            headers=("Location", *JOB_HEADERS),
            links=(FOLLOW, UNDO),
        ),
        Reply(202, {"waits": examples.CHECK_RESTORE_WAITS}, DRY_RUN_WAITS, headers=JOB_HEADERS, links=(FOLLOW,)),
        query=RestoreQuery,
        refusals=(errors.SnapshotNotFound, errors.SnapshotNotReady, *FULL, *TO_CHANGE),
        permission=Permission.SNAPSHOTS_RESTORE,
        audit=Phrase("restored {snapshot}", "restore {snapshot}"),
    )
    async def restore_snapshot(self, request: web.Request, caller: Entering) -> web.Response:
        """Restore a server from a snapshot.

        Overwrites all current data of the server. The server is stopped first, and started again if it was running. The
        overwritten data is kept for 24 hours, for an undo. If the server's disks differ from those of the snapshot, the
        job fails with `disks_differ` before it stops the server; with `disks=present` it restores the disks that
        exist. Takes no body, or `{}`.
        """
        query, snapshot_id = reading.query(request, RestoreQuery), in_path(request, SNAPSHOT_ID)
        if query.dry_run:
            check = await self._store.check_restore(
                account_id=caller,
                snapshot_id=snapshot_id,
                request_id=request[REQUEST_ID],
                present_only=query.present_only,
                idempotency=reading.idempotency(request),
            )
            return await self._checked(caller, check)
        admitted = await self._store.restore(
            account_id=caller,
            snapshot_id=snapshot_id,
            request_id=request[REQUEST_ID],
            present_only=query.present_only,
            idempotency=reading.idempotency(request),
        )
        return answer(bodies.restoring(admitted), headers=bodies.admitted_headers(admitted))

    async def _checked(self, caller: Entering, check: Job) -> web.Response:
        """Returns 200 with the job of a dry run once it has ended, or 202 if the node takes longer than a few
        seconds."""
        for _ in range(CHECK_POLLS):
            if check.state.is_final:
                return answer(job_body(check), headers=job_headers(check.id))
            await asyncio.sleep(CHECK_POLL_SECONDS)
            check = await self._store.job(account_id=caller, job_id=check.id)
        return answer(job_body(check), status=202, headers=job_headers(check.id))
