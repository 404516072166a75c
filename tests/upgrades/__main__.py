"""`make upgrades`: upgrade a cell from earlier releases to this checkout and back, and from this checkout to a
simulated next release and back.

FROM="0a79ed0 today": tags or commits; by default the newest tag, if there is one, the last commit without gateways, and
this checkout.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.upgrades.campaign import up_and_back
from tests.upgrades.releases import FIRST, following, newest_tag, of_commit, today


def main() -> int:
    names = (os.environ.get("FROM") or f"{newest_tag() or ''} {FIRST} today").split()
    failed = 0
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="vps-up-", dir="/tmp"))  # a short path: sockets are below it
        try:
            before = today() if name == "today" else of_commit(name, folder / "before")
        except LookupError as error:
            sys.exit(f"{error}")
        after = following(folder / "after") if name == "today" else today()
        print(f"from {before.name} to {after.name} and back, in {folder}")
        began = time.monotonic()
        upgrade = asyncio.run(up_and_back(folder, before, after))
        print(upgrade.text(), f"{time.monotonic() - began:.0f} s", sep="\n")
        if upgrade.violations:
            failed += 1
        else:
            shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    sys.exit(main())
