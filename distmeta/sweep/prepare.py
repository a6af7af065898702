"""What a trial needs before it starts: a checked configuration, its run directory, and a corpus that it shares."""

import hashlib
import json
from collections.abc import Callable, Sequence

from distmeta.config import Config
from distmeta.corpus.executor import LocalExecutor, RayExecutor
from distmeta.errors import UserError
from distmeta.pipeline import claim
from distmeta.plan.memory import choose_weights
from distmeta.run_corpus import check_tasks, is_large, prepare_with
from distmeta.rundir import RunDirectory
from distmeta.setup import check_weights, resolve, wants_language_model
from distmeta.store.folders import given
from distmeta.sweep.directory import SweepDirectory, write_trial
from distmeta.sweep.space import Values, trial_config
from distmeta.tracking.wandb_environment import names
from distmeta.train.storage import storage_path


class TrialMaker:
    """Makes the run directories of trials."""

    def __init__(self, config: Config, sweep: SweepDirectory, say: Callable[[str], None]) -> None:
        self._config, self._sweep, self._say = config, sweep, say
        self._own_corpus = config.corpus.directory or given(sweep.path / "corpus")
        self._first = _corpus_identity(resolve(trial_config(config, {})))
        self._prepared: set[str] = set()
        self._weights: set[tuple[str | None, bool]] = set()

    def check(self, trials: Sequence[Values]) -> None:
        """Refuses trials that cannot be run.

        Raises:
            UserError: with a line for each fault, the values named.
        """
        faults: dict[str, None] = {}
        for values in trials:
            try:
                self._check_weights(self.resolved(values))
            except UserError as error:
                faults |= dict.fromkeys(str(error).splitlines())
        if faults:
            raise UserError("\n".join(faults))

    def resolved(self, values: Values) -> Config:
        """The whole configuration of a trial with these values."""
        made = resolve(trial_config(self._config, values))
        choose_weights(made, lambda _: None)  # said once, of the largest
        identity = _corpus_identity(made)
        other = given(self._sweep.path / f"corpus-{identity}")
        made.corpus.directory = self._own_corpus if identity == self._first else other
        if made.train.storage:  # the names of trials are those of every other sweep's
            made.train.storage = storage_path(made, RunDirectory(self._sweep.path))
        made.tracking.group = names(made.tracking, self._sweep.path)["group"] or self._sweep.path.name
        if self._config.sweep.scheduler == "pbt":
            # What is taken over is the network of the validation that decided it.
            made.train.checkpoint_every = made.train.interval
            # A trial may go on from another one's network at any time, whatever its own has come to.
            made.train.patience = 0
        return made

    def _check_weights(self, made: Config) -> None:
        """Looks at the weights of a trial, once for all that load the same."""
        loaded = made.model.name_or_path, wants_language_model(made)
        if loaded not in self._weights:
            if weights := check_weights(made):
                self._say(weights)
            self._weights.add(loaded)

    def prepare_corpus(self, made: Config) -> None:
        """Prepares the corpus of a trial, once for all that share it."""
        directory = str(made.corpus.directory)
        if directory not in self._prepared:
            run = RunDirectory(self._sweep.path)
            prepare_with(RayExecutor() if is_large(made, run) else LocalExecutor(), made, run, self._say)
            check_tasks(made, run)
            self._prepared.add(directory)

    def __call__(self, trial_id: str, values: Values) -> str | None:
        """Makes the directory of a trial, or leaves it as it is where it has begun; returns why it cannot be run."""
        run = self._sweep.trial(trial_id)
        run.path.mkdir(parents=True, exist_ok=True)
        if run.trial.exists():
            return None
        trial = {"trial_id": trial_id, "config": values}
        try:
            made = self.resolved(values)
            self._check_weights(made)
            self.prepare_corpus(made)
        except UserError as error:
            write_trial(run, trial | {"status": "failed", "reason": str(error)})
            return str(error)
        claim(made, run)
        write_trial(run, trial | {"status": "running"})
        return None


def _corpus_identity(config: Config) -> str:
    """Tells configurations with different corpora apart; how its data sets are weighed makes no other corpus."""
    sources = [each if isinstance(each, str) else each.model_dump(exclude={"weight"}) for each in config.corpus.sources]
    sections = [config.corpus.model_dump(exclude={"directory", "executor", "sources"}), {"sources": sources}]
    sections += [config.tokenizer.model_dump(), {"model": config.model.name_or_path}]
    sections += [config.tasks.of_corpus(), config.tasks.model_dump(include={"split_files"})]
    return hashlib.blake2b(json.dumps(sections, sort_keys=True).encode(), digest_size=4).hexdigest()
