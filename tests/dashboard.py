"""The dashboard for Grafana, and what its panels ask of Prometheus."""

import json
from pathlib import Path
from typing import Any

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "deploy" / "grafana" / "dashboard.json").read_text()
)


def expressions(*, rate_interval: str = "1m") -> list[tuple[str, str]]:
    """Title and query of each panel, as Grafana asks with all nodes chosen."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", rate_interval).replace("$node", ".*"))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]
