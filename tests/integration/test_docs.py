"""The documentation's pages: complete, without broken links, and with samples that work."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from api.document import samples, served
from api.document.pages import DOCS, PAGES, Site
from api.document.reference import Reference
from api.resources import CUSTOMERS_CALLS
from api.settings import Live
from api.webhooks.sender import signed
from tests.conftest import lacking, needs
from tests.integration.conftest import Cell
from tests.integration.front_end import DONE, FrontEnd, Names, serving
from worker.store.errors import REFUSALS
from worker.store.model import JobId

PROJECT = Path(__file__).parents[2]
DOCUMENT = json.loads((PROJECT / "docs" / "openapi.json").read_text())
SITE = Site(DOCUMENT, asset=lambda name: f"/docs/static/{name}")
HTML = {page.path: SITE.html(page.name) for page in PAGES}
NODE = Path(f"{sys.prefix}-client") / "bin" / "node"
SECRET, OTHER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
VOID = {"meta", "link", "input", "br", "hr"}


class Parsed(HTMLParser):
    """The IDs and links of a page. Elements must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a":
            self.links.add(given["href"])
        else:
            self.loads |= {given[name] for name in ("href", "src", "action") if name in given}
        assert "style" not in given
        assert not any(name.startswith("on") for name in given)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


PARSED = {path: Parsed(html) for path, html in HTML.items()}


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, names=Names({"hooks.example.com": "93.184.216.34"}), live=Live.ALLOWED) as front_end:
        yield front_end


@pytest.fixture
def node() -> Path:
    if not NODE.exists():
        lacking(f"{NODE} is missing: make test sets it up")
    return NODE


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, item in DOCUMENT["paths"].items():
        for method, call in item.items():
            yield path, method.upper(), call


def test_every_call_is_on_one_page_and_every_operators_call_on_a_page_for_operators() -> None:
    found = [(call.id, page.group) for page in PAGES for call in SITE.content(page).calls]
    customers = {call.id for call in CUSTOMERS_CALLS}

    assert sorted(name for name, _ in found) == sorted(call["operationId"] for _, _, call in operations())
    assert {name for name, group in found if group == "Resources"} == customers


def test_no_id_is_twice_on_a_page_and_no_link_is_dead() -> None:
    targets = {path: set(page.ids) for path, page in PARSED.items()}
    dead = []
    for path, page in PARSED.items():
        assert len(page.ids) == len(targets[path]), path
        assert page.open == [], path
        for link in page.links:
            where, _, mark = link.partition("#")
            there = where or path
            is_known = there in targets and (not mark or mark in targets[there])
            if not (is_known or link == served.PATH or link.startswith("https://")):
                dead.append((path, link))
    assert dead == []


def test_all_code_can_be_scrolled_by_keyboard() -> None:
    assert [path for path, html in HTML.items() if re.search(r"<pre(?![^>]* tabindex)", html)] == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert {load for page in PARSED.values() for load in page.loads} == {
        "data:,",
        "/docs/static/docs.css",
        "/docs/static/docs.js",
        served.SEARCH,
    }


def test_every_code_has_its_row_with_its_status() -> None:
    guide = (PROJECT / "docs/api/errors.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\d+).*\|$", guide, re.MULTILINE))
    codes = {refusal.code: str(refusal.status) for refusal in REFUSALS}
    codes |= {name: str(one["value"]["status"]) for name, one in DOCUMENT["components"]["examples"].items()}

    assert codes.items() <= rows.items()
    assert set(rows) <= set(PARSED[f"{DOCS}/errors/"].ids)


@pytest.mark.parametrize("words", ["server busy", "POST /api/v1/snapshots/ create", "retry-after", "signature"])
def test_the_search_finds(words: str) -> None:
    found = SITE.search(words)

    assert found
    targets = {(entry.url.partition("#")[0], entry.url.partition("#")[2]) for entry in found}
    assert all(not mark or mark in PARSED[path].ids for path, mark in targets)


async def test_the_pages_are_served(api: FrontEnd) -> None:
    for path in (DOCS, f"{DOCS}/snapshots/", f"{DOCS}/search/?q=%3Cscript%3E", f"{DOCS}/static/docs.js"):
        answer = await api.call("GET", path, headers={"Authorization": ""})
        assert answer.status == 200, path
        assert b"<script>" not in answer.raw
    policy = (await api.call("GET", f"{DOCS}/search/?q=busy")).headers["Content-Security-Policy"]
    assert policy == served.POLICY
    for path in (f"{DOCS}/none/", f"{DOCS}/static/none.js"):
        (await api.call("GET", path)).refused(404, "not_found")
    for path, page in ((f"{DOCS}/snapshots", f"{DOCS}/snapshots/"), (f"{DOCS}/", DOCS), (f"{DOCS}/none", DOCS)):
        assert (await api.call("GET", path)).headers["Location"] == page


async def test_the_type_of_a_problem_leads_to_its_row(api: FrontEnd) -> None:
    path, _, mark = (
        (await api.call("GET", "/api/v1/snapshots/801/")).refused(404, "snapshot_not_found")["type"].partition("#")
    )

    assert mark in PARSED[path].ids


async def test_the_documentation_can_be_elsewhere(cell: Cell) -> None:
    async with serving(cell, docs_url="https://docs.example.com/snapshots") as api:
        answer = await api.call("GET", "/api/v1/snapshots/801/")

    assert answer.body["type"] == "https://docs.example.com/snapshots/errors/#snapshot_not_found"


def sample_of(path: str, method: str, call: Any) -> dict[str, str]:
    reference = Reference(DOCUMENT, {})
    parameters = [reference._follow(parameter) for parameter in call["parameters"]]
    return samples.all_of(reference.sample(path, method, call, parameters))


def fences(guide: str, language: str) -> list[str]:
    text = (PROJECT / "docs" / guide).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def as_one(language: str, texts: list[str]) -> str:
    """A program that runs all of these samples."""
    if language == "js":
        return "\n".join(f"{{\n{text}}}" for text in texts)
    return "\n".join(["set -eu" if language == "sh" else "", *texts])


async def run(folder: Path, language: str, program: str, node: Path, **variables: str) -> str:
    file = folder / {"sh": "sample.sh", "python": "sample.py", "js": "sample.mjs"}[language]
    file.write_text(program)
    command = {"sh": "bash", "python": sys.executable, "js": str(node)}[language]
    process = await asyncio.create_subprocess_exec(
        *(command, str(file)),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


WORK = (  # in this order; each succeeds without a node
    *("list_snapshots", "show_snapshot", "edit_snapshot", "list_jobs", "show_job", "show_server", "edit_server"),
    *("list_schedules", "show_schedule", "edit_schedule", "list_webhooks", "show_webhook", "edit_webhook"),
    *("list_deliveries", "rotate_webhook_secret", "create_webhook", "create_snapshot", "alive", "show_document"),
)


@pytest.mark.parametrize("language", samples.LANGUAGES)
async def test_the_samples_work(api: FrontEnd, tmp_path: Path, node: Path, language: str) -> None:
    needs("curl")
    snapshot_id = await api.have_snapshot()
    (job,) = (await api.call("GET", "/api/v1/jobs/")).body["results"]
    schedule = await api.call("POST", "/api/v1/schedules/", body={"server_id": 12345, "name": "n", "when": "daily"})
    webhook = await api.call("POST", "/api/v1/webhooks/", body={"url": "https://hooks.example.com/"})
    parameters = DOCUMENT["components"]["parameters"]
    real = {"snapshot_id": snapshot_id, "job_id": job["id"]}
    real |= {"schedule_id": schedule.body["id"], "webhook_id": webhook.body["id"]}
    by_id = {call["operationId"]: sample_of(path, method, call) for path, method, call in operations()}
    texts = [by_id[name][language] for name in WORK] + fences("api/following.md", language)
    program = as_one(language, texts)
    for name, value in real.items():
        program = program.replace(str(parameters[name]["schema"]["examples"][0]), str(value))

    said = await run(tmp_path, language, program, node, URL=f"http://127.0.0.1:{api.port}", TOKEN=api.token)

    assert "before-update-snapshot" in said
    created = JobId(await api.cell.holder())
    await api.cell.node.begin(created)
    await api.cell.node.finish(created, DONE)
    first = as_one(language, fences("api.md", language))
    said = await run(tmp_path, language, first, node, URL=f"http://127.0.0.1:{api.port}", TOKEN=api.token)
    assert "in_progress" in said


def test_every_sample_is_well_formed(tmp_path: Path, node: Path) -> None:
    texts = [sample_of(path, method, call) for path, method, call in operations()]
    for text in texts:
        compile(text["python"], "a sample", "exec")
    (tmp_path / "samples.mjs").write_text(as_one("js", [text["js"] for text in texts]))
    (tmp_path / "samples.sh").write_text("\n".join(text["sh"] for text in texts))
    subprocess.run([node, "--check", "samples.mjs"], cwd=tmp_path, check=True)
    subprocess.run(["bash", "-n", "samples.sh"], cwd=tmp_path, check=True)


def test_no_sample_puts_the_token_into_an_argument() -> None:
    """Other users of the machine can see arguments."""
    texts = [sample_of(path, method, call)["sh"] for path, method, call in operations()]
    guides = [*(PROJECT / "docs").glob("**/*.md"), PROJECT / "README.md"]
    texts += re.findall(r"^```sh.*?^```$", "\n".join(guide.read_text() for guide in guides), re.DOTALL | re.MULTILINE)
    with_token = [re.sub(r'<<<"[^"]*"', "", text) for text in texts if "$TOKEN" in text]
    assert len(with_token) > 20
    assert [text for text in with_token if "TOKEN" in text] == []


BODY = '{"type": "webhook.test", "data": {"webhook_id": "ü"}}'.encode()


def messages() -> dict[str, tuple[dict[str, str], bytes, bool]]:
    """Current messages as headers and body, and whether they are genuine."""
    now = round(time.time())
    return {  # the headers and the body of a message, and whether it is genuine
        "genuine": (signed([SECRET], "m1", BODY, moment=now), BODY, True),
        "two signatures": (signed([OTHER_SECRET, SECRET], "m1", BODY, moment=now), BODY, True),
        "another secret": (signed([OTHER_SECRET], "m1", BODY, moment=now), BODY, False),
        "another body": (signed([SECRET], "m1", BODY, moment=now), BODY + b" ", False),
        "an old one": (signed([SECRET], "m1", BODY, moment=now - 400), BODY, False),
        "another ID": (signed([SECRET], "m1", BODY, moment=now) | {"webhook-id": "m2"}, BODY, False),
    }


CHECKS = {
    "python": """
import json
cases = json.load(open("cases.json"))
print(json.dumps([verify(case["secret"], case["headers"], case["body"].encode()) for case in cases]))
""",
    "js": """
import { readFileSync } from 'node:fs'
const cases = JSON.parse(readFileSync('cases.json', 'utf8'))
console.log(JSON.stringify(cases.map(({ secret, headers, body }) => verify(secret, headers, Buffer.from(body)))))
""",
}


@pytest.mark.parametrize("language", samples.LANGUAGES)
async def test_the_samples_that_verify_a_message_tell_a_genuine_one(tmp_path: Path, node: Path, language: str) -> None:
    needs("openssl")
    sent = messages()
    cases = [{"secret": SECRET, "headers": of, "body": body.decode()} for of, body, _ in sent.values()]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    program = fences("api/webhooks.md", language)[0]
    if language == "sh":
        for number, (_, body, _) in enumerate(sent.values()):
            (tmp_path / str(number)).write_bytes(body)
        program += "said=\n" + "".join(
            f"cp {number} body.json; WEBHOOK_SECRET={SECRET} WEBHOOK_ID={of['webhook-id']}"
            f" WEBHOOK_TIMESTAMP={of['webhook-timestamp']} WEBHOOK_SIGNATURE='{of['webhook-signature']}'"
            " verify && said=$said,true || said=$said,false\n"
            for number, (of, _, _) in enumerate(sent.values())
        )
        program += 'printf "[%s]" "${said#,}"\n'
    said = json.loads(await run(tmp_path, language, program + CHECKS.get(language, ""), node))

    assert dict(zip(sent, said, strict=True)) == {name: is_genuine for name, (_, _, is_genuine) in sent.items()}


def test_the_sample_with_the_library_verifies_a_message(tmp_path: Path) -> None:
    _, sample = fences("api/webhooks.md", "python")
    for name, (headers, body, is_genuine) in messages().items():
        given = f"secret, headers, body = {SECRET!r}, {headers!r}, {body!r}\n"
        program = f"{given}{sample}print(event['type'])"
        said = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert said.stdout == ("webhook.test\n" if is_genuine else ""), name
        assert is_genuine or "WebhookVerificationError" in said.stderr, name
