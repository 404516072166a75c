"""The options of all modules."""


class ModuleDocFragment:
    DOCUMENTATION = """
options:
  api_url:
    description:
      - URL of the service, without C(/api/v1/).
      - Without it, the environment variable E(VPS_SNAPSHOTS_URL).
    type: str
  api_token:
    description:
      - Token of the account, with the permissions C(snapshots:read) and C(snapshots:write).
      - Without it, the environment variable E(VPS_SNAPSHOTS_TOKEN).
    type: str
  account_id:
    description:
      - The account that a service token acts for.
    type: int
  server_id:
    description:
      - ID of the server.
    type: int
    required: true
  wait_timeout:
    description:
      - How many seconds to wait for the end of a job.
    type: int
    default: 3600
requirements:
  - vps-snapshots-client
"""
