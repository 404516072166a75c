"""Limits on what one account can store in Redis. See docs/adr/0025-bounds-per-account.md.

Each bound is a setting of the front ends, which write it to the hash `bounds`. Scripts read it there, so that every
process of the cell has the same bounds. If the hash lacks one, scripts use the default.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Shares of Redis's `maxmemory` at which requests are refused: first dry runs and webhook tests, which change
# nothing; then new snapshots, schedules and webhooks; then everything else that customers may request, such as
# restores. The rest is for deletes and the ends of jobs, which continue beyond `maxmemory`.
FULL_FROM = {"looks": 0.8, "new": 0.9, "changes": 0.95}
# While new snapshots are refused, each job that ends makes room: of history, no more than this is kept.
KEPT_WHEN_SHORT = {"jobs_per_server": 10, "jobs_per_account": 500, "deleted_snapshots_per_account": 500}

Bound = Annotated[int, Field(ge=1, le=1_000_000)]


class Bounds(BaseModel):
    """At a limit, the oldest history is removed; everything else is refused. Sizes:
    `tests/integration/test_sizes.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs_per_server: Bound = Field(
        default=200,  # with one create and one delete a day: three times 30 days
        description="ended jobs kept for each server, within 30 days",
    )
    jobs_per_account: Bound = Field(
        default=10_000,  # 27 MB
        description="ended jobs kept for each account, within 30 days",
    )
    dry_runs_per_account: Bound = Field(
        default=200,  # 0.6 MB; the caller gets a dry run's result at once, so records are only kept for later reading
        description="ended dry runs kept for each account, within an hour",
    )
    open_dry_runs_per_account: Bound = Field(
        default=50,  # each waits for the node, and unlike other jobs, several can exist for one server
        description="unfinished dry runs of an account; more are refused",
    )
    failed_snapshots_per_server: int = Field(
        default=20,  # nobody reads a longer list
        ge=1,
        le=200,  # of the 300 that a server's list may have (`shared/snapshots.lua`), the others are for complete ones
        description="failed snapshots kept for each server, within 7 days",
    )
    failed_snapshots_per_account: Bound = Field(
        default=500,  # 0.7 MB
        description="failed snapshots kept for each account, within 7 days",
    )
    deleted_snapshots_per_account: Bound = Field(
        default=5000,  # 3 MB; 30 MB if each was edited so often that it has the most entries
        description="deleted snapshots of each account whose history is kept, within 30 days",
    )
    deliveries_per_account: Bound = Field(
        default=2000,  # 3 MB: all events of 1,000 servers in a night in which each has a create and a delete
        description="pending and given-up deliveries of an account whose messages are kept; the oldest lose theirs",
    )
    answers_per_account: Bound = Field(
        # 7 MB: more than a client repeats; beyond that, duplicate requests still fail with server_busy or name_taken
        default=3000,
        description="responses to requests with an Idempotency-Key kept for each account, within 24 hours",
    )
    tokens_per_account: Bound = Field(
        default=100,  # enough for the programs of one customer
        description="tokens of an account; more are refused",
    )
