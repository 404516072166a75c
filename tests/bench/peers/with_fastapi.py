"""FastAPI and uvicorn: a body that pydantic validates, a token lookup in Redis, and the Lua call of the baseline.
`python -m tests.bench.peers.with_fastapi SOCKET PORT`."""

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field

from tests.bench.peers.store import PeerStore, Refused

ROOT = "/api/v1/snapshots/"

app = FastAPI(openapi_url=None)
store: PeerStore


class CreateBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    server_id: Annotated[int, Field(ge=1)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=1000)] = ""


class Server(BaseModel):
    id: int
    name: str


class Created(BaseModel):
    id: int
    server: Server
    name: str
    status: str
    size_mb: int | None
    created_at: str
    description: str
    message: str


class Restored(BaseModel):
    status: str
    message: str
    snapshot: dict[str, Any]
    server: dict[str, Any]


async def caller(authorization: Annotated[str, Header()] = "") -> str:
    account = await store.account_of(authorization.removeprefix("Bearer "))
    if account is None:
        raise HTTPException(401, "token_invalid")
    return account


Account = Annotated[str, Depends(caller)]


def follow(response: Response, job: str) -> None:
    response.headers["Operation-Location"] = f"/api/v1/jobs/{job}/"
    response.headers["X-Job-Id"] = job


@app.post(ROOT, status_code=201)
async def create(body: CreateBody, account: Account, response: Response) -> Created:
    try:
        job, made = await store.create(account, body.server_id, body.name, body.description)
    except Refused as refused:
        raise HTTPException(400, str(refused)) from refused
    follow(response, job)
    return Created(**made)


@app.post(f"{ROOT}{{snapshot_id}}/restore/")
async def restore(snapshot_id: int, account: Account, response: Response) -> Restored:
    try:
        job, made = await store.restore(account, str(snapshot_id))
    except Refused as refused:
        raise HTTPException(400, str(refused)) from refused
    follow(response, job)
    return Restored(**made)


@app.delete(f"{ROOT}{{snapshot_id}}/", status_code=204)
async def delete(snapshot_id: int, account: Account, response: Response) -> None:
    try:
        job = await store.delete(account, str(snapshot_id))
    except Refused as refused:
        raise HTTPException(409, str(refused)) from refused
    follow(response, job)


if __name__ == "__main__":
    store = PeerStore(sys.argv[1])
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
