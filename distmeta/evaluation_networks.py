"""The networks that `distmeta evaluate --model` names: a run's, or one of no run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from distmeta.config import Config, load_config, with_values
from distmeta.errors import UserError
from distmeta.evaluate.networks import Candidate, Model
from distmeta.models.description import Description
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, check_weights, resolve

Say = Callable[[str], None]


def models_of(paths: Sequence[str], config: Config, say: Say) -> list[Model | Candidate]:
    """The networks at these paths, checked but not loaded. `config` is what holds for those of no run.

    Raises:
        UserError: one is none.
    """
    names = _names(paths)
    found: list[Model | Candidate] = []
    for path, name in zip(paths, names, strict=True):
        run = RunDirectory(Path(path).expanduser().resolve())
        if run.best_weights.exists() and run.config.exists():
            found.append(_of_run(run, name))
            continue
        found.append(_model(path, name, config, say))
    return found


def _model(path: str, name: str, config: Config, say: Say) -> Model:
    folder = Path(path).expanduser()
    source = str(folder.resolve()) if folder.exists() else path
    try:
        described = Description.read(folder) if folder.is_dir() else None
        pooling = described.pooling if described and config.model.pooling == "auto" else config.model.pooling
        values = {"model.name_or_path": source, "model.pooling": pooling, "meta.lm_weight": 0.0}
        made = resolve(with_values(config, values))
        lines = check_weights(made) or ""
    except UserError as error:
        told = str(error).replace("model.name_or_path: ", "", 1)
        raise UserError(f"--model {path}: {told}") from None
    for line in lines.splitlines():
        say(f"{name}: {line}")
    return Model(name, made)


def _of_run(run: RunDirectory, name: str) -> Candidate:
    """The kept network of a run, for texts of another corpus."""
    return Candidate(
        name, for_labelled_text(resolve(load_config(run.config, check=False)), run), run.best_weights, True
    )


def for_labelled_text(config: Config, run: RunDirectory) -> Setup:
    """The parts of a run whose network is to read labelled text: of what SMLMT trained to be read at a mask, which such
    text has not, the mean is taken."""
    config = config.model_copy(deep=True)
    if config.model.pooling == "mask":
        config.model.pooling = "mean"
    return Setup(config, run)


def _names(paths: Sequence[str]) -> list[str]:
    """What networks are called in tables: the last parts of each path, as many as tell all of them apart; a folder
    called `model` is called as the one that it is in."""
    parts = [[part for part in path.removeprefix("package:").split("/") if part not in ("", ".")] for path in paths]
    parts = [each[:-1] if each[-1:] == ["model"] and len(each) > 1 else each or ["."] for each in parts]
    lengths = [2 if each[-1] == "starting" and len(each) > 1 else 1 for each in parts]
    while True:
        names = ["/".join(each[-length:]) for each, length in zip(parts, lengths, strict=True)]
        alike = [number for number, name in enumerate(names) if names.count(name) > 1]
        if not alike or all(lengths[number] >= len(parts[number]) for number in alike):
            return names if not alike else list(paths)
        for number in alike:
            lengths[number] += 1
