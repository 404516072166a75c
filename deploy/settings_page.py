"""Prints docs/operations/settings.md, from the models of the settings: `python -m deploy.settings_page`."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from api.gateway.settings import GatewaySettings
from api.settings import ApiSettings
from worker.gateway_address import GatewayAddress
from worker.program.configuration import ENV_PREFIX
from worker.program.span_export import TracingSettings
from worker.settings import WorkerSettings
from worker.store.bounds import Bounds
from worker.store.redis_client import RedisSettings
from worker.store.settings import CellSettings

COMPUTED = "of the machine"  # a default that differs by machine
FILES = {
    "api": "front end (`vps-snapshots-api serve`) and backups (`vps-snapshots-api backup`)",
    "audit": "keeper of the audit log (`vps-snapshots-api audit keep`)",
    "gateway": "gateway (`vps-snapshots-gateway serve`)",
    "worker": "worker (`vps-snapshots-worker run`)",
}
ALSO_OF_THE_KEEPER = {"audit_days", "log_level"}
UNITS = {  # by how a name ends
    "bytes_per_second": "bytes per second",
    "_per_second": "per second",
    "_per_minute": "per minute",
    "_per_hour": "per hour",
    "_seconds": "seconds",
    "_days": "days",
    "_mb": "MiB",
}
FORMATS = {
    "path": "path",
    "file-path": "path",
    "uri": "URL",
    "password": "secret",
    "ipv4network": "network",
    "ipv6network": "network",
}
HEAD = f"""\
# Settings

Every setting of every program, generated from the programs by `make config-docs`. [Configure](configure.md) says how
they are read, and which ones matter.

| file in `/etc/vps-snapshots` | read by |
|---|---|
{{files}}

Settings in a table such as `[redis]` are listed with the table's name: `redis.url`. As an environment variable, that
one is `{ENV_PREFIX}REDIS__URL`. In a variable, a list is JSON. In the column of defaults, "none" means that nothing is
set.
"""


def page() -> str:
    files = "\n".join(f"| `{name}.toml` | {who} |" for name, who in FILES.items())
    return "\n".join(
        [
            HEAD.format(files=files),
            *_section("Front ends and gateways", ("api", "gateway"), _own(CellSettings)),
            *_section("Redis", ("api", "audit", "gateway"), _of(RedisSettings, "redis.")),
            *_section("Front end", ("api",), _own(ApiSettings, CellSettings)),
            *_section("Limits of what an account stores", ("api",), _of(Bounds, "bounds.")),
            *_section("Gateway", ("gateway",), _own(GatewaySettings, CellSettings)),
            *_section("Worker", ("worker",), _own(WorkerSettings)),
            *_section("Gateways, as a worker reaches them", ("worker",), _of(GatewayAddress, "gateway.")),
            *_section("Tracing", ("api", "gateway", "worker"), _of(TracingSettings, "tracing.")),
        ]
    )


Row = tuple[str, FieldInfo, Mapping[str, Any]]  # of the page: its name, the field, and its JSON Schema


def _of(model: type[BaseModel], above: str = "") -> Iterator[Row]:
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            yield f"{above}{name}", field, _resolved(schema["properties"][name], schema)


def _own(model: type[BaseModel], base: type[BaseModel] = BaseModel) -> Iterator[Row]:
    return (row for row in _of(model) if row[0] not in base.model_fields)


def _resolved(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        definition: Mapping[str, Any] = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        return definition
    return schema


def _section(title: str, files: Iterable[str], rows: Iterable[Row]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"In {_listed(f'`{name}.toml`' for name in files)}.\n"
    yield "| setting | type | unit | default | what it does |"
    yield "|---|---|---|---|---|"
    for name, field, schema in rows:
        if not field.description:
            raise ValueError(f"{name} has no description")
        also = "; also in `audit.toml`" if name in ALSO_OF_THE_KEEPER else ""
        said = _escaped(field.description) + also
        yield f"| `{name}` | {_kind(schema)} | {_unit(name)} | {_default(field)} | {said} |"
    yield ""


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return " or ".join(dict.fromkeys(map(_simple_kind, kinds)))


def _simple_kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return _listed((f"`{word}`" for word in schema["enum"]), "or")
    if schema["type"] == "array":
        return f"list of {_kind(schema['items'])}s"
    return " ".join(filter(None, [FORMATS.get(schema.get("format", ""), schema["type"]), _range(schema)]))


def _range(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f"above {schema['exclusiveMinimum']:g}"
    if least is not None and most is not None:
        return f"{least:,g} to {most:,.0f}"
    return "" if least is None else f"from {least:g}"


def _unit(name: str) -> str:
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return COMPUTED
    if field.default is None:
        return "none"
    value = field.default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    shown = [str(one) for one in value] if isinstance(value, list | tuple) else value
    return f"`{json.dumps(shown if isinstance(shown, list | bool | int | float) else str(shown))}`"


def _listed(words: Iterable[str], last: str = "and") -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
