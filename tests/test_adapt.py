"""A classifier from a few examples: methods against plain references, the choice among them, its conventions."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch.nn import functional

from distmeta.adapt import choose as choosing
from distmeta.adapt import saved, words
from distmeta.adapt.base import AVERAGE, STARTING, TRAINED
from distmeta.adapt.calibration import calibration_error, fit_temperature, probabilities
from distmeta.adapt.choose import Choice, Trials, Tried, choose
from distmeta.adapt.classifier import Classifier
from distmeta.adapt.folds import folds
from distmeta.adapt.methods import METHODS, Support, contrastive_loss, some_of_each
from distmeta.errors import UserError
from distmeta.evaluate.baselines import logistic_regression, nearest_prototype
from distmeta.evaluate.head import MOST_IN_THE_SPAN, Head
from distmeta.evaluate.together import nearest_moved_prototype
from distmeta.pipeline import write_models
from distmeta.setup import Setup
from tests.runs import begun_run, contents

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, run = begun_run(tmp_path_factory.mktemp("project"))
    write_models(Setup(config, run), run)
    return run.path


def examples(each: int, classes: str = "abc") -> tuple[list[str], list[str]]:
    random = np.random.default_rng(each)
    words = ["bin", "dor", "kast", "lin", "fen", "mir"]
    texts = [
        " ".join([*random.choice(words, 4), f"topic{label}o", f"topic{label}u"])
        for label in classes
        for _ in range(each)
    ]
    return texts, [f"class {label}" for label in classes for _ in range(each)]


# Heads and losses


@pytest.mark.parametrize("n_way", [2, 5])
def test_heads_predict_as_the_evaluation_does(n_way):
    labels = np.arange(n_way * 4) % n_way
    centers = RANDOM.normal(size=(n_way, 12)) + 2
    rows = (centers[labels] + RANDOM.normal(size=(len(labels), 12))).astype(np.float32)
    query = (centers[RANDOM.integers(0, n_way, 50)] + RANDOM.normal(size=(50, 12))).astype(np.float32)
    for make, reference in ((Head.of_prototypes, nearest_prototype), (Head.of_regression, logistic_regression)):
        head = make(torch.from_numpy(rows), torch.from_numpy(labels), n_way)
        found = head.scores(torch.from_numpy(query)).argmax(1).numpy()
        assert (found == reference(rows, labels, query, n_way)).all()
        assert len(set(found)) > 1


@pytest.mark.parametrize("n_way", [2, 3])
def test_a_regression_on_many_examples_is_the_same_one(n_way, monkeypatch):
    labels = torch.arange(200) % n_way
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(1)) + labels[:, None]
    few = Head.of_regression(rows, labels, n_way)
    monkeypatch.setattr("distmeta.evaluate.head.MOST_IN_THE_SPAN", 100)
    many = Head.of_regression(rows, labels, n_way)
    assert MOST_IN_THE_SPAN > 200
    difference = few.scores(rows).softmax(1) - many.scores(rows).softmax(1)
    assert difference.abs().max() < 2e-3
    reference = LogisticRegression(C=10, max_iter=1000)
    unit = functional.normalize(functional.normalize(rows) - functional.normalize(rows).mean(0))
    found = reference.fit(unit, labels).predict_proba(unit)
    assert np.abs(many.scores(rows).softmax(1).numpy() - found).max() < 1e-4


def test_the_contrastive_loss_is_that_of_the_paper():
    """Written out for each anchor, each of its class (Khosla et al. 2020, equation 2)."""
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 2])  # the last one has no other, and is no anchor
    unit = rows / rows.norm(dim=1, keepdim=True)
    losses = []
    for anchor in range(5):
        others = [number for number in range(6) if number != anchor]
        below = sum(torch.exp(unit[anchor] @ unit[other] / 0.1) for other in others)
        alike = [other for other in others if labels[other] == labels[anchor]]
        terms = [torch.log(torch.exp(unit[anchor] @ unit[other] / 0.1) / below) for other in alike]
        losses.append(-sum(terms) / len(terms))
    assert contrastive_loss(rows, labels) == pytest.approx(float(sum(losses) / len(losses)), rel=1e-5)
    assert contrastive_loss(rows, torch.arange(6)) is None


def test_a_contrastive_step_compares_texts_of_the_same_classes():
    generator = torch.Generator().manual_seed(0)
    few, many = torch.arange(60) % 3, torch.arange(600) % 100
    assert len(set(some_of_each(few, generator).tolist())) == 30, "ten of each"
    step = few.new_tensor(sorted(many[some_of_each(many, generator)].tolist()))
    assert step.unique(return_counts=True)[1].tolist() == [4] * 8
    assert sorted(some_of_each(torch.arange(6) // 2, generator).tolist()) == list(range(6)), "all, where they are few"


# Cross-validation and calibration


@pytest.mark.parametrize("counts", [[3, 3], [1, 2, 7], [16] * 4, [1, 1, 5]])
def test_each_example_of_a_class_with_two_is_left_out_once_a_round(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    for made in folds(labels):
        tested = np.concatenate([fold.test for fold in made])
        assert sorted(tested) == [row for row in range(len(labels)) if counts[labels[row]] > 1]
        for fold in made:
            assert set(fold.train) | set(fold.test) == set(range(len(labels)))
            assert not set(fold.train) & set(fold.test)
            assert set(labels[fold.train]) == set(labels), "each class keeps an example"
    assert folds(np.arange(5)) == []


def test_few_examples_are_divided_anew_and_many_are_not():
    assert len(folds(np.repeat([0, 1], 4))) == 10
    assert len(folds(np.repeat([0, 1], 200))) == 1
    first, second = folds(np.repeat([0, 1], 8))[:2]
    assert any((one.test != other.test).any() for one, other in zip(first, second, strict=True))


def test_a_temperature_makes_probabilities_true():
    """Scores three times as sure as they should be, of which enough are there to tell."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(4000, 4)) * 2
    chances = probabilities(scores)
    labels = np.array([random.choice(4, p=each) for each in chances])
    found = fit_temperature(3 * scores, labels)
    assert found == pytest.approx(3, rel=0.1)
    assert calibration_error(probabilities(3 * scores), labels) > 0.1
    assert calibration_error(probabilities(3 * scores, found), labels) < 0.03
    few = fit_temperature(3 * scores[:4], labels[:4])
    assert 1 < few < 2.5, "four predictions tell little"
    assert fit_temperature(3 * np.tile(scores[:4], (500, 1)), np.tile(labels[:4], 500), 4) == few


def test_with_names_a_single_example_can_be_left_out():
    made = folds(np.arange(4), least=1)
    assert sorted(np.concatenate([fold.test for fold in made[0]])) == [0, 1, 2, 3]
    assert all(len(fold.train) + len(fold.test) == 4 for each in made for fold in each)


# The choice


class Imagined(Trials):
    """Trials whose outcome is known: the share that each network and method has right."""

    def __init__(self, shares: dict[tuple[str, str], float], each: int = 50, seconds: float = 0.0) -> None:
        self.shares, self.seconds = shares, seconds
        self.support = Support([((1,), -1)] * (2 * each), np.arange(2 * each) % 2, 2)
        self.bases = dict.fromkeys(network for network, _ in shares)
        self.names = None
        self.rounds = folds(self.support.labels)
        self._seconds = {}

    def features(self, network):
        return np.empty((0, 1))

    def _tried(self, network, method, some):
        rows = np.concatenate([fold.test for fold in some])
        offset = 37 * list(self.shares).index((network, method))
        right = ((rows * 7919 + offset) % 100) < 100 * self.shares[network, method]
        labels = np.where(right, self.support.labels[rows], 1 - self.support.labels[rows])
        return Tried(network, method, rows, np.eye(2)[labels], self.seconds)


@pytest.fixture
def all_possible(monkeypatch):
    monkeypatch.setattr(choosing, "why_not", lambda *_: None)


def chosen(shares, **changes):
    whole = {(network, method): 0.5 for network in (TRAINED, AVERAGE, STARTING) for method in METHODS} | shares
    each, seconds = changes.pop("each", 50), changes.pop("took", 0.0)
    return choose(Imagined(whole, each, seconds), changes.get("method", "auto"), changes.get("seconds", 10), {})


def test_what_is_better_by_more_than_chance_is_taken(all_possible):
    found = chosen({(STARTING, "prototype"): 0.9})
    assert (found.network, found.method) == (STARTING, "prototype")
    assert "better than" in found.why
    assert found.own.accuracy(np.arange(100) % 2) == pytest.approx(0.9)
    tuned = chosen({(STARTING, "prototype"): 0.7, (STARTING, "contrastive"): 0.95})
    assert (tuned.network, tuned.method) == (STARTING, "contrastive"), "it is the best network that is changed"


def test_few_examples_weigh_less_than_what_is_usual(all_possible):
    usual = choosing.USUAL["contrastive"][0]
    assert usual > 0
    shares = {(TRAINED, "contrastive"): 0.5 - usual}
    assert chosen(shares, each=4).method == "contrastive"
    many = chosen(shares, each=2000, seconds=10_000)
    assert many.method != "contrastive"
    assert next(each for each in many.tried if each.method == "contrastive").accuracy(np.arange(4000) % 2) < 0.5


def test_where_nothing_is_better_the_first_is_taken(all_possible):
    found = chosen({}, took=1000.0)
    assert (found.network, found.method) == (TRAINED, "logistic-regression")
    assert found.left_out == ["contrastive", "fine-tune", "inner-loop"]


def test_of_few_examples_the_network_is_taken_that_the_runs_evaluation_showed(all_possible):
    shares = {(network, method): 0.5 for network in (TRAINED, STARTING) for method in METHODS}
    shown = {TRAINED: {"prototype": 0.6}, STARTING: {"prototype": 0.7}}
    found = choose(Imagined(shares, 4), "logistic-regression", 0, shown)
    assert found.network == STARTING
    shown = {TRAINED: {"prototype": 0.7, "logistic-regression": 0.7}, STARTING: {"logistic-regression": 0.6}}
    assert choose(Imagined(shares, 4), "logistic-regression", 0, shown).network == TRAINED


def test_what_would_take_too_long_is_not_tried(all_possible):
    shares = {(TRAINED, "fine-tune"): 1.0}
    assert chosen(shares, took=1000.0).method != "fine-tune"
    assert chosen(shares).method == "fine-tune"
    assert {each.method for each in chosen(shares, took=1000.0).tried} == {"prototype", "logistic-regression"}


def test_what_would_take_too_long_is_foreseen_by_what_a_text_takes(all_possible):
    """Not even a first fold is begun: of thousands of examples it would take minutes."""
    trials = Imagined({(TRAINED, method): 0.5 for method in METHODS}, 2000)
    trials._seconds = {TRAINED: 0.01}
    found = choose(trials, "auto", 100, {})
    assert {each.method for each in found.tried} == {"prototype", "logistic-regression", "contrastive"}
    assert {each.method for each in choose(trials, "auto", 10_000, {}).tried} == set(METHODS)


def test_of_a_method_that_is_asked_for_the_network_is_chosen(all_possible):
    found = chosen({(STARTING, "prototype"): 0.9}, method="prototype")
    assert (found.network, found.method) == (STARTING, "prototype")
    assert {each.method for each in found.tried} == {"prototype"}
    assert chosen({}, method="fine-tune").method == "fine-tune"


def test_with_one_example_each_the_runs_own_evaluation_decides(all_possible):
    shares = {(network, method): 0.5 for network in (TRAINED, STARTING) for method in METHODS}
    shown = {TRAINED: {"prototype": 0.6}, STARTING: {"prototype": 0.7}, "multitask": {"prototype": 0.9}}
    found = choose(Imagined(shares, 1), "auto", 10, shown)
    assert (found.network, found.method, found.own) == (STARTING, "prototype", None)
    assert choose(Imagined(shares, 1), "auto", 10, {}).network == TRAINED


@pytest.mark.parametrize("most", [2000, 30])
def test_a_network_that_is_no_better_than_the_words_is_told(most, monkeypatch):
    """Also where a part of examples that stand by class is compared, of which the first ones would be of one class."""
    monkeypatch.setattr(words, "MOST_EXAMPLES", most)
    texts, labels = examples(20)
    numbers = np.searchsorted(np.unique(labels), labels)
    rows, pairs = np.arange(60), [(text,) for text in texts]
    good = Tried("network", "prototype", rows, np.eye(3)[numbers], 0.0)
    poor = Tried("network", "prototype", rows, np.eye(3)[(numbers + (rows % 2)) % 3], 0.0)
    told = words.warning(pairs, numbers, 3, poor, 0)
    assert told.startswith("TF-IDF, which knows no language, is right in ")
    noise = [(f"n{row}",) for row in rows]
    assert words.warning(noise, numbers, 3, good, 0) is None
    assert words.warning([("a",)] * 3, np.arange(3), 3, good, 0) is None


# The classifier


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_saved_classifier_predicts_the_same(method, run, tmp_path):
    texts, labels = examples(4)
    made = Classifier(run, method=method, seconds=1).fit(texts, labels)
    wanted = made.predict_proba(texts)
    assert wanted.shape == (12, 3)
    assert wanted.sum(1) == pytest.approx(1)
    again = Classifier.load(made.save(tmp_path / "made"))
    assert again.predict_proba(texts) == pytest.approx(wanted, abs=1e-5)
    assert (again.predict(texts) == made.predict(texts)).all()
    assert again.choice_.method == made.choice_.method
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in (tmp_path / "made").rglob("*"))


def test_what_changes_the_network_fits_its_examples_better(run):
    texts, labels = examples(4)
    scores = {method: Classifier(run, method=method).fit(texts, labels).predict_proba(texts) for method in METHODS}
    own = np.searchsorted(np.unique(labels), labels)
    for method in ("fine-tune", "contrastive"):
        assert np.abs(scores[method] - scores["logistic-regression"]).max() > 1e-3
        assert (scores[method].argmax(1) == own).mean() >= (scores["logistic-regression"].argmax(1) == own).mean()


def test_it_keeps_to_the_conventions_of_scikit_learn(run):
    texts, labels = examples(4)
    made = Classifier(run, method="prototype", seed=3)
    assert clone(made).get_params() == made.get_params()
    assert made.get_params()["method"] == "prototype"
    found = cross_val_score(made, texts, labels, cv=2)
    assert found.shape == (2,)
    lower = FunctionTransformer(lambda rows: [text.lower() for text in rows])
    line = make_pipeline(lower, made).fit(np.array(texts), np.array(labels))
    assert line.score(texts, labels) == made.fit(texts, labels).score(texts, labels)
    assert list(line.classes_) == ["class a", "class b", "class c"]


def test_labels_keep_their_type_and_pairs_are_read(run, tmp_path):
    texts, _ = examples(2)
    made = Classifier(run).fit([(text, "bin") for text in texts], [3, 3, 5, 5, 9, 9])
    assert made.predict([(texts[0], "bin")]).dtype.kind == "i"
    again = Classifier.load(made.save(tmp_path / "pairs"))
    assert again.predict_proba([(texts[0], "bin")]) == pytest.approx(made.predict_proba([(texts[0], "bin")]), abs=1e-5)
    with pytest.raises(UserError, match="give pairs"):
        again.predict(texts)


def test_one_example_of_a_class_is_enough(run):
    texts, labels = examples(1)
    made = Classifier(run).fit(texts, labels)
    assert made.temperature_ == 1
    assert "each class has one example" in made.choice_.why
    assert len(made.predict(texts)) == 3
    assert made.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("texts", "labels", "settings", "told"),
    [
        (["a", "b"], ["x"], {}, "one for each text"),
        (["a", "b"], ["x", "x"], {}, "two classes or more"),
        (["a", "b", "c"], ["x", "y", None], {}, "that of text 2, counted from 0, is missing"),
        (["a", "b", "c"], ["x", float("nan"), "y"], {}, "that of text 1, counted from 0, is missing"),
        (["a", "b"], ["x", "y"], {"model": "runs/nope"}, "MODEL: there is no folder runs/nope, nor can a hub"),
        ("ab", ["x", "y"], {}, "a list of texts"),
        (["a", 3], ["x", "y"], {}, "number 1 is no text"),
        (["a", ("b", "c")], ["x", "y"], {}, "number 1 is a pair"),
        (["a", "b"], ["x", "y"], {"method": "magic"}, "magic is none of auto"),
        (["a", "b"], ["x", "y"], {"device": "tpu"}, "tpu is none of"),
        (["a", "b"], ["x", "y"], {"method": "contrastive"}, "each class has a single one"),
        (["a", "b"], ["x", "y"], {"method": "fine-tune", "queries_together": True}, "moves prototypes"),
        (["a", "b"], ["x", "y"], {"class_names": "name"}, "where the name goes"),
        ([("a", "b"), ("c", "d")], ["x", "y"], {"class_names": True}, "a name is one text"),
        (["a", "b"], ["x", "y"], {"model": "/nowhere/at/all"}, "nothing is at"),
    ],
)
def test_a_mistake_is_told_in_a_line(texts, labels, settings, told, run):
    with pytest.raises(UserError, match=told) as raised:
        Classifier(**({"model": run} | settings)).fit(texts, labels)
    assert "\n" not in str(raised.value)


def test_names_of_classes_are_examples_in_every_fit(run):
    texts, labels = examples(1)
    named = [label.replace("class ", "topic") + "u" for label in labels]  # a word of its texts
    made = Classifier(run, class_names=True, method="prototype").fit(texts, named)
    assert made.choice_.own is not None, "a name stands for a class whose only example is left out"
    features = made.base_.features(made.base_.encode([(text,) for text in [*texts, *sorted(named)]]))
    wanted = Head.of_prototypes(torch.from_numpy(features), torch.tensor([0, 1, 2] * 2), 3)
    assert made.fitted_.head.weight.numpy() == pytest.approx(wanted.weight.numpy(), abs=1e-4)
    template = Classifier(run, class_names="about {}", method="prototype").fit(texts, named)
    assert np.abs(template.fitted_.head.weight.numpy() - wanted.weight.numpy()).max() > 1e-3


def test_queries_together_are_what_the_evaluation_makes_of_them(run, tmp_path):
    texts, labels = examples(3)
    query = examples(5)[0]
    made = Classifier(run, queries_together=True).fit(texts, labels)
    base = made.base_
    support, other = (base.features(base.encode([(text,) for text in each])) for each in (texts, query))
    numbers = np.searchsorted(made.classes_, labels)
    assert (made.predict(query) == made.classes_[nearest_moved_prototype(support, numbers, other, 3)]).all()
    alone = np.concatenate([made.predict_proba([text]) for text in query])
    assert np.abs(alone - made.predict_proba(query)).max() > 1e-3
    again = Classifier.load(made.save(tmp_path / "made"))
    assert again.predict_proba(query) == pytest.approx(made.predict_proba(query), abs=1e-5)


def test_a_network_without_an_algorithm_has_no_inner_loop(run):
    with pytest.raises(UserError, match="knows of no algorithm"):
        Classifier(run / "starting", method="inner-loop").fit(*examples(2))


def test_a_folder_without_a_classifier_is_told(run, tmp_path):
    for folder in (run / "model", tmp_path / "none"):
        with pytest.raises(UserError, match="no classifier is there"):
            Classifier.load(folder)


def test_nothing_else_is_overwritten(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something is there"):
        Classifier(run).fit(*examples(2)).save(tmp_path)


def test_a_save_that_fails_leaves_the_classifier_that_was_there(run, tmp_path, monkeypatch):
    texts, labels = examples(2)
    Classifier(run, method="prototype").fit(texts, labels).save(tmp_path / "mine")
    before = contents(tmp_path / "mine")
    other = Classifier(run, method="prototype").fit(texts, [label.upper() for label in labels])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(saved, "write_classifier_card", full)
        with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
            other.save(tmp_path / "mine")
    assert contents(tmp_path) == {f"mine/{name}": content for name, content in before.items()}
    with monkeypatch.context() as broken:
        broken.setattr(saved, "write_classifier_card", full)
        with pytest.raises(UserError, match=r"cannot be written"):
            other.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine" / ".unfinished-0").mkdir()  # of a process that was killed
    other.save(tmp_path / "mine")
    assert Classifier.load(tmp_path / "mine").classes_.tolist() == sorted({label.upper() for label in labels})
    (tmp_path / "mine" / "distmeta.json").unlink()  # as where it was killed between two files
    other.save(tmp_path / "mine")
    (tmp_path / "a-file").touch()
    with pytest.raises(UserError, match="a-file is a file, not a folder"):
        other.save(tmp_path / "a-file")


def test_a_choice_without_trials_has_nothing_of_its_own():
    assert Choice(TRAINED, "prototype", "", ()).own is None
