"""Plots the results of the benchmarks: `python -m tests.bench.peers.plots FOLDER NAME ...`, without names all.

Reads FOLDER/NAME.json, writes FOLDER/NAME.svg and prints the names of the pictures.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "the same picture for the same figures"

from matplotlib import pyplot as plt  # noqa: E402 - after the choice of its backend
from matplotlib.axes import Axes  # noqa: E402

Figures = Mapping[str, Any]


def _bars(axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
    """Draw a bar of each series in each group; None: no bar."""
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [place + number * width for place, value in enumerate(values) if value is not None]
        axes.bar(places, [value for value in values if value is not None], width, label=name)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], groups)
    axes.legend()


def http(axes: Axes, figures: Figures) -> None:
    by_call = figures["medians"]
    programs = list(dict.fromkeys(name for by in by_call.values() for name in by))
    _bars(
        axes,
        list(by_call),
        {name: [by[name]["calls_per_second"] if name in by else None for by in by_call.values()] for name in programs},
    )
    axes.set_ylabel("calls a second")
    axes.tick_params(axis="x", rotation=20)


def pickup(axes: Axes, figures: Figures) -> None:
    by_kind = figures["medians"]
    columns = {"p50": "p50_ms", "p99": "p99_ms"}
    _bars(axes, list(by_kind), {name: [by[column] for by in by_kind.values()] for name, column in columns.items()})
    axes.set_yscale("log")
    axes.set_ylabel("queued to started, ms")
    axes.tick_params(axis="x", rotation=30)


def fleet(axes: Axes, figures: Figures) -> None:
    sizes = figures["sizes"]
    for name, text in {
        "idle_redis": "Redis, idle, % of a CPU",
        "idle_gateways": "gateways, idle, % of a CPU",
        "admitted": "creates admitted a second",
    }.items():
        axes.plot([one["nodes"] for one in sizes], [one[name] for one in sizes], marker="o", label=text)
    axes.set_xlabel("nodes")
    axes.set_yscale("log")
    axes.legend()


def footprint(axes: Axes, figures: Figures) -> None:
    sizes = {name: by["rss_mb"] for name, by in figures["medians"].items() if "rss_mb" in by}
    axes.barh(list(sizes), list(sizes.values()))
    axes.invert_yaxis()
    axes.set_xlabel("RSS, MiB")


def disk(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    for older in sorted({row["older"] for row in rows}):
        for call, style in {"create": "-", "restore": "--", "delete": ":"}.items():
            of_one = [row for row in rows if row["older"] == older]
            ratios = [row["ms"][call][0] / row["ms"][call][1] for row in of_one]
            axes.plot([row["gb"] for row in of_one], ratios, style, marker="o", label=f"{call}, {older} older")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("GB, fully mapped")
    axes.set_ylabel("time, of qemu-img's")
    axes.legend()


def live(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    columns = ("qemu-img -c", "no job", "p50", "p99")
    sizes = [f"{row['disk']}, clusters of {row['clusters']}" for row in rows]
    _bars(axes, sizes, {name: [row["ms"][name] for row in rows] for name in columns})
    axes.set_ylabel("the guest's pause, ms")


def lists(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    few, many = figures["sizes"]
    shares = list(rows[0]["ms"])
    ratios = {share: [row["ms"][share][1] / row["ms"][share][0] for row in rows] for share in shares}
    _bars(axes, [row["call"].replace(", ", ",\n") for row in rows], ratios)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_ylabel(f"time with {many:,}, of that with {few:,}")
    axes.tick_params(axis="x", rotation=30)


PLOTS: dict[str, Callable[[Axes, Figures], None]] = {
    "http": http,
    "pickup": pickup,
    "disk": disk,
    "live": live,
    "lists": lists,
    "fleet": fleet,
    "footprint": footprint,
}


def main(folder: Path, names: Sequence[str]) -> None:
    for name, draw in PLOTS.items():
        file = folder / f"{name}.json"
        if file.exists() and (not names or name in names):
            figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
            draw(axes, json.loads(file.read_text()))
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
            print(f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
