"""The same data by any reader is the same rows and labels, and a mark for "missing" is never the name of a class."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta.corpus.records import Dropped, RecordSettings
from distmeta.errors import UserError
from tests.corpora import case_folder
from tests.test_corpus_sources import LABELLED, read

STRINGS = ["NaN", "nan", "None", "null", "NA", "-1", "true"]
NAMES = ["sad", "so-so", "7", "glad"]
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
}


def pairs(path: Path, settings: RecordSettings = LABELLED) -> list[tuple[str | None, str | None]]:
    return [(record.text, record.label) for record in read(path, settings)[0]]


def write_all(
    folder: Path, rows: list[tuple[Any, Any]], kind: pa.DataType, text: pa.DataType | None = None
) -> list[Path]:
    """Write the same rows as JSON lines, a JSON list, CSV, Parquet and a saved dataset, each by its own library."""
    datasets = pytest.importorskip("datasets")
    objects = [{"text": text, "label": label} for text, label in rows]
    (folder / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects))
    (folder / "a.json").write_text(json.dumps(objects, indent=2))
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in rows:
            writer.writerow("" if value is None or value != value else value for value in row)
    schema = pa.schema({"text": text or pa.string(), "label": kind})
    table = pa.Table.from_pylist(objects, schema)
    pq.write_table(table, folder / "a.parquet")
    datasets.Dataset(table).save_to_disk(folder / "saved")
    return [folder / name for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "saved")]


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([7.0, math.nan, 0.5, None, 1e20, 1e-7], pa.float64(), ["7.0", "0.5", "1e+20", "1e-07"]),
        ([7.0, math.nan, 0.5, None, -0.25], pa.float32(), ["7.0", "0.5", "-0.25"]),
        ([math.nan, None, math.nan], pa.float64(), []),
        ([math.inf, -math.inf, 3.0], pa.float64(), ["inf", "-inf", "3.0"]),
        ([7, None, -1, 2**60], pa.int64(), ["7", "-1", str(2**60)]),
        ([None, None], pa.null(), []),
        ([*STRINGS, "", " ", None], pa.string(), STRINGS),
    ],
)
def test_numbers_and_nothing_are_the_same_by_every_reader(
    tmp_path: Path, labels: list[Any], kind: pa.DataType, names: list[str]
) -> None:
    rows = [(f"text {number}", label) for number, label in enumerate(labels)]
    for path in write_all(tmp_path, rows, kind):
        records, tally = read(path, LABELLED)
        assert [record.label for record in records] == names, path
        assert tally.dropped == ({"missing_label": len(labels) - len(names)} if len(labels) > len(names) else {}), path
        assert tally.problems == []


def test_truth_values_are_spelled_as_json_does(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [("a", True), ("b", None), ("c", False)], pa.bool_())
    found = {
        path.name: pairs(path) for path in paths if path.suffix != ".csv"
    }  # in CSV they are what the writer spelled
    assert set(map(tuple, found.values())) == {(("a", "true"), ("c", "false"))}


def test_a_text_that_is_a_number_or_nan_or_a_float_of_four_bytes(tmp_path: Path) -> None:
    for path in write_all(tmp_path, [(0.5, "x"), (math.nan, "x"), (None, "x"), (7.0, "x")], pa.string(), pa.float32()):
        assert pairs(path) == [("0.5", "x"), ("7.0", "x")], path
    pq.write_table(pa.table({"text": ["a"], "label": pa.array([0.1], pa.float32())}), tmp_path / "b.parquet")
    assert pairs(tmp_path / "b.parquet") == [("a", "0.1")]


def test_a_categorical_column_gives_its_categories(tmp_path: Path) -> None:
    labels = pa.array(["no", None, "yes", "no"]).dictionary_encode()
    pq.write_table(pa.table({"text": list("abcd"), "label": labels}), tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("a", "no"), ("c", "yes"), ("d", "no")]


def class_numbers(folder: Path, numbers: list[Any], kind: pa.DataType) -> list[Path]:
    """Write class numbers as a hub's Parquet file, whose metadata has the names, and as a saved dataset."""
    datasets = pytest.importorskip("datasets")
    table = pa.table({"text": [f"text {n}" for n in range(len(numbers))], "label": pa.array(numbers, kind)})
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "hub.parquet")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    datasets.Dataset(table.cast(features.arrow_schema), datasets.DatasetInfo(features=features)).save_to_disk(
        folder / "saved"
    )
    return [folder / "hub.parquet", folder / "saved"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.float64()])
def test_class_numbers_become_names_and_minus_one_is_none(tmp_path: Path, kind: pa.DataType) -> None:
    for path in class_numbers(tmp_path, [0, 3, -1, None, 2, 1], kind):
        records, tally = read(path, LABELLED)
        assert [record.label for record in records] == ["sad", "glad", "7", "so-so"], path
        assert tally.dropped == {"missing_label": 2}
        assert [place.partition(":")[0] for place in tally.places["missing_label"]] == ["row 3", "row 4"]


def test_a_number_without_a_class_is_lost_and_named(tmp_path: Path) -> None:
    """It was an IndexError for a number too high, and a name of the other end for one below -1."""
    for path in class_numbers(tmp_path, [0, 4, -2, 3], pa.int64()):
        records, tally = read(path, LABELLED)
        assert [record.label for record in records] == ["sad", "glad"]
        assert tally.dropped == {"unknown_class": 2}
        assert tally.places["unknown_class"][0] == "row 2: 'label' is 4, and its classes go from 0 to 3"


def test_a_hub_of_csv_files_gives_their_fields_as_written(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    labels = ["NA", "007", "None", "1e3", "nan", "x"]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{n},{label}\n" for n, label in enumerate(labels)))
    records, _ = read(f"huggingface:{tmp_path}", LABELLED)
    assert [(r.text, r.label) for r in records] == [(str(n), label) for n, label in enumerate(labels)]
    assert pairs(tmp_path / "train.csv") == [(r.text, r.label) for r in records]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.csv").write_text("text,label\na,b\na,b,c\n")
    with pytest.raises(UserError, match=r"^[^\n]*Expected 2 fields in line 3, saw 3[^\n]*$"):
        read(f"huggingface:{tmp_path / 'broken'}", LABELLED)


def test_a_key_that_stands_twice_is_no_choice(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x", "label": "y"}', '{"text": "b", "label": "x", "label": "x"}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"id": 1, "id": 2, "text": "c", "label": "x"}']))
    records, tally = read(tmp_path / "a.jsonl", LABELLED)
    assert [record.text for record in records] == ["b", "c"]
    assert tally.places == {"not_text": ["line 1: 'label' stands twice in it"]}


def test_classes_without_names_are_called_by_their_numbers(tmp_path: Path) -> None:
    features = {"text": FEATURES["text"], "label": {"num_classes": 2, "_type": "ClassLabel"}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, -1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("a", "1"), ("c", "0")]


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"label": []}}}'])
def test_other_metadata_is_passed_over(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"text": ["a"], "label": [7]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("a", "7")]


def test_the_public_cases_of_marks() -> None:
    _, tally = read(case_folder("missing_marks") / "nan.jsonl", LABELLED)
    assert (tally.kept, tally.dropped) == (220, {"missing_label": 20})
    by_reader = [pairs(case_folder("hub_parquet") / name) for name in ("train.parquet", "saved")]
    assert by_reader[0] == by_reader[1]
    assert len(by_reader[0]) == 200
    assert {label for _, label in by_reader[0]} == {f"class_{number:02}" for number in range(12)}


def test_a_label_of_which_nothing_is_seen_is_missing_and_no_class(tmp_path: Path) -> None:
    blanks = ["", " ", "\u200b", "\ufeff", "\u00a0\u200d"]
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(["sad", *blanks])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": "\u200b\u2060", "label": "sad"}])))
    records, tally = read(tmp_path / "a.jsonl", LABELLED)
    assert [record.label for record in records] == ["sad"]
    assert tally.dropped == {"missing_label": len(blanks), "empty": 1}
    assert tally.places["missing_label"][0] == "line 2: 'label' is empty"
    tally.drop(Dropped(9, "not_text", label="\u200b"))
    assert tally.dropped_labels == {}
