"""The front end's settings: from the environment, or a TOML file, checked at start."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from worker.program.configuration import (
    NODE_SILENT_SECONDS,
    WAITING_SECONDS,
    FileSettings,
    NodeSilentSeconds,
    WaitingSeconds,
)
from worker.program.span_export import TracingSettings
from worker.store.redis_client import RedisSettings

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


Count = Annotated[int, Field(ge=1)]


class ApiSettings(FileSettings):
    """Each may be set as VPS_SNAPSHOTS_<NAME> or as a key of the TOML file. All times in seconds."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8080, description="0: any that is free")
    unix_socket: Path | None = Field(default=None, description="listen here and not on host and port")
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    node_silent_seconds: NodeSilentSeconds = NODE_SILENT_SECONDS
    waiting_seconds: WaitingSeconds = WAITING_SECONDS
    body_seconds: Seconds = Field(default=10.0, description="for a client to send a whole body")
    keepalive_seconds: Seconds = Field(
        default=75.0, description="a connection without a whole request's head for so long is closed"
    )
    request_seconds: Seconds = Field(default=30.0, description="for one call as a whole, streams of events apart")
    stalled_seconds: Seconds = Field(
        default=30.0, description="a TCP connection whose client takes nothing of its answer for so long is closed"
    )
    connections: Count = Field(
        default=5000,
        description="open at a time, of this process; one more takes the place of one that waits, or is turned away",
    )
    calls_per_minute: Count = Field(default=600, description="with one token; with a service's, for one account")
    failed_logins_per_minute: Count = Field(default=30, description="with bad tokens, from one address")
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="networks whose X-Forwarded-For says where a call comes from"
    )
    metrics_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="networks from which Prometheus may read /metrics; for all others it does not exist",
    )
    metrics_look_seconds: Seconds = Field(default=15.0, description="between two looks at the cell, for the metrics")
    audit_days: Count = Field(default=90, description="how long it is kept who did what")
    streams_per_account: Count = Field(default=20, description="streams of events at a time")
    operators_streams: Count = Field(
        default=200, description="streams of events of all operators at a time: one for each open page of the dashboard"
    )
    streams: Count = Field(default=1000, description="streams of events of all accounts at a time, of this process")
    heartbeat_seconds: Seconds = Field(default=15.0, description="the longest silence on a stream of events")
    webhook_seconds: Seconds = Field(default=15.0, description="for the receiver of a webhook to answer")
    webhooks: Count = Field(default=100, description="webhooks that are served at a time, by this process")
    webhooks_to_private: bool = Field(
        default=False, description="webhooks may go to http and to private networks: for development only"
    )
    session_seconds: Seconds = Field(default=43_200.0, description="a login to the dashboard ends after so long")
    session_idle_seconds: Seconds = Field(default=3600.0, description="and after so long without a person")
    runbook_url: str = Field(default="/ops/runbook/", description="of docs/runbook.md as your operators read it")
    drain_seconds: Seconds = Field(default=30.0, description="at SIGTERM: how long running requests may take to end")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
