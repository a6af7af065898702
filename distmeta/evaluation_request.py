"""What `distmeta evaluate` is asked for, and what of it makes no sense together."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from distmeta.errors import UserError, one_line
from distmeta.yaml_text import parse_yaml

GIVEN = ("train_part", "draw_column", "shots_column", "max_queries")
"""What says more of rows that are given for training and testing."""
OF_FILE = ("on_split", "text_column", "text_pair_column", "label_column", "part_column", *GIVEN)
OF_EPISODES = ("n_way", "k_shot", "shape", "query_per_class", "episodes")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The options of the command, as the user gave them."""

    model: tuple[str, ...] = ()
    on: str | None = None
    on_split: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    part_column: str | None = None
    train_part: str | None = None
    draw_column: str | None = None
    shots_column: str | None = None
    max_queries: int | None = None
    n_way: tuple[str, ...] = ()
    k_shot: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    query_per_class: int | None = None
    episodes: int | None = None
    output: Path | None = None

    def check(self, *, has_run: bool) -> None:
        """Refuses what makes no sense together, before anything is read.

        Raises:
            UserError: with what to do.
        """
        if self.on is None:
            self._refuse(OF_FILE, "says what is in the file of --on: give that as well")
            if not has_run and self.model:
                raise UserError(
                    "give --on FILE, a labelled set to evaluate on, or --run-dir DIR for a run's own classes"
                )
            if not has_run:
                raise UserError("give --run-dir DIR, a run, or --on FILE and --model PATH")
        elif self.label_column is None:
            raise UserError(f"--on {self.on}: give --label-column, the column that holds the class")
        elif not has_run and not self.model:
            raise UserError(f"--on {self.on}: give --model PATH, a network to evaluate (repeatable), or --run-dir DIR")
        if has_run and self.output is not None:
            raise UserError("--output: with --run-dir an evaluation is kept in that run's evaluations/; leave it out")
        if self.on and self.part_column is None:
            self._refuse(GIVEN, "says more of given train and test rows: give --part-column as well")
        if self.part_column is not None:
            self._refuse(OF_EPISODES, "with --part-column the rows of the file are the episodes; leave it out")
        twice = [path for number, path in enumerate(self.model) if path in self.model[:number]]
        if twice:
            raise UserError(f"--model: {twice[0]} is given twice")

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        for name in names:
            if getattr(self, name) not in (None, ()):
                raise UserError(f"--{name.replace('_', '-')}: {why}")

    def shapes(self) -> list[dict[str, Any]]:
        """The settings of `evaluate` for each evaluation that is asked for, by dotted key: every way with every shot,
        and then the shapes. One without any where neither is given.

        Raises:
            UserError: a shape is none.
        """
        common = {
            f"evaluate.{key}": getattr(self, key)
            for key in ("query_per_class", "episodes")
            if getattr(self, key) is not None
        }
        ways = [{"evaluate.n_way": _number(text, "--n-way")} for text in self.n_way] or [{}]
        shots = [{"evaluate.k_shot": _number(text, "--k-shot")} for text in self.k_shot] or [{}]
        crossed = [] if self.shape and not (self.n_way or self.k_shot) else product(ways, shots)
        shapes = [{**way, **shot} for way, shot in crossed]
        for text in self.shape:
            way, x, shot = text.partition("x")
            if not (way and x and shot):
                raise UserError(one_line(f"--shape {text}: write it as WAYSxSHOTS, such as 5x1 or allx5"))
            shapes.append({"evaluate.n_way": _number(way, "--shape"), "evaluate.k_shot": _number(shot, "--shape")})
        distinct = [shape for number, shape in enumerate(shapes) if shape not in shapes[:number]]
        return [common | shape for shape in distinct]


def _number(text: str, option: str) -> Any:
    return "all" if text == "all" else parse_yaml(text, one_line(f"{option} {text}"))
