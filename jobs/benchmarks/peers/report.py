"""What the benchmark found, as a table, a file and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---")
GREYS = ("#202020", "#f2f2f2", "#d5d5d5", "#b8b8b8", "#9b9b9b", "#808080")


@dataclass(frozen=True)
class Row:
    """One contestant on one piece of work."""

    lengths: str
    shots: int
    workload: str
    contestant: str
    seconds: list[float]
    """Of each round's meta-batch."""
    median_seconds: float
    tasks_per_second: float
    ratio: float | None
    """How many times as fast as by hand: median of the rounds' ratios."""
    processor_ratio: float | None
    """The same by processor time, which other processes disturb less; on one thread of a CPU alone."""
    peak_bytes: int | None
    """Memory above what was there before the first meta-batch, in a process of its own."""
    inner_share: float | None
    """Operations that the inner loops need, over their time, over the rate of the matrix product."""
    share: float
    """The same of the whole meta-gradient."""
    query_loss: float
    gradient_error: float | None
    """Norm of the difference to the float64 gradient over the norm of that; None where it is no finite number."""
    wrong: bool
    """Whether the error is above what the precision explains, or a gradient is missing or too many."""


@dataclass(frozen=True)
class Benchmark:
    """All rows, and what they were measured on."""

    settings: dict[str, object]
    machine: dict[str, object]
    matrix_product: list[dict[str, object]]
    """Operations a second by precision, for the token counts of each setting."""
    rows: list[Row]
    notes: list[str]
    """Who is left out, and why."""

    def write(self, folder: Path) -> None:
        """`benchmark.json`, `benchmark.md` and `benchmark.svg`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "benchmark.md").write_text(self.markdown())
        if self.rows:
            draw(self.rows, folder / "benchmark.svg")

    def markdown(self) -> str:
        """The tables, aligned so that they can be read as they are."""
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        products = [["lengths", "shots", "rows", "fp32 GFLOP/s", "bf16 GFLOP/s"]]
        for each in self.matrix_product:
            rates = [f"{each[precision] / 1e9:.0f}" for precision in ("fp32", "bf16")]  # type: ignore[operator]
            products.append([str(each["lengths"]), str(each["shots"]), str(each["rows"]), *rates])
        head = (
            "lengths,shots,workload,contestant,s/meta-batch,tasks/s,vs by hand,CPU,peak MB,inner,whole,query loss,error"
        )
        results = [head.split(",")]
        for row in self.rows:
            error = "not finite" if row.gradient_error is None else f"{row.gradient_error:.0e}"
            results.append(
                [
                    row.lengths,
                    str(row.shots),
                    row.workload,
                    row.contestant,
                    f"{row.median_seconds:.3f}",
                    f"{row.tasks_per_second:.2f}",
                    "" if row.ratio is None else f"x{row.ratio:.2f}",
                    "" if row.processor_ratio is None else f"x{row.processor_ratio:.2f}",
                    "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
                    "" if row.inner_share is None else f"{row.inner_share:.0%}",
                    f"{row.share:.0%}",
                    f"{row.query_loss:.4f}",
                    error + (" WRONG" if row.wrong else ""),
                ]
            )
        parts = [
            "# Meta-gradient benchmark",
            f"{machine}.",
            f"{settings}.",
            "Matrix products of the model's linear layers (forward, input gradient, weight gradient) over as many rows"
            " as a support set has tokens:",
            align(products),
            "Medians over rounds in which all take turns. *vs by hand*: how many times as fast, and as sparing of"
            " processor time (*CPU*). *inner* and *whole*: operations that the real tokens need in"
            " the inner loops and in the whole meta-gradient, over the time, over the rate of the matrix product."
            " *error*: relative error of the meta-gradient against the plain loop in float64. *peak*: memory above"
            " what was there before the first meta-batch.",
            align(results),
            *self.notes,
        ]
        return "\n\n".join(parts) + "\n"


def align(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Tasks a second as bars: a panel for each setting, a group for each workload, told apart without colour."""
    import matplotlib  # not by a process that only measures memory

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row.lengths, row.shots) for row in rows))
    contestants = list(dict.fromkeys(row.contestant for row in rows))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 2.9 * len(panels) + 0.6), squeeze=False)
    for axis, (lengths, shots) in zip(axes[:, 0], panels, strict=True):
        own = [row for row in rows if (row.lengths, row.shots) == (lengths, shots)]
        workloads = list(dict.fromkeys(row.workload for row in own))
        width = 0.85 / len(contestants)
        for row in own:
            number = contestants.index(row.contestant)
            at = workloads.index(row.workload) + (number - (len(contestants) - 1) / 2) * width
            style = {"color": GREYS[number], "hatch": HATCHES[number], "edgecolor": "black", "linewidth": 0.7}
            axis.bar(at, row.tasks_per_second, width, **style)
            label = "wrong" if row.wrong else "" if row.ratio is None else f"{row.ratio:.2f}"
            axis.annotate(label, (at, row.tasks_per_second), ha="center", va="bottom", fontsize=7, rotation=0)
        axis.set_xticks(range(len(workloads)), workloads)
        axis.set_ylabel("tasks a second")
        axis.set_title(f"{shots}-shot, {lengths} sentence lengths", loc="left", fontsize=10)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, facecolor=GREYS[number], hatch=HATCHES[number], edgecolor="black")
        for number in range(len(contestants))
    ]
    figure.legend(handles, contestants, loc="upper center", ncols=len(contestants), frameon=False, fontsize=9)
    figure.text(0.01, 0.005, "Above each bar: how many times as fast as by hand.", fontsize=8)
    figure.tight_layout(rect=(0, 0.02, 1, 1 - 0.35 / figure.get_figheight()))
    figure.savefig(path)
    pyplot.close(figure)
