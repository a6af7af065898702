"""The wait for a head node that is started again; one that stays away ends the command: see test_signals.py."""

import threading

import pytest

from distmeta.cluster import watch
from distmeta.errors import UserError


@pytest.mark.parametrize(("tell", "is_told"), [(60.0, False), (0.0, True)])
def test_a_head_node_that_answers_again_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tell: float, is_told: bool
):
    answers, is_over = [True, False, False, True], threading.Event()

    def answer(channel: object) -> bool:
        if len(answers) == 1:
            is_over.set()
        return answers.pop(0)

    monkeypatch.setattr(watch, "INTERVAL", 0.02)
    monkeypatch.setattr(watch, "TELL", tell)
    monkeypatch.setattr(watch, "_answers", answer)
    watch._watch("10.0.0.1:6379", None, 600, is_over)
    assert not answers
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (2 if is_told else 0)
    if is_told:
        assert lines[0].endswith(
            "head node of the Ray cluster (10.0.0.1:6379), which does not answer, for 600 s at the most"
        )
        assert lines[1] == "distmeta: the head node answers again after 0 s"


def test_the_wait_is_shorter_than_that_of_ray(monkeypatch: pytest.MonkeyPatch):
    assert watch.patience_with_named() == 50
    monkeypatch.setenv(watch.RECONNECT, "600")
    assert watch.patience_with_named() == 590
    monkeypatch.setenv(watch.RECONNECT, "5")
    assert watch.patience_with_named() == watch.OWN
    monkeypatch.setenv(watch.RECONNECT, "long")
    with pytest.raises(UserError, match=r"RAY_gcs_rpc_server_reconnect_timeout_s: long is no number of seconds"):
        watch.patience_with_named()
