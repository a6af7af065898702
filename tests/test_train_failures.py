"""What a lost worker, a sure failure and a start from nothing lead to, and how they are told. Without a cluster."""

import errno
import json
import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.train import FailureConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError

from distmeta.config import Config, to_yaml
from distmeta.errors import Interrupted, UserError
from distmeta.pipeline import _steps, check_claim, claim
from distmeta.recipes import filled
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import SweepDirectory, check_sweep, read_trial, write_trial
from distmeta.sweep.run import _Table
from distmeta.sweep.trial import Trial
from distmeta.tracking.config import TrackingConfig
from distmeta.train import launch
from distmeta.train.failures import Failures, SureFailure, told_apart
from distmeta.train.launch import _explain, _Progress
from distmeta.train.record import Recorder

GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:31274")
DEATH = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The "
    "process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called. (3) The "
    "worker is crashed unexpectedly due to SIGSEGV or other unexpected errors."
)


def died(message: str = DEATH) -> WorkerHealthCheckFailedError:
    context = ActorDiedErrorContext(
        class_name="RayTrainWorker", actor_id=b"x" * 16, pid=4711, node_ip_address="10.0.0.2", error_message=message
    )
    return WorkerHealthCheckFailedError(
        "A worker health check failed.\nWorker info: Worker(...)", ActorDiedError(context)
    )


def events_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def raised(error: BaseException) -> BaseException:
    def work() -> None:
        raise error

    with pytest.raises(Exception) as caught:  # noqa: PT011 (which one is what is asked)
        told_apart(work)
    return pickle.loads(pickle.dumps(caught.value))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such layer"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
    ],
)
def test_an_exception_of_the_code_itself_is_not_tried_again(error, tmp_path):
    """And its traceback is kept, of which Ray passes on a part at best."""
    failures = {0: raised(error), 1: GLOO}
    policy = Failures(FailureConfig(max_failures=3), tmp_path / "events")
    assert policy.make_decision(WorkerGroupError("...", failures)) is FailureDecision.RAISE
    (event,) = events_of(tmp_path / "events")
    assert not event["tell"]
    assert "Traceback" in event["details"]
    said = _explain(WorkerGroupError("...", failures), RunDirectory(tmp_path))
    assert isinstance(said, UserError)
    assert f"worker 0 failed, as it would again: {type(error).__name__}: {str(error)[:20]}" in str(said)


def test_what_the_user_can_mend_is_told_once_and_as_it_is(tmp_path):
    mistake = UserError("model.name_or_path: the weights are not there")
    failures = {0: raised(mistake), 1: raised(mistake)}
    policy = Failures(FailureConfig(max_failures=3), tmp_path / "events")
    assert policy.make_decision(WorkerGroupError("...", failures)) is FailureDecision.RAISE
    assert not events_of(tmp_path / "events")
    assert str(_explain(WorkerGroupError("...", failures), RunDirectory(tmp_path))) == str(mistake)


@pytest.mark.parametrize(
    "failures",
    [
        {1: died()},
        {0: GLOO, 1: died(), 2: GLOO},
        {0: raised(ValueError("of the loss of another")), 1: died()},
        {0: raised(GLOO)},
        {0: raised(torch.distributed.DistNetworkError("The client socket has failed to connect"))},
        {0: raised(OSError(errno.EIO, "AWS Error NETWORK_CONNECTION during PutObject"))},
        {0: raised(TimeoutError("timed out"))},
    ],
)
def test_a_lost_worker_is_tried_again_and_told_in_a_line(failures, tmp_path):
    policy = Failures(FailureConfig(max_failures=2), tmp_path / "events")
    error = WorkerGroupError("...", failures)
    assert [policy.make_decision(error) for _ in range(3)] == [FailureDecision.RETRY] * 2 + [FailureDecision.RAISE]
    first, second, last = events_of(tmp_path / "events")
    assert (first["tell"], second["tell"], last["tell"]) == (True, True, False)
    assert len(first["text"].splitlines()) == 1
    assert len(first["text"]) < 260
    assert first["text"].endswith("all workers are started again (loss 1 of 2 that train.max_failures allows)")
    if 1 in failures:
        assert first["text"].startswith("worker 1 was lost (process 4711 on node 10.0.0.2): its process ended without")
        assert first["rank"] == 1
    said = str(_explain(error, RunDirectory(tmp_path)))
    assert said.startswith("training was given up: worker ")
    assert "--resume goes on" in said


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("Task was killed due to the node running low on memory.", "the node was running out of memory"),
        ("The actor died because its node has died. Node Id: 8f0c", "its node is gone"),
    ],
)
def test_the_cause_of_a_loss_is_named_where_it_is_known(message, cause, tmp_path):
    Failures(FailureConfig(max_failures=2), tmp_path / "events").make_decision(WorkerGroupError("", {3: died(message)}))
    (event,) = events_of(tmp_path / "events")
    assert event["text"].startswith("worker 3 was lost")
    assert cause in event["text"]


def test_of_many_that_are_lost_at_once_a_few_are_named(tmp_path):
    policy = Failures(FailureConfig(max_failures=2), tmp_path / "events")
    policy.make_decision(WorkerGroupError("", {rank: died() for rank in range(256)}))
    (event,) = events_of(tmp_path / "events")
    assert "worker 3 was lost" in event["text"]
    assert "worker 4 " not in event["text"]
    assert "; and 252 more workers; all workers are started again" in event["text"]


def test_a_worker_that_cannot_be_reached_is_not_called_dead(tmp_path):
    failure = ActorUnavailableError("the GRPC connection was lost", b"x" * 16)
    policy = Failures(FailureConfig(max_failures=2), tmp_path / "events")
    policy.make_decision(WorkerGroupError("", {3: WorkerHealthCheckFailedError("Worker info: ...", failure)}))
    (event,) = events_of(tmp_path / "events")
    assert event["text"].startswith("worker 3 was lost: it cannot be reached; all workers are started again")


def test_workers_that_cannot_be_started_are_told(tmp_path):
    """Ray itself tries for ever, without a word."""
    policy = Failures(FailureConfig(max_failures=0), tmp_path / "events")
    assert policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(2))) is FailureDecision.RETRY
    (event,) = events_of(tmp_path / "events")
    assert event["text"].startswith("2 workers did not start in time: the cluster has no room for them now, or is slow")


def test_a_run_that_begins_again_from_nothing_says_so_and_keeps_no_row_twice(tmp_path):
    config, run, said = filled(Config(tracking=TrackingConfig(wandb="disabled"))), RunDirectory(tmp_path), []
    with _Progress(config, run, said.append) as shown:
        for attempt in range(2):  # the first attempt is lost in its second step
            recorder = Recorder(config, run, 0)
            recorder.validation(0, {"inner-loop": 0.5})
            for step in (1, 2):
                recorder.step({"outer_step": step, "training/outer_lr": 0.1, "time/tokens_per_second": 1.0 + attempt})
                shown.update()
    assert [json.loads(line)["outer_step"] for line in run.validation.read_text().splitlines()] == [0]
    assert [line for line in said if "again" in line] == ["beginning again: there was no checkpoint yet"]
    assert not any("outer step 0" in line for line in said)


def test_a_run_that_never_began_holds_no_directory(tmp_path, monkeypatch):
    """One that has scored its starting network does."""

    class Prepared:
        def __init__(self, config: Config, run: RunDirectory) -> None:
            self.corpus = run.corpus
            self.manifest = type("Manifest", (), {"content_digest": config.corpus.sources[0], "tokenizer_hash": ""})

    monkeypatch.setattr("distmeta.pipeline.Setup", Prepared)
    run = RunDirectory(tmp_path / "run")
    for source in ("first", "other"):
        config = Config.model_validate({"corpus": {"sources": [source]}})
        check_claim(config, run, resume=False)
        claim(config, run)
    run.validation.write_text('{"outer_step": 0}\n')
    with pytest.raises(UserError, match="go on with it by --resume"):
        check_claim(config, run, resume=False)
    with pytest.raises(UserError, match=r"corpus.sources: .*/other'\] before, \['third'\] now"):
        check_claim(Config.model_validate({"corpus": {"sources": ["third"]}}), run, resume=True)


def test_a_sweep_without_a_trial_holds_no_directory(tmp_path):
    sweep = SweepDirectory(tmp_path)
    first, other = (Config.model_validate({"sweep": {"num_trials": number}}) for number in (2, 3))
    sweep.config.write_text(to_yaml(first))
    check_sweep(other, sweep, resume=False)
    sweep.trial("0000").path.mkdir(parents=True)
    write_trial(sweep.trial("0000"), {"trial_id": "0000", "config": {}, "status": "running"})
    with pytest.raises(UserError, match="a sweep is there; go on with it by --resume"):
        check_sweep(other, sweep, resume=False)
    with pytest.raises(UserError, match=r"sweep.num_trials: 2 before, 3 now"):
        check_sweep(other, sweep, resume=True)


def sweep_with_a_trial(folder: Path) -> SweepDirectory:
    """One that has begun."""
    sweep = SweepDirectory(folder)
    sweep.tune.mkdir()
    sweep.environment.write_text("{}")
    run = sweep.trial("0000")
    run.path.mkdir(parents=True)
    run.config.write_text(to_yaml(filled(Config())))
    write_trial(run, {"trial_id": "0000", "config": {}, "status": "running"})
    return sweep


def test_a_trial_whose_process_is_lost_is_told_in_a_line(tmp_path):
    sweep, said = sweep_with_a_trial(tmp_path), []
    trial = SimpleNamespace(config={"trial": "0000"}, get_error=lambda: died().health_check_failure)
    _Table(sweep, said.append).on_trial_error(0, [], trial)
    reason = "its process was lost (process 4711 on node 10.0.0.2): its process ended without a word"
    assert said[0].startswith(f"trial 0000 failed ({reason}")
    assert len(said[0].splitlines()) == 1
    assert read_trial(sweep.trial("0000"))["reason"].startswith(reason)


def test_the_steps_that_have_a_query_loss_are_said():
    config = Config.model_validate({"meta": {"lm_warmup_steps": 700}, "train": {"outer_steps": 760}})
    assert _steps(config).startswith("outer steps 1 to 700 train the language model alone; the 60 from 701 to 760 have")


@pytest.mark.parametrize("when", ["start", "end"])
def test_a_trial_that_cannot_work_is_not_tried_again(when, tmp_path, monkeypatch):
    """Tune tries whatever an exception comes out of again, as often as a lost process."""

    class Training:
        def __init__(self, config: Config, run: RunDirectory) -> None:
            if when == "start":
                raise UserError("train.num_workers: 2 workers need as many GPUs")

        def is_over(self, wait: float) -> bool:
            return True

        def progress(self) -> None:
            raise ValueError("no such\nthing")

    monkeypatch.setattr("distmeta.sweep.trial.TrainingRun", Training)
    run = sweep_with_a_trial(tmp_path).trial("0000")
    trial = Trial({"sweep": str(tmp_path), "trial": "0000"})
    assert trial.step()["failed"]
    row = read_trial(run)
    assert row["status"] == "failed"
    assert (
        row["reason"] == {"start": "train.num_workers: 2 workers need as many GPUs", "end": "ValueError: no such"}[when]
    )


def test_a_sure_failure_is_passed_on_between_processes():
    error = pickle.loads(pickle.dumps(SureFailure("ValueError: no", "Traceback ...")))
    assert (str(error), error.details) == ("ValueError: no", "Traceback ...")


class Ending:
    """A training that ends by an error at once, or never."""

    def __init__(self, error: Exception | None) -> None:
        self._error, self.asked = error, 0

    def __call__(self, *_: object) -> "Ending":
        return self

    def is_over(self, wait: float) -> bool:
        if not self._error:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._error is not None

    def request_stop(self) -> None:
        self.asked += 1

    def progress(self) -> dict:
        assert self._error
        raise self._error


def test_a_cluster_that_takes_training_with_it_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "TrainingRun", Ending(ActorUnavailableError("Socket closed", b"x" * 16)))
    with pytest.raises(UserError, match=r"process of Ray's that led it: .*Socket closed.*\nsee whether the cluster"):
        launch.launch(filled(Config()), RunDirectory(tmp_path), print)


def test_a_stop_before_the_first_step_does_not_wait_for_workers_to_start(tmp_path, monkeypatch):
    """Their start may take longer than whoever sent the signal waits, and there is nothing to keep."""
    endless = Ending(None)
    monkeypatch.setattr(launch, "TrainingRun", endless)
    said: list[str] = []
    with pytest.raises(Interrupted, match="before an outer step was done"):
        launch.launch(filled(Config()), RunDirectory(tmp_path), said.append)
    assert endless.asked == 1
    assert said == ["SIGTERM: leaving a checkpoint after this step; once more ends at once"]
