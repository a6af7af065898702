"""The model card of an exported network: README.md in its folder, with the header that the Hugging Face hub reads."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from distmeta.config import Config
from distmeta.corpus.manifest import Manifest
from distmeta.files import write_text
from distmeta.packages import PACKAGE
from distmeta.recipes import recipe_of
from distmeta.rundir import RunDirectory
from distmeta.setup import corpus_directory

if TYPE_CHECKING:
    from distmeta.adapt.classifier import Classifier

FILE = "README.md"
TAGS = ["distmeta", "meta-learning", "few-shot", "sentence-transformers", "feature-extraction"]


def write_card(config: Config, run: RunDirectory) -> None:
    """Writes the card of the network that a run keeps, from what the run has left so far. Names of files are told, and
    not where they are."""
    summary, evaluation = _read(run.summary), _read(run.evaluation)
    base = _name(config.model.name_or_path) if config.model.name_or_path else None
    header: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": TAGS,
    }
    if base and _is_of_hub(str(config.model.name_or_path)):
        header["base_model"] = config.model.name_or_path
    lines = [
        f"# {base or config.model.config.get('model_type')}, meta-pretrained",
        "",
        "A network that was trained on small tasks, so that a few labelled examples are enough for the next one "
        "(distmeta).",
        "",
        "## Use",
        "",
        *_use(),
        "",
        "## Training",
        "",
        *_training(config, run, summary),
        "",
        "## What it showed",
        "",
        *_shown(evaluation),
        "",
        "## Limits",
        "",
        f"Texts are read up to {config.tokenizer.max_length} tokens. The figures are of the classes above and of no",
        "others: on texts unlike all that it was trained on, the network as it was before may be the better one.",
        "No license is stated here: those of the data and of the network that training started from hold.",
    ]
    _write(run.model, header, lines)


def write_classifier_card(classifier: "Classifier", folder: Path) -> None:
    """The same of a classifier."""
    choice = classifier.choice_
    names = [str(each) for each in classifier.classes_]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    header = {
        "library_name": "distmeta",
        "pipeline_tag": "text-classification",
        "tags": [*TAGS[:-1], "text-classification"],
    }
    lines = [
        "# A classifier from a few examples",
        "",
        f"Tells {len(names)} classes apart: {shown}. Made by `distmeta adapt`, {choice.network} {choice.method}: "
        f"{choice.why}.",
        "",
        "```python",
        "from distmeta import Classifier",
        "",
        'classifier = Classifier.load("this folder")',
        "classifier.predict_proba(texts)  # in the order of classifier.classes_",
        "```",
        "",
        "Its network is a folder of transformers and of sentence-transformers, too.",
    ]
    _write(folder, header, lines)


def _use() -> list[str]:
    return [
        "```python",
        "from distmeta import Classifier",
        "",
        'classifier = Classifier("this folder").fit(texts, labels)  # from one example of each class',
        "classifier.predict(more_texts)",
        "```",
        "",
        "or `distmeta adapt FOLDER --examples mine.csv --label-column label --output mine`. `AutoModel`,",
        "`SentenceTransformer` and SetFit load it as well.",
    ]


def _training(config: Config, run: RunDirectory, summary: Mapping[str, Any]) -> Iterator[str]:
    manifest = Manifest.load(corpus_directory(config, run))
    for dataset in manifest.datasets:
        name = dataset.name or "texts"
        kind = "classes" if dataset.labelled else "words as classes"
        splits = ", ".join(f"{part.count} in meta-{split}" for split, part in dataset.classes.items())
        yield f"- data: {name}, {dataset.rows.kept} rows; {kind}: {splits}"
    own = recipe_of(config)
    settings = {"meta.algorithm": config.meta.algorithm, "meta.adapt": config.meta.adapt}
    settings |= {key: _value(config, key) for key in own}
    yield f"- recipe: {', '.join(f'{key} {value}' for key, value in settings.items())}"
    if summary:
        yield (
            f"- cost: {summary['wall_seconds']:.0f} s, {summary['worker_seconds']:.0f} worker-seconds, "
            f"{summary['flops']:.2e} floating-point operations"
        )


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _shown(evaluation: Mapping[str, Any]) -> list[str]:
    if not evaluation:
        return ["Nothing yet: the run has not been evaluated."]
    from distmeta.evaluate.table import evaluation_table

    return ["```", evaluation_table(evaluation), "```"]


def _name(path: str) -> str:
    """What a network is called, without the place where it is."""
    parts = [part for part in PurePosixPath(path.removeprefix("package:")).parts if part != "model"]
    return parts[-1] if parts else path


def _is_of_hub(name: str) -> bool:
    return not name.startswith((PACKAGE, ".", "/", "~")) and name.count("/") <= 1 and not Path(name).exists()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(folder: Path, header: Mapping[str, Any], lines: list[str]) -> None:
    head = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    write_text(folder / FILE, f"---\n{head}---\n\n" + "\n".join(lines) + "\n")
