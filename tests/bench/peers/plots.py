"""Plots the results of the benchmarks: `python -m tests.bench.peers.plots FOLDER`.

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


PLOTS: dict[str, Callable[[Axes, Figures], None]] = {
    "http": http,
    "pickup": pickup,
    "fleet": fleet,
    "footprint": footprint,
}


def main(folder: Path) -> None:
    for name, draw in PLOTS.items():
        file = folder / f"{name}.json"
        if file.exists():
            figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
            draw(axes, json.loads(file.read_text()))
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
            print(f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
