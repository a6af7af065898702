"""What a command makes of signals, and that nothing of Ray is left when it ends in whatever way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distmeta import signals
from distmeta.cli import say
from distmeta.errors import Interrupted
from distmeta.signals import SIGNALS, interrupted_by_signals, keep_sigterm_handler, stop_on_signal
from tests.commands import assert_gone, environment

HEAD = """
import sys, time
from distmeta.cluster import watch
from distmeta.cluster.connect import ray_cluster
from distmeta.config import Config
from distmeta.signals import interrupted_by_signals
watch.INTERVAL = 0.5
with interrupted_by_signals("nothing is lost"):
    with ray_cluster(Config()):
        print("up", flush=True)
        time.sleep(100)
"""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the process would have ended at once."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


def send(number: int) -> None:
    signal.pthread_kill(threading.get_ident(), number)  # another thread may be slow to pass it on
    time.sleep(0.01)  # for Python to call the handler


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_wherever_the_command_is(number: signal.Signals, exits: list[int]):
    def work() -> None:
        with interrupted_by_signals("all is kept"):
            try:
                send(number)
            except Exception:  # as who goes on to the next file does
                raise AssertionError("an interruption is no fault of a file") from None

    if signal.getsignal(number) == signal.SIG_IGN:  # under nohup, which this respects
        signal.signal(number, signal.SIG_DFL)
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; all is kept"):
        work()
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert not exits


def test_training_is_asked_to_stop_and_a_second_signal_ends_at_once(exits: list[int], monkeypatch: pytest.MonkeyPatch):
    asked, said = [], []
    with interrupted_by_signals(""), stop_on_signal(lambda: asked.append(1), "leaving", said.append) as stopped:
        assert not stopped.is_set()
        send(signal.SIGTERM)
        assert stopped.is_set()
        send(signal.SIGTERM)  # `timeout` signals its child, then the group that it is in
        assert (asked, said, exits) == ([1], ["SIGTERM: leaving; once more ends at once"], [])
        monkeypatch.setattr(signals, "TOGETHER", -1.0)
        send(signal.SIGINT)
        assert (asked, exits) == ([1], [130])
    # A command that is already ending is not interrupted once more by what comes after.
    assert signals._first is None


def test_a_command_that_is_to_outlive_its_terminal_does(exits: list[int]):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals(""):
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ray_does_not_take_the_signal_for_itself():
    def start_ray(status: int) -> None:
        with keep_sigterm_handler():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(status))
            send(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)  # another test's Ray may have left one
    with pytest.raises(Interrupted):
        start_ray(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(SystemExit):
        start_ray(1)


def test_words_that_nobody_reads_any_more_do_not_break_an_orderly_end(capfd: pytest.CaptureFixture[str]):
    """`distmeta pretrain 2>&1 | tee log` and Ctrl-C: tee dies of it, too."""
    code = "from distmeta.cli import say; import sys; sys.stdin.read(1); [say(text) for text in 'abc']; sys.exit(7)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr
    process.stderr.close()
    process.communicate(b"x")
    assert process.returncode == 7
    say("heard")
    assert capfd.readouterr().err == "heard\n"


def test_who_works_for_a_process_ends_with_it():
    code = "import os, time; from distmeta.signals import end_with_parent; child = os.fork()\n"
    code += "if child: time.sleep(0.3); print(child, flush=True); os.kill(os.getpid(), 9)\n"
    code += "end_with_parent(); time.sleep(100)"
    # The run is over when nobody has its output open any more.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL
    assert int(done.stdout)


@pytest.fixture
def head() -> Iterator[subprocess.Popen[str]]:
    """A command that starts Ray for itself, as the leader of a process group, with a home that cannot be written."""
    settings = {name: value for name, value in environment().items() if name != "RAY_AUTH_MODE"} | {"HOME": "/proc"}
    settings["PYTHONPATH"] = str(Path(__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_cluster_that_dies_ends_the_command_which_nothing_outlives(head: subprocess.Popen[str]):
    """The agents of a node would look for a minute before they see that they are alone."""
    assert head.stdout
    assert head.stdout.readline() == "up\n", head.communicate()[1]
    started = psutil.Process(head.pid).children(recursive=True)
    names = [process.name() for process in started]
    assert {"gcs_server", "raylet"} <= set(names)
    assert all(os.getsid(process.pid) != head.pid for process in started)
    (server,) = (process for process in started if process.name() == "gcs_server")
    server.kill()
    since = time.monotonic()
    _, errors = head.communicate(timeout=40)
    assert head.returncode == 2
    assert "does not answer any more; what is finished is kept" in errors
    assert_gone(started)
    assert time.monotonic() - since < 40


def test_a_signal_while_ray_starts_leaves_nothing(head: subprocess.Popen[str]):
    children: list[psutil.Process] = []
    while len(children) < 3 and head.poll() is None:
        children = psutil.Process(head.pid).children(recursive=True)
        time.sleep(0.01)
    os.killpg(head.pid, signal.SIGTERM)
    since = time.monotonic()
    _, errors = head.communicate(timeout=30)
    assert "Interrupted: stopped by SIGTERM" in errors
    assert_gone(children)
    assert time.monotonic() - since < 25
