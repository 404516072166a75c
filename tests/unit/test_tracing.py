"""How tracing is enabled, and what the log contains about it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from api.settings import ApiSettings
from worker.program.configuration import ConfigurationError, FileSettings, load
from worker.settings import WorkerSettings

COMPLAINING = """
import logging, sys
from worker.program import logs
from worker.program.span_export import TracingSettings, exporting

logs.configure()
with exporting(TracingSettings(endpoint="http://127.0.0.1:4318"), service="s", instance="i"):
    for number in range(3):
        logging.getLogger("opentelemetry.exporter").warning("no answer, try %d", number)
"""


@pytest.mark.parametrize("kind", [ApiSettings, WorkerSettings])
@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "collector:4318",
        "grpc://collector:4317",
        "http://",
        "http://u:s3cr3t@collector:4318",
        "http://h/?key=s3cr3t",
    ],
)
def test_an_endpoint_that_is_no_address_is_refused_by_name(
    kind: type[FileSettings], endpoint: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[tracing]\nendpoint = "{endpoint}"\n')
    with pytest.raises(ConfigurationError, match=r"tracing\.endpoint: ") as refused:
        load(kind, file)
    assert "s3cr3t" not in str(refused.value)


def said(program: str, **environment: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_the_exporters_errors_are_logged_once_a_minute() -> None:
    assert [(line["event"], line.get("cause")) for line in said(COMPLAINING)] == [
        ("tracing.exporting", None),
        ("tracing.trouble", "no answer, try 0"),
    ]


def test_headers_that_can_not_be_read_are_not_quoted() -> None:
    lines = said(COMPLAINING, OTEL_EXPORTER_OTLP_HEADERS="s3cr3t")
    assert [line.get("cause") for line in lines] == ["OTEL_EXPORTER_OTLP_HEADERS is malformed", None]


def test_a_standard_variable_that_means_nothing_is_refused() -> None:
    bad = subprocess.run(
        [sys.executable, "-c", COMPLAINING],
        env={"OTEL_BSP_SCHEDULE_DELAY": "-1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "ConfigurationError: tracing, from the environment (OTEL_*): schedule_delay_millis" in bad.stderr


def test_a_log_line_has_its_callers_trace() -> None:
    program = """
from structlog import get_logger
from worker.program import logs, tracing

logs.configure()
with tracing.span("a request", {}, parent={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}):
    get_logger().info("within")
get_logger().info("without")
"""
    lines = {line["event"]: line.get("trace_id") for line in said(program)}
    assert lines == {"within": "4bf92f3577b34da6a3ce929d0e0e4736", "without": None}
