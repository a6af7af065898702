"""Where the settings of the next trial come from: a grid, draws, or Optuna; always as numbered runs ready to start."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher

from distmeta.store.folders import given
from distmeta.sweep.config import SweepConfig
from distmeta.sweep.directory import SweepDirectory, read_trial
from distmeta.sweep.points import another_points, first_values, number_of_trials
from distmeta.sweep.space import Space, Values, identity

MOST_PROPOSALS = 20
"""Of Optuna for one trial, at points that have been tried."""


class Search(Searcher):
    """Gives Tune the trials of a sweep, in the order of their numbers.

    Trial 0000 has the configuration's own values, unless the points of a grid leave no room for it. A trial that was
    given before an interruption is given again with the same values, and goes on in its directory.

    Args:
        space: what the values are taken from.
        options: the section `sweep`.
        sweep: where the trials are.
        make: makes the run directory of a trial from its number and values; returns why it cannot be run, or None.
    """

    def __init__(
        self,
        space: Space,
        options: SweepConfig,
        sweep: SweepDirectory,
        make: Callable[[str, Values], str | None],
    ) -> None:
        metrics = options.metric if isinstance(options.metric, list) else [options.metric]
        modes = options.mode if isinstance(options.mode, list) else [options.mode]
        super().__init__(metric=list(metrics), mode=list(modes))  # type: ignore[arg-type]  # Ray takes lists as well
        self._space, self._options, self._sweep, self._make = space, options, sweep, make
        self._points = first_values(space, options)
        self._given = 0
        self._study: optuna.Study | None = None
        self._asked: dict[str, int] = {}
        if options.search == "optuna":
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            directions = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
            sampler = optuna.samplers.TPESampler(seed=options.seed, multivariate=True, warn_independent_sampling=False)
            self._study = optuna.create_study(sampler=sampler, directions=[directions[mode] for mode in modes])

    def suggest(self, trial_id: str) -> Any:
        """What Tune starts next: where the sweep is, the number of a trial and its swept values; or FINISHED."""
        while self._given < number_of_trials(self._space, self._options):
            name, values = self._next(trial_id)
            if self._make(name, values) is None:
                return {"sweep": given(self._sweep.path), "trial": name} | values
            self.on_trial_complete(trial_id, error=True)
        return self.FINISHED

    def _next(self, trial_id: str) -> tuple[str, Values]:
        """Number and values of the next trial."""
        number, self._given = self._given, self._given + 1
        name = f"{number:04}"
        run = self._sweep.trial(name)
        values = self._points[number] if number < len(self._points) else None
        if run.trial.exists():
            values = read_trial(run)["config"]
        if self._study is not None and (values is None or self._space.holds(values)):
            if values is not None:
                self._study.enqueue_trial(self._space.as_parameters(values))
                asked = self._study.ask()
                self._space.suggest(asked)
            else:
                asked, values = self._ask_for_another(self._study)
            self._asked[trial_id] = asked.number
        assert values is not None
        return name, values

    def _ask_for_another(self, study: optuna.Study) -> tuple[optuna.trial.Trial, Values]:
        """Optuna's next proposal that no trial has yet, or a draw where it proposes but what there is."""
        there = {identity(read_trial(self._sweep.trial(trial_id))["config"]) for trial_id in self._sweep.trial_ids()}
        for _ in range(MOST_PROPOSALS):
            asked = study.ask()
            values = self._space.suggest(asked)
            if identity(values) not in there:
                return asked, values
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        values = next(iter(another_points(self._space, self._options.seed, there)))
        study.enqueue_trial(self._space.as_parameters(values))
        asked = study.ask()
        return asked, self._space.suggest(asked)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how a trial ended."""
        number = self._asked.pop(trial_id, None)
        if self._study is None or number is None:
            return
        assert isinstance(self.metric, list)
        # What failed or diverged has the worst accuracy, of which a search can learn, but it did not cost much.
        if error or result is None or (result.get("failed") and self.metric != ["accuracy"]):
            self._study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(number, [result[name] for name in self.metric])

    def save(self, checkpoint_path: str) -> None:
        """Keeps how far the search has come, with Optuna's trials and the state of its random numbers."""
        Path(checkpoint_path).write_bytes(pickle.dumps((self._given, self._study, self._asked)))

    def restore(self, checkpoint_path: str) -> None:
        """Goes on from what `save` has kept."""
        self._given, self._study, self._asked = pickle.loads(Path(checkpoint_path).read_bytes())
