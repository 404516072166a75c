"""Upgrade and downgrade a working cell. `make upgrades` does so from earlier releases, too."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.conftest import needs
from tests.upgrades.campaign import up_and_back
from tests.upgrades.cell import NODES
from tests.upgrades.releases import following, today


def test_nothing_admitted_is_lost_or_repeated_in_an_upgrade_and_downgrade() -> None:
    needs("redis-server")
    folder = Path(tempfile.mkdtemp(prefix="vps-up-", dir="/tmp"))  # a short path: sockets are below it
    upgrade = asyncio.run(up_and_back(folder, today(), following(folder / "following"), say=lambda _: None))
    assert upgrade.violations == [], f"{upgrade.text()}\nkept for inspection: {folder}"
    assert len(upgrade.held) == 2 * len(NODES)
    shutil.rmtree(folder)
