DOCUMENTATION = """
module: schedule
short_description: Ensures that a server or servers with given labels have, or do not have, a schedule of snapshots
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
      - V(hourly), V(daily), V(weekly), or a cron expression of five fields. Required to create the schedule.
    type: str
  server_id:
    description:
      - ID of the server. Either this or O(server_labels).
    type: int
  server_labels:
    description:
      - The labels of the servers, which must have all of them. The schedule is then found by its name alone.
    type: dict
  time_zone:
    description:
      - IANA name of the time zone of O(when). A new schedule has V(UTC).
    type: str
  window_minutes:
    description:
      - How long after O(when) snapshots may start, 10 to 1440. They are spread over this time by server.
      - V(0) means no window, which only a schedule of one server can have. A new schedule by labels has V(60).
    type: int
  keep:
    description:
      - How many of its snapshots of each server to keep, at most the server's limit of snapshots, usually 5.
      - A new schedule keeps 3.
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

- name: Have a snapshot of each labeled server at night, in Berlin's time
  vps.snapshots.schedule:
    server_labels: {backup: nightly}
    name: nightly
    when: "0 3 * * *"
    time_zone: Europe/Berlin
    window_minutes: 120
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
    "server_labels": {"type": "dict"},
    "time_zone": {"type": "str"},
    "window_minutes": {"type": "int"},
    "keep": {"type": "int"},
    "expire_after_hours": {"type": "int"},
    "consistency": {"type": "str", "choices": ["stop", "live"]},
    "enabled": {"type": "bool"},
}
Change = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # before, after, and results
OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "server_id": {"type": "int"},
    **SETTINGS,
}
NONE = ("expire_after_hours", "window_minutes")  # 0 is none: null in the API


def ensure_absent(module: AnsibleModule, client: Any, found: dict[str, Any] | None) -> Change:
    if found is not None and not module.check_mode:
        client.schedules.delete(found["id"])
    return found or {}, {}, {}


def ensure_present(module: AnsibleModule, client: Any, found: dict[str, Any] | None) -> Change:
    wanted = {name: module.params[name] for name in SETTINGS if module.params[name] is not None}
    none = [name for name in NONE if wanted.get(name) == 0]
    for name in none:
        del wanted[name]
    if found is None:
        if "when" not in wanted:
            module.fail_json(msg="when is required to create a schedule.")
        wanted |= {name: module.params[name] for name in ("server_id", "name") if module.params[name] is not None}
        after = wanted if module.check_mode else client.schedules.create(**wanted)
        return {}, after, {"schedule": after}
    changes = changed_of(wanted, found)
    changes |= {name: None for name in none if found[name] is not None}
    after = {**found, **changes}
    if changes and not module.check_mode:
        after = client.schedules.edit(found["id"], changes)
    return found, after, {"schedule": after}


def main() -> None:
    one_of = ("server_id", "server_labels")
    module = module_of(OPTIONS, required_one_of=[one_of], mutually_exclusive=[one_of])
    server_id, name = module.params["server_id"], module.params["name"]
    with connected(module) as client:
        find_one, find_by_label = client.schedules.find, client.schedules.find_by_label
        found = find_by_label(name=name) if server_id is None else find_one(server_id=server_id, name=name)
        ensure = ensure_present if module.params["state"] == "present" else ensure_absent
        before, after, results = ensure(module, client, found)
        end(module, before, after, **results)


if __name__ == "__main__":
    main()
