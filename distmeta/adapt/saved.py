"""A classifier as a folder: its network as other software reads it, and what it was adapted to."""

import shutil
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from distmeta.adapt.base import Base, load_base
from distmeta.adapt.choose import AUTO, Choice
from distmeta.adapt.files import ADAPTED
from distmeta.adapt.methods import TOGETHER, InnerLoop, Linear, Support, Together
from distmeta.engine.precision import Precision
from distmeta.errors import UserError, first_line
from distmeta.evaluate.head import Head
from distmeta.model_card import write_classifier_card
from distmeta.models.description import FILE, LEARNED, Description, write_modules
from distmeta.models.export import export
from distmeta.paths import check_folder
from distmeta.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from distmeta.adapt.classifier import Classifier

UNFINISHED = ".unfinished-"
"""Where a classifier is written before it takes its place."""


def check_output(folder: Path) -> None:
    """Refuses a folder in which no classifier can be kept.

    Raises:
        UserError: something else is in it, or it cannot be written in.
    """
    check_folder(folder, "--output", writable=True)
    others = [path for path in folder.glob("*") if not path.name.startswith(UNFINISHED)]
    if others and not any((folder / name).exists() for name in (FILE, ADAPTED)):
        raise UserError(f"--output: {folder}: something is there that is no classifier; give another folder")


def save(classifier: "Classifier", folder: Path) -> Path:
    """See `Classifier.save`. A classifier that is there stays as it is until the new one is written.

    Raises:
        UserError: something else is in the folder, or it cannot be written in.
    """
    check_output(folder)
    unfinished, was_there = folder / f"{UNFINISHED}{uuid.uuid4().hex}", folder.exists()
    try:
        _write(classifier, unfinished)
        # Without its description a folder is no classifier, so that none is ever of the files of two.
        for name in (FILE, LEARNED):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(unfinished.rglob("*"), key=lambda file: file.name == FILE):
            if file.is_file():
                place = folder / file.relative_to(unfinished)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {folder}: cannot be written: {first_line(error)}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not was_there:
            with suppress(OSError):  # it has the classifier
                folder.rmdir()
    return folder


def _write(classifier: "Classifier", folder: Path) -> None:
    fitted, base = classifier.fitted_, classifier.base_
    write_base(base, folder)
    if isinstance(fitted, InnerLoop):
        tensors = _examples(fitted.support)
    elif isinstance(fitted, Together):
        tensors = {"sums": fitted.sums}
    else:
        assert isinstance(fitted, Linear)
        tensors = {name: getattr(fitted.head, name) for name in ("centre", "weight", "bias")}
    write_tensors(folder / ADAPTED, tensors)
    choice = classifier.choice_
    about = {
        "classes": classifier.classes_.tolist(),
        "network": choice.network,
        "method": choice.method,
        "why": choice.why,
        "temperature": classifier.temperature_,
        "pairs": classifier.reads_pairs_,
    }
    description = replace(base.description, classifier=about)
    description.write(folder, description.learned(base.scorer.network, base.scorer.parameters))
    write_classifier_card(classifier, folder)


def load(kind: type["Classifier"], folder: Path, device: str, precision: Precision) -> Any:
    """See `Classifier.load`."""
    from distmeta.adapt.classifier import device_of, precision_of

    description = Description.read(folder) if folder.is_dir() else None
    about = description.classifier if description else None
    if about is None:
        raise UserError(f"{folder}: no classifier is there; make one by `distmeta adapt` or Classifier.save")
    together = about["method"] == TOGETHER
    method = AUTO if together else about["method"]
    classifier = kind(folder, method=method, queries_together=together, device=device, precision=precision)
    base = load_base(about["network"], str(folder), device_of(device), precision_of(precision))
    tensors = read_tensors(folder / ADAPTED)
    classifier.classes_ = np.array(about["classes"])
    if "centre" in tensors:
        classifier.fitted_ = Linear(base, Head(*(tensors[name] for name in ("centre", "weight", "bias"))))
    elif "sums" in tensors:
        classifier.fitted_ = Together(base, tensors["sums"])
    else:
        classifier.fitted_ = InnerLoop.of(base, _support(tensors, len(classifier.classes_)))
    classifier.choice_ = Choice(about["network"], about["method"], about["why"], ())
    classifier.temperature_, classifier.reads_pairs_ = about["temperature"], about["pairs"]
    return classifier


def write_base(base: Base, folder: Path) -> None:
    """The network as others read it."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: value.cpu() for name, value in base.scorer.parameters.items()}
    export(base.scorer.network, parameters, base.tokenizer, folder)
    write_modules(folder, base.description.pooling, base.description.max_length, base.scorer.network.hidden_size)


def _examples(support: Support) -> dict[str, Tensor]:
    ids = [ids for ids, _ in support.tokens]
    return {
        "input_ids": torch.tensor([token for each in ids for token in each]),
        "lengths": torch.tensor([len(each) for each in ids]),
        "labels": torch.from_numpy(support.labels),
    }


def _support(tensors: Any, n_way: int) -> Support:
    parts = tensors["input_ids"].split(tensors["lengths"].tolist())
    return Support([(tuple(part.tolist()), -1) for part in parts], tensors["labels"].numpy(), n_way)
