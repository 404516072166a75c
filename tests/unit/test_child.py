"""The priority of qemu-img relative to guests."""

from drivers import child
from drivers.child import NICE, Limits

LIMITS = Limits(memory_bytes=1 << 30, cpu_seconds=60, file_bytes=1 << 16)


async def test_guests_come_first() -> None:
    # it is set after the child has started
    ended = await child.run("sh", "-c", f"until [ $(nice) = {NICE} ]; do :; done; nice", limits=LIMITS)
    assert (ended.code, ended.out, ended.err) == (0, f"{NICE}\n", "")
