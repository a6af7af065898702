"""Drawings as inline SVG that can stand many to a page and say the same in black and white."""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from distmeta.evaluate.sentences import bounds
from distmeta.report.blocks import Picture

BLUE, ORANGE, GREY, BLACK = "#1f4e79", "#c2571a", "#8a8a8a", "#111111"
WIDTH = 4.8
"""Inches: two stand side by side on a desktop, and one is still legible on a phone."""
_COLORS = (BLUE, ORANGE, "#2e7d5b", "#7b3f8c", BLACK, "#a88a00")
_DASHES = ("-", "--", ":", "-.")
LINES: list[dict[str, Any]] = [
    {
        "color": _COLORS[number % 6],
        "linestyle": _DASHES[number % 4],
        "marker": "os^DvP"[(number + number // 12) % 6],
    }
    for number in range(24)
]
"""Styles told apart by dash and marker, without colour."""
MOST_POINTS = 500
"""Of one line: more would only make the page heavy."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distmeta",
    # Names and values are text, also where they have a dollar sign.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 9,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
}


@dataclass
class Drawing:
    """A drawing in the making: draw on `axes`, then ask for the `picture`."""

    title: str
    figure: Figure
    axes: Axes
    svg: str = ""

    def legend(self, columns: int = 2) -> None:
        """A legend below the axes, of what is labelled."""
        handles, labels = self.axes.get_legend_handles_labels()
        if labels:
            self.figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))

    def picture(self, label: str, caption: str) -> Picture:
        """The finished picture; `label` is read out to those who can't see it."""
        described = f'<svg role="img" aria-label="{html.escape(label)}"'
        return Picture(self.title, self.svg.replace("<svg", described, 1), caption)


@contextmanager
def drawing(name: str, title: str, height: float = 3.1) -> Iterator[Drawing]:
    """A drawing of `height` inches whose `svg` is there when the block ends; `name` is its own on the page."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        drawn = Drawing(title, figure, figure.subplots())
        yield drawn
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        drawn.svg = _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """An SVG file as part of a page: no prologue, no rules that reach beyond it, names that no other drawing has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""font-family: [^;"]*""", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    return svg.replace("<svg", '<svg style="stroke-linejoin:round;stroke-linecap:butt"', 1)


def percent_axis(axis: Any) -> None:
    """Fractions as whole per cent."""
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis with its values written out (0.001, not a power)."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    # What spans less than a decade may have no round value in it.
    axis.set_major_locator(LogLocator(subs=subs) if decades > 0.9 else MaxNLocator(4))
    axis.set_minor_locator(LogLocator(subs="auto") if decades > 0.9 else NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def window_of(length: int) -> int:
    """Steps of the running mean that smooths a curve of so many: a twentieth of them, but at least 1 (no smoothing)."""
    return max(1, length // 20)


def noisy_line(
    axes: Axes, steps: Sequence[float], values: Sequence[float], style: dict[str, Any], label: str, faint: bool = True
) -> None:
    """A running mean over `window_of` steps, drawn over the faint values themselves where `faint`."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    window = window_of(len(y))
    if window > 1 and faint:
        axes.plot(*_thin(x, y), color=style["color"], alpha=0.22, linewidth=0.7)
    if window > 1:
        # Of the window's steps up to each one; at the beginning, of those that there are.
        sums = np.cumsum(np.insert(y, 0, 0.0))
        ends = np.arange(1, len(y) + 1)
        starts = np.maximum(ends - window, 0)
        y = (sums[ends] - sums[starts]) / (ends - starts)
    x, y = _thin(x, y)
    axes.plot(x, y, **style, linewidth=1.8, markevery=max(1, len(x) // 8), label=label)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points of a line, the last one among them."""
    stride = max(1, math.ceil(len(x) / MOST_POINTS))
    return x[::-1][::stride][::-1], y[::-1][::stride][::-1]


def smoothing(length: int) -> str:
    """What a caption has to say of `noisy_line`."""
    window = window_of(length)
    return f"Strong lines: running mean over {window} steps; faint ones: each step." if window > 1 else "Each step."


def error_bars(means: Sequence[float], half_widths: Sequence[float]) -> list[list[float]]:
    """How far the intervals of accuracies reach down and up, never beyond 0 and 1."""
    ends = [bounds(mean, half_width) for mean, half_width in zip(means, half_widths, strict=True)]
    low, high = zip(*ends, strict=True) if ends else ((), ())
    down = [mean - end for mean, end in zip(means, low, strict=True)]
    return [down, [end - mean for mean, end in zip(means, high, strict=True)]]


def chance_line(axes: Axes, n_way: Any, upright: bool = False) -> None:
    """A dotted line at the accuracy of guessing, where the number of classes is known."""
    if isinstance(n_way, int):
        draw = axes.axvline if upright else axes.axhline
        draw(1 / n_way, color=GREY, linestyle=":", linewidth=1.2, label=f"chance ({100 / n_way:.0f}%)")
