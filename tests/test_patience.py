"""A storage that fails for a while is waited for, in so many words."""

import errno
import logging

import pytest

from distmeta.train import patience
from distmeta.train.patience import patiently


def test_a_storage_that_fails_is_tried_again_and_told_once(caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr(patience, "FIRST", 0.01)
    attempts = iter([OSError(errno.ENOSPC, "No space left on device"), OSError("AWS Error NETWORK_CONNECTION"), None])

    def work() -> str:
        if error := next(attempts):
            raise error
        return "stored"

    with caplog.at_level(logging.WARNING):
        assert patiently(work, "checkpoint_7 cannot be stored", 100) == "stored"
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint_7 cannot be stored: [Errno 28] No space left on device; trying again since 0 s, for 100 s at the "
        "most (train.wait_for_storage)"
    ]


def test_at_the_limit_the_last_failure_is_raised(monkeypatch):
    monkeypatch.setattr(patience, "FIRST", 0.01)

    def work() -> None:
        raise OSError(errno.EIO, "gone")

    with pytest.raises(OSError, match="gone"):
        patiently(work, "it", 0.05)


def test_what_is_no_failure_of_the_storage_is_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: 1 / 0, "it", 100)
