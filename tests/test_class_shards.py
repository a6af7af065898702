"""Class shards: an index without rows, and draws that read the classes that they take and keep no more than a bound."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta.tasks import class_shards
from distmeta.tasks.class_shards import ClassReader, read_index, write_class_shard
from distmeta.tasks.draw import TaskSource

CLASSES, ROWS = 30, 40


def write_shard(path: Path, first: int = 0) -> pa.Table:
    """Classes of texts of different lengths, of which every other has a second text."""
    names = [f"class {number:03}" for number in range(first, first + CLASSES) for _ in range(ROWS)]
    rows = range(len(names))
    table = pa.table(
        {
            "class": names,
            "row": [f"{name}:{row}" for name, row in zip(names, rows, strict=True)],
            "text": [
                f"text {row // 2 if row < ROWS else row} of {name}" for name, row in zip(names, rows, strict=True)
            ],
            "pair": pa.array([f"pair {row}" if row % 2 else None for row in rows], pa.string()),
            "text_key": pa.array([first * ROWS + (row // 2 if row < ROWS else row) for row in rows], pa.int64()),
            "input_ids": pa.array([[2, *([row] * (row % 5)), 3] for row in rows], pa.list_(pa.int32())),
            "mask_position": pa.array([row % 3 - 1 for row in rows], pa.int32()),
        }
    )
    write_class_shard(table, path)
    return table


def source(*parts: Path, reader: ClassReader | None = None) -> TaskSource:
    return TaskSource(parts, "train", n_way=4, k_shot=2, query_per_class=3, seed=0, reader=reader)


def test_an_index_names_the_classes_and_counts_their_texts_without_reading_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.parquet", first=CLASSES)
    write_shard(tmp_path / "a.parquet")
    # What is there of the rows are zeros: an index that read them could not be made.
    for name in ("a", "b"):
        data = bytearray((tmp_path / f"{name}.parquet").read_bytes())
        metadata = pq.read_metadata(tmp_path / f"{name}.parquet")
        data[4 : len(data) - metadata.serialized_size - 8] = bytes(len(data) - metadata.serialized_size - 12)
        (tmp_path / f"{name}.parquet").write_bytes(data)
    index = read_index([tmp_path / "b.parquet", tmp_path / "a.parquet"])
    assert [each.name for each in index] == [f"class {number:03}" for number in range(2 * CLASSES)]
    assert [each.texts for each in index] == 2 * [ROWS // 2, *([ROWS] * (CLASSES - 1))]
    with pytest.raises(OSError, match=r"(?i)deserialize|corrupt|page"):
        source(tmp_path / "a.parquet").draw(0)


def test_examples_are_those_of_the_table(tmp_path: Path) -> None:
    rows = write_shard(tmp_path / "a.parquet").to_pylist()
    of_row = {row["row"]: row for row in rows}
    tasks = source(tmp_path / "a.parquet")
    for index in range(20):
        task = tasks.draw(index)
        for example in (*task.support, *task.query):
            row = of_row[example.row]
            assert task.classes[example.label] == row["class"]
            found = (example.text, example.pair, list(example.input_ids), example.mask_position)
            assert found == (row["text"], row["pair"], row["input_ids"], row["mask_position"])


def test_a_draw_reads_the_classes_that_it_takes_and_keeps_what_the_bound_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "a.parquet")
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def reading(self: pq.ParquetFile, number: int, *arguments: object, **options: object) -> pa.Table:
        read.append(number)
        return original(self, number, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", reading)
    one = ClassReader()
    one.read(read_index([tmp_path / "a.parquet"])[1])
    bound = 6 * one.held_bytes
    read.clear()
    reader = ClassReader(bound)
    tasks = source(tmp_path / "a.parquet", reader=reader)
    classes = tasks.draw(0).classes
    assert sorted(read) == sorted(int(name.split()[1]) for name in classes)
    tasks.draw(0)
    assert len(read) == 4
    for index in range(100):
        tasks.draw(index)
        assert reader.held_bytes <= bound
    assert len(read) > 200  # what was let go of is read again
    unbounded = source(tmp_path / "a.parquet")
    assert [tasks.draw(index) for index in range(50)] == [unbounded.draw(index) for index in range(50)]


def test_files_are_let_go_of_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_shards, "MOST_GROUPS", 2 * CLASSES)
    for number in range(5):
        write_shard(tmp_path / f"{number}.parquet", first=number * CLASSES)
    reader = ClassReader(0)
    tasks = source(*sorted(tmp_path.glob("*.parquet")), reader=reader)
    drawn = [tasks.draw(index) for index in range(30)]
    assert reader.open_files == 2
    monkeypatch.undo()
    everything = source(*sorted(tmp_path.glob("*.parquet")))
    assert drawn == [everything.draw(index) for index in range(30)]


def test_threads_may_draw_from_the_same_classes(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet")
    tasks = source(tmp_path / "a.parquet", reader=ClassReader(20_000))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: tasks.draw(index).digest, range(400)))
    alone = source(tmp_path / "a.parquet")
    assert found == [alone.draw(index).digest for index in range(400)]


def test_a_shard_of_an_earlier_version_gives_the_same_tasks(tmp_path: Path) -> None:
    """A run goes on with the corpus that it began with."""
    table = write_shard(tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["pair"]), tmp_path / "earlier.parquet")
    now, earlier = source(tmp_path / "a.parquet"), source(tmp_path / "earlier.parquet")
    assert [earlier.draw(index).digest for index in range(50)] == [now.draw(index).digest for index in range(50)]
