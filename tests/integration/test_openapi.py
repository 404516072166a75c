"""The API's document is correct, complete, and served."""

import gzip
import json
import re
import tomllib
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import ClientSession

from api.document import openapi, pages, served
from api.document.listing import on_one_page
from api.http.probes import PROBES
from tests.integration.conftest import Cell
from tests.integration.front_end import FrontEnd, serving
from worker.store.errors import REFUSALS
from worker.store.webhooks.webhooks import TEST, JobEvent

PROJECT = Path(__file__).parents[2]
COMMITTED = PROJECT / "docs" / "openapi.json"
DOCUMENT = openapi.document()


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as front_end:
        yield front_end


def calls() -> Iterator[tuple[str, Any]]:
    for path, item in DOCUMENT["paths"].items():
        for method, call in item.items():
            yield f"{method.upper()} {path}", call


def test_the_committed_document_is_the_programs() -> None:
    assert COMMITTED.read_text() == openapi.text(DOCUMENT), "make openapi writes it anew"


async def test_it_is_served_to_everyone(api: FrontEnd) -> None:
    async with api.client.get(f"http://127.0.0.1:{api.port}{served.PATH}") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.text() == COMMITTED.read_text()


@pytest.mark.parametrize("path", [served.PATH, f"{pages.DOCS}/snapshots/"])
async def test_it_is_compressed_and_not_sent_if_unchanged(api: FrontEnd, path: str) -> None:
    plain = await api.call("GET", path, headers={"Accept-Encoding": "identity"})
    async with ClientSession(auto_decompress=False) as client:
        url, takes = f"http://127.0.0.1:{api.port}{path}", {"Accept-Encoding": "gzip"}
        async with client.get(url, headers=takes) as response:
            packed = await response.read()
            assert response.headers["Content-Encoding"] == "gzip"
    again = await api.call("GET", path, headers={"If-None-Match": plain.headers["ETag"]})

    assert gzip.decompress(packed) == plain.raw
    assert len(packed) < len(plain.raw) / 5
    assert (again.status, again.raw, again.headers["ETag"]) == (304, b"", plain.headers["ETag"])


async def test_every_route_is_in_it(api: FrontEnd) -> None:
    app = api.app
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method not in {"*", "HEAD"}
        if not route.resource.canonical.startswith(("/ops", pages.DOCS))  # for browsers
    }

    assert routes - {"GET /"} == {name for name, _ in calls()}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in calls()])
def test_every_example_is_what_its_schema_says(call: Any) -> None:
    contents = [answer.get("content", {}) for answer in call["responses"].values()]
    contents += [call["requestBody"]["content"]] if "requestBody" in call else []
    for media in (media for content in contents for media in content.values()):
        for example in media.get("examples", {}).values():
            value = example.get("value", DOCUMENT["components"]["examples"].get(example.get("$ref", "").split("/")[-1]))
            schema = {"$ref": "#/schema", "schema": media["schema"], "components": DOCUMENT["components"]}
            jsonschema_rs.validate(schema, value["value"] if "$ref" in example else value)


def test_every_link_leads_to_a_call_and_gives_it_all_that_its_path_needs() -> None:
    by_id = {call["operationId"]: name for name, call in calls()}
    links = [
        link
        for _, call in calls()
        for answer in call["responses"].values()
        for link in answer.get("links", {}).values()
    ]

    assert links
    for link in links:
        assert set(link["parameters"]) == set(re.findall(r"{(\w+)}", by_id[link["operationId"]]))


def test_every_id_in_a_path_has_its_parameter() -> None:
    named = {
        name for _, call in calls() for name in (p["$ref"].split("/")[-1] for p in call["parameters"] if "$ref" in p)
    }
    assert named == set(DOCUMENT["components"]["parameters"])


def test_every_call_is_listed_on_one_page() -> None:
    listed = [line.split()[:2] for line in on_one_page()]
    service = {f"GET {probe.path}" for probe in PROBES} | {f"GET {served.PATH}"}
    assert {" ".join(line) for line in listed} == {name for name, _ in calls()} - service


async def test_the_root_leads_to_the_documentation(api: FrontEnd) -> None:
    program = await api.call("GET", "/", headers={"Authorization": ""})
    browser = await api.call("GET", "/", headers={"Authorization": "", "Accept": "text/html,*/*;q=0.8"})

    assert program.body == {
        "name": "vps-snapshots",
        "version": version("vps-snapshots"),
        "documentation": "/docs",
        "openapi": "/api/v1/openapi.json",
    }
    assert (browser.status, browser.headers["Location"]) == (302, "/docs")


def test_every_version_is_that_of_the_package() -> None:
    package = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    changelog = (PROJECT / "CHANGELOG.md").read_text()

    assert DOCUMENT["info"]["version"] == version(package["name"]) == package["version"]
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == package["version"]
    clients = PROJECT / "deploy" / "clients"
    for path in ("python/pyproject.toml", "typescript/package.json", "ansible/galaxy.yml"):
        (stated,) = re.findall(r'^\s*"?version"?\s*[=:]\s*"?([0-9.]+)', (clients / path).read_text(), re.MULTILINE)
        assert stated == package["version"], path


def test_every_event_of_a_webhook_has_its_message() -> None:
    assert set(DOCUMENT["webhooks"]) == {*JobEvent, TEST}
    for event, item in DOCUMENT["webhooks"].items():
        (media,) = item["post"]["requestBody"]["content"].values()
        (example,) = media["examples"].values()
        assert example["value"]["type"] == event
        schema = {"$ref": "#/schema", "schema": media["schema"], "components": DOCUMENT["components"]}
        jsonschema_rs.validate(schema, example["value"])


def test_every_refusal_is_in_it() -> None:
    assert {kind.code for kind in REFUSALS} <= set(DOCUMENT["components"]["examples"])


def test_the_document_is_json_and_nothing_else() -> None:
    assert json.loads(openapi.text(DOCUMENT)) == DOCUMENT
