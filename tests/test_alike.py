"""Class names that only look the same are told, before training, with the split of each."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.corpus.alike import find_alike, find_like_missing, look
from distmeta.corpus.manifest import Manifest
from distmeta.errors import UserError
from tests.preparing import prepare_small

GROUPS = {
    "Unicode forms": ["café", "cafe\u0301"],
    "case": ["Sport", "SPORT", "sport"],
    "blanks": ["card arrival", "card  arrival", "card\u00a0arrival", " card arrival\t", "card\u3000arrival"],
    "width": ["ＡＴＭ", "ATM", "ｱ", "ア"],
    "what is unseen": ["news", "ne\u200bws", "\ufeffnews", "ne\u00adws", "news\u200f"],
    "signs": ["don't know", "don’t know", "don‘t know"],
    "numbers": ["1", "1.0", "１.00"],
    "ligatures and case": ["ﬁnance", "Finance", "STRASSE", "straße"],
}


@pytest.mark.parametrize("what", GROUPS)
def test_names_that_look_the_same_are_found(what: str) -> None:
    names = GROUPS[what]
    found = find_alike([*names, "weather", "sports", "cafe"])
    expected: dict[str, list[str]] = {}
    for name in sorted(names):
        expected.setdefault(look(name), []).append(name)
    assert found == sorted(expected.values())
    assert {len(names) // len(found)} == {len(group) for group in found}


def test_names_that_look_different_are_none() -> None:
    assert (
        find_alike(
            [
                "पढ़ा",
                "पढ",
                "में",
                "म",
                "möchte",
                "mochte",
                "ab",
                "a b",
                "7",
                "007",
                "7.5",
                "1.10",
                "1.1.0",
                "1.1",
                "",
                "a-b",
                "a_b",
            ]
        )
        == []
    )
    assert find_alike(["one"]) == find_alike([]) == []


@given(st.text(max_size=12))
def test_a_look_has_one_form(name: str) -> None:
    assert look(look(name)) == look(name)
    assert look(unicodedata.normalize("NFD", f" {name}".upper().lower())) == look(f"{name} ".upper().lower())


def write_labels(path: Path, labels: list[str]) -> Path:
    rows = [{"text": f"text {number} of {label!a}", "label": label} for label in labels for number in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LABELS = ["Sport", "sport ", "café", "cafe\u0301", "news", "weather", "money", "travel", "food"]


def test_groups_are_listed_before_training_with_their_splits(tmp_path: Path) -> None:
    source = write_labels(tmp_path / "a.jsonl", LABELS)
    manifest = prepare_small(tmp_path / "out", [source], tasks={"label_column": "label"})
    assert manifest == Manifest.load(tmp_path / "out")
    assert manifest.datasets[0].labels_alike_total == 2
    groups = {tuple(group): group for group in manifest.datasets[0].labels_alike}
    assert set(groups) == {("Sport", "sport "), ("cafe\u0301", "café")}
    assert {split for group in manifest.datasets[0].labels_alike for split in group.values()} <= {
        "train",
        "valid",
        "test",
    }
    told = manifest.describe()
    assert "warning: 2 groups of class names look the same" in told
    assert f"'Sport' ({groups['Sport', 'sport ']['Sport']}), 'sport ' (" in told
    assert r"'cafe\u0301' (" in told


def test_a_name_of_a_split_file_that_only_looks_like_a_label_is_told_beside_it(tmp_path: Path) -> None:
    source = write_labels(tmp_path / "a.jsonl", LABELS)
    files = {"train": "Sport\ncafe\u0301", "valid": "news\nＷeather", "test": "money\ntravel"}
    for split, names in files.items():
        (tmp_path / f"{split}.txt").write_text(names)
    options = {"label_column": "label", "split_files": {split: str(tmp_path / f"{split}.txt") for split in files}}
    with pytest.raises(UserError, match=r"no class 'Ｗeather'; they have 'weather', which looks like 'Ｗeather'"):
        prepare_small(tmp_path / "out", [source], tasks=options)
    (tmp_path / "valid.txt").write_text("news\nweather")
    manifest = prepare_small(tmp_path / "out", [source], tasks=options)
    assert manifest.datasets[0].labels_alike == [
        {"Sport": "train", "sport ": "none"},
        {"cafe\u0301": "train", "café": "none"},
    ]


def test_words_that_look_the_same_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"we don't find {i} or\nwe don’t ﬁnd {i} or\n" for i in range(10)))
    options = {"max_sentences": 10, "split_ratio": [1, 0, 0]}
    manifest = prepare_small(tmp_path / "out", [tmp_path / "a.txt"], tasks=options, splits=("train",))
    assert [list(group) for group in manifest.datasets[0].labels_alike] == [["don't", "don’t"], ["find", "ﬁnd"]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["NaN", "sad", "glad", "null", "N/A"], ["N/A", "NaN", "null"]),
        (["0", "1", "2", "-1"], ["-1"]),
        (["0.0", "1.0", "-1.0"], ["-1.0"]),
        (["-1", "1", "neutral"], []),
        (["-1"], []),
        (["nanny", "nullable", "nonesuch"], []),
    ],
)
def test_names_that_stand_for_a_missing_label_elsewhere_are_told(names: list[str], expected: list[str]) -> None:
    assert find_like_missing(names) == expected


def test_a_class_called_as_a_missing_label_is_told_before_training(tmp_path: Path) -> None:
    source = write_labels(tmp_path / "a.jsonl", [*"012345", "-1"])
    manifest = prepare_small(tmp_path / "out", [source], tasks={"label_column": "label"})
    assert manifest.datasets[0].labels_like_missing == ["-1"]
    assert "classes called as programs write a missing label: '-1';" in manifest.describe()
