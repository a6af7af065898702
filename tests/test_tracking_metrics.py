"""The metrics file: what is written, what survives a crash, and what a driver sees of it."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.errors import UserError
from distmeta.tracking.metrics import MetricsFile, MetricsTail, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, first: int, last: int, **values: object) -> None:
    for step in range(first, last + 1):
        MetricsFile(path).append({"outer_step": step, "query_loss": 1 / step, **values})


def steps(rows: list[dict]) -> list[int]:
    return [row["outer_step"] for row in rows]


def test_a_row_keeps_its_floats_and_starts_with_the_step(path: Path) -> None:
    loss = 0.1 + 0.2
    MetricsFile(path).append({"query_loss": loss, "support_loss": [loss, 1 / 3], "outer_step": 1, "valid": None})
    (line,) = path.read_text().splitlines()
    assert line.startswith('{"outer_step": 1, ')
    assert json.loads(line) == {"outer_step": 1, "query_loss": loss, "support_loss": [loss, 1 / 3]}


def test_numbers_that_are_not_finite_are_absent_and_named(path: Path) -> None:
    MetricsFile(path).append(
        {"outer_step": 1, "query_loss": math.nan, "support_loss": [0.5, math.inf], "grad_norm": 2.0}
    )
    assert read_metrics(path) == [{"outer_step": 1, "grad_norm": 2.0, "not_finite": ["query_loss", "support_loss"]}]


def test_after_a_resume_each_step_stands_once_and_in_order(path: Path) -> None:
    write(path, 1, 8)
    kept = path.read_bytes().splitlines()[:5]
    with path.open("ab") as file:
        file.write(b'{"outer_step": 9, "query_lo')
    assert MetricsFile(path).truncate_after(5) == 5
    assert path.read_bytes().splitlines() == kept
    write(path, 6, 12)
    assert steps(read_metrics(path)) == list(range(1, 13))


def test_truncating_keeps_all_where_the_checkpoint_is_newer_and_makes_no_file(path: Path) -> None:
    assert MetricsFile(path).truncate_after(5) == 0
    assert not path.exists()
    write(path, 1, 3)
    assert MetricsFile(path).truncate_after(5) == 3
    assert steps(read_metrics(path)) == [1, 2, 3]
    assert MetricsFile(path).truncate_after(0) == 0
    assert path.read_bytes() == b""


@given(cut=st.integers(0, 400), checkpoint=st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_wherever_a_crash_cuts_the_file_a_resume_mends_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, checkpoint: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    write(path, 1, 8)
    os.truncate(path, min(cut, path.stat().st_size))
    whole = steps(read_metrics(path))
    last = MetricsFile(path).truncate_after(checkpoint)
    assert last == min(checkpoint, len(whole))
    assert steps(read_metrics(path)) == list(range(1, last + 1))


def test_a_last_line_that_is_being_written_is_left_out_and_a_broken_line_is_said(path: Path) -> None:
    write(path, 1, 2)
    with path.open("ab") as file:
        file.write(b'{"outer_step": 3, "quer')
    assert steps(read_metrics(path)) == [1, 2]
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 3 "):
        read_metrics(path)


def test_rows_can_be_read_before_their_writer_ends(path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from distmeta.tracking.metrics import MetricsFile
        MetricsFile(Path(sys.argv[1])).append({"outer_step": 1})
        print("written", flush=True)
        time.sleep(60)
        """
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert steps(read_metrics(path)) == [1]
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()


def test_the_tail_gives_each_row_once(path: Path) -> None:
    tail = MetricsTail(path)
    assert tail.new() == []
    write(path, 1, 2)
    assert steps(tail.new()) == [1, 2]
    assert tail.new() == []
    with path.open("ab") as file:
        file.write(b'{"outer_step": 3')
    assert tail.new() == []
    with path.open("ab") as file:
        file.write(b"}\n")
    assert steps(tail.new()) == [3]


@pytest.mark.parametrize("written_before_it_looks", [0, 1, 3, 6])
def test_the_tail_gives_what_was_written_anew_after_a_cut_and_nothing_twice(
    path: Path, written_before_it_looks: int
) -> None:
    tail = MetricsTail(path)
    write(path, 1, 8)
    assert steps(tail.new()) == list(range(1, 9))
    MetricsFile(path).truncate_after(5)
    write(path, 6, 5 + written_before_it_looks, attempt=2)
    seen = tail.new()
    write(path, 6 + written_before_it_looks, 12, attempt=2)
    seen += tail.new()
    assert steps(seen) == list(range(6, 13))
    assert all(row["attempt"] == 2 for row in seen)
