"""`make run`: runs the whole service on this machine until Ctrl-C.

Environment variables: PORT (default 8080), DRIVER (kvm; fake: simulated servers without a hypervisor), STATE_DIR
(default ./state; ./state-fake with DRIVER=fake), and the front end's settings of webhooks, VPS_SNAPSHOTS_WEBHOOK*.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

from deploy.demo.guest import Guest, GuestFailed
from deploy.demo.service import ACCOUNT_ID, SERVER_ID, SERVER_NAME, Service, ServiceFailed, ensure_port_free
from deploy.demo.state import State, StateRefused
from worker.settings import Driver

_MANUAL = """
The service is running: {url}
  {what}, of account {account}: {servers}
  state and tokens: {folder}; `{clean}` deletes them
  dashboard for operators: {url}/ops/, log in with {operator}
  API documentation: {url}/docs
  command line: VPS_SNAPSHOTS_URL={url} VPS_SNAPSHOTS_TOKEN_FILE={token_file} {program} top
  Prometheus metrics: {metrics}
  logs: tail -f {logs}

Copy and paste into another terminal:

URL={url} TOKEN={token}
{calls}
Ctrl-C stops everything.
"""

_CALLS = Path(__file__).with_name("calls.sh")
_DEFAULT_FOLDERS = {each: Path("state" if each is Driver.KVM else f"state-{each}").resolve() for each in Driver}
_COMMAND_LINE = os.path.relpath(Path(sys.executable).with_name("vps-snapshots"))
_PORT_MAX = 65535


def say(text: str) -> None:
    print(text, flush=True)


async def serve(service: Service, *, driver: Driver, folder: Path) -> None:
    """Run until a part ends, then raise ServiceFailed. Stops everything before it returns, even if cancelled."""
    try:
        say(f"starting in {folder} ...")
        await service.start()
        say(
            _MANUAL.format(
                url=service.url,
                account=ACCOUNT_ID,
                servers=", ".join(f'{one["id"]} "{one["name"]}"' for one in await service.servers()),
                what="a real guest in QEMU" if driver is Driver.KVM else "simulated servers",
                folder=folder,
                logs=shlex.quote(str(folder / "logs")) + "/*.log",
                metrics=" and ".join(service.metrics_urls),
                clean="make clean" if folder in _DEFAULT_FOLDERS.values() else f"STATE_DIR={folder} make clean",
                calls=_CALLS.read_text(),
                token=service.client.token,
                operator=service.operator.token,
                token_file=shlex.quote(str(service.operator_token_file)),
                program=shlex.quote(_COMMAND_LINE),
            )
        )
        raise ServiceFailed(await service.ended())
    finally:
        say("stopping ... (press Ctrl-C again to kill)")
        await asyncio.shield(service.stop())


async def run(service: Service, *, driver: Driver, folder: Path) -> int:
    serving = asyncio.ensure_future(serve(service, driver=driver, folder=folder))

    def stop() -> None:
        if stop_requested.is_set():
            service.kill()
        else:
            stop_requested.set()
            serving.cancel()

    stop_requested = asyncio.Event()
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


class OptionRefused(Exception):
    """An environment variable has an invalid value; the text names it. Nothing was changed."""


def chosen_driver() -> Driver:
    text = os.environ.get("DRIVER") or Driver.KVM
    if text not in {*Driver}:
        raise OptionRefused(f"DRIVER={text}: must be {' or '.join(Driver)}")
    return Driver(text)


def chosen_port() -> int:
    text = os.environ.get("PORT") or "8080"
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _PORT_MAX:
        raise OptionRefused(f"PORT={text}: must be a number from 1 to {_PORT_MAX}")
    return int(text)


def chosen_folder() -> Path | None:
    text = os.environ.get("STATE_DIR")
    return Path(text).resolve() if text else None


def start() -> int:
    driver, port = chosen_driver(), chosen_port()
    folder = chosen_folder() or _DEFAULT_FOLDERS[driver]
    ensure_port_free(port)
    state = State.open(folder, driver=driver)
    try:
        return asyncio.run(run(Service(state, port=port, driver=driver), driver=driver, folder=folder))
    finally:
        state.close()


def clean() -> int:
    """Delete the folder that STATE_DIR names, or the default folder of DRIVER; without either, of both drivers."""
    chosen, driver = chosen_folder(), chosen_driver() if os.environ.get("DRIVER") else None
    folders = [chosen] if chosen else [_DEFAULT_FOLDERS[driver]] if driver else list(_DEFAULT_FOLDERS.values())
    for folder in folders:
        if folder.exists():
            forget(folder, driver)
        else:
            say(f"make clean: {folder} does not exist")
    return 0


def forget(folder: Path, driver: Driver | None) -> None:
    """Delete the folder, after stopping a guest that a killed run has left running. Raises StateRefused if it was made
    with another driver."""
    state = State.open(folder, driver=driver)
    try:
        asyncio.run(Guest(state, server_id=SERVER_ID, name=SERVER_NAME, account_id=ACCOUNT_ID).stop())
    except GuestFailed:
        state.close()
        raise
    state.remove()
    say(f"make clean: deleted {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument(
        "--clean", action="store_true", help="delete the state folder instead (without DRIVER and STATE_DIR: both)"
    )
    command = "clean" if parser.parse_args().clean else "run"
    try:
        return clean() if command == "clean" else start()
    except (OptionRefused, StateRefused, ServiceFailed, GuestFailed) as error:
        say(f"make {command}: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
