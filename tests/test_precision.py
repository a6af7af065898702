"""The arithmetic that is chosen by measurement."""

import logging

import pytest
import torch

from distmeta.engine import precision
from distmeta.engine.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_auto_takes_the_faster_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog, faster: str):
    rates = {torch.float32: 2e11 if faster == "fp32" else 1e11, torch.bfloat16: 1.5e11}
    monkeypatch.setattr(precision, "_rate", lambda dtype, device: rates[dtype])
    choose_precision.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert choose_precision("auto", CPU) == faster
    assert f"auto takes {faster} (GFLOP/s" in caplog.text
    choose_precision.cache_clear()


def test_what_is_asked_for_is_taken_without_a_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_rate", lambda dtype, device: pytest.fail("measured"))
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_measurement_is_of_this_machine():
    assert 1e8 < precision._rate(torch.float32, CPU) < 1e15
