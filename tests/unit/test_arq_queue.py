"""Our records of queued jobs equal arq's."""

from arq.jobs import deserialize_job_raw, serialize_job

from worker.store import arq_queue as queue


def test_a_record_is_the_one_that_arq_writes_and_reads() -> None:
    record = queue.payload("a1", 1_700_000_000_000)
    assert record == serialize_job(queue.FUNCTION, ("a1",), {}, None, 1_700_000_000_000, serializer=queue.serialize)
    function, arguments, named, tries, queued_ms = deserialize_job_raw(record, deserializer=queue.deserialize)
    assert (function, [*arguments], named) == (queue.FUNCTION, ["a1"], {})
    assert not tries
    assert queued_ms == 1_700_000_000_000
