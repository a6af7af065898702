"""Settings of a sweep."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from distmeta.section import Section

Metric = Literal["accuracy", "cost", "wall_seconds", "worker_seconds", "flops"]
MOST_TRIALS = 10_000
Mode = Literal["max", "min"]


class SpaceEntry(Section):
    """The values that a key of the configuration may take."""

    type: Literal["loguniform", "uniform", "randint", "choice", "grid"]
    """How values are drawn: between low and high (randint: both included), or from a list; grid: each one in turn."""
    low: float | None = None
    """Lowest value of a range."""
    high: float | None = None
    """Highest value of a range."""
    values: list[Any] | None = None
    """Values of a list."""
    when: dict[str, Any] | None = None
    """Swept only where these keys have this value, or one of a list of values; else it is as the configuration says."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class SweepConfig(Section):
    """Many runs that differ in some keys: `distmeta sweep`."""

    num_trials: int = Field(default=12, ge=1, le=MOST_TRIALS)
    """Trials in all, each point once. The first is the configuration as it stands, never ended early, to compare."""
    search: Literal["grid", "random", "optuna"] = "random"
    """Where settings come from: each point of a grid, draws, or draws that go by earlier trials (Optuna's TPE)."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """asha (successive halving) and median end trials of poor accuracy early; pbt gives them the weights of better."""
    metric: Metric | list[Metric] = "accuracy"
    """What is sought, of accuracy (meta-valid), cost, wall_seconds, worker_seconds, flops; for optuna also a list."""
    mode: Mode | list[Mode] = "max"
    """max or min; a list for a list of metrics."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time at most; unset: as many as the cluster holds."""
    grace_steps: int | None = Field(default=None, ge=1)
    """Outer steps before asha or median ends a trial, and between pbt's decisions; unset: warm-up + one validation."""
    reduction_factor: int = Field(default=3, ge=2)
    """asha: one in so many trials goes on from a rung to the next, which has so many times its steps."""
    evaluate_best: int = Field(default=3, ge=1)
    """Best trials on the meta-valid classes that are evaluated again on the meta-test classes."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Fixes the draws."""
    space: dict[str, SpaceEntry] = Field(
        default={
            "meta.inner_lr": SpaceEntry(type="loguniform", low=1e-3, high=1e-1),
            "meta.outer_lr": SpaceEntry(type="loguniform", low=1e-4, high=1e-2),
        }
    )
    """Keys of this configuration to sweep, each with its values, such as {type: choice, values: [1, 5]}; the weight of
    a source is corpus.sources.NAME.weight."""
