"""Clients that were generated before an enum value was added still read the service's answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_clients import DOCUMENT, PROGRAMS, TOOLS, run
from tests.integration.test_clients import tools as tools  # noqa: PLC0414 - a fixture

SPEC = json.loads(DOCUMENT.read_text())
# Closed for good: the contract's values, the states of a job, and constants.
CLOSED = {
    "SnapshotStatus": ["in_progress", "completed", "failed"],
    "JobState": ["queued", "in_progress", "completed", "failed"],
    "Health.status": "ok",
    "Readiness.status": "ok",
    "Readiness.reads": True,
    "RestoreStarted.status": "success",
    # names of a stream's events; clients ignore others
    "JobChanged.event": "job",
    "OpsJobChanged.event": "job",
    "EventsMissed.event": "missed",
}
LISTED = {
    "kind": ["create", "restore", "delete", "check_create", "check_restore", "undo"],
    "status": ["active", "stopped", "suspended", "snapshotting", "restoring"],
}


def example(path: str, *, method: str = "get", status: str = "200") -> Any:
    content = SPEC["paths"][path][method]["responses"][status]["content"]
    (media,) = content.values()
    return next(iter(media["examples"].values()))["value"]


def grown_job(job: dict[str, Any]) -> dict[str, Any]:
    return job | {"kind": "clone", "step": "thawing", "server": job["server"] | {"status": "migrating"}}


def answers() -> dict[str, Any]:
    """Answers of a newer service, by the name of their schema."""
    jobs, of_all = example("/api/v1/jobs/"), example("/api/v1/ops/jobs/")
    restoring = example("/api/v1/snapshots/{snapshot_id}/restore/", method="post")
    webhooks = example("/api/v1/webhooks/")
    server = example("/api/v1/servers/{server_id}/")
    return {
        "JobList": jobs | {"results": [*jobs["results"], *map(grown_job, jobs["results"])]},
        "OpsJobList": of_all | {"results": list(map(grown_job, of_all["results"]))},
        "Server": server | {"status": "migrating", "job": {"id": "0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b", "kind": "clone"}},
        "RestoreStarted": restoring | {"server": restoring["server"] | {"status": "migrating"}},
        "WebhookList": webhooks
        | {
            "results": [
                hook | {"events": [*hook["events"], "job.thawed"], "disabled_reason": "bored"}
                for hook in webhooks["results"]
            ]
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "answers.json").write_text(json.dumps(answers()))
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for program in PROGRAMS.glob("grows*"):
        (tmp_path / program.name).write_text(program.read_text())
    return tmp_path


def plain(read: str) -> Any:
    """Without times, which a generator writes in another form."""
    return json.loads(read.replace("+00:00", "Z"))


async def test_the_client_of_openapi_python_client_reads_new_words(tools: Path, folder: Path) -> None:
    generate = (tools / "bin" / "openapi-python-client", "generate", "--path", DOCUMENT, "--meta", "none")
    await run(folder, *generate, "--output-path", "vps_snapshots_client", "--fail-on-warning")

    assert plain(await run(folder, tools / "bin" / "python", "grows.py")) == answers()


async def test_the_models_of_datamodel_codegen_read_new_words(tools: Path, folder: Path) -> None:
    generate = (tools / "bin" / "datamodel-codegen", "--input", DOCUMENT, "--input-file-type", "openapi")
    await run(folder, *generate, "--output", "models.py", "--output-model-type", "pydantic_v2.BaseModel")

    assert plain(await run(folder, tools / "bin" / "python", "grows_models.py")) == answers()


async def test_the_schemas_for_zod_read_new_words(tools: Path, folder: Path) -> None:
    generate = folder / "node_modules" / ".bin" / "openapi-ts"
    await run(folder, generate, "--input", DOCUMENT, "--output", "zod", "--plugins", "zod", "--no-log-file")

    assert plain(await run(folder, "node", "grows.ts")) == answers()


def closed_words(schema: Any, place: str = "") -> dict[str, Any]:
    """The enums and constants of a schema, by model and field."""
    if not isinstance(schema, dict | list):
        return {}
    if isinstance(schema, list):
        return {name: words for each in schema for name, words in closed_words(each, place).items()}
    found = {place: schema.get("enum", schema.get("const"))} if {"enum", "const"} & schema.keys() else {}
    for key, part in schema.items():
        here = f"{place}.{key}" if "." not in place and key not in {"properties", "anyOf", "items"} else place
        found |= closed_words(part, here)
    return found


def models_of_answers() -> set[str]:
    """The names of all schemas in answers, including nested ones."""
    schemas = SPEC["components"]["schemas"]
    found: set[str] = set()
    waiting = [
        answer for call in SPEC["paths"].values() for operation in call.values() for answer in [operation["responses"]]
    ]
    while waiting:
        text = json.dumps(waiting.pop())
        new = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} - found
        found |= new
        waiting += [schemas[name] for name in new]
    return found


def test_only_enums_that_never_grow_are_closed() -> None:
    schemas = SPEC["components"]["schemas"]
    closed = {
        place.strip("."): words
        for name in models_of_answers()
        for place, words in closed_words(schemas[name], name).items()
    }

    assert closed == CLOSED


@pytest.mark.parametrize(("field", "words"), LISTED.items())
def test_the_current_values_stay_listed(field: str, words: list[str]) -> None:
    model = {"kind": "Job", "status": "Server"}[field]
    schema = SPEC["components"]["schemas"][model]["properties"][field]

    assert schema["x-extensible-enum"] == words
    assert all(f"`{word}`" in schema["description"] for word in words)
    assert "more may be added" in schema["description"]
