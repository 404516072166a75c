"""Machines in separate network namespaces, on a bridge of this machine. Needs root."""

import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


class Network:
    """`hosts`: the address of each machine, by position. This machine, at `here`, can reach all of them."""

    def __init__(self, machines: int) -> None:
        chance = random.SystemRandom()
        self._mark = f"vha{chance.randrange(0x10000):04x}"
        self._prefix = f"10.{chance.randrange(200, 250)}.{chance.randrange(1, 255)}"
        self.here = f"{self._prefix}.1"
        self.hosts = [f"{self._prefix}.{10 + place}" for place in range(machines)]

    def inside(self, place: int) -> Sequence[str]:
        """The command that enters that machine and executes a program."""
        return ("ip", "netns", "exec", self._name(place))

    def cut(self, place: int) -> None:
        """Disconnect it from all machines."""
        _ip("link", "set", self._link(place), "down")

    def join(self, place: int) -> None:
        _ip("link", "set", self._link(place), "up")

    def split(self, place: int) -> None:
        """Disconnect it from the other machines; this machine can still reach all."""
        for other, host in enumerate(self.hosts):
            if other != place:
                _ip("-n", self._name(place), "route", "add", "blackhole", host)
                _ip("-n", self._name(other), "route", "add", "blackhole", self.hosts[place])

    def heal(self, place: int) -> None:
        for other, host in enumerate(self.hosts):
            if other != place:
                _ip("-n", self._name(place), "route", "del", "blackhole", host)
                _ip("-n", self._name(other), "route", "del", "blackhole", self.hosts[place])

    def _name(self, place: int) -> str:
        return f"{self._mark}-{place}"

    def _link(self, place: int) -> str:
        return f"{self._mark}v{place}"

    def make(self) -> None:
        _ip("link", "add", self._mark, "type", "bridge")
        _ip("address", "add", f"{self.here}/24", "dev", self._mark)
        _ip("link", "set", self._mark, "up")
        for place, host in enumerate(self.hosts):
            name, link = self._name(place), self._link(place)
            _ip("netns", "add", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", self._mark, "up")
            _ip("-n", name, "address", "add", f"{host}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")

    def remove(self) -> None:
        for place in range(len(self.hosts)):
            with suppress(subprocess.CalledProcessError):
                _ip("link", "del", self._link(place))
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self._name(place))
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._mark)


@contextmanager
def network(machines: int) -> Iterator[Network]:
    made = Network(machines)
    try:
        made.make()
        yield made
    finally:
        made.remove()
