"""`make run`: the whole service on this machine, until Ctrl-C.

Options by environment: PORT (8080), STATE_DIR (./state), DRIVER (kvm; fake: simulated servers, no hypervisor needed).
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from deploy.demo.guest import GuestFailed
from deploy.demo.service import ACCOUNT_ID, SERVER_ID, SERVER_NAME, Driver, Service, ServiceFailed, ensure_port_free
from deploy.demo.state import State, StateRefused

_MANUAL = """
The service is up: {url}
  server {server} "{name}" of account {account}: {what}
  state and tokens: {folder}; `{clean}` forgets them
  operators' dashboard: {url}/ops/, log in with {operator}

Copy and paste into another terminal:

URL={url} TOKEN={token}
{calls}
Ctrl-C stops all of it.
"""


_CALLS = Path(__file__).with_name("calls.sh")
_USUAL_FOLDER = Path("state").resolve()


def say(text: str) -> None:
    print(text, flush=True)


async def serve(service: Service, *, driver: Driver, folder: Path) -> None:
    """Run until a part ends. Raises ServiceFailed; cancelled, it has stopped everything when it returns."""
    try:
        say(f"starting in {folder} ...")
        await service.start()
        say(
            _MANUAL.format(
                url=service.url,
                server=SERVER_ID,
                name=SERVER_NAME,
                account=ACCOUNT_ID,
                what="simulated" if driver is Driver.FAKE else "a real guest in QEMU",
                folder=folder,
                clean="make clean" if folder == _USUAL_FOLDER else f"STATE_DIR={folder} make clean",
                calls=_CALLS.read_text(),
                token=service.client.token,
                operator=service.operator.token,
            )
        )
        raise ServiceFailed(await service.ended())
    finally:
        say("stopping ... (Ctrl-C again: at once)")
        await asyncio.shield(service.stop())


async def run(service: Service, *, driver: Driver, folder: Path) -> int:
    serving = asyncio.ensure_future(serve(service, driver=driver, folder=folder))

    def stop() -> None:
        if stop_asked.is_set():
            service.kill()
        else:
            stop_asked.set()
            serving.cancel()

    stop_asked = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop)
    try:
        await serving
    except asyncio.CancelledError:
        say("stopped")
        return 0
    except (ServiceFailed, GuestFailed) as error:
        say(f"make run: {error}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--clean", action="store_true", help="forget the state folder instead")
    clean = parser.parse_args().clean
    folder = Path(os.environ.get("STATE_DIR") or "state").resolve()
    if clean and not folder.exists():
        say(f"make clean: there is nothing in {folder}")
        return 0
    try:
        driver = Driver(os.environ.get("DRIVER") or Driver.KVM)
        port = int(os.environ.get("PORT") or 8080)
    except ValueError as error:
        say(f"make run: {error}: DRIVER is kvm or fake, PORT a number")
        return 2
    try:
        if not clean:
            ensure_port_free(port)
        state = State.open(folder)
    except (StateRefused, ServiceFailed) as error:
        say(f"make run: {error}")
        return 2
    service = Service(state, port=port, driver=driver, quiet=False)
    if clean:
        asyncio.run(service.guest.stop())
        state.remove()
        say(f"make clean: {folder} is gone")
        return 0
    try:
        return asyncio.run(run(service, driver=driver, folder=folder))
    finally:
        state.close()


if __name__ == "__main__":
    sys.exit(main())
