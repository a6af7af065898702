"""The class index: SMLMT words and labelled classes, complete in their shards, disjoint in their splits."""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distmeta.corpus.boundaries import find_words
from distmeta.corpus.manifest import Manifest
from distmeta.errors import UserError
from distmeta.tasks import index_draw
from distmeta.tasks.config import SPLITS
from distmeta.tasks.draw import TaskSource
from distmeta.tasks.index import split_counts
from tests.preparing import ANIMALS, PLACES, examples, prepare_small, segments, sentences, write_sentences

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def by_class(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    classes = defaultdict(list)
    for row in rows:
        classes[row["class"]].append(row)
    return classes


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def labelled_rows(classes: int, each: int) -> list[tuple[str, str]]:
    return [(f"text {i} about {chr(97 + c) * 4}", f"class {chr(97 + c)}") for c in range(classes) for i in range(each)]


LABELLED = {"label_column": "label"}

# SMLMT


def test_a_class_is_a_word_and_its_examples_its_sentences(tmp_path: Path) -> None:
    lines = [
        *sentences(),
        "CAT, cat; Cat's category!",
        "a cat",
        "The cat  went to the BARN on day number 0 of our long walk.",
    ]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    manifest = prepare_small(tmp_path / "out", [tmp_path / "a.txt"], tasks={"max_sentences": 30})
    classes = by_class(examples(tmp_path / "out", manifest))
    assert set(classes) == {*ANIMALS, *PLACES}  # of the words in 5 to 30 different sentences
    cat = classes["cat"]
    # The last line is the first one again but for case and space; "a cat" is too short to make a task.
    assert len(cat) == 21
    assert len({row["text_key"] for row in cat}) == 21
    [masked] = [row for row in cat if "category" in row["text"]]
    assert masked["text"] == "[MASK], [MASK]; [MASK]'s category!"
    assert masked["row"] == "a.txt:241.0"
    for word, rows in classes.items():
        for row in rows:
            assert word not in find_words(row["text"].replace("[MASK]", ""))[0]
            ids = row["input_ids"]
            assert ids.count(4) == row["text"].count("[MASK]") >= 1
            assert ids.index(4) == row["mask_position"]
            assert (ids[0], ids[-1]) == (2, 3)


@pytest.mark.parametrize(("bound", "value"), [("EXAMPLES_PER_PART", 60), ("CLASSES_PER_PART", 4)])
def test_classes_are_whole_in_one_part_sorted_and_disjoint(
    bound: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_draw, bound, value)
    monkeypatch.setattr("distmeta.corpus.ingest.SHARD_BYTES", 2000)
    source = write_sentences(tmp_path / "a.txt")
    manifest = prepare_small(tmp_path / "out", [source], tasks={"max_sentences": 30})
    assert len(manifest.segment_parts) > 3
    assert len(manifest.classes["train"].parts) > 2
    seen = Counter[str]()
    for split in SPLITS:
        for path in manifest.class_parts(tmp_path / "out", split):
            part = manifest.classes[split].model_copy(update={"parts": [f"classes/{path.name}"]})
            names = [
                row["class"]
                for row in examples(tmp_path / "out", manifest.model_copy(update={"classes": {split: part}}), (split,))
            ]
            assert names == sorted(names)
            assert len(set(names)) <= 4
            seen.update(set(names))
    assert set(seen.values()) == {1}
    assert [manifest.classes[split].count for split in SPLITS] == [13, 5, 4]
    assert sum(manifest.classes[split].examples for split in SPLITS) == len(examples(tmp_path / "out", manifest))


def test_the_sample_of_a_class_is_its_smallest_hashes_however_the_corpus_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_sentences(tmp_path / "a.txt")
    whole = prepare_small(tmp_path / "all", [source], tasks={"max_sentences": 30})
    few = prepare_small(tmp_path / "few", [source], tasks={"max_sentences": 30, "max_examples": 6})
    monkeypatch.setattr("distmeta.corpus.ingest.SHARD_BYTES", 2000)
    cut = prepare_small(tmp_path / "cut", [source], tasks={"max_sentences": 30, "max_examples": 6})
    all_rows = by_class(examples(tmp_path / "all", whole))
    few_rows = by_class(examples(tmp_path / "few", few))
    assert few_rows == by_class(examples(tmp_path / "cut", cut))
    for name, rows in few_rows.items():
        assert rows == all_rows[name][:6]  # which are sorted by hash
        assert len(all_rows[name]) in (20, 24)
    assert few_rows["cat"] != sorted(few_rows["cat"], key=lambda row: int(row["row"].split(":")[1].split(".")[0]))


def test_of_too_many_words_the_smallest_hashes_are_classes(tmp_path: Path) -> None:
    source = write_sentences(tmp_path / "a.txt")
    options = {"max_sentences": 30, "max_classes": 10}
    some = {row["class"] for row in examples(tmp_path / "a", prepare_small(tmp_path / "a", [source], tasks=options))}
    assert len(some) == 10
    assert some < {*ANIMALS, *PLACES}


def test_a_long_sentence_is_cut_around_its_masked_word(tmp_path: Path) -> None:
    """Case D3."""
    short = [f"the zebra number {i} sleeps" for i in range(35)]
    long = [" ".join([f"word{'abcde'[i]}"] * 400) + " zebra" for i in range(5)]
    (tmp_path / "a.txt").write_text("\n".join(short + long))
    options = {"n_way": 2, "max_sentences": 40, "split_ratio": [1, 0, 0]}
    manifest = prepare_small(
        tmp_path / "out", [tmp_path / "a.txt"], tasks=options, corpus={"max_sentence_words": 500}, splits=("train",)
    )
    assert manifest.cut == 5
    rows = by_class(examples(tmp_path / "out", manifest))["zebra"]
    assert len(rows) == 40
    assert sum(len(row["input_ids"]) == 32 for row in rows) == 5
    assert all(len(row["input_ids"]) <= 32 and row["input_ids"][row["mask_position"]] == 4 for row in rows)
    config = json.loads((tmp_path / "out/tokenizer/tokenizer_config.json").read_text())
    assert config["model_max_length"] == 32


def test_chinese_words_are_characters(tmp_path: Path) -> None:
    animals, places = "猫狗马羊鸡鸭", "河山田城村"
    lines = [f"{animals[i % 6]}在第{i}天去了{places[(i // 6) % 5]}边，很高兴！" for i in range(120)]
    (tmp_path / "a.txt").write_text("".join(lines))
    manifest = prepare_small(
        tmp_path / "out", [tmp_path / "a.txt"], corpus={"record": "paragraph"}, tasks={"max_sentences": 30}
    )
    assert manifest.sentences == 120
    classes = by_class(examples(tmp_path / "out", manifest))
    assert set(classes) == set(animals + places)
    assert all(row["text"].startswith("[MASK]在第") for row in classes["猫"])


def test_too_few_words_is_an_error_with_the_numbers(tmp_path: Path) -> None:
    source = write_sentences(tmp_path / "a.txt")
    with pytest.raises(
        UserError, match=r"meta-train has 0 classes.*tasks\.n_way is 2: 0 words stand in 500 to 30 sent"
    ):
        prepare_small(tmp_path / "out", [source], tasks={"min_sentences": 500, "max_sentences": 30})
    manifest = Manifest.load(tmp_path / "out")  # what became of the rows is told all the same
    assert (manifest.rows.kept, manifest.classes["train"].count, manifest.classes["train"].parts) == (240, 0, [])
    assert manifest.segments > 0


@pytest.mark.parametrize(
    ("stop", "line", "word", "masked"),
    [
        ("don't know", "I don't know number {} from you", "don't", "I [MASK] know number {} from you"),
        ("of course", "Of course I know number {} of you", "course", "Of [MASK] I know number {} of you"),
        ("因为", "他说因为猫去了{}次", "因", "他 说 [MASK] 为 猫 去 了 {} 次"),
        ("number", "I don't know  number {} from you", "know", "I don ' t [MASK] {} from you"),
    ],
)
def test_a_class_word_within_a_stop_word_is_hidden_and_kept(
    tmp_path: Path, stop: str, line: str, word: str, masked: str
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "stop.txt").write_text(stop)
    (tmp_path / "a.txt").write_text("".join(line.format(number) + "\n" for number in range(8)))
    options = {"remove_stop_words": True, "stop_words_file": str(tmp_path / "stop.txt"), "min_sentence_words": 1}
    shape = {"max_sentences": 8, "split_ratio": [1, 0, 0]}
    manifest = prepare_small(
        tmp_path / "out", [tmp_path / "a.txt"], corpus=options, tasks=shape, tokenizer={"lowercase": False}, splits=()
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    rows = by_class(examples(tmp_path / "out", manifest))[word]
    expected = {tuple(tokenizer(masked.format(number))["input_ids"]) for number in range(8)}
    assert {tuple(row["input_ids"]) for row in rows} == expected
    assert all(row["input_ids"][row["mask_position"]] == tokenizer.mask_token_id for row in rows)


# Labelled classes


def test_rows_of_a_class_are_its_examples_and_held_out_ones_stay_out_of_the_text(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", labelled_rows(10, 8))
    manifest = prepare_small(tmp_path / "out", [source], tasks=LABELLED)
    assert [manifest.classes[split].count for split in SPLITS] == [6, 2, 2]
    rows = examples(tmp_path / "out", manifest)
    assert len(rows) == 80
    assert {row["mask_position"] for row in rows} == {-1}
    train = {row["row"] for row in examples(tmp_path / "out", manifest, ("train",))}
    assert {row["document"] for row in segments(tmp_path / "out", manifest)} == train


def test_the_classes_of_each_split_are_named_and_what_n_way_moved_is_said(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", labelled_rows(12, 8))
    manifest = prepare_small(tmp_path / "out", [source], tasks=LABELLED | {"n_way": 3})
    assert manifest.class_names is not None
    named = [json.loads(line) for line in (tmp_path / "out" / manifest.class_names).read_text().splitlines()]
    for split in SPLITS:
        found = {row["class"] for row in examples(tmp_path / "out", manifest, (split,))}
        assert [row["class"] for row in named if row["split"] == split] == sorted(found)
    told = "tasks.split_ratio alone gives 7, 3 and 2 classes: some were moved"
    assert manifest.datasets[0].classes_by_ratio == [7, 3, 2]
    assert told in manifest.describe()
    assert told not in prepare_small(tmp_path / "out", [source], tasks=LABELLED | {"n_way": 2}).describe()


def test_split_files_say_which_classes_are_where(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", labelled_rows(8, 8))
    files = {"train": "class a\nclass b\n", "valid": "class c\r\nclass d\r\n", "test": "\ufeffclass e\nclass f"}
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    options = LABELLED | {"split_files": {name: str(tmp_path / f"{name}.txt") for name in files}}
    manifest = prepare_small(tmp_path / "out", [source], tasks=options)
    assert manifest.datasets[0].classes_in_no_split == 2
    for split, names in (("train", "ab"), ("valid", "cd"), ("test", "ef")):
        assert {row["class"] for row in examples(tmp_path / "out", manifest, (split,))} == {f"class {n}" for n in names}
    (tmp_path / "valid.txt").write_text("class c\nclass d\nclass z\n")
    with pytest.raises(UserError, match=r"tasks\.split_files\.valid: the data have no class 'class z'"):
        prepare_small(tmp_path / "out", [source], tasks=options)
    (tmp_path / "valid.txt").write_text("class a\nclass d\n")
    with pytest.raises(UserError, match="train and valid both have the class 'class a'"):
        prepare_small(tmp_path / "out", [source], tasks=options)


def test_pairs_of_texts_are_encoded_as_pairs(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = [{"a": f"premise {i}", "b": f"what follows {i} " * (1 + 20 * (i == 0)), "l": f"c{i % 6}"} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"a": "no second", "l": "c0"}]))
    options = {"label_column": "l", "text_column": "a", "text_pair_column": "b"}
    manifest = prepare_small(tmp_path / "out", [tmp_path / "a.jsonl"], tasks=options)
    assert manifest.rows.dropped == {"missing_pair": 1}
    assert manifest.cut == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    for row in examples(tmp_path / "out", manifest):
        assert row["input_ids"] == tokenizer(row["text"], row["pair"], truncation=True)["input_ids"]
    example = draw(tmp_path / "out", manifest)(0).support[0]
    assert example.shown == f"{example.text}\n{example.pair}"
    assert (example.pair or "").startswith("what follows")


def draw(directory: Path, manifest: Any, split: str = "train", **shape: int) -> Callable[[int], Any]:
    shape = {"n_way": 2, "k_shot": 2, "query_per_class": 3, "seed": 0} | shape
    return TaskSource(manifest.class_parts(directory, split), split, **shape).draw  # type: ignore[arg-type]


def test_classes_too_small_are_named_or_refused(tmp_path: Path) -> None:
    """Case F1."""
    source = write_rows(tmp_path / "a.jsonl", [(text, label[-1]) for text, label in labelled_rows(6, 4)])
    message = r"tasks\.k_shot \+ tasks\.query_per_class = 5 examples a class are needed; the largest class has 4 \(f\)"
    for _ in range(2):  # when it is prepared, and when it is found so
        with pytest.raises(UserError, match=message):
            prepare_small(tmp_path / "out", [source], tasks=LABELLED)
    assert Manifest.load(tmp_path / "out") == prepare_small(tmp_path / "out", [source], tasks=LABELLED, splits=())
    manifest = prepare_small(tmp_path / "out", [source], tasks=LABELLED | {"query_per_class": 2})
    task = draw(tmp_path / "out", manifest, query_per_class=2)
    for index in range(500):
        drawn = task(index)
        assert not {each.row for each in drawn.support} & {each.row for each in drawn.query}
    rows = [*labelled_rows(9, 8), ("only one", "small"), ("ONLY  one", "small")]
    manifest = prepare_small(tmp_path / "more", [write_rows(tmp_path / "b.jsonl", rows)], tasks=LABELLED)
    assert manifest.datasets[0].classes_left_out == {"small": 1}  # its two rows are one text


def test_of_very_many_small_classes_the_largest_are_named(tmp_path: Path) -> None:
    rows = [(f"text {i}", f"own {i}") for i in range(1500)] + [(f"two {i}", f"two {i % 3}") for i in range(6)]
    manifest = prepare_small(tmp_path / "out", [write_rows(tmp_path / "a.jsonl", rows)], tasks=LABELLED, splits=())
    assert manifest.datasets[0].classes_left_out_total == 1503
    assert len(manifest.datasets[0].classes_left_out) == 1000
    assert list(manifest.datasets[0].classes_left_out)[:4] == ["two 0", "two 1", "two 2", "own 0"]
    assert "1503 classes are too small" in manifest.describe()


def test_the_same_text_is_never_on_both_sides_or_under_two_labels(tmp_path: Path) -> None:
    """Case F2."""
    rows = [(f"sentence {i} of {name}", name) for name in ("alpha", "beta", "gamma", "delta", "eps") for i in range(8)]
    for place in (1, 2, 3, 0):
        rows[place] = ("the same sentence", "alpha")
    rows[8] = ("The same  sentence", "beta")
    source = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="meta-valid has 1 classes"):  # and yet what is wrong with the rows is told
        prepare_small(tmp_path / "all", [source], tasks=LABELLED)
    manifest = Manifest.load(tmp_path / "all")
    assert (manifest.repeats, manifest.texts_under_two_labels, manifest.rows.dropped) == (3, 1, {"repeat": 3})
    options = LABELLED | {"split_ratio": [1, 0, 0]}
    manifest = prepare_small(tmp_path / "out", [source], tasks=options, splits=("train",))
    assert (manifest.repeats, manifest.texts_under_two_labels) == (3, 1)
    counts = Counter(row["class"] for row in examples(tmp_path / "out", manifest))
    assert (counts["alpha"], counts["beta"]) == (5, 8)
    task = draw(tmp_path / "out", manifest, n_way=3)
    for index in range(500):
        texts = [" ".join(each.text.casefold().split()) for each in (*task(index).support, *task(index).query)]
        assert len(texts) == len(set(texts)) == 15


def test_labels_keep_their_spelling(tmp_path: Path) -> None:
    """Case F3."""
    labels = ["007", "7", "NA", "None", "null", "true", "1e3"]
    rows = [(f"text {i} of {label}", label) for label in labels for i in range(8)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    mixed = [
        json.dumps({"text": f"mixed {i} {kind}", "label": 7 if kind else "7"}) for i in range(8) for kind in (0, 1)
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(mixed))
    for source in (tmp_path / "a.csv", write_rows(tmp_path / "a.jsonl", rows)):
        manifest = prepare_small(tmp_path / f"out{source.suffix}", [source], tasks=LABELLED)
        counts = Counter(row["class"] for row in examples(tmp_path / f"out{source.suffix}", manifest))
        assert counts == dict.fromkeys(labels, 8)
    mixed_alone = prepare_small(tmp_path / "mixed", [tmp_path / "mixed.jsonl"], tasks=LABELLED, splits=())
    assert {row["class"] for row in examples(tmp_path / "mixed", mixed_alone)} == {"7"}
    options = LABELLED | {"split_ratio": [1, 0, 0]}
    manifest = prepare_small(
        tmp_path / "both", [tmp_path / "a.csv", tmp_path / "mixed.jsonl"], tasks=options, splits=("train",)
    )
    assert Counter(row["class"] for row in examples(tmp_path / "both", manifest))["7"] == 24


@pytest.mark.parametrize(
    ("classes", "ratio", "n_way", "expected"),
    [
        (150, [0.6, 0.2, 0.2], 5, [90, 30, 30]),
        (12, [0.6, 0.2, 0.2], 3, [6, 3, 3]),
        (6, [0.6, 0.2, 0.2], 3, [4, 1, 1]),
        (5, [1, 0, 0], 3, [5, 0, 0]),
        (7, [0.5, 0.25, 0.25], 2, [3, 2, 2]),
        (0, [0.6, 0.2, 0.2], 5, [0, 0, 0]),
    ],
)
def test_splits_follow_the_ratio_and_hold_a_task_where_they_can(
    classes: int, ratio: list[float], n_way: int, expected: list[int]
) -> None:
    assert split_counts(classes, ratio, n_way) == expected


def test_a_split_that_is_too_small_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", labelled_rows(6, 8))
    with pytest.raises(
        UserError, match=r"meta-valid has 1 classes and meta-test has 1 classes, tasks\.n_way is 3: 6 class"
    ):
        prepare_small(tmp_path / "out", [source], tasks=LABELLED | {"n_way": 3})
    prepare_small(tmp_path / "out", [source], tasks=LABELLED | {"n_way": 3}, splits=("train",))


def test_published_splits_of_a_real_data_set(tmp_path: Path) -> None:
    folder = DATA / "classification/OOS"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    files = {split: str(folder / f"few_shot/01/labels.{split}.txt") for split in SPLITS}
    options = {"label_column": "label", "text_column": "sentence", "split_files": files, "n_way": 5}
    manifest = prepare_small(tmp_path / "out", [folder / "full.jsonl.gz"], tasks=options, max_length=64)
    assert manifest.rows.read == 22_500
    assert [manifest.classes[split].count for split in SPLITS] == [50, 50, 50]
    with gzip.open(folder / "full.jsonl.gz", "rt") as file:
        pairs = {(row["sentence"].strip(), row["label"]) for row in map(json.loads, file)}
    rows = examples(tmp_path / "out", manifest)
    assert all((row["text"], row["class"]) in pairs for row in rows)
