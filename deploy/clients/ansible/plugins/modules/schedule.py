DOCUMENTATION = """
module: schedule
short_description: Ensures that a server has a schedule of snapshots, or does not have it
description:
  - Creates, edits or deletes the schedule of this name. Omitted options keep their values.
options:
  name:
    description:
      - Name of the schedule. Its snapshots' names begin with it.
    type: str
    required: true
  state:
    description:
      - Whether the schedule must exist.
    type: str
    choices: [present, absent]
    default: present
  when:
    description:
      - V(hourly), V(daily), V(weekly), or a cron expression of five fields in UTC. Required to create the schedule.
    type: str
  keep:
    description:
      - How many of its snapshots to keep, 1 to 5. A new schedule keeps 3.
    type: int
  expire_after_hours:
    description:
      - The age at which its snapshots are deleted. V(0) means never.
    type: int
  consistency:
    description:
      - Whether its snapshots stop the server.
    type: str
    choices: [stop, live]
  enabled:
    description:
      - Whether it runs. Default for a new schedule: true.
    type: bool
extends_documentation_fragment: vps.snapshots.api
attributes:
  check_mode:
    support: full
    description: Changes nothing.
  diff_mode:
    support: full
    description: Shows what changes.
author: vps-snapshots
"""

EXAMPLES = """
- name: Have a snapshot of each night
  vps.snapshots.schedule:
    server_id: 12345
    name: nightly
    when: "0 3 * * *"
    keep: 3
"""

RETURN = """
schedule:
  description: The schedule, as the API shows it.
  returned: when it exists
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vps.snapshots.plugins.module_utils.service import changed_of, connected, end, module_of

SETTINGS: dict[str, dict[str, Any]] = {
    "when": {"type": "str"},
    "keep": {"type": "int"},
    "expire_after_hours": {"type": "int"},
    "consistency": {"type": "str", "choices": ["stop", "live"]},
    "enabled": {"type": "bool"},
}
Change = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # before, after, and results
OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    **SETTINGS,
}


def ensure_absent(module: AnsibleModule, client: Any, found: dict[str, Any] | None) -> Change:
    if found is not None and not module.check_mode:
        client.schedules.delete(found["id"])
    return found or {}, {}, {}


def ensure_present(module: AnsibleModule, client: Any, found: dict[str, Any] | None) -> Change:
    wanted = {name: module.params[name] for name in SETTINGS if module.params[name] is not None}
    never = wanted.get("expire_after_hours") == 0
    if never:
        del wanted["expire_after_hours"]
    if found is None:
        if "when" not in wanted:
            module.fail_json(msg="when is required to create a schedule.")
        wanted |= {"server_id": module.params["server_id"], "name": module.params["name"]}
        after = wanted if module.check_mode else client.schedules.create(**wanted)
        return {}, after, {"schedule": after}
    changes = changed_of(wanted, found)
    if never and found["expire_after_hours"] is not None:
        changes["expire_after_hours"] = None
    after = {**found, **changes}
    if changes and not module.check_mode:
        after = client.schedules.edit(found["id"], changes)
    return found, after, {"schedule": after}


def main() -> None:
    module = module_of(OPTIONS)
    with connected(module) as client:
        found = client.schedules.find(server_id=module.params["server_id"], name=module.params["name"])
        ensure = ensure_present if module.params["state"] == "present" else ensure_absent
        before, after, results = ensure(module, client, found)
        end(module, before, after, **results)


if __name__ == "__main__":
    main()
