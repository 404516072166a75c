"""The front end's settings, from the environment or a TOML file, checked at start."""

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, HttpUrl

from worker.store.bounds import Bounds
from worker.store.model import RETRY_WITHIN_SECONDS
from worker.store.settings import CellSettings

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Live(StrEnum):
    """Whether snapshots are taken without a stop of the server."""

    REFUSED = "refused"
    ALLOWED = "allowed"  # if a request asks for a live snapshot
    DEFAULT = "default"  # unless a request asks for a stop


class ApiSettings(CellSettings):
    """Each can be set as VPS_SNAPSHOTS_<NAME> or as a key of the TOML file. All times are in seconds."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8080, description="0: any free port")
    unix_socket: Path | None = Field(default=None, description="listen on this socket instead of host and port")
    body_seconds: Seconds = Field(default=10.0, description="how long a client may take to send a body")
    keepalive_seconds: Seconds = Field(
        default=75.0, description="how long a connection may stay open without complete request headers"
    )
    request_seconds: Seconds = Field(default=30.0, description="limit for a whole call; event streams have none")
    stalled_seconds: Seconds = Field(
        default=30.0, description="how long a client may stop reading its response before its connection is closed"
    )
    processes: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1,
        description="processes that answer requests, at most one per CPU; limits apply to all "
        "processes together unless they say otherwise",
    )
    connections: Count = Field(
        default=5000,
        description="connections of one process at a time; a further one replaces an idle one, or is refused",
    )
    calls_per_minute: Count = Field(
        default=600, description="limit for each token; for a service token, for each account"
    )
    failed_logins_per_minute: Count = Field(
        default=30, description="limit for calls with invalid tokens from one address"
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="networks of proxies whose X-Forwarded-For is trusted"
    )
    metrics_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="networks from which Prometheus may read /metrics; others get 404",
    )
    metrics_look_seconds: Seconds = Field(default=15.0, description="how often the cell's numbers are read")
    audit_days: Count = Field(default=90, description="how long the audit log is kept")
    audit_entries_per_hour: Count = Field(
        # the log then holds one day of entries of 40 tokens at this limit
        default=1000,
        description=(
            "audit entries of a token in one process for calls that start no job; further calls "
            "are only in the program's log"
        ),
    )
    audit_keeper: bool = Field(
        default=True,
        description="run the keeper of the audit log in this process; false: run `vps-snapshots-api audit keep`"
        " separately, which is safer",
    )
    streams_per_account: Count = Field(default=20, description="event streams of an account at a time")
    operators_streams: Count = Field(
        default=200, description="event streams of all operators at a time: one for each open page of the dashboard"
    )
    streams: Count = Field(default=1000, description="event streams of one process at a time")
    heartbeat_seconds: Seconds = Field(default=15.0, description="the longest silence on an event stream")
    webhook_seconds: Seconds = Field(default=15.0, description="how long the receiver of a webhook may take to respond")
    webhooks: Count = Field(default=100, description="webhooks that the front end serves at a time")
    webhooks_to_private: bool = Field(
        default=False, description="allow webhooks to http URLs and private networks: for development only"
    )
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="networks that webhooks may reach besides public addresses: your own"
    )
    webhook_denied_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="networks that webhooks may not reach: your own public ones"
    )
    webhook_hosts: tuple[Annotated[str, Field(pattern=r"^\.?[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")], ...] = Field(
        default=(), description="host names that webhooks may reach at any address; .example.com: all names below it"
    )
    webhook_proxy: HttpUrl | None = Field(
        default=None,
        description=(
            "proxy for webhooks, http://HOST:PORT or http://USER:PASSWORD@HOST:PORT; it resolves their host names, so"
            " it must refuse addresses that webhooks must not reach"
        ),
    )
    live: Live = Field(
        default=Live.REFUSED,
        description="snapshots without a stop of the server: refused, allowed (on request), or default",
    )
    session_seconds: Seconds = Field(default=43_200.0, description="how long a login to the dashboard lasts")
    session_idle_seconds: Seconds = Field(default=3600.0, description="how long a login lasts without activity")
    retry_within_seconds: Seconds = Field(
        default=RETRY_WITHIN_SECONDS,
        description="how long after a failure operators can retry a job without force; must be equal on all front ends",
    )
    runbook_url: str = Field(default="/ops/runbook/", description="URL of docs/runbook.md, as your operators read it")
    docs_url: str = Field(
        default="/docs", description="URL of the API's documentation, as your customers read it; errors link to it"
    )
    drain_seconds: Seconds = Field(default=30.0, description="how long requests may keep running after SIGTERM")
    bounds: Bounds = Field(
        default_factory=Bounds,
        description="limits on what one account may store in Redis; must be equal on all front ends",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="log lines of this level and above are written"
    )
