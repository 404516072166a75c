"""The worker's settings: from the environment, or a TOML file, checked at start."""

import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from worker.procedures.work import Policy
from worker.program.configuration import (
    NODE_SILENT_SECONDS,
    WAITING_SECONDS,
    FileSettings,
    NodeSilentSeconds,
    WaitingSeconds,
)
from worker.program.span_export import TracingSettings
from worker.runner import Limits
from worker.store.redis_client import RedisSettings


class Driver(StrEnum):
    KVM = "kvm"
    FAKE = "fake"


class WorkerSettings(FileSettings):
    """Each may be set as VPS_SNAPSHOTS_<NAME> or as a key of the TOML file. All times in seconds."""

    node: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(
        default_factory=lambda: socket.gethostname().split(".")[0], description="this node's name, unique in the cell"
    )
    state_dir: Path = Field(default=Path("/var/lib/vps-snapshots"), description="holds the journal and the lock file")
    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    driver: Driver = Field(default=Driver.KVM, description="fake: simulated servers, for trying out and for load")
    libvirt_uri: str = Field(default="qemu:///system")
    fake_servers: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=3, description="with driver fake: how many, besides those in its state file"
    )
    max_jobs: Annotated[int, Field(ge=1, le=100)] = Field(default=4, description="jobs of different servers at a time")
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=Policy.grace_seconds, description="for a guest to shut itself down before its power is cut"
    )
    free_floor_mb: Annotated[int, Field(ge=0)] = Field(
        default=Policy.free_floor_bytes >> 20, description="MiB of storage kept free for the guests' writes"
    )
    step_seconds: Annotated[float, Field(gt=0)] = Field(
        default=Limits.step_seconds, description="bound on one step of a job, the grace not counted"
    )
    start_seconds: Annotated[float, Field(ge=0)] = Field(
        default=Limits.start_seconds, description="how long a server's start that is refused is tried again"
    )
    safety_kept_seconds: Annotated[float, Field(ge=0)] = Field(
        default=Limits.safety_kept_seconds, description="how long what a restore overwrote is kept"
    )
    metrics_host: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1", description="address on which Prometheus finds /metrics"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None, description="0: any that is free; without one there is no /metrics"
    )
    node_silent_seconds: NodeSilentSeconds = NODE_SILENT_SECONDS
    waiting_seconds: WaitingSeconds = WAITING_SECONDS
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        default=300.0, description="at SIGTERM: how long running jobs may take to end"
    )

    @property
    def policy(self) -> Policy:
        return Policy(grace_seconds=self.grace_seconds, free_floor_bytes=self.free_floor_mb << 20)

    @property
    def limits(self) -> Limits:
        return Limits(
            step_seconds=self.step_seconds,
            start_seconds=self.start_seconds,
            safety_kept_seconds=self.safety_kept_seconds,
        )
