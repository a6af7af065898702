"""A corpus of several data sets: label spaces of their own, roles, repeats, leaks; and one that is as it was before."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distmeta.corpus.manifest import FILE, Manifest
from distmeta.errors import UserError
from distmeta.tasks.config import SPLITS, Split
from distmeta.tasks.draw import TaskSource
from tests.corpora import write_labelled_csv
from tests.preparing import examples, prepare_small, segments, sentences, write_sentences

ODD = 'a/b: "é"\t\\..'
SHAPE: dict[str, Any] = {"smlmt_share": 0.2}


def write_set(path: Path, classes: dict[str, list[str]], **columns: str) -> Path:
    """Rows of the classes' texts; a text may be a pair, set apart by a bar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for label, texts in classes.items():
            for text in texts:
                first, bar, second = text.partition("|")
                row = {columns.get("text", "text"): first, columns.get("label", "y"): label}
                file.write(json.dumps(row | ({"second": second} if bar else {})) + "\n")
    return path


def numbered(what: str, count: int = 8) -> list[str]:
    return [f"{what} number {number} of {count}" for number in range(count)]


def write_mixture(folder: Path) -> list[dict[str, Any]]:
    """Six sets: two with the same labels, one of two classes for each role, one of pairs, and text without labels."""
    sources = {
        "songs": {name: numbered(f"a song that is {name}") for name in ("yes", "no", "p", "q", "r", "s")},
        "films": {name: numbered(f"a film that is {name}") for name in ("yes", "no", "p", "q", "r", "s")},
        ODD: {name: numbered(f"mail that is {name}") for name in ("yes", "no")},
        "valid": {name: numbered(f"a valid one, {name}") for name in ("0", "1")},
        "pairs": {name: numbered(f"if {name}|then {name}") for name in ("0", "1")},
    }
    roles = {ODD: "train", "valid": "valid", "pairs": "test"}
    made: list[dict[str, Any]] = []
    for number, (name, classes) in enumerate(sources.items()):
        path = write_set(folder / f"{number}.jsonl", classes)
        made.append({"path": str(path), "name": name, "label_column": "y", "role": roles.get(name)})
    made[-1]["text_pair_column"] = "second"
    return [*made, {"path": str(write_sentences(folder / "text.txt"))}]


def prepare_mixture(folder: Path, sources: list[Any], **options: Any) -> Manifest:
    return prepare_small(folder, sources, **options | {"tasks": SHAPE | options.get("tasks", {})})


def rows_of(directory: Path, manifest: Manifest, dataset: str, split: Split = "train") -> list[dict[str, Any]]:
    parts = manifest.class_parts(directory, split, dataset)
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_every_data_set_has_labels_splits_and_counts_of_its_own(tmp_path: Path) -> None:
    sources = write_mixture(tmp_path / "in")
    manifest = prepare_mixture(tmp_path / "out", sources)
    counts = {each.name: [each.classes[split].count for split in SPLITS] for each in manifest.datasets}
    assert all(count >= 2 for count in counts.pop(""))
    assert counts == {"films": [2, 2, 2], "songs": [2, 2, 2], ODD: [2, 0, 0], "valid": [0, 2, 0], "pairs": [0, 0, 2]}
    assert [each.name for each in manifest.datasets] == sorted(["", *counts])
    for name, what in (("songs", "a song that is"), ("films", "a film that is"), (ODD, "mail that is")):
        rows = rows_of(tmp_path / "out", manifest, name)
        assert all(row["text"].startswith(f"{what} {row['class']} number") for row in rows)
        assert Counter(row["class"] for row in rows).total() == 16
    pairs = rows_of(tmp_path / "out", manifest, "pairs", "test")
    assert {(row["text"], row["pair"][:6]) for row in pairs} == {("if 0", "then 0"), ("if 1", "then 1")}
    assert all(row["pair"] is None for row in rows_of(tmp_path / "out", manifest, "songs"))
    assert manifest.rows.kept == manifest.rows.read == 2 * 48 + 3 * 16 + 240
    for split in SPLITS:
        of_all = examples(tmp_path / "out", manifest, (split,))
        by_set = [row for each in manifest.datasets for row in rows_of(tmp_path / "out", manifest, each.name, split)]
        assert of_all == by_set
        assert manifest.classes[split].count == sum(each.classes[split].count for each in manifest.datasets)
    assert {part.name for part in (tmp_path / "out/classes").iterdir()} == {
        "names.jsonl",
        *(f"train-{number:05d}.parquet" for number in range(4)),
        *(f"{split}-{number:05d}.parquet" for split in ("valid", "test") for number in range(4)),
    }
    named = [json.loads(line) for line in (tmp_path / "out/classes/names.jsonl").read_text().splitlines()]
    assert {"split": "train", "class": "yes", "dataset": ODD} in named
    told = manifest.describe()
    assert f"  {ODD}, all meta-train: 16 of 16 rows kept; classes: 2 meta-train\n" in told
    assert "\n  the text, text without labels: 240 of 240 rows kept; classes: " in told


def test_the_order_of_sources_weights_and_shares_make_no_other_mixture(tmp_path: Path) -> None:
    sources = write_mixture(tmp_path / "in")
    manifest = prepare_mixture(tmp_path / "out", sources)
    weighed = [source | {"weight": 3.0} if "role" in source else source for source in sources[::-1]]
    other = prepare_mixture(tmp_path / "other", weighed, tasks={"smlmt_share": 0.5, "source_power": 0.5})
    assert other == manifest
    renamed = [source | {"name": "rock"} if source.get("name") == "songs" else source for source in sources]
    assert prepare_mixture(tmp_path / "third", renamed).content_digest != manifest.content_digest
    moved = [source | {"role": "test"} if source.get("name") == "valid" else source for source in sources]
    assert prepare_mixture(tmp_path / "fourth", moved, splits=()).content_digest != manifest.content_digest


def test_language_modelling_reads_no_text_of_a_class_or_data_set_that_is_held_out(tmp_path: Path) -> None:
    sources = write_mixture(tmp_path / "in")
    manifest = prepare_mixture(tmp_path / "out", sources)
    documents = Counter(row["document"].partition(":")[0] for row in segments(tmp_path / "out", manifest))
    # Songs and films have a third of their classes in training, mail all of them.
    assert documents == {"0.jsonl": 16, "1.jsonl": 16, "2.jsonl": 16, "text.txt": 240}


def test_repeats_are_dropped_within_a_data_set_and_counted_across(tmp_path: Path) -> None:
    both = numbered("A text that two sets have", 6)
    once = write_set(tmp_path / "a.jsonl", {"x": [*both, *both[:2], "A text, that two sets HAVE"], "y": numbered("y")})
    more = ["a text that two sets have!", "z number 1 of 8. Z number 2 of 8"]
    other = write_set(tmp_path / "b.jsonl", {"x": [*both, *more], "z": numbered("z")})
    text = tmp_path / "c.txt"
    text.write_text("\n".join([*sentences(), f"Before it. {both[0]}", "Z number 1 of 8. Z number 2 of 8."]))
    sources = [
        {"path": str(once), "label_column": "y", "role": "train"},
        {"path": str(other), "label_column": "y", "role": "test"},
        {"path": str(text)},
    ]
    manifest = prepare_mixture(tmp_path / "out", sources, splits=("train", "test"))
    assert manifest.rows.dropped == manifest.dataset("a").rows.dropped == {"repeat": 2}
    assert (manifest.dataset("a").repeats, manifest.dataset("b").repeats) == (2, 0)
    leaks = {(leak.dataset, leak.split, leak.trained): (leak.texts, leak.exact, leak.near) for leak in manifest.leaks}
    # Of the text, a sentence to the character, two but for case and signs, and a whole line of two sentences.
    assert leaks == {("b", "test", "a"): (16, 6, 7), ("b", "test", ""): (16, 1, 4)}
    assert (
        "b: 7 of 16 meta-test texts stand in a (6 to the character): they are counted, not dropped"
        in manifest.describe()
    )


def test_a_text_under_two_labels_of_a_data_set_is_no_leak_across(tmp_path: Path) -> None:
    """It is counted as what it is, though one label is held out and the other trained on."""
    shared = numbered("said under every label", 4)
    split = write_set(tmp_path / "a.jsonl", {name: [*shared, *numbered(name)] for name in "uvwxyz"})
    other = write_set(tmp_path / "b.jsonl", {name: numbered(f"other {name}") for name in "uv"})
    sources = [
        {"path": str(split), "label_column": "y"},
        {"path": str(other), "label_column": "y", "role": "train"},
        {"path": str(write_sentences(tmp_path / "text.txt"))},
    ]
    manifest = prepare_mixture(tmp_path / "out", sources)
    assert manifest.dataset("a").texts_under_two_labels == len(shared)
    assert manifest.leaks == []


def test_a_hub_data_set_and_text_with_columns_of_its_own_stand_in_a_mixture(tmp_path: Path) -> None:
    import datasets

    rows = [(f"{label} number {number}", number % 3) for number, label in enumerate(["red", "blue", "green"] * 8)]
    features = datasets.Features(
        {"said": datasets.Value("string"), "colour": datasets.ClassLabel(names=["red", "blue", "green"])}
    )
    columns = {"said": [text for text, _ in rows], "colour": [label for _, label in rows]}
    saved = datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns, features=features)})
    saved.save_to_disk(tmp_path / "colours")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in sentences(120)))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences()[120:]))
    hub = {"path": str(tmp_path / "colours"), "split": "test", "text_column": "said", "label_column": "colour"}
    sources = [
        hub | {"role": "train"},
        {"path": str(tmp_path / "b.jsonl"), "text_column": "body"},
        {"path": str(tmp_path / "a.jsonl")},
    ]
    manifest = prepare_mixture(tmp_path / "out", sources, splits=("train",))
    assert {row["class"] for row in rows_of(tmp_path / "out", manifest, "colours")} == {"red", "blue", "green"}
    assert [(source.dataset, source.name) for source in manifest.sources] == [
        ("", "a.jsonl"),
        ("", "b.jsonl"),
        ("colours", "colours"),
    ]
    assert manifest.dataset("").rows.kept == 240


def test_a_set_too_small_to_be_split_is_refused_with_what_to_do(tmp_path: Path) -> None:
    sources = write_mixture(tmp_path / "in")
    split = [source | {"role": None} if source.get("name") == ODD else source for source in sources]
    told = (
        f"{ODD}: meta-train has 1 classes and meta-test has 0 classes, tasks.n_way is 2: 2 classes are large enough, "
        "too few to be split; give it a role in corpus.sources (train, valid or test)"
    )
    for _ in range(2):  # when it is prepared, and when it is found so
        with pytest.raises(UserError) as refused:
            prepare_mixture(tmp_path / "out", split, splits=("train", "test"))
        assert str(refused.value) == told
    with pytest.raises(UserError, match=r"large enough; lower the low end of tasks\.n_way, or leave this data set out"):
        prepare_mixture(tmp_path / "out", sources, tasks={"n_way": [3, 5]}, splits=("train",))
    whole = [source for source in sources if source.get("name") in ("songs", "pairs")]
    prepare_mixture(
        tmp_path / "few",
        whole,
        tasks={"n_way": 3, "split_ratio": [1.0, 0.0, 0.0], "smlmt_share": None},
        splits=("train", "test"),
    )  # in evaluation a task has as many classes as there are
    with pytest.raises(UserError, match="meta-valid has no data set: give one the role valid"):
        prepare_mixture(
            tmp_path / "few", whole, tasks={"n_way": 3, "split_ratio": [1.0, 0.0, 0.0], "smlmt_share": None}
        )


def test_a_set_without_a_row_and_one_that_is_lost_are_named(tmp_path: Path) -> None:
    sources = write_mixture(tmp_path / "in")
    (tmp_path / "in/2.jsonl").write_text('{"text": "", "y": "yes"}\n')
    with pytest.raises(UserError, match=r"not one row can be used: .*2\.jsonl: 1 rows dropped: empty") as refused:
        prepare_mixture(tmp_path / "out", sources)
    assert str(refused.value).startswith(f"corpus.sources: {ODD}: ")
    (tmp_path / "in/2.jsonl").write_text('{"text": ["a"], "y": "yes"}\n')
    with pytest.raises(UserError, match="1 of 6 sources cannot be read whole") as refused:
        prepare_mixture(tmp_path / "out", sources)
    assert f"  {ODD}: 1 class has no row left, as far as labels can be told" in str(refused.value)


def digest_of_rows(directory: Path, manifest: Manifest) -> str:
    columns = ("class", "row", "text", "text_key", "input_ids", "mask_position")
    rows = [[row[name] for name in columns] for row in examples(directory, manifest)]
    for row, whole in zip(rows, examples(directory, manifest), strict=True):
        row[2] = row[2] if whole["pair"] is None else f"{row[2]}\n{whole['pair']}"
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("kind", "rows", "tasks"),
    [
        ("labelled", "3127b73eb81c2cc2", ["cef77c097c0c7b7a", "1b8b31ccee9b7eb8", "aa903a632d24c0a8"]),
        ("text", "360eb82745e72aa5", ["af97da4f97d6973c", "a2dc5e092010c504", "086fb542e929335c"]),
        ("pairs", "711c06a0962befaf", ["c4d8af1bfe6a7ba8", "3a751e73609fcbda", "5bbda40540346b15"]),
    ],
)
def test_a_corpus_of_one_data_set_is_as_it_was_before_there_were_several(
    tmp_path: Path, kind: str, rows: str, tasks: list[str]
) -> None:
    """The digests are those of the version before."""
    shape = {"labelled": {"label_column": "label"}, "text": {}}.get(
        kind, {"label_column": "l", "text_column": "a", "text_pair_column": "b"}
    )
    if kind == "labelled":
        source = write_labelled_csv(tmp_path / "texts.csv")
    elif kind == "text":
        source = write_sentences(tmp_path / "t.txt")
    else:
        source = tmp_path / "pairs.csv"
        lines = [f"premise {i} {w},hypothesis {i},{w}\n" for i in range(12) for w in ("yes", "no", "maybe", *"xyz")]
        source.write_text("a,b,l\n" + "".join(lines))
    manifest = prepare_small(tmp_path / "out", [source], tasks=shape)
    assert digest_of_rows(tmp_path / "out", manifest) == rows
    parts = manifest.class_parts(tmp_path / "out", "train")
    draw = TaskSource(parts, "train", n_way=2, k_shot=2, query_per_class=3, seed=7).draw
    assert [draw(index).digest for index in range(3)] == tasks
    [dataset] = manifest.datasets
    assert (dataset.name, dataset.labelled, manifest.leaks) == ("", kind != "text", [])


def test_a_manifest_from_before_there_were_data_sets_is_read(tmp_path: Path) -> None:
    """A run that began with such a corpus goes on with it."""
    manifest = prepare_small(
        tmp_path / "out", [write_labelled_csv(tmp_path / "texts.csv")], tasks={"label_column": "label"}
    )
    tree = json.loads((tmp_path / "out" / FILE).read_text())
    [dataset] = tree.pop("datasets")
    del tree["leaks"]
    for source in tree["sources"]:
        del source["dataset"]
    (tmp_path / "out" / FILE).write_text(
        json.dumps(tree | {key: dataset[key] for key in dataset if key not in ("name", "labelled", "role")})
    )
    assert Manifest.load_whole(tmp_path / "out") == manifest
