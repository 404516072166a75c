"""The worker's settings: from the environment or a TOML file, validated at start."""

import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from worker.gateway_address import GatewayAddress
from worker.procedures.work import Policy
from worker.program.configuration import FileSettings
from worker.program.span_export import TracingSettings
from worker.runner import Limits


class Driver(StrEnum):
    KVM = "kvm"
    FAKE = "fake"


class WorkerSettings(FileSettings):
    """Each can be set as VPS_SNAPSHOTS_<NAME> or as a key of the TOML file. Times are in seconds."""

    node: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(
        default_factory=lambda: socket.gethostname().split(".")[0],
        description="the name of this node, unique in the cell",
    )
    state_dir: Path = Field(
        default=Path("/var/lib/vps-snapshots"), description="folder of the journal and the lock file"
    )
    gateway: GatewayAddress = Field(default_factory=GatewayAddress)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    driver: Driver = Field(default=Driver.KVM, description="fake: simulated servers, for demos and load tests")
    libvirt_uri: str = Field(default="qemu:///system", description="libvirt of this node")
    fake_servers: int = Field(
        default=3,
        ge=0,
        le=100_000,
        description="number of servers with the driver fake, in addition to those in its state file",
    )
    max_jobs: int = Field(
        default=4, ge=1, le=100, description="jobs that run at the same time, each on a different server"
    )
    disk_busy_percent: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="disk pressure (`some avg10` of io_pressure_file, in percent) above which the worker runs one job"
        " fewer every 10 seconds, down to one; below half of it, one more; 0: off",
    )
    io_pressure_file: Path = Field(
        default=Path("/proc/pressure/io"),
        description="the I/O pressure of the whole node, or `io.pressure` of a control group, such as machine.slice",
    )
    grace_seconds: float = Field(
        default=Policy.grace_seconds, ge=0, le=3600, description="time for a guest to shut down before its power is cut"
    )
    live_snapshots: bool = Field(
        default=True,
        description=(
            "whether this node takes snapshots without a stop; the front ends' setting `live` must allow them too"
        ),
    )
    freeze_seconds: float = Field(
        default=Policy.freeze_seconds,
        ge=0,
        le=60,
        description="time for the agent of a running guest to freeze its file systems; 0: never freeze them",
    )
    free_floor_mb: int = Field(
        default=Policy.free_floor_bytes >> 20, ge=0, description="MiB of storage kept free for the guests' writes"
    )
    step_seconds: float = Field(
        default=Limits.step_seconds, gt=0, description="limit for one step of a job, in addition to grace_seconds"
    )
    start_seconds: float = Field(
        default=Limits.start_seconds, ge=0, description="how long a failed start of a server is retried"
    )
    safety_kept_seconds: float = Field(
        default=Limits.safety_kept_seconds, ge=0, description="how long the safety snapshot of a restore is kept"
    )
    metrics_host: str = Field(default="127.0.0.1", min_length=1, description="address that serves /metrics")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None, description="port that serves /metrics; 0: any free port; unset: not served"
    )
    drain_seconds: float = Field(default=300.0, ge=0, description="at SIGTERM: time for running jobs to end")

    @model_validator(mode="before")
    @classmethod
    def _names_a_gateway(cls, given: Any) -> Any:
        if isinstance(given, dict):
            if "redis" in given:
                raise ValueError(
                    "[redis]: nodes now connect to a gateway instead of Redis. Replace it with [gateway] and its urls,"
                    " and put the node's credential into a file: see docs/operations/install.md, Node"
                )
            if moved := sorted(given.keys() & {"node_silent_seconds", "waiting_seconds"}):
                raise ValueError(f"{', '.join(moved)}: now a setting of the gateway and the front ends; remove it here")
        return given

    @property
    def policy(self) -> Policy:
        return Policy(
            grace_seconds=self.grace_seconds,
            live=self.live_snapshots,
            freeze_seconds=self.freeze_seconds,
            free_floor_bytes=self.free_floor_mb << 20,
        )

    @property
    def limits(self) -> Limits:
        return Limits(
            step_seconds=self.step_seconds,
            start_seconds=self.start_seconds,
            safety_kept_seconds=self.safety_kept_seconds,
        )
