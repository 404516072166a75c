"""A program's imports at its start: a library that it may never need would cost time and memory at every start."""

import subprocess
import sys

import pytest

LATER = {
    "worker.main": ("rich", "uvloop", "aiohttp", "libvirt", "opentelemetry.sdk.trace", "worker.store.scripts"),
    "api.gateway.main": ("rich", "aiohttp", "libvirt", "opentelemetry.sdk.trace"),
    "api.main, api.serving": ("rich", "jinja2", "markdown_it", "api.document.openapi", "opentelemetry.sdk.trace"),
    "api.cli.main": ("rich", "asyncio.events", "aiohttp", "pydantic", "structlog", "api.cli.client", "worker.store"),
}


@pytest.mark.parametrize("program", LATER)
def test_a_start_imports_nothing_that_may_never_be_needed(program: str) -> None:
    code = f"import sys, {program}; print(*set({LATER[program]}).intersection(sys.modules))"
    imported = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not imported.strip()
