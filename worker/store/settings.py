"""Settings that front ends and gateways share."""

from typing import Annotated

from pydantic import Field

from worker.program.configuration import FileSettings
from worker.program.span_export import TracingSettings
from worker.store.model import NODE_SILENT_SECONDS, WAITING_SECONDS
from worker.store.redis_client import RedisSettings


class CellSettings(FileSettings):
    """`node_silent_seconds` and `waiting_seconds` must be the same in all processes of a cell."""

    redis: RedisSettings = Field(default_factory=RedisSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    node_silent_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=NODE_SILENT_SECONDS,
        description="a node without a heartbeat for this long gets no new jobs; must be the same on all front ends and"
        " gateways",
    )
    waiting_seconds: Annotated[float, Field(ge=60, allow_inf_nan=False)] = Field(
        default=WAITING_SECONDS,
        description="how long a job waits for a silent node before it fails; must be the same on all front ends and"
        " gateways",
    )
