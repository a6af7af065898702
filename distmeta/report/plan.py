"""The forecast of plan.json beside what happened."""

from collections.abc import Callable

from distmeta.report.blocks import Cell, Column, Section, Table
from distmeta.report.read import Json
from distmeta.report.units import count, duration, memory, money


def plan_section(plan: Json | None, summary: Json | None, currency: str | None, missing: list[str]) -> Section | None:
    """A row for each figure that both have, with the ratio; None, and a line in `missing`, where there is none."""
    if plan is None:
        missing.append("plan beside reality: there is no plan.json (`distmeta plan` before the run)")
        return None
    writers: dict[str, tuple[str, Callable[[float], str]]] = {
        "wall_seconds": ("time", duration),
        "worker_seconds": ("worker time", duration),
        "flops": ("operations", count),
        "peak_memory_bytes": ("peak memory of a worker", memory),
        "cost": ("cost", lambda amount: money(amount, currency or plan.get("currency", ""))),
    }
    rows = []
    for key, (name, write) in writers.items():
        planned, happened = plan.get(key), (summary or {}).get(key)
        if not planned:
            continue
        row = [Cell(name, name), Cell(write(planned), planned)]
        rows.append(
            row
            + ([Cell(write(happened)), Cell(f"{happened / planned:.2f}")] if happened else [Cell("not yet"), Cell("")])
        )
    if not rows:
        missing.append("plan beside reality: plan.json has none of the figures that are compared")
        return None
    columns = [Column("", is_text=True), Column("plan"), Column("reality"), Column("reality / plan")]
    return Section("Plan beside reality", tables=[Table(columns, rows, "Ratio above 1: more than was planned.")])
