"""`customer.py URL TOKEN-FILE ACCOUNT SERVER END`: creates and deletes snapshots of the server until the file END
exists.

A call that gets no answer, or 503, is repeated, as customers do. Prints a line for each round. Ends with an error if a
call is refused, or if a job that was admitted does not complete. Needs only Python.
"""

import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

LIMIT_SECONDS = 60.0  # for a call that is repeated, and for a job


class Customer:
    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url = url
        self._headers = headers
        self.repeated = 0

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[dict[str, str], Any]:
        """The answer's headers, with lower-case names, and its body."""
        data = None if body is None else json.dumps(body).encode()
        sent = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(f"{self._url}{path}", data, sent, method=method)  # noqa: S310 - the test's own URL
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                with urlopen(request, timeout=LIMIT_SECONDS) as answer:  # noqa: S310
                    named = {name.lower(): value for name, value in answer.headers.items()}
                    return named, json.loads(answer.read() or b"null")
            except HTTPError as error:
                if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise SystemExit(f"{method} {path}: {error.code} {error.read()!r}") from error
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            self.repeated += 1
            time.sleep(0.05)

    def completes(self, job: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while (found := self.call("GET", job)[1])["state"] != "completed":
            if found["state"] == "failed" or time.monotonic() > deadline:
                raise SystemExit(f"an admitted job did not complete: {found}")
            time.sleep(0.05)


def main(url: str, token_file: str, account: str, server: str, end: str) -> None:
    token = Path(token_file).read_text().strip()
    customer = Customer(url, {"Authorization": f"Bearer {token}", "X-Account-Id": account})
    rounds = 0
    while not Path(end).exists():
        rounds += 1
        wanted = {"server_id": int(server), "name": f"load-{rounds}"}
        key = f"{end}-{rounds}-{time.time_ns()}"
        headers, made = customer.call("POST", "/api/v1/snapshots/", wanted, Idempotency_Key=key)
        customer.completes(headers["operation-location"])
        headers, _ = customer.call("DELETE", f"/api/v1/snapshots/{made['id']}/")
        customer.completes(headers["operation-location"])
        sys.stdout.write(f"round {rounds}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{rounds} snapshots created and deleted, {customer.repeated} calls repeated, no job lost\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
