"""The gateway's settings, from the environment or a TOML file, checked at start."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from worker.store.nodes.node_store import Placement
from worker.store.settings import CellSettings

Count = Annotated[int, Field(ge=1)]


class GatewaySettings(CellSettings):
    """Each can be set as VPS_SNAPSHOTS_<NAME> or as a key of the TOML file. All times are in seconds."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="address to listen on for nodes")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=7443, description="0: any free port")
    unix_socket: Path | None = Field(
        default=None, description="listen on this socket instead of host and port, without TLS"
    )
    tls_cert_file: Path | None = Field(
        default=None, description="certificate with its chain; needed unless host is a loopback address"
    )
    tls_key_file: Path | None = Field(default=None, description="key of that certificate")
    placement: Placement = Field(
        default=Placement.CLAIM,
        description="which servers a node may add: claim: any that no other node has; declared: only those that"
        " operators have placed on it",
    )
    connections: Count = Field(default=5000, description="maximum connections of nodes; further ones are refused")
    calls_per_second: Count = Field(default=200, description="limit for one node; further calls wait")
    calls_at_once: Count = Field(default=1000, description="burst of calls of one node above that limit")
    bytes_per_second: Count = Field(default=4 << 20, description="limit for one node; further data waits")
    metrics_host: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1", description="address that serves /metrics"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None, description="port that serves /metrics; 0: any free port; unset: not served"
    )

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        if (self.tls_cert_file is None) is not (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if self.tls_cert_file is None and self.unix_socket is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} needs tls_cert_file and tls_key_file, because nodes send their credential"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
