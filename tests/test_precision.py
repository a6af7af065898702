"""The arithmetic that is chosen by measurement."""

import logging
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from distmeta.compute.large_products import KEPT_BY_ONEDNN
from distmeta.engine import precision
from distmeta.engine.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_auto_takes_the_faster_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog, faster: str):
    rates = {torch.float32: 2e11 if faster == "fp32" else 1e11, torch.bfloat16: 1.5e11}
    monkeypatch.setattr(precision, "_rate", lambda dtype, device: rates[dtype])
    choose_precision.cache_clear()
    precision.faster.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert choose_precision("auto", CPU) == faster
    assert f"auto takes {faster} (GFLOP/s" in caplog.text
    choose_precision.cache_clear()
    precision.faster.cache_clear()


def test_what_is_asked_for_is_taken_without_a_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_rate", lambda dtype, device: pytest.fail("measured"))
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_measurement_is_of_this_machine():
    assert 1e8 < precision._rate(torch.float32, CPU) < 1e15


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")
def test_in_bf16_a_process_grows_little_with_each_length():
    """Far less than where a user has it keep more."""
    code = """
        import torch
        from distmeta.engine.precision import set_up_arithmetic

        def megabytes():
            (line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS:"))
            return int(line.split()[1]) / 1024

        set_up_arithmetic("bf16", torch.device("cpu"))
        weight = torch.rand(256, 256, dtype=torch.bfloat16)
        for length in range(1, 300):
            torch.rand(length, 256, dtype=torch.bfloat16) @ weight
            if length == 20:
                before = megabytes()
        print(megabytes() - before)
    """
    grown = []
    for more in ({}, dict.fromkeys(KEPT_BY_ONEDNN, "1024")):
        environment = {name: value for name, value in os.environ.items() if name not in KEPT_BY_ONEDNN} | more
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        grown.append(float(done.stdout))
    print("grown by {:.0f} MB; by {:.0f} MB with 1024 of each".format(*grown))
    assert grown[0] < 0.4 * grown[1]
