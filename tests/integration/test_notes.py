"""The notes of a job and the contents of a snapshot, from the node to all users who should see them."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from api.http.calls import OPS
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE, SNAPSHOTS, Answer, FrontEnd, serving
from tests.integration.test_streams import listening
from tests.integration.test_webhooks import attempted, made, receiving
from tests.queueing import until_told
from worker.store.access.tokens import Permission
from worker.store.model import (
    Contents,
    Failure,
    HeldDisk,
    JobId,
    JobKind,
    JobState,
    LeftOut,
    Note,
    NoteCode,
    SnapshotId,
    SnapshotStatus,
)
from worker.store.nodes.claims import BegunJob, PublishedSnapshot
from worker.store.outcome import Outcome
from worker.store.reports import JobReport

PATH = "/srv/images/77/vda.qcow2"
HELD = Contents(
    disks=(
        HeldDisk(target="vda", path=PATH, virtual_bytes=64 << 20, stamp="1764230400.123456789"),
        HeldDisk(target="vdb", path="/srv/images/77/vdb.qcow2", virtual_bytes=(1 << 20) + 1),
    ),
    left_out=(LeftOut(target="sda", reason="a CD-ROM"),),
    firmware="uefi",
    nvram=True,
)
SHOWN = {
    "disks": [{"target": "vda", "size_mb": 64}, {"target": "vdb", "size_mb": 2}],
    "left_out": [{"target": "sda", "reason": "a CD-ROM"}],
    "firmware": "uefi",
    "nvram": True,
    "tpm": False,
}
LEFT_OUT = Note(code=NoteCode.LEFT_OUT, detail="The snapshot does not hold sda (a CD-ROM).", disks=("sda",))
CHAIN = Note(code=NoteCode.BACKUP_CHAIN_ENDED, detail="The next backup must be a full one.", disks=("vda", "vdb"))
CREATED = replace(DONE, notes=(LEFT_OUT,), contents=HELD)
RESTORED = Outcome(state=JobState.COMPLETED, notes=(CHAIN,), undoable_seconds=60)
WHEN = datetime(2025, 1, 15, 18, 30, tzinfo=UTC)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, calls_per_minute=100_000, webhooks_to_private=True) as front_end:
        yield front_end


def job_of(answer: Answer) -> JobId:
    return JobId(answer.headers["X-Job-Id"])


async def job(api: FrontEnd, job_id: str) -> dict[str, Any]:
    return dict((await api.call("GET", f"/api/v1/jobs/{job_id}/")).body)


async def snapshot(api: FrontEnd, answer: Answer) -> dict[str, Any]:
    return dict((await api.call("GET", answer.headers["Location"])).body)


class TestContents:
    async def test_a_snapshot_and_its_job_say_what_it_holds_and_nothing_of_the_node(self, api: FrontEnd) -> None:
        created = await api.create()
        assert (await snapshot(api, created))["contents"] is None
        await api.work(created, CREATED)

        assert (await snapshot(api, created))["contents"] == SHOWN
        done = await job(api, job_of(created))
        assert done["contents"] == SHOWN
        assert done["notes"] == [{"code": "left_out", "detail": LEFT_OUT.detail, "disks": ["sda"]}]
        (listed,) = (await api.call("GET")).body["results"]
        assert "contents" not in listed, "the contract's own keys"
        for path in (created.headers["Location"], created.headers["Operation-Location"], "/api/v1/jobs/"):
            said = (await api.call("GET", path)).raw
            assert b"/srv" not in said
            assert b"1764230400" not in said

    async def test_a_create_that_failed_has_none_but_one_whose_server_did_not_start_has(self, api: FrontEnd) -> None:
        failure = Failure(code="disk_failed", detail="Disk vdb refused.")
        failed = await api.create("a")
        await api.work(failed, Outcome(state=JobState.FAILED, failure=failure, snapshot_status=SnapshotStatus.FAILED))
        stranded = await api.create("b")
        await api.work(stranded, replace(CREATED, state=JobState.FAILED, failure=replace(failure, stranded=True)))

        assert (await snapshot(api, failed))["contents"] is None
        assert (await snapshot(api, stranded))["contents"] == SHOWN

    async def test_a_dry_run_says_what_it_would_hold(self, api: FrontEnd) -> None:
        store, node = api.cell.store, api.cell.node
        check = await store.check_create(account_id=ACCOUNT, server_id=SERVER, name="a", request_id="r")
        await node.begin(check.id)
        await node.finish(check.id, Outcome(state=JobState.COMPLETED, notes=(LEFT_OUT,), contents=HELD))

        checked = await job(api, check.id)
        assert (checked["kind"], checked["contents"]) == ("check_create", SHOWN)
        assert [note["code"] for note in checked["notes"]] == ["left_out"]

    async def test_records_of_the_version_before_are_read_as_they_were(self, api: FrontEnd) -> None:
        created = await api.create()
        await api.work(created, CREATED)
        for field in ("notes", "contents", "present_only", "retried_by"):
            await api.cell.raw("HDEL", f"job:{job_of(created)}", field)
        await api.cell.raw("HDEL", f"snapshot:{created.body['id']}", "contents")

        old = await job(api, job_of(created))
        assert (old["notes"], old["contents"], old["disks"], old["retried_by"]) == ([], None, "all", None)
        assert (await snapshot(api, created))["contents"] is None

    async def test_an_unknown_note_is_omitted_and_the_others_are_shown(self, api: FrontEnd) -> None:
        created = await api.create()
        await api.work(created, CREATED)
        newer = json.dumps([{"code": "unheard_of", "detail": "x", "disks": []}, {"code": "left_out", "detail": "y"}])
        await api.cell.raw("HSET", f"job:{job_of(created)}", "notes", newer)
        await api.cell.raw("HSET", f"snapshot:{created.body['id']}", "contents", "{")

        assert [note["detail"] for note in (await job(api, job_of(created)))["notes"]] == ["y"]
        assert (await snapshot(api, created))["contents"] is None

    async def test_a_worker_of_the_version_before_ends_its_jobs_as_ever(self, api: FrontEnd) -> None:
        created = await api.create()
        await api.cell.node.begin(job_of(created))
        new = {"notes", "note_codes", "audited_codes", "note_codes_ms", "contents", "retry_most_ms"}
        result = {name: value for name, value in DONE.for_script().items() if name not in new}
        node, report = api.cell.node, JobReport().for_script()
        ask = {"job": job_of(created), "result": result, "report": report, "power": ""}
        assert await node._call("nodes/finish", node._us | ask) == [b"published"]
        assert (await job(api, job_of(created)))["state"] == "completed"

    async def test_a_node_gives_the_store_what_it_lacks_and_gets_it_back(self, cell: Cell) -> None:
        known, new = (await cell.create("old")).snapshot.id, SnapshotId(2**20)
        published = [
            PublishedSnapshot(
                id=snapshot_id,
                name="other",
                description="",
                created_at=WHEN,
                size_mb=1,
                status=SnapshotStatus.COMPLETED,
                contents=HELD,
            )
            for snapshot_id in (known, new)
        ]
        assert await cell.node.publish(SERVER, published, []) == (new,)
        changed = [replace(one, contents=replace(HELD, tpm=True)) for one in published]
        assert await cell.node.publish(SERVER, changed, []) == ()

        on_disk = (await cell.node.known(SERVER, [known, new])).on_disk
        assert [one.contents for one in on_disk.values() if one] == [HELD, HELD]
        assert [one.name for one in on_disk.values() if one] == ["old", "other"]


class TestPresentOnly:
    @pytest.mark.parametrize("dry_run", [False, True])
    async def test_the_job_shows_that_only_present_disks_are_restored(self, api: FrontEnd, *, dry_run: bool) -> None:
        snapshot_id = SnapshotId(await api.have_snapshot())
        if dry_run:
            check = await api.cell.store.check_restore(
                account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r", present_only=True
            )
            job_id = check.id
        else:
            job_id = job_of(await api.call("POST", f"{SNAPSHOTS}{snapshot_id}/restore/?disks=present"))
        assert (await api.cell.node.begin(job_id)).present_only
        assert (await job(api, job_id))["disks"] == "present"

    async def test_without_it_all_do(self, api: FrontEnd) -> None:
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/restore/"
        for query in ("", "?disks=all"):
            answer = await api.call("POST", f"{path}{query}")
            assert (await job(api, job_of(answer)))["disks"] == "all"
            await api.work(answer, RESTORED)
        assert (await api.call("POST", f"{path}?disks=some")).refused_fields() == ["disks"]
        assert (await api.call("POST", f"{path}?disk=present")).refused_fields() == ["disk"]

    async def test_one_key_is_not_for_both(self, api: FrontEnd) -> None:
        path, key = f"{SNAPSHOTS}{await api.have_snapshot()}/restore/", {"Idempotency-Key": "k"}
        assert (await api.call("POST", f"{path}?disks=present", headers=key)).status == 200
        assert (await api.call("POST", f"{path}?disks=present", headers=key)).status == 200
        (await api.call("POST", path, headers=key)).refused(422, "idempotency_key_reused")

    async def test_an_undo_is_asked_for_it_anew(self, api: FrontEnd) -> None:
        restored = await api.call("POST", f"{SNAPSHOTS}{await api.have_snapshot()}/restore/?disks=present")
        await api.work(restored, RESTORED)
        undone = await api.call("POST", f"/api/v1/restores/{job_of(restored)}/undo/")
        assert undone.body["disks"] == "all"
        await api.work(undone, RESTORED)
        again = await api.call("POST", f"/api/v1/restores/{job_of(undone)}/undo/?disks=present")
        assert again.body["disks"] == "present"

    async def test_a_job_published_to_an_empty_store_keeps_it(self, api: FrontEnd) -> None:
        begun = BegunJob(
            id=JobId("e" * 32),
            kind=JobKind.RESTORE,
            snapshot_id=SnapshotId(801),
            snapshot_name="a",
            snapshot_description="",
            snapshot_created_at=WHEN,
            request_id="r",
            undoes=None,
            present_only=True,
        )
        await api.cell.node.publish(SERVER, [], [begun])
        assert (await job(api, begun.id))["disks"] == "present"


class TestReported:
    async def test_the_event_of_the_end_has_the_codes_and_a_webhook_all_of_it(self, api: FrontEnd) -> None:
        snapshot_id = await api.have_snapshot()
        async with receiving() as receiver, listening(api) as stream:
            webhook = await made(api, receiver.url)
            restored = await api.call("POST", f"{SNAPSHOTS}{snapshot_id}/restore/")
            await api.work(restored, replace(RESTORED, notes=(CHAIN, CHAIN, LEFT_OUT)))
            heard = [(await stream.job())[1] for _ in range(3)]
            await attempted(api, webhook)
            (message,) = receiver.messages(webhook["secret"])

        assert [event["notes"] for event in heard] == [[], [], ["backup_chain_ended", "left_out"]]
        told = {"code": "backup_chain_ended", "detail": CHAIN.detail, "disks": ["vda", "vdb"]}
        assert message["data"]["notes"][0] == told

    async def test_the_audit_entry_has_the_jobs_later_notes(self, api: FrontEnd) -> None:
        operator = await api.new_token(account=None, permissions={Permission.OPERATOR})

        async def audit(query: str = "") -> list[list[str]]:
            found = await api.call("GET", f"{OPS}audit/?method=POST{query}", token=operator)
            return [entry["notes"] for entry in found.body["results"]]

        created = await api.create()
        await api.work(created, CREATED)
        restored = await api.call("POST", f"{created.headers['Location']}restore/")

        async def has_both() -> bool:
            return await audit() == [[], []]

        await until_told(has_both)
        await api.work(restored, replace(RESTORED, notes=(CHAIN, LEFT_OUT)))
        assert await audit() == [["backup_chain_ended"], []], "what a snapshot leaves out is on the snapshot"
        assert await audit(f"&job_id={job_of(restored)}") == [["backup_chain_ended"]]

        await api.cell.raw("DEL", f"job:{job_of(restored)}")
        assert await audit() == [["backup_chain_ended"], []], "the audit is kept for longer than the job"
        assert 80 * 86_400 < await api.cell.redis.ttl(f"job:{job_of(restored)}:noted") <= 90 * 86_400

    async def test_the_audit_of_many_retries_names_the_new_jobs_and_what_they_noted(self, api: FrontEnd) -> None:
        operator = await api.new_token(account=None, permissions={Permission.OPERATOR})
        restored = await api.call("POST", f"{SNAPSHOTS}{await api.have_snapshot()}/restore/")
        failure = Failure(code="disk_failed", detail="Disk vdb refused.")
        await api.work(restored, Outcome(state=JobState.FAILED, failure=failure))
        bulk = await api.call(
            "POST",
            f"{OPS}jobs/bulk/",
            body={"action": "retry", "ids": [job_of(restored)], "force": True},
            token=operator,
        )
        new = JobId(bulk.body["results"][0]["job_id"])
        await api.cell.node.begin(new)
        await api.cell.node.finish(new, RESTORED)

        (entry, *_) = (await api.call("GET", f"{OPS}audit/", token=operator)).body["results"]
        assert (entry["fields"]["job"], entry["fields"]["made"]) == (job_of(restored), f"job {new}")
        assert entry["notes"] == ["backup_chain_ended"]

    async def test_a_dry_run_did_nothing_that_the_audit_should_say(self, api: FrontEnd) -> None:
        operator = await api.new_token(account=None, permissions={Permission.OPERATOR})
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/restore/?dry_run=true"
        async with listening(api) as stream:
            asked = api.call("POST", path)

            async def checked() -> None:
                _, event = await stream.job()
                await api.cell.node.begin(JobId(event["job_id"]))
                await api.cell.node.finish(JobId(event["job_id"]), Outcome(state=JobState.COMPLETED, notes=(CHAIN,)))

            answer, _ = await asyncio.gather(asked, checked())
        assert [note["code"] for note in answer.body["notes"]] == ["backup_chain_ended"]
        (entry, *_) = (await api.call("GET", f"{OPS}audit/", token=operator)).body["results"]
        assert (entry["fields"]["job"], entry["notes"]) == (answer.body["id"], [])
