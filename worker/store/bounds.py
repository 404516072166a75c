"""How much one account may leave in Redis, so that it cannot fill the cell. See docs/adr/0025-bounds-per-account.md.

Each number is a setting of the front ends, which write it to the hash `bounds`: scripts read it there, so that every
process of the cell has the same bounds. Where the hash lacks one, scripts use the default.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# The shares of Redis's `maxmemory` from which requests are refused: dry runs and tests of webhooks, which change
# nothing; new snapshots, schedules and webhooks; then all else that a customer may ask for, such as restores. The rest
# is for deletes and for the ends of jobs, which go on beyond `maxmemory`.
FULL_FROM = {"looks": 0.8, "new": 0.9, "changes": 0.95}
# While new snapshots are refused, each job that ends makes room: of history, no more than this is kept.
KEPT_WHEN_SHORT = {"jobs_per_server": 10, "jobs_per_account": 500}

Bound = Annotated[int, Field(ge=1, le=1_000_000)]


class Bounds(BaseModel):
    """Of history, the oldest goes first; anything else is refused. Sizes: `tests/integration/test_sizes.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs_per_server: Bound = Field(
        default=200,  # with one create and one delete a day: three times 30 days
        description="ended jobs of a server that are kept, within their 30 days",
    )
    jobs_per_account: Bound = Field(
        default=10_000,  # 27 MB
        description="ended jobs of an account that are kept, within their 30 days",
    )
    dry_runs_per_account: Bound = Field(
        default=200,  # 0.6 MB; a dry run's caller has its result at once, so they are kept for people who look again
        description="ended dry runs of an account that are kept, within their hour",
    )
    open_dry_runs_per_account: Bound = Field(
        default=50,  # each waits for the node, and no other job of the server prevents a second one
        description="dry runs of an account that have not ended; more are refused",
    )
    failed_snapshots_per_server: Bound = Field(
        default=20,  # a list that is longer is not read
        description="failed snapshots of a server that are listed, within their 7 days",
    )
    failed_snapshots_per_account: Bound = Field(
        default=500,  # 0.7 MB
        description="failed snapshots of an account that are listed, within their 7 days",
    )
    deleted_snapshots_per_account: Bound = Field(
        default=5000,  # 3 MB
        description="deleted snapshots of an account whose history is kept, within 30 days",
    )
    deliveries_per_account: Bound = Field(
        default=2000,  # 3 MB: all events of 1,000 servers in a night in which each has a create and a delete
        description="deliveries of an account that wait or were given up, with their messages; the oldest lose theirs",
    )
    answers_per_account: Bound = Field(
        default=3000,  # 7 MB: more than one client repeats, and servers and names refuse what is asked twice
        description="answers to requests with an Idempotency-Key that are kept of an account, within their 24 hours",
    )
    tokens_per_account: Bound = Field(
        default=100,  # programs of one customer
        description="tokens of an account; more are refused",
    )
