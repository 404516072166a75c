DOCUMENTATION = """
module: snapshot
short_description: Ensures that a server has a snapshot, or does not have it
description:
  - Creates, edits or deletes the snapshot of this name.
  - To create it, the service stops the server and starts it again, unless O(consistency=live).
  - In check mode, the server's node runs the checks of a create and changes nothing.
options:
  name:
    description:
      - Name of the snapshot, unique on its server.
    type: str
    required: true
  state:
    description:
      - Whether the snapshot must exist. A failed snapshot does not count.
    type: str
    choices: [present, absent]
    default: present
  description:
    description:
      - Description of the snapshot.
    type: str
  labels:
    description:
      - All labels of the snapshot.
    type: dict
  protected:
    description:
      - Whether deletes are refused.
    type: bool
  consistency:
    description:
      - Whether to stop the server, V(stop) or V(live). Default: the server's or else the provider's.
    type: str
    choices: [stop, live]
  wait:
    description:
      - Whether to wait until the snapshot is completed, or until its space is freed.
    type: bool
    default: true
extends_documentation_fragment: vps.snapshots.api
attributes:
  check_mode:
    support: full
    description: Runs the checks of a create on the server's node.
  diff_mode:
    support: full
    description: Shows what changes.
author: vps-snapshots
"""

EXAMPLES = """
- name: Ensure that there is a snapshot before the update
  vps.snapshots.snapshot:
    server_id: 12345
    name: before-update
    description: Before the update to 13.2
    labels:
      env: production

- name: Ensure that the snapshot is deleted
  vps.snapshots.snapshot:
    server_id: 12345
    name: before-update
    state: absent
"""

RETURN = """
snapshot:
  description: The snapshot, as the API shows it.
  returned: if it exists
  type: dict
job_id:
  description: ID of the job that was started.
  returned: if a job was started
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vps.snapshots.plugins.module_utils.service import (
    changed_of,
    connected,
    end,
    ensure_passed,
    module_of,
)

Change = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # before, after, and results
OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
    "labels": {"type": "dict"},
    "protected": {"type": "bool"},
    "consistency": {"type": "str", "choices": ["stop", "live"]},
    "wait": {"type": "bool", "default": True},
}


def ensure_absent(module: AnsibleModule, client: Any) -> Change:
    found = client.snapshots.find(server_id=module.params["server_id"], name=module.params["name"])
    if found is None:
        return {}, {}, {}
    if module.check_mode:
        return found, {}, {}
    job_id = client.snapshots.delete(found["id"]).job_id
    if module.params["wait"] and job_id is not None:
        client.wait_for_job(job_id, timeout_seconds=module.params["wait_timeout"])
    return found, {}, {"job_id": job_id}


def ensure_present(module: AnsibleModule, client: Any) -> Change:
    params = module.params
    wanted = {name: params[name] for name in ("description", "labels", "protected")}
    if wanted["labels"] is not None:
        wanted["labels"] = {key: str(value) for key, value in wanted["labels"].items()}
    listed = client.snapshots.find(server_id=params["server_id"], name=params["name"])
    if listed is None:
        return create(module, client, wanted)
    if params["wait"] and listed["status"] == "in_progress":
        client.wait_for_job(job_of(client, listed), timeout_seconds=params["wait_timeout"])
    before = client.snapshots.get(listed["id"])
    changes = changed_of(wanted, before)
    after = {**before, **changes}
    if changes and not module.check_mode:
        after = client.snapshots.edit(listed["id"], changes)
    return before, after, {"snapshot": after}


def create(module: AnsibleModule, client: Any, wanted: dict[str, Any]) -> Change:
    params = module.params
    how = {"server_id": params["server_id"], "name": params["name"], "consistency": params["consistency"]}
    if module.check_mode:
        ensure_passed(module, client, client.snapshots.check_create(**how))
        return {}, {"name": params["name"], **{key: value for key, value in wanted.items() if value is not None}}, {}
    created = client.snapshots.create(**how, description=wanted.pop("description") or "")
    if params["wait"]:
        client.wait_for_job(created.job_id, timeout_seconds=params["wait_timeout"])
    after = client.snapshots.get(created.body["id"])
    changes = changed_of(wanted, after)
    if changes:
        after = client.snapshots.edit(created.body["id"], changes)
    return {}, after, {"snapshot": after, "job_id": created.job_id}


def job_of(client: Any, snapshot: dict[str, Any]) -> str:
    """The ID of the job that creates the snapshot."""
    jobs = client.jobs.list(server_id=snapshot["server"]["id"])
    return next(
        str(job["id"])
        for job in jobs
        if job["kind"] == "create" and job["snapshot"] and job["snapshot"]["id"] == snapshot["id"]
    )


def main() -> None:
    module = module_of(OPTIONS)
    with connected(module) as client:
        ensure = ensure_present if module.params["state"] == "present" else ensure_absent
        before, after, results = ensure(module, client)
        end(module, before, after, **results)


if __name__ == "__main__":
    main()
