"""Shared by the modules: options, the client, and errors in Ansible's form."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback, missing_required_lib

try:
    from vps_snapshots import Client, SnapshotsError
except ImportError:
    MISSING: str | None = traceback.format_exc()
else:
    MISSING = None

_OPTIONS: dict[str, dict[str, Any]] = {
    "api_url": {"type": "str", "fallback": (env_fallback, ["VPS_SNAPSHOTS_URL"])},
    "api_token": {"type": "str", "no_log": True, "fallback": (env_fallback, ["VPS_SNAPSHOTS_TOKEN"])},
    "account_id": {"type": "int"},
    "server_id": {"type": "int", "required": True},
    "wait_timeout": {"type": "int", "default": 3600},
}


def module_of(options: Mapping[str, Any], **rules: Any) -> AnsibleModule:
    """`options`: the module's own options. `rules`: further arguments of AnsibleModule."""
    module = AnsibleModule(argument_spec={**_OPTIONS, **options}, supports_check_mode=True, **rules)
    if MISSING is not None:
        module.fail_json(msg=missing_required_lib("vps-snapshots-client"), exception=MISSING)
    for name in ("api_url", "api_token"):
        if not module.params[name]:
            variable = f"VPS_SNAPSHOTS_{name.removeprefix('api_').upper()}"
            module.fail_json(msg=f"{name} is missing: set it, or the environment variable {variable}.")
    return module


@contextmanager
def connected(module: AnsibleModule) -> Iterator["Client"]:
    """The client. Its errors end the module."""
    params = module.params
    try:
        with Client(params["api_url"], params["api_token"], account_id=params["account_id"]) as client:
            yield client
    except (SnapshotsError, ValueError) as error:
        known = {name: getattr(error, name) for name in ("code", "request_id", "job") if hasattr(error, name)}
        module.fail_json(msg=str(error), **known)


def changed_of(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The wanted values that were given and differ."""
    return {name: value for name, value in wanted.items() if value is not None and found.get(name) != value}


def ensure_passed(module: AnsibleModule, client: "Client", job: Mapping[str, Any]) -> None:
    """Fails the module if the checks of a dry run failed."""
    client.wait_for_job(job["id"], timeout_seconds=module.params["wait_timeout"])


def end(module: AnsibleModule, before: Mapping[str, Any], after: Mapping[str, Any], **results: Any) -> None:
    """Ends the module. It has changed something if `after` differs from `before`; a diff shows both."""
    module.exit_json(changed=before != after, diff={"before": dict(before), "after": dict(after)}, **results)
