"""The Grafana dashboard and its queries to Prometheus."""

import json
from pathlib import Path
from typing import Any

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "deploy" / "grafana" / "dashboard.json").read_text()
)


def expressions(*, rate_interval: str = "1m") -> list[tuple[str, str]]:
    """Title and query of each panel, as Grafana sends it with all nodes selected."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", rate_interval).replace("$node", ".*"))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]
