"""The benchmark's table and plot, from the cells that are done."""

import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

from qnerf_nerfstudio.common.files import write_json


def write_table(folder: Path, machine: str) -> str:
    """Write table.md, figures.json and novel.png of all cells in the folder of a setting; the table as Markdown.

    Means are over the seeds that a method has been measured on; their number stands beside it.
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(folder.glob("*/*/figures.json")):
        cells.setdefault(path.parent.name, {})[path.parent.parent.name] = json.loads(path.read_text())
    names = list(next(iter(next(iter(cells.values())).values())))
    means = {
        method: {name: sum(cell[name] for cell in seeds.values()) / len(seeds) for name in names}
        for method, seeds in cells.items()
    }
    order = sorted(means, key=lambda method: -means[method]["novel, union, dB"])
    lines = ["| method | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for method in order:
        values = " | ".join(f"{means[method][name]:.3f}" for name in names)
        lines.append(f"| {method} | {len(cells[method])} | {values} |")
    table = "\n".join([*lines, "", machine])
    (folder / "table.md").write_text(table + "\n")
    write_json(folder / "figures.json", {"machine": machine, "means": means, "cells": cells})
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(order) + 1))
    labels = [f"{method} ({len(cells[method])})" for method in order]
    axes.barh(labels, [means[method]["novel, union, dB"] for method in order])
    axes.invert_yaxis()
    axes.set(xlabel="PSNR of novel views inside the union of silhouettes, dB; mean over (number of) seeds")
    figure.savefig(folder / "novel.png", dpi=100, bbox_inches="tight")
    plt.close(figure)
    return table
