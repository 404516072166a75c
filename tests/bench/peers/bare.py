"""The baseline: an aiohttp handler with only one Lua call. `python -m tests.bench.peers.bare SOCKET PORT ACCOUNT`:
all calls belong to this account."""

import sys

import uvloop
from aiohttp import web

from tests.bench.peers.store import PeerStore, Refused

routes = web.RouteTableDef()
STORE = web.AppKey("store", PeerStore)
ACCOUNT = web.AppKey("account", str)
ROOT, JOBS = "/api/v1/snapshots/", "/api/v1/jobs/"


def followed(job: str) -> dict[str, str]:
    return {"Operation-Location": f"/api/v1/jobs/{job}/", "X-Job-Id": job}


@routes.post(ROOT)
async def create(request: web.Request) -> web.Response:
    given = await request.json()
    store, account = request.app[STORE], request.app[ACCOUNT]
    try:
        job, body = await store.create(account, given["server_id"], given["name"], given.get("description", ""))
    except Refused as refused:
        return web.json_response({"code": str(refused)}, status=400)
    return web.json_response(body, status=201, headers=followed(job))


@routes.post(f"{ROOT}{{id}}/restore/")
async def restore(request: web.Request) -> web.Response:
    try:
        job, body = await request.app[STORE].restore(request.app[ACCOUNT], request.match_info["id"])
    except Refused as refused:
        return web.json_response({"code": str(refused)}, status=400)
    return web.json_response(body, headers=followed(job))


@routes.delete(f"{ROOT}{{id}}/")
async def delete(request: web.Request) -> web.Response:
    try:
        job = await request.app[STORE].delete(request.app[ACCOUNT], request.match_info["id"])
    except Refused as refused:
        return web.json_response({"code": str(refused)}, status=409)
    return web.Response(status=204, headers=followed(job))


@routes.get(ROOT)
async def listed(request: web.Request) -> web.Response:
    query = request.query
    page, page_size = int(query.get("page", 1)), int(query.get("page_size", 100))
    return web.json_response(
        await request.app[STORE].page(request.app[ACCOUNT], query.get("server_id", ""), page, page_size)
    )


@routes.get(f"{ROOT}{{id}}/")
async def shown(request: web.Request) -> web.Response:
    try:
        return web.json_response(await request.app[STORE].show(request.app[ACCOUNT], request.match_info["id"]))
    except Refused as refused:
        return web.json_response({"code": str(refused)}, status=404)


@routes.get(JOBS)
async def jobs(request: web.Request) -> web.Response:
    page, page_size = int(request.query.get("page", 1)), int(request.query.get("page_size", 100))
    return web.json_response(await request.app[STORE].jobs(request.app[ACCOUNT], page, page_size))


@routes.get(f"{JOBS}{{id}}/")
async def job(request: web.Request) -> web.Response:
    try:
        return web.json_response(await request.app[STORE].job(request.app[ACCOUNT], request.match_info["id"]))
    except Refused as refused:
        return web.json_response({"code": str(refused)}, status=404)


async def application(socket: str, account: str) -> web.Application:
    app = web.Application()
    app[STORE], app[ACCOUNT] = PeerStore(socket), account
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(
        application(sys.argv[1], sys.argv[3]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )
