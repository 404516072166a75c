"""The addresses of the gateways, and the node's credential."""

import re
import stat
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from worker.program.configuration import ReadableFile

CREATE = "create a credential with `vps-snapshots node credential create NODE` and write it to this file"
_ADDRESS = re.compile(r"wss://([^][/?#@:]+|\[[0-9a-fA-F:.]+])(:[0-9]+)?|unix:///[^?#]+")


class GatewayAddress(BaseModel):
    """The addresses of the gateways, and this node's credential."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = Field(
        default=("wss://localhost:7443",),
        description="wss://HOST:PORT of each gateway, or unix:///SOCKET on the same machine",
    )
    credential_file: Path = Field(
        default=Path("/etc/vps-snapshots/credential"),
        description="file with the node's credential; only its owner may read it",
    )
    tls_ca_file: ReadableFile | None = Field(default=None, description="CA certificates, instead of the system's")

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not _ADDRESS.fullmatch(url):
                raise ValueError(f"{url!r} is not wss://HOST:PORT or unix:///SOCKET")
        return urls

    @model_validator(mode="after")
    def _authority_is_used(self) -> Self:
        if self.tls_ca_file and not any(url.startswith("wss:") for url in self.urls):
            raise ValueError("tls_ca_file is set, and no url is wss://")
        return self

    def credential(self) -> str:
        """The credential. It is read for each connection, so that a rotated one is used at once. Raises
        GatewayTrouble."""
        try:
            if stat.S_IMODE(self.credential_file.stat().st_mode) & 0o077:
                raise GatewayTrouble(f"{self.credential_file} can be read by others: chmod 600")
            if credential := self.credential_file.read_text().strip():
                return credential
            raise GatewayTrouble(f"{self.credential_file} is empty: {CREATE}")
        except FileNotFoundError as error:
            raise GatewayTrouble(f"{self.credential_file} does not exist: {CREATE}") from error
        except (OSError, ValueError) as error:
            raise GatewayTrouble(f"{self.credential_file}: {error}") from error


class GatewayTrouble(Exception):
    """The gateway is unreachable, refuses the credential, or could not execute the call. `code`: the gateway's error
    code."""

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code
