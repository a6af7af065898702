"""Which data sets a corpus has, and what the sources of a mixture cannot say together."""

import json
from typing import Any

import pytest

from distmeta.config import load_config
from distmeta.corpus.config import CorpusConfig
from distmeta.corpus.dataset_checks import contradictions_of_datasets
from distmeta.corpus.datasets import datasets_of, name_of_path
from distmeta.errors import UserError
from distmeta.tasks.config import TasksConfig


def found(sources: list[Any], **tasks: Any) -> dict[str, list[str]]:
    """The paths of each data set's sources."""
    datasets = datasets_of(CorpusConfig(sources=sources), TasksConfig(**tasks))
    return {dataset.name: [source.path for source in dataset.sources] for dataset in datasets}


def test_sources_that_nothing_names_are_one_data_set() -> None:
    assert found(["b.txt", "a.txt"]) == {"": ["b.txt", "a.txt"]}
    assert found(["b.csv", {"path": "a.csv", "encoding": "cp1252"}], label_column="y") == {"": ["b.csv", "a.csv"]}


def test_a_source_with_settings_of_its_own_is_called_as_its_path_is() -> None:
    for own in ({"label_column": "y"}, {"role": "test"}, {"weight": 1.0}):
        assert found([{"path": "in/mails.jsonl.gz", **own}, "b.csv"], label_column="y") == {
            "": ["b.csv"],
            "mails": ["in/mails.jsonl.gz"],
        }
    assert found([{"path": "a.csv", "text_column": "body"}, "b.csv"], label_column="y") == {"": ["a.csv", "b.csv"]}
    own: dict[str, Any] = {"path": "a.csv", "label_column": "z", "text_column": "b", "text_pair_column": "c"}
    [dataset] = datasets_of(CorpusConfig(sources=[own]), TasksConfig(label_column="y", text_pair_column="second"))
    assert (dataset.label_column, dataset.text_column, dataset.pair_column) == ("z", "b", "c")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/in/OOS/", "OOS"),
        ("/in/OOS/*.jsonl", "OOS"),
        ("s3://bucket/mails/**/a*.csv", "mails"),
        ("*.csv", "*.csv"),
        ("huggingface:owner/set", "set"),
        ("/in/v1.2.csv.gz", "v1.2"),
        ("builtin:python-docs", "python-docs"),
    ],
)
def test_a_path_has_a_name(path: str, name: str) -> None:
    assert name_of_path(path) == name


def test_sources_of_one_name_are_one_and_text_without_labels_is_one_with_whatever_name_it_has() -> None:
    sources: list[Any] = [
        {"path": "1.csv", "name": "mail", "label_column": "y", "weight": 2.0},
        "b.txt",
        {"path": "2.csv", "name": "mail", "label_column": "y", "weight": 2.0},
        {"path": "a.jsonl", "name": "books", "text_column": "body"},
    ]
    assert found(sources) == {"books": ["b.txt", "a.jsonl"], "mail": ["1.csv", "2.csv"]}
    books, mail = datasets_of(CorpusConfig(sources=sources), TasksConfig(text_pair_column="second"))
    assert (books.labelled, books.label_column, books.pair_column, books.weight) == (False, None, None, 1.0)
    assert (books.text_column, [source.text_column for source in books.sources]) == ("text", [None, "body"])
    assert (mail.label_column, mail.text_column, mail.pair_column, mail.weight) == ("y", "text", "second", 2.0)
    assert found(sources[::-1]).keys() == found(sources).keys()


TEXT = {"path": "a.txt"}
MAIL = {"path": "mail.csv", "label_column": "y"}
FILES = {split: f"{split}.txt" for split in ("train", "valid", "test")}


@pytest.mark.parametrize(
    ("sources", "tasks", "told"),
    [
        ([TEXT | {"role": "test"}], {}, "a.txt: role: it has no labels, and words are split by tasks.split_ratio"),
        ([TEXT | {"weight": 2.0}], {}, "a.txt: weight: it has no labels, and how often its tasks come is tasks.smlmt_"),
        ([TEXT | {"text_pair_column": "b"}], {}, "a.txt: text_pair_column: it has no labels"),
        ([TEXT | {"name": "x"}, {"path": "b.txt", "name": "y"}], {}, "here it has the names x and y"),
        ([MAIL, MAIL | {"path": "b/mail.tsv"}], {}, "more than one would be called mail"),
        ([MAIL, MAIL | {"path": "b.tsv", "name": "mail"}], {}, "more than one would be called mail"),
        ([MAIL, TEXT | {"name": "mail"}], {}, "more than one would be called mail"),
        ([MAIL | {"name": "x"}, TEXT | {"name": "x"}], {}, "x: they differ in label_column, y and none, and"),
        ([MAIL | {"name": "x"}, MAIL | {"name": "x", "role": "test"}], {}, "differ in role, none and test"),
        ([MAIL | {"name": "x", "weight": 2.0}, MAIL | {"name": "x"}], {}, "differ in weight, 2.0 and none"),
        ([{"path": "a.csv", "text_pair_column": "b"}, "b.csv"], {"label_column": "y"}, "those without a name: they"),
        ([TEXT], {"split_files": FILES}, "tasks.split_files: names classes of a labelled set"),
        ([MAIL | {"role": "train"}], {"split_files": FILES}, "tasks.split_files: all classes are in the splits that"),
        ([MAIL, MAIL | {"name": "x"}], {"split_files": FILES}, "one data set, and mail and x have no role"),
    ],
)
def test_what_sources_cannot_say_together_is_told_in_one_line(sources: Any, tasks: Any, told: str) -> None:
    [line] = contradictions_of_datasets(CorpusConfig(sources=sources), TasksConfig(**tasks))
    assert told in line
    with pytest.raises(UserError, match="more than one would be called mail"):
        load_config(
            None,
            ["corpus.sources=[{path: mail.csv, role: test}, {path: b/mail.csv, role: train}]", "tasks.label_column=y"],
            files=False,
        )


MIXED = [MAIL, TEXT]


@pytest.mark.parametrize(
    ("sources", "settings", "told"),
    [
        (MIXED, [], "tasks.smlmt_share: corpus.sources has text without labels beside labelled sets; set the share"),
        ([MAIL], ["tasks.smlmt_share=0.1"], "tasks.smlmt_share: corpus.sources has no text without labels beside its"),
        ([TEXT], ["tasks.smlmt_share=0.0"], "tasks.smlmt_share: corpus.sources has no labelled set beside its text"),
        ([MAIL | {"role": "test"}], ["train.validate_every=0"], "for meta-train, which is trained on"),
        (
            [MAIL | {"role": "test"}, TEXT],
            ["tasks.smlmt_share=0.0", "train.validate_every=0"],
            "for meta-train, which is trained on",
        ),
        (
            [MAIL | {"role": "train"}, MAIL | {"name": "x", "role": "test"}],
            [],
            "no data set has classes for meta-valid, which train.validate_every needs; give one the role valid, or",
        ),
        ([MAIL | {"role": "train"}], ["train.validate_every=0"], "for meta-test, which evaluate.split names"),
        ([MAIL | {"weight": 0.0}], [], "every labelled set that is trained on has weight 0"),
    ],
)
def test_what_no_mixture_can_do_is_told_in_one_line_before_anything_is_read(
    sources: Any, settings: list[str], told: str
) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, [f"corpus.sources={json.dumps(sources)}", *settings], files=False)
    [line] = str(refused.value).splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"wieght": 1}, "corpus.sources.0.wieght: unknown key; did you mean weight?"),
        ({"name": "x", "xyz": 1}, "corpus.sources.x.xyz: unknown key; a source has path, format, "),
        ({"name": "", "role": "train"}, "corpus.sources.0.name: "),
        ({"name": "x", "role": "held"}, "corpus.sources.x.role: should be 'train', 'valid' or 'test', got 'held'"),
    ],
)
def test_a_wrong_key_or_value_of_a_source_is_told_with_its_place(source: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, [f"corpus.sources={json.dumps([MAIL | source])}"], files=False)
    assert str(refused.value).startswith(told)


def test_mixtures_that_can_be_are_not_refused() -> None:
    for sources, settings in (
        ([MAIL, TEXT], ["tasks.smlmt_share=0.0"]),
        ([MAIL | {"role": "train"}, TEXT], ["tasks.smlmt_share=0.5"]),
        ([MAIL | {"role": "train"}, MAIL | {"name": "x", "role": "test"}], ["train.validate_every=0"]),
        ([MAIL | {"role": "test"}, MAIL | {"name": "x"}], ["tasks.split_ratio=[0.8, 0.2, 0.0]"]),
        ([MAIL | {"role": "valid"}, MAIL | {"name": "x", "role": "train"}], ["evaluate.split=valid"]),
    ):
        load_config(None, [f"corpus.sources={json.dumps(sources)}", *settings], files=False)
