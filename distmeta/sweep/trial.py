"""A trial: a Ray Train run as any other, started, watched and ended for Ray Tune."""

import json
import time
from pathlib import Path
from typing import Any

from ray import tune

from distmeta.cluster.connect import prepare_environment
from distmeta.config import load_config, to_yaml, with_values
from distmeta.errors import UserError
from distmeta.files import write_json, write_text
from distmeta.store.address import names_storage
from distmeta.store.folders import attach
from distmeta.sweep.directory import Status, SweepDirectory, read_trial, set_status, write_trial
from distmeta.sweep.takeover import copy_newest, take_over
from distmeta.tracking import wandb_environment
from distmeta.tracking.cost import run_summary
from distmeta.tracking.metrics import MetricsTail
from distmeta.train.failures import may_pass
from distmeta.train.launch import FIRST_STEP, TrainingRun
from distmeta.train.outcome import is_over
from distmeta.train.restart import StoppedWaiting

TOTALS = ("wall_seconds", "worker_seconds", "flops")
WORST_ACCURACY = 0.0


class Trial(tune.Trainable):
    """Runs one trial after the other in the same process, which needs next to nothing: the work is its workers'.

    The configuration that Tune gives holds the path or address of the sweep, the number of the trial, and its swept
    values by dotted key. All else is in the trial's run directory, so whoever starts the trial again goes on with it.
    """

    def setup(self, config: dict[str, Any], folder: str | None = None) -> None:
        """Takes a trial up; `folder` is that in which the process that leads a sweep at an address writes."""
        prepare_environment()
        self._sweep = SweepDirectory(Path(folder or config["sweep"]))
        if names_storage(config["sweep"]):
            attach(config["sweep"], self._sweep.path)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends the trial that was, and takes another one up in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, settings: dict[str, Any]) -> None:
        wandb_environment.prepare_environment(json.loads(self._sweep.environment.read_text(encoding="utf-8")))
        self._trial_id = settings["trial"]
        self._run = self._sweep.trial(self._trial_id)
        values = {key: value for key, value in settings.items() if "." in key}
        trial = read_trial(self._run)
        if trial["config"] != values:  # rates that PBT has changed
            changed = with_values(load_config(self._run.config, check=False), values)
            write_text(self._run.config, to_yaml(changed))
            write_trial(self._run, trial | {"config": values})
        self._config = load_config(self._run.config, check=False)
        self._training: TrainingRun | None = None
        self._outcome: Status | None = None
        self._last: dict[str, Any] = {"outer_step": 0, "accuracy": WORST_ACCURACY, "cost": 0.0}
        self._last |= dict.fromkeys(TOTALS, 0.0)
        if trial["status"] in ("finished", "diverged"):  # just before the driver was lost, which did not hear of it
            self._outcome = trial["status"]
            self._note(json.loads(self._run.summary.read_text(encoding="utf-8")))
        else:
            self._run.summary.unlink(missing_ok=True)
            set_status(self._run, "running")

    def step(self) -> dict[str, Any]:
        """Waits for the next validation or the end of the training; returns what Tune goes by.

        That is `outer_step`, `accuracy` on the meta-valid classes (at the end that of the network that is kept), and
        what it took so far: `wall_seconds`, `worker_seconds`, `flops`, `cost`.
        """
        if self._training is None and self._outcome is None:
            self._validations, self._metrics = MetricsTail(self._run.validation), MetricsTail(self._run.metrics)
            self._validations.new(), self._metrics.new()  # what was there before has been reported
            self._waiting: list[dict[str, Any]] = []
            self._has_stepped = False
            try:
                self._training = TrainingRun(self._config, self._run)
            except UserError as error:  # which Tune would take for a lost process, and try again
                self._outcome = "failed"
                set_status(self._run, "failed", str(error))
        while self._training is not None:
            if self._sweep.stop_request.exists():
                self._stop()
                break
            over = self._training.is_over(wait=0.3)
            for row in self._metrics.new():
                self._has_stepped = True
                self._note(run_summary({key: row[f"cost/{key}"] for key in TOTALS}, self._config.tracking))
            self._waiting += [row for row in self._validations.new() if row["outer_step"] > 0]
            if self._waiting:
                row = self._waiting.pop(0)
                self._last |= {"outer_step": row["outer_step"], "accuracy": row[self._config.train.select_by]}
                return dict(self._last)
            if over:
                self._end("finished")
        if self._outcome == "interrupted":
            time.sleep(0.5)  # until Tune ends as well
            return dict(self._last)
        # What failed or diverged must never look good to a search; its row in the table has no accuracy at all.
        failed = self._outcome != "finished"
        return self._last | {"done": True, "failed": failed} | ({"accuracy": WORST_ACCURACY} if failed else {})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copies the trial's newest checkpoint, for another trial to take over."""
        copy_newest(self._config, self._run, self._trial_id, self._last["outer_step"], Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Takes over the weights and optimizer states of another trial; its own are where they were."""
        take_over(self._config, self._run, self._trial_id, Path(checkpoint))

    def cleanup(self) -> None:
        """Ends the training in good order, with a checkpoint."""
        if self._training is not None:
            self._stop()

    def _stop(self) -> None:
        assert self._training is not None
        self._training.request_stop()
        asked = time.monotonic()
        while not self._training.is_over(wait=0.3):
            self._has_stepped |= bool(self._metrics.new())
            is_late = time.monotonic() - asked > FIRST_STEP
            if is_late and not self._has_stepped and self._sweep.stop_request.exists():
                # There is nothing to keep, and the processes end with the sweep's.
                self._training, self._outcome = None, "interrupted"
                set_status(self._run, "interrupted", None)
                return
        self._end("interrupted" if self._sweep.stop_request.exists() else "stopped")

    def _end(self, status: Status) -> None:
        """Notes how the training ended and what it took."""
        assert self._training is not None
        reason = None
        try:
            progress = self._training.progress()
        except StoppedWaiting:
            pass
        except UserError as error:
            status, reason = "failed", str(error)
        except Exception as error:
            if may_pass(error):
                raise
            status, reason = "failed", f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            summary = run_summary(progress, self._config.tracking)
            write_json(self._run.summary, summary)
            self._note(summary)
            if "diverged" in progress:
                status, reason = "diverged", progress["diverged"]
            elif is_over(progress, self._config.train):
                status = "finished"
        self._training = None
        self._outcome = status
        set_status(self._run, status, reason)

    def _note(self, summary: dict[str, Any]) -> None:
        self._last |= {key: summary[key] for key in (*TOTALS, "cost", "accuracy") if key in summary}
