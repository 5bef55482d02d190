"""Figures, drawn with matplotlib into SVG files that do not change when they are drawn again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from crosspref.maths.estimate import Estimate

mpl.rcParams.update({"svg.hashsalt": "crosspref", "svg.fonttype": "none", "font.size": 9})
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#6d597a", "#7f7f7f")


def draw_curves(
    path: Path, title: str, labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Estimate | None]]]
) -> None:
    """Draw panels side by side: in each a curve per name over the labels, with intervals where there are any."""
    figure = Figure(figsize=(2.9 * len(panels) + 1.0, 2.9), layout="constrained")
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, (curve, values) in enumerate(curves.items()):
            there = [(place, value) for place, value in enumerate(values) if value is not None]
            reach = [[value.value - value.low for _, value in there], [value.high - value.value for _, value in there]]
            places = [place + 0.06 * (number - (len(curves) - 1) / 2) for place, _ in there]
            axes.errorbar(
                places,
                [value.value for _, value in there],
                yerr=reach,
                label=curve,
                color=COLOURS[number % len(COLOURS)],
                marker="o",
                markersize=3.5,
                linewidth=1.2,
                capsize=2,
            )
        axes.set_xticks(range(len(labels)), labels)
        axes.set_title(name, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def draw_dots(path: Path, title: str, label: str, groups: Mapping[str, Sequence[float]], line: float | None) -> None:
    """Draw a row of dots per group, one per seed, with their mean; ``line`` is where there is no difference."""
    figure = Figure(figsize=(6.2, 0.36 * len(groups) + 1.1), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(groups.values()):
        axes.plot(values, [row] * len(values), "o", color=COLOURS[0], markersize=4, alpha=0.45, markeredgewidth=0)
        if values:
            axes.plot([sum(values) / len(values)] * 2, [row - 0.28, row + 0.28], color=COLOURS[1], linewidth=2)
    if line is not None:
        axes.axvline(line, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    figure.supxlabel(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
