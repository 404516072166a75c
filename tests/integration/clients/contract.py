"""The contract's four calls with Python's requests: contract.py URL TOKEN SERVER_ID."""

import json
import sys
import time
from typing import Any

import requests


def answered(response: requests.Response) -> list[Any]:
    return [response.status_code, response.json() if response.content else None]


def run(url: str, token: str, server_id: int) -> dict[str, Any]:
    with requests.Session() as session:
        session.headers.update({"Authorization": f"Bearer {token}", "Content-Type": "application/json"})

        def call(method: str, path: str, **options: Any) -> requests.Response:
            return session.request(method, f"{url}/api/v1/{path}", timeout=60, **options)

        def follow(response: requests.Response) -> None:
            while call("GET", f"jobs/{response.headers['X-Job-Id']}/").json()["state"] not in {"completed", "failed"}:
                time.sleep(0.05)

        create = call("POST", "snapshots/", json={"server_id": server_id, "name": "by-hand"})
        follow(create)
        snapshots = call("GET", "snapshots/", params={"server_id": server_id})
        snapshot_id = create.json()["id"]
        restore = call("POST", f"snapshots/{snapshot_id}/restore/")
        follow(restore)
        delete = call("DELETE", f"snapshots/{snapshot_id}/")
    answers = {"create": create, "list": snapshots, "restore": restore, "delete": delete}
    return {name: answered(response) for name, response in answers.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
