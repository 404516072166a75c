"""The calls of schedules."""

from aiohttp import web

from api.http import reading
from api.http.answers import answer, cursor_answer, page_answer
from api.http.callers import Caller
from api.http.calls import API, FOR_OPERATORS, OPS, Link, Phrase, Reply, Table, links
from api.http.consistency import Choice, is_live
from api.http.marks import MADE, SERVER_ID
from api.http.problems import FieldError, invalid
from api.http.reading import in_path
from api.schedules import bodies, examples
from api.schedules.bodies import (
    SCHEDULE_ID,
    CoveredQuery,
    OpsSchedulesQuery,
    ScheduleBody,
    ScheduleEditBody,
    SchedulesQuery,
)
from api.settings import Live
from worker.store import errors
from worker.store.access.tokens import Token
from worker.store.operators.operator_store import OperatorStore
from worker.store.schedules.schedules import Schedules, ScheduleSpec
from worker.store.schedules.timing import BadCron

SCHEDULES = f"{API}schedules/"
ONE_SCHEDULE = f"{SCHEDULES}{{schedule_id}}/"
OWN = {"schedule_id": "$response.body#/id"}

call: Table[Caller] = Table("schedules", SCHEDULE_ID, about="Snapshots that are created automatically.")
ops_call: Table[Token] = Table("operators", **FOR_OPERATORS)


class ScheduleCalls:
    def __init__(self, schedules: Schedules, *, live: Live = Live.REFUSED) -> None:
        self._schedules = schedules
        self._live = live

    @call(
        f"GET {SCHEDULES}", Reply(200, {"nightly": examples.SCHEDULES}, "One page of the list."), query=SchedulesQuery
    )
    async def list_schedules(self, request: web.Request, caller: Caller) -> web.Response:
        """List schedules.

        Lists the account's schedules, newest first: all of single servers, those of one server, or, with
        `target=labels`, those by label.
        """
        query = reading.query(request, SchedulesQuery)
        page = await self._schedules.page(
            account_id=caller.account_id,
            server_id=query.server_id,
            by_label=query.target == "labels",
            offset=query.offset,
            limit=query.page_size,
        )
        return page_answer(request, query, page, bodies.schedule)

    @call(
        f"POST {SCHEDULES}",
        Reply(
            201,
            {"nightly": examples.SCHEDULE},
            "The schedule.",
            headers=("Location",),
            links=(
                Link("show_schedule", OWN, "Show it."),
                Link("edit_schedule", OWN, "Change it."),
                Link("delete_schedule", OWN, "Delete it."),
            ),
        ),
        body={"nightly": examples.NIGHTLY, "by_label": examples.BY_LABEL},
        refusals=(errors.ServerNotFound, errors.ScheduleLimitReached, errors.KeepAboveLimit, errors.StoreNearlyFull),
        audit=Phrase("created {made}", "create a schedule"),
    )
    async def create_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        """Create a schedule.

        Each run creates a snapshot of the server, or of each server that has all of `server_labels` when the window
        begins. If a server has reached its limit of snapshots, the oldest one that a schedule created is deleted
        first, but never one that was created by hand or is protected. The schedule keeps its newest `keep` snapshots
        of each server.
        """
        body = await reading.body(request, ScheduleBody)
        if body.server_id is not None:
            request[SERVER_ID] = body.server_id
        created = await self._schedules.create(
            account_id=caller.account_id,
            server_id=body.server_id,
            spec=_checked(body.spec(live=self._is_live(body.consistency))),
            idempotency=reading.idempotency(request, body),
        )
        request[MADE] = f"schedule {created.id}"
        return answer(bodies.schedule(created), status=201, headers={"Location": f"{SCHEDULES}{created.id}/"})

    @call(
        f"GET {ONE_SCHEDULE}",
        Reply(200, {"nightly": examples.SCHEDULE}, "The schedule."),
        refusals=(errors.ScheduleNotFound,),
    )
    async def show_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        """Show a schedule.

        Shows a schedule with its next run and the result of its last run.
        """
        schedule_id = in_path(request, SCHEDULE_ID)
        return answer(bodies.schedule(await self._schedules.one(account_id=caller.account_id, schedule_id=schedule_id)))

    @call(
        f"PATCH {ONE_SCHEDULE}",
        Reply(200, {"nightly": examples.SCHEDULE}, "The changed schedule."),
        body={"keep_less": examples.KEEP_LESS},
        refusals=(errors.ScheduleNotFound, errors.KeepAboveLimit),
        audit=Phrase("changed {schedule}", "change {schedule}"),
    )
    async def edit_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        """Edit a schedule.

        Omitted fields keep their values.
        """
        body, schedule_id = await reading.body(request, ScheduleEditBody), in_path(request, SCHEDULE_ID)
        live = None if body.consistency is None else self._is_live(body.consistency)
        before = await self._schedules.one(account_id=caller.account_id, schedule_id=schedule_id)
        if body.server_labels and before.server_id is not None:
            raise invalid(FieldError(field="server_labels", detail="This schedule is of one server."))
        try:
            changed = await self._schedules.change(before, _checked(body.applied(before.spec, live=live)))
        except BadCron as error:
            text = f"This version does not support the current value, {before.spec.when}. Set another. ({error}.)"
            raise invalid(FieldError(field="when", detail=text)) from error
        return answer(bodies.schedule(changed))

    @call(
        f"GET {ONE_SCHEDULE}servers/",
        Reply(200, {"nightly": examples.COVERED}),
        query=CoveredQuery,
        refusals=(errors.ScheduleNotFound,),
    )
    async def list_schedule_servers(self, request: web.Request, caller: Caller) -> web.Response:
        """List the servers of a schedule.

        The servers that it covers now, by ID, each with its run in the current or latest window.
        """
        query, schedule_id = reading.query(request, CoveredQuery), in_path(request, SCHEDULE_ID)
        page = await self._schedules.servers(account_id=caller.account_id, schedule_id=schedule_id, cursor=query.cursor)
        return cursor_answer(request, page, bodies.CoveredServerList, bodies.covered)

    @call(
        f"DELETE {ONE_SCHEDULE}",
        Reply(204, text="The schedule is gone."),
        refusals=(errors.ScheduleNotFound,),
        audit=Phrase("deleted {schedule}", "delete {schedule}"),
    )
    async def delete_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        """Delete a schedule.

        Its snapshots are kept.
        """
        await self._schedules.drop(account_id=caller.account_id, schedule_id=in_path(request, SCHEDULE_ID))
        return web.Response(status=204)

    def _is_live(self, asked: Choice | None) -> bool:
        """Whether its snapshots are live. Decided when the schedule is created: a schedule keeps its value."""
        live = is_live(asked, self._live)
        return self._live is Live.DEFAULT if live is None else live


def _checked(spec: ScheduleSpec) -> ScheduleSpec:
    """A schedule whose window fits between its runs. Raises Problem, or BadCron if this version does not know its
    `when`."""
    if wrong := bodies.wrong_window(spec):
        raise invalid(FieldError(field="window_minutes", detail=wrong))
    return spec


class OpsScheduleCalls:
    def __init__(self, operators: OperatorStore) -> None:
        self._operators = operators

    @ops_call(
        f"GET {OPS}schedules/",
        Reply(
            200,
            {"schedules": examples.OPS_SCHEDULES},
            links=links("ops_show_server", server_id="$response.body#/results/0/server/id"),
        ),
        query=OpsSchedulesQuery,
    )
    async def ops_list_schedules(self, request: web.Request, _: Token) -> web.Response:
        """List all schedules.

        Lists the enabled schedules of all accounts, sorted by their next run.
        """
        query = reading.query(request, OpsSchedulesQuery)
        page = await self._operators.schedules(
            account_id=query.account_id, server_id=query.server_id, cursor=query.cursor, target=query.target
        )
        return cursor_answer(request, page, bodies.OpsScheduleList, bodies.ops_schedule)
