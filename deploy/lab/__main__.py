"""Runs one call on an embedded libvirt in its own process.

Only one process at a time can use an embedded root, and a process can open only one root. Calls that must not keep the
root open are therefore made through this module. A started guest keeps running.
"""

import argparse
import sys

import libvirt

from deploy.lab import domains
from deploy.lab.lab import NOT_DONE, NOT_OPENED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.lab", description=__doc__)
    parser.add_argument("uri")
    calls = parser.add_subparsers(dest="call", required=True)
    calls.add_parser("define", help="the XML is read from standard input")
    for name in ("start", "power", "shut-down", "cut-power", "remove"):
        calls.add_parser(name).add_argument("domain")
    calls.choices["shut-down"].add_argument("--timeout-seconds", type=float, default=30.0)
    calls.add_parser("remove-all")
    arguments = parser.parse_args()
    opened = False
    try:
        with domains.connection(arguments.uri) as connection:
            opened = True
            return _do(connection, arguments)
    except libvirt.libvirtError as error:
        print(error, file=sys.stderr)
        return 1 if opened else NOT_OPENED


def _do(connection: object, arguments: argparse.Namespace) -> int:
    match arguments.call:
        case "define":
            domains.define(connection, sys.stdin.read())
        case "start":
            domains.start(connection, arguments.domain)
        case "power":
            print(domains.power(connection, arguments.domain))
        case "shut-down":
            if not domains.shut_down(connection, arguments.domain, timeout_seconds=arguments.timeout_seconds):
                return NOT_DONE
        case "cut-power":
            domains.cut_power(connection, arguments.domain)
        case "remove":
            domains.remove(connection, arguments.domain)
        case "remove-all":
            domains.remove_all(connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
