"""Rules, dashboard and runbook are consistent: each name in one of them exists in the others."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from api.gateway.metrics import Metrics as GatewayMetrics
from api.measures.metrics import Metrics as ApiMetrics
from tests.conftest import needs
from tests.dashboard import DASHBOARD, expressions
from worker.metrics import Metrics as WorkerMetrics

PROJECT = Path(__file__).parents[2]
PROMETHEUS = PROJECT / "deploy" / "prometheus"
RULES = (PROMETHEUS / "rules.yml").read_text()
RULES_TEST = (PROMETHEUS / "rules_test.yml").read_text()
RUNBOOK = (PROJECT / "docs" / "runbook.md").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULES)
FAMILIES = [
    family for metrics in (ApiMetrics(), GatewayMetrics(), WorkerMetrics()) for family in metrics.registry.collect()
]


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "--lint-fatal", "prometheus.yml"],
        ["check", "rules", "--lint-fatal", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(command: list[str]) -> None:
    needs("promtool")
    said = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_there_are_alerts() -> None:
    assert len(ALERTS) == len(set(ALERTS)) == 25


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tried_where_it_fires_and_where_it_must_not(alert: str) -> None:
    tried = re.findall(rf"- expr: '.*\"{alert}\".*'\n +eval_time: \w+\n( +exp_samples:)?", RULES_TEST)
    assert "" in tried
    assert any(tried)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_how_bad_it_is_and_leads_to_its_section_of_the_runbook(alert: str) -> None:
    (rule,) = re.findall(rf"- alert: {alert}\n(.*?)(?=\n\n|\Z)", RULES, re.DOTALL)
    assert re.search(r"severity: (warning|critical)\n", rule)
    assert re.search(r"summary: \S", rule)
    assert f'runbook_url: "{{{{ $externalLabels.vps_snapshots }}}}/ops/runbook/#{alert.lower()}"' in rule
    section = re.search(rf"\n### {alert}\n\n(.*?)\n\n##", RUNBOOK, re.DOTALL)
    assert section
    assert [word for word in ("**Customer impact:**", "**Check:**", "**Action:**") if word not in section[1]] == []


def test_the_runbook_has_no_section_of_an_unknown_alert() -> None:
    assert set(re.findall(r"\n### (VpsSnapshots\w+)\n", RUNBOOK)) == set(ALERTS)


def test_the_runbook_names_panels_that_the_dashboard_has() -> None:
    named = set(re.findall(r'"([^"]+)" on the Grafana dashboard', RUNBOOK))
    assert named
    assert named <= {panel["title"] for panel in DASHBOARD["panels"]}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_metric_is_ours_says_what_it_is_and_has_a_base_unit(family: Any) -> None:
    if family.name.startswith("process_"):  # Prometheus's own names for these
        return
    assert family.name.startswith("vps_snapshots_")
    assert re.match(r"\S.*\.$", family.documentation)
    assert not re.search(r"_(ms|milliseconds|minutes|hours|mb|kb|gb|percent)(_|$)", family.name)


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_is_bound_to_no_prometheus_of_ours() -> None:
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"uid": "([^"]+)"', text)) == {"vps-snapshots-cell", "${datasource}"}
    assert len(expressions()) > 40
