"""The files of a run directory, by name."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps what it reads and leaves."""

    path: Path

    @property
    def has_begun(self) -> bool:
        """Whether the directory is a run's that has scored a network or made a step, or a trial's. Until then nothing
        is lost when another configuration takes it, such as one that mends what kept the first from beginning."""
        if not self.config.exists():
            return False
        return any(path.exists() for path in (self.trial, self.starting_weights, self.validation, self.metrics))

    @property
    def config(self) -> Path:
        """The resolved configuration: `distmeta pretrain --config` runs it again."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions of Python, the packages and distmeta itself."""
        return self.path / "environment.json"

    @property
    def corpus(self) -> Path:
        """The prepared corpus, unless `corpus.directory` says otherwise."""
        return self.path / "corpus"

    @property
    def metrics(self) -> Path:
        """One JSON object an outer step."""
        return self.path / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """One JSON object a validation on the meta-valid classes."""
        return self.path / "validation.jsonl"

    @property
    def starting(self) -> Path:
        """The network before training, as a Hugging Face folder."""
        return self.path / "starting"

    @property
    def starting_weights(self) -> Path:
        """The meta-parameters before training."""
        return self.path / "weights" / "starting.safetensors"

    @property
    def best_weights(self) -> Path:
        """The meta-parameters that are kept."""
        return self.path / "weights" / "best.safetensors"

    @property
    def weights_before_average(self) -> Path:
        """Where an average with the starting weights is kept: those that it is of."""
        return self.path / "weights" / "before-average.safetensors"

    @property
    def model(self) -> Path:
        """The kept network as a Hugging Face folder."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """The few-shot table of the configuration as it stands."""
        return self.path / "evaluation.json"

    @property
    def evaluations(self) -> Path:
        """Every evaluation that was asked for, under a name that says what it is of."""
        return self.path / "evaluations"

    @property
    def summary(self) -> Path:
        """What the run was and cost: kept step, wall time, worker-seconds, operations, money."""
        return self.path / "summary.json"

    @property
    def stop_request(self) -> Path:
        """While this file is there, workers leave a checkpoint and end after the step that they are in."""
        return self.path / "stop-requested"

    @property
    def has_checkpoint(self) -> Path:
        """There since the first checkpoint was stored, wherever checkpoints go."""
        return self.path / "has-checkpoint"

    @property
    def plan(self) -> Path:
        """What the run was forecast to take."""
        return self.path / "plan.json"

    @property
    def trial(self) -> Path:
        """Of a trial of a sweep: its number, the swept values, and how it stands."""
        return self.path / "trial.json"

    @property
    def events(self) -> Path:
        """One JSON object a lost worker, with what it was lost to, and a warning of a worker."""
        return self.path / "events.jsonl"

    def worker_events(self, rank: int) -> Path:
        """Where a worker notes its own: at an address no file has two writers."""
        return self.path / f"events-{rank}.jsonl"
