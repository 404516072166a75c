"""The pages for providers are followed literally: every command block is run, in the order of the pages, on machines
that form a small cell. `ELSEWHERE` names the other tests that run what cannot be run here."""

import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import needs, needs_root
from tests.operations.machine import Edits, Machine, NotDoneError, machines
from tests.operations.pages import FILES, PROJECT, Block, blocks

CELL = {  # each machine, with its address or name in the pages
    "redis": "10.20.0.5",
    "front-end": "10.20.0.7",
    "gateway": "gateway-1.example.net",
    "node-1": "node-1.example.net",
    "prometheus": "10.20.0.9",
    "vault": "vault.example.net",
    "archive": "archive.example.net",
}
TRUSTED = ("redis", "front-end", "gateway")
LOSS = "All machines of the trusted side are lost"  # the section; its blocks are run on new machines
CERTIFICATES = (  # the units of front end and gateway do not run as root
    ("front-end", "/etc/vps-snapshots/redis-ca.crt"),
    ("gateway", "/etc/vps-snapshots/redis-ca.crt"),
    ("node-1", "/etc/vps-snapshots/gateway-ca.crt"),
)
THREE = {"redis-1": "10.20.0.5", "redis-2": "10.20.0.6", "redis-3": "10.20.0.7"}
OF_THREE = {"each-redis": [*THREE], "first-redis": ["redis-1"], "other-redis": ["redis-2", "redis-3"]}
CUSTOMER = "vps-snapshots --token-file public-tier.token --account 77"
ELSEWHERE = {
    "make": "only the targets' names are checked, below; tests/packages/run.sh does what `make deb` does",
    "packages": "tests/packages/inside.sh",
    "calls": "tests/integration/test_readme.py",
    "survey": "tests/integration/test_worker_command_line.py",
}
AS_PRINTED = (
    "install",
    "configure",
    "operate",
    "scale",
    "recover",
    "upgrade",
    "secure",
    "runbook",
    "dashboard",
    "project",
)
# Each command must work with TLS for Redis and new passwords, too.
SECURED_FIRST = ("install", "secure", *(page for page in AS_PRINTED if page not in ("install", "secure")))
LAST = "Encrypted backups"  # a restore of one also needs the key
PROGRAMS = ("redis-server", "ip", "nsenter", "unshare", "setpriv", "openssl", "curl", "age", "promtool", "virsh")
DOMAINS = """\
<node><domain type='test'><name>web-server-01</name><memory>8192</memory><os><type>hvm</type></os>
<metadata><s:server xmlns:s='https://vps-snapshots.dev/libvirt/1' id='12345' account='77'/></metadata></domain></node>
"""

TLS_OF_REDIS = [
    ("^port 6379$", "port 0"),
    ("^#   tls-port 6379$", "tls-port 6379"),
    *((f"^#   {line}$", line) for line in ("tls-cert-file /etc/redis/redis.crt", "tls-key-file /etc/redis/redis.key")),
    *((f"^#   {line}$", line) for line in ("tls-ca-cert-file /etc/redis/ca.crt", "tls-auth-clients no")),
]
TLS_TO_REDIS = [
    ("^url = .*$", 'url = "rediss://10.20.0.5:6379/0"'),
    ("^# tls_ca_file = .*$", 'tls_ca_file = "/etc/vps-snapshots/redis-ca.crt"'),
]
BIND = [("^bind 127.0.0.1 -::1$", "bind 127.0.0.1 10.20.0.5")]


def redis_of(account: str) -> list[tuple[str, str]]:
    return [
        ('^url = "redis://[0-9.]+:6379/0"', 'url = "redis://10.20.0.5:6379/0"'),
        (f"{account.upper()}-PASSWORD", f"{{password of {account}}}"),
    ]


def shown_in(page: str, beginning: str) -> str:
    """The text of the page's only block that begins with this and that an operator copies into a file."""
    (found,) = [block.text for block in blocks(page) if block.language == "ini" and block.text.startswith(beginning)]
    return found


def as_the_pages_say(order: Sequence[str]) -> dict[str, Edits]:
    """The operator's edits of each machine's files, in the order in which these pages are read."""
    programs = str(Path(sys.executable).parent)
    drop_in = shown_in("secure", "[Service]").replace("/usr/lib/vps-snapshots/api/bin", programs)
    given: dict[str, dict[str, list[tuple[str, list[tuple[str, str]]]]]] = {
        "redis": {
            "/etc/redis/redis.conf": [
                ("install", BIND),
                ("scale", [("^maxmemory 1gb$", "maxmemory 2gb")]),
                ("secure", TLS_OF_REDIS),
            ],
            "/etc/redis/users.acl": [
                ("upgrade", [("^user default off .*$", "user default off ~* &* +@all")]),
                ("secure", [("^user api on ", "user api on >another-password ")]),
                ("secure", [("^user api on >another-password >[0-9a-f]{64} ", "user api on >another-password ")]),
            ],
        },
        "front-end": {
            "/etc/vps-snapshots/api.toml": [
                ("install", redis_of("api")),
                ("configure", [('^# live = "allowed"$', 'live = "allowed"')]),
                ("operate", [("^metrics_networks = .*$", 'metrics_networks = ["10.20.0.9/32"]')]),
                ("secure", [("^password = .*$", 'password = "{password of api}"')]),
                ("secure", TLS_TO_REDIS),
            ],
            "/etc/vps-snapshots/audit.toml": [("install", redis_of("audit")), ("secure", TLS_TO_REDIS)],
            "/etc/systemd/system/vps-snapshots-api.socket.d/override.conf": [
                ("configure", [(r"\A", shown_in("configure", "[Socket]"))])
            ],
            "/etc/systemd/system/vps-snapshots-backup.service.d/override.conf": [("secure", [(r"\A", drop_in)])],
        },
        "gateway": {
            "/etc/vps-snapshots/gateway.toml": [
                ("install", redis_of("gateway")),
                (
                    "operate",
                    [
                        ("^metrics_host = .*$", 'metrics_host = "0.0.0.0"'),
                        ("^# metrics_port = 9753$", "metrics_port = 9753"),
                    ],
                ),
                ("secure", TLS_TO_REDIS),
            ]
        },
        "node-1": {
            "/etc/vps-snapshots/worker.toml": [
                (
                    "install",
                    [
                        ("^urls = .*$", 'urls = ["wss://gateway-1.example.net:7443"]'),
                        ("^# tls_ca_file = .*$", 'tls_ca_file = "/etc/vps-snapshots/gateway-ca.crt"'),
                    ],
                ),
                (
                    "operate",
                    [
                        ("^metrics_host = .*$", 'metrics_host = "0.0.0.0"'),
                        ("^# metrics_port = 9752$", "metrics_port = 9752"),
                    ],
                ),
            ]
        },
        "prometheus": {
            "/etc/prometheus/prometheus.yml": [
                ("operate", [("front-end-1:8080", "10.20.0.7:8080"), ("10.20.0.21:9752", "node-1:9752")])
            ]
        },
    }
    return {
        name: {
            file: [changes for _, changes in sorted(edits, key=lambda edit: order.index(edit[0]))]
            for file, edits in files.items()
        }
        for name, files in given.items()
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    needs_root()
    for program in PROGRAMS:
        needs(program)
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as folder:  # a short path: sockets are below it
        yield Path(folder)


def commands(pages: Iterable[str] = FILES) -> Iterable[Block]:
    return (block for page in pages for block in blocks(page) if block.language == "sh")


def test_each_block_of_commands_is_run_by_a_test() -> None:
    nobody = [f"{block}: {block.kind}" for block in commands() if block.kind not in {*CELL, *OF_THREE, *ELSEWHERE}]
    assert nobody == []


def test_a_block_that_another_test_runs_is_in_it() -> None:
    inside = (PROJECT / "tests/packages/inside.sh").read_text()
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    for block in commands():
        for line in block.text.splitlines():
            if block.kind == "make":
                assert line.partition("#")[0].split()[1] in targets, str(block)
            elif block.kind == "packages":
                assert line.replace("deploy/install.sh", "install_role") in inside, str(block)


def in_order(pages: Iterable[str]) -> list[Block]:
    found = [block for block in commands(pages) if block.kind in CELL and block.section != LOSS]
    return sorted(found, key=lambda block: block.section == LAST)


def test_each_page_with_commands_is_followed() -> None:
    assert {block.page for block in commands()} == {*AS_PRINTED} == {*SECURED_FIRST}


@contextmanager
def cell_of(folder: Path, order: Sequence[str] = AS_PRINTED) -> Iterator[dict[str, Machine]]:
    environment = {
        "node-1": {"VPS_SNAPSHOTS_DRIVER": "fake", "LIBVIRT_DEFAULT_URI": f"test://{folder}/domains.xml"},
    }
    (folder / "domains.xml").write_text(DOMAINS)
    with machines(folder, CELL, edits=as_the_pages_say(order), environment=environment) as cell:
        yield cell


@pytest.mark.parametrize("order", [AS_PRINTED, SECURED_FIRST], ids=["as printed", "secured first"])
def test_a_cell_is_installed_and_run_as_the_pages_say(folder: Path, order: Sequence[str]) -> None:
    with cell_of(folder, order) as cell:
        shown = follow(cell, in_order(order))
        # created at the beginning; Redis has lost its data since
        cell["front-end"].follow(f"until {CUSTOMER} snapshots | grep first; do sleep 0.1; done")
        (*_, encrypted) = sorted(cell["front-end"].file("/var/lib/vps-snapshots-backup").glob("*.backup"))
        newest_backup = encrypted.read_bytes()
        running = {name: running_units(machine) for name, machine in cell.items()}
        unreadable = [name for name, file in CERTIFICATES if not cell[name].file(file).stat().st_mode & stat.S_IROTH]
        left = {name: machine.edits_left() for name, machine in cell.items()}
    assert "bob" in last_of(shown, "vps-snapshots tokens")  # restored from the backup
    assert "\n".join(shown.values()).count("PONG") == 2
    assert newest_backup.startswith(b"age-encryption.org/")
    assert running == {
        "redis": ["redis-server.service"],
        "front-end": [f"vps-snapshots-{unit}" for unit in UNITS_OF_A_FRONT_END],
        "gateway": ["vps-snapshots-gateway.service"],
        "node-1": ["vps-snapshots-worker.service"],
        "prometheus": [],
        "vault": [],
        "archive": [],
    }
    assert left == {name: {} for name in CELL}
    assert unreadable == []


def last_of(shown: Mapping[Block, str], beginning: str) -> str:
    """The output of the last block that begins with this."""
    return [text for block, text in shown.items() if block.text.startswith(beginning)][-1]


UNITS_OF_A_FRONT_END = ("api.service", "api.socket", "audit.service", "backup.timer")


def in_section(page: str, title: str) -> list[Block]:
    return [block for block in blocks(page) if block.section == title and block.language == "sh"]


def after_the_loss() -> dict[str, Edits]:
    """The edits on the new machines."""
    settings = {name: [[*redis_of(name), *TLS_TO_REDIS]] for name in ("api", "audit", "gateway")}
    return {
        "redis": {"/etc/redis/redis.conf": [[*BIND, *TLS_OF_REDIS]]},
        "front-end": {f"/etc/vps-snapshots/{name}.toml": settings[name] for name in ("api", "audit")},
        "gateway": {"/etc/vps-snapshots/gateway.toml": settings["gateway"]},
    }


def test_a_trusted_side_that_has_lost_all_disks_is_installed_again_as_the_page_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cell_of(folder) as cell:
        say = cell["front-end"].follow
        follow(cell, [block for block in blocks("install") if block.kind in CELL])
        follow(cell, in_section("secure", "Encrypted backups"))
        say("vps-snapshots token create --name bob --service --permission operator:read --out bob.token")
        say(f"{CUSTOMER} snapshot label first tier=gold; systemctl start vps-snapshots-backup")
        follow(cell, in_section("recover", "Copies on another machine"))
        say(f"{CUSTOMER} snapshot create 12345 later --follow")  # no copy has it
        theirs = {
            file: cell["front-end"].file(f"/home/{file}").read_text() for file in ("public-tier.token", "bob.token")
        }
        old = passwords(cell["redis"])
        for name, edits in after_the_loss().items():
            cell[name].burn(edits)

        began = time.monotonic()
        follow(cell, in_section("recover", LOSS))
        seconds = time.monotonic() - began

        for file, token in theirs.items():  # their owners have them
            cell["front-end"].file(f"/home/{file}").write_text(token)
            cell["front-end"].file(f"/home/{file}").chmod(0o600)
        say(f"until {CUSTOMER} snapshots | grep later; do sleep 0.1; done")
        assert "gold" in say(f"{CUSTOMER} snapshot show first")
        assert "completed" in say(f"{CUSTOMER} snapshot create 12345 again --follow")
        assert "alice" in say("vps-snapshots --token-file bob.token audit --token-name alice")
        assert all(cell[name].file(file).stat().st_mode & stat.S_IROTH for name, file in CERTIFICATES)
        assert {name: cell[name].edits_left() for name in TRUSTED} == {name: {} for name in TRUSTED}
        assert running_units(cell["front-end"]) == [f"vps-snapshots-{unit}" for unit in UNITS_OF_A_FRONT_END]
        assert len(old) == len(passwords(cell["redis"]))
        assert not old & passwords(cell["redis"])
    with capsys.disabled():
        sys.stdout.write(f"\nafter the loss of all disks, the commands took {seconds:.0f} s\n")


def test_a_backup_between_the_loss_and_the_restore_changes_nothing_for_the_page(folder: Path) -> None:
    with cell_of(folder) as cell:
        say, backups = cell["front-end"].follow, cell["front-end"].file("/var/lib/vps-snapshots-backup")
        follow(cell, [block for block in blocks("install") if block.kind in CELL])
        say("vps-snapshots token create --name bob --service --permission operator:read --out bob.token")
        say("systemctl start vps-snapshots-backup")
        (good,) = backups.glob("*.backup")
        steps = in_section("recover", "All data of Redis is lost")
        (emptied,) = [block for block in steps if block.kind == "redis"]
        follow(cell, [emptied])
        with pytest.raises(NotDoneError, match="Redis has lost the data of the backups"):
            say("systemctl start vps-snapshots-backup")  # as the timer does
        assert [*backups.glob("*.backup")] == [good]
        cell["redis"].follow("rm -r /var/backups/redis-bad")

        follow(cell, steps)

        assert "alice" in say("vps-snapshots --token-file bob.token tokens")
        say("systemctl start vps-snapshots-backup")
        assert len([*backups.glob("*.backup")]) == 2
        assert running_units(cell["front-end"]) == [f"vps-snapshots-{unit}" for unit in UNITS_OF_A_FRONT_END]


def follow(cell: Mapping[str, Machine], some: Iterable[Block]) -> dict[Block, str]:
    """Run the blocks in their order. Returns the output of each."""
    return {block: cell[block.kind].follow(block.text) for block in some}


def passwords(redis: Machine) -> set[str]:
    return set(re.findall(r">(\S+)", redis.file("/etc/redis/users.acl").read_text()))


def running_units(machine: Machine) -> list[str]:
    return machine.follow("systemctl list-units").split()


def test_three_machines_with_redis_are_set_up_as_the_page_says(folder: Path) -> None:
    (install,) = [block for block in blocks("install") if block.kind == "redis"]
    replication = [
        *TLS_OF_REDIS,
        *((f"^#   {line}$", line) for line in ("tls-replication yes", "masteruser replica")),
        ("^#   masterauth .*$", "masterauth {password of replica}"),
        *((f"^#   {line}$", line) for line in ("min-replicas-to-write 1", "min-replicas-max-lag 10")),
    ]
    edits: dict[str, Edits] = {}
    for name, address in THREE.items():
        follows = [] if name == "redis-1" else [("^#   replicaof .*$", "replicaof 10.20.0.5 6379")]
        sentinel = [("^bind 127.0.0.1$", f"bind 127.0.0.1 {address}")]
        sentinel += [(r"^sentinel monitor vps-snapshots \S+", "sentinel monitor vps-snapshots 10.20.0.5")]
        sentinel += [("SENTINEL-PASSWORD$", "{password of sentinel}")]
        sentinel += [("^user operator on >OPERATOR-PASSWORD", "user operator on >{password of operator}")]
        edits[name] = {
            "/etc/redis/redis.conf": [[(BIND[0][0], f"bind 127.0.0.1 {address}")], [*replication, *follows]],
            "/etc/redis/sentinel.conf": [sentinel],
        }
    with machines(folder, THREE, edits=edits, environment={}) as cell:
        for name in THREE:
            cell[name].follow(install.text)
        for block in commands():
            for name in OF_THREE.get(block.kind, []):
                shown = cell[name].follow(block.text)
        first = cell["redis-1"].here("10.20.0.5")
        left = {name: machine.edits_left() for name, machine in cell.items()}
    assert re.findall(r'"(\S+)"', shown)[-2:] == [first, "6379"]
    assert left == {name: {} for name in THREE}
