"""Distribution of tests over parallel processes: what pytest-xdist assigns to one process as a unit, longest first.

Each process has its own Redis, libvirt and temporary folders: they are fixtures of its session.
"""

from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/browser",)  # share one browser and one service
APART = (
    *("tests/integration/test_migration.py", "tests/chaos/test_chaos.py", "tests/integration/test_run.py"),
    *("tests/integration/test_schemathesis.py", "tests/contract/test_dry_run_kvm.py"),
    *("tests/compat/test_cell.py", "tests/compat/test_node.py"),
)
LONG = (  # in this order: a long unit that starts last would run alone at the end
    *("tests/integration/test_migration.py", "tests/integration/test_crashes.py", "tests/chaos/test_chaos.py"),
    *("tests/browser", "tests/acceptance/test_guests.py", "tests/integration/test_schemathesis.py"),
    *("tests/integration/test_run.py", "tests/operations/test_followed.py", "tests/security/test_hostile_images.py"),
    *("tests/contract/test_kvm.py", "tests/integration/test_failover.py", "tests/compat/test_cell.py"),
    *("tests/acceptance/test_refusals.py", "tests/chaos/test_cell.py", "tests/backups/test_backups.py"),
    *("tests/integration/test_worker_command_line.py", "tests/integration/test_api_program.py"),
    *("tests/contract/test_images.py", "tests/contract/test_dry_run_kvm.py", "tests/compat/test_node.py"),
    *("tests/chaos/test_failovers.py", "tests/contract/test_hypervisor.py", "tests/integration/test_clients.py"),
    *("tests/contract/test_libvirtd.py", "tests/integration/test_node_worker.py", "tests/upgrades/test_upgrades.py"),
    *("tests/integration/test_stopping.py", "tests/integration/test_worker_program.py"),
    *("tests/contract/test_volumes.py", "tests/acceptance/test_live.py", "tests/integration/test_cli_following.py"),
    *("tests/acceptance/test_demo.py", "tests/integration/test_no_body.py", "tests/integration/test_cli.py"),
    *("tests/chaos/test_migrations.py", "tests/integration/test_gateway.py", "tests/integration/test_live_requests.py"),
    *("tests/integration/test_our_clients.py", "tests/contract/test_live_kvm.py"),
    *("tests/contract/test_kvm_written.py", "tests/integration/test_api_http.py", "tests/integration/test_kills.py"),
    *("tests/integration/test_cli_docs.py", "tests/integration/test_tracing.py", "tests/integration/test_webhooks.py"),
    *("tests/integration/test_clocks.py", "tests/integration/test_redis_in_trouble.py"),
    *("tests/integration/test_deployed.py", "tests/unit/test_monitoring.py", "tests/integration/test_processes.py"),
    *("tests/integration/test_service.py", "tests/contract/test_kvm_state.py"),
)


def _room(nodeid: str) -> str:
    """The file of a test, or the folder whose tests share something."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if PurePath(file).is_relative_to(folder)), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Sorts in place; the other units keep their order."""
    ranks = {room: rank for rank, room in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(_room(item.nodeid), len(LONG)))


class SideBySide(LoadScopeScheduling):  # type: ignore[misc] # without types
    """Units are files, except for folders that share something and tests that share nothing with each other."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # by number of tests, which says little about duration

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if _room(nodeid) in APART else _room(nodeid)
