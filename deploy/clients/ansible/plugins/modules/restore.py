DOCUMENTATION = """
module: restore
short_description: Ensures that a server was restored from a snapshot
description:
  - Restores the server, which overwrites all its current data, unless its last restore was from this snapshot and was
    not undone.
  - Data that was written to the server since that restore is not compared. O(force=true) always restores.
  - The service keeps the overwritten data for 24 hours, for an undo.
  - In check mode, the server's node runs the checks of a restore and changes nothing.
options:
  snapshot:
    description:
      - Name of the snapshot.
    type: str
  snapshot_id:
    description:
      - ID of the snapshot.
    type: int
  disks:
    description:
      - V(present) restores only the disks that exist.
    type: str
    choices: [all, present]
    default: all
  force:
    description:
      - Restore even if the last restore was from this snapshot.
    type: bool
    default: false
extends_documentation_fragment: vps.snapshots.api
attributes:
  check_mode:
    support: full
    description: Runs the checks of a restore on the server's node.
  diff_mode:
    support: full
    description: Shows from which snapshot the server was restored.
author: vps-snapshots
"""

EXAMPLES = """
- name: Go back to the time before the update
  vps.snapshots.restore:
    server_id: 12345
    snapshot: before-update
"""

RETURN = """
job:
  description: The job of the restore, as the API shows it.
  returned: when the server was restored, now or before
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vps.snapshots.plugins.module_utils.service import connected, end, ensure_passed, module_of

OPTIONS: dict[str, dict[str, Any]] = {
    "snapshot": {"type": "str"},
    "snapshot_id": {"type": "int"},
    "disks": {"type": "str", "choices": ["all", "present"], "default": "all"},
    "force": {"type": "bool", "default": False},
}
NAMES = ("snapshot", "snapshot_id")


def snapshot_id_of(module: AnsibleModule, client: Any) -> int:
    params = module.params
    if params["snapshot_id"] is not None:
        snapshot = client.snapshots.get(params["snapshot_id"])
    else:
        snapshot = client.snapshots.find(server_id=params["server_id"], name=params["snapshot"])
    if snapshot is None or snapshot["server"]["id"] != params["server_id"]:
        module.fail_json(msg=f"Server {params['server_id']} has no such snapshot.")
    return int(snapshot["id"])


def last_restore(client: Any, server_id: int) -> dict[str, Any] | None:
    """The newest restore that has not failed; None if there is none, or if it was undone."""
    for job in client.jobs.list(server_id=server_id):
        if job["kind"] in {"restore", "undo"} and job["state"] != "failed":
            return dict(job) if job["kind"] == "restore" else None
    return None


def main() -> None:
    module = module_of(OPTIONS, required_one_of=[NAMES], mutually_exclusive=[NAMES])
    params = module.params
    with connected(module) as client:
        snapshot_id, last = snapshot_id_of(module, client), last_restore(client, params["server_id"])
        restored_from = last["snapshot"]["id"] if last and last["snapshot"] else None
        before, after = {"restored_from": restored_from}, {"restored_from": snapshot_id}
        if last and restored_from == snapshot_id and not params["force"]:
            job = client.wait_for_job(last["id"], timeout_seconds=params["wait_timeout"])
            end(module, before, after, job=job)
        if params["force"]:
            before = {"restored_from": None}
        if module.check_mode:
            ensure_passed(module, client, client.snapshots.check_restore(snapshot_id, disks=params["disks"]))
            end(module, before, after)
        accepted = client.snapshots.restore(snapshot_id, disks=params["disks"])
        end(module, before, after, job=client.wait_for_job(accepted.job_id, timeout_seconds=params["wait_timeout"]))


if __name__ == "__main__":
    main()
