"""Drawing tasks and text: what stands in a task, and that nothing but (seed, split, index) decides it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from distmeta.errors import UserError
from distmeta.tasks.class_shards import write_class_shard
from distmeta.tasks.draw import TaskSource
from distmeta.tasks.text import TextSource


def write_classes(path, classes):
    """A class-complete shard of {class name: texts}."""
    rows = [(name, f"{name}:{i}", text) for name, texts in sorted(classes.items()) for i, text in enumerate(texts)]
    table = pa.table(
        {
            "class": [row[0] for row in rows],
            "row": [row[1] for row in rows],
            "text": [row[2] for row in rows],
            "pair": pa.array([None] * len(rows), pa.string()),
            "text_key": pa.array([hash(row[2].casefold()) for row in rows], pa.int64()),
            "input_ids": pa.array([[2, 7, 3]] * len(rows), pa.list_(pa.int32())),
            "mask_position": pa.array([-1] * len(rows), pa.int32()),
        }
    )
    write_class_shard(table, path)
    return path


@pytest.fixture
def shard(tmp_path):
    return write_classes(
        tmp_path / "train-00000.parquet", {f"class {c:02}": [f"text {c} {i}" for i in range(20)] for c in range(20)}
    )


def source(*parts, split="train", **shape):
    return TaskSource(parts, split, **{"n_way": 5, "k_shot": 2, "query_per_class": 3, "seed": 0, **shape})


def test_a_task_depends_on_seed_split_and_index_alone(shard):
    digests = [source(shard).draw(index).digest for index in range(50)]
    again = source(shard)
    assert [again.draw(index).digest for index in reversed(range(50))] == digests[::-1]
    assert len(set(digests)) == 50
    assert not set(digests) & {source(shard, seed=1).draw(index).digest for index in range(50)}
    assert not set(digests) & {source(shard, split="test").draw(index).digest for index in range(50)}


def test_a_task_is_n_way_k_shot(shard):
    task = source(shard).draw(3)
    assert len(set(task.classes)) == task.n_way == 5
    for examples, count in ((task.support, 2), (task.query, 3)):
        assert np.bincount([example.label for example in examples]).tolist() == [count] * 5
        for example in examples:
            assert example.row.startswith(task.classes[example.label])


def test_labels_tell_nothing_about_classes(shard):
    """Case A2: the label of the alphabetically first class is uniform (chi-square over 1,000 tasks)."""
    tasks = source(shard)
    first = [sorted(range(5), key=tasks.draw(index).classes.__getitem__)[0] for index in range(1000)]
    assert chisquare(np.bincount(first, minlength=5)).statistic < 18.5


def test_no_text_stands_twice_in_a_task(tmp_path):
    """Case F2: one sentence four times in alpha, once in beta, once with a capital; and rows differ."""
    classes = {name: [f"{name} {i}" for i in range(8)] for name in ("alpha", "beta", "gamma", "delta", "epsilon")}
    classes["alpha"] += ["shared"] * 4
    classes["beta"] += ["Shared"]
    tasks = source(write_classes(tmp_path / "a.parquet", classes))
    seen_shared = 0
    for index in range(500):
        task = tasks.draw(index)
        texts = [example.text.casefold() for example in (*task.support, *task.query)]
        assert len(texts) == len(set(texts)) == 25
        seen_shared += "shared" in texts
    assert seen_shared > 0


def test_classes_that_are_too_small_are_never_drawn(tmp_path):
    """Case F1: four rows cannot fill two and three; never with replacement."""
    part = write_classes(tmp_path / "a.parquet", {f"c{c}": [f"{c} {i}" for i in range(4)] for c in range(6)})
    with pytest.raises(UserError, match=r"0 classes with 5 different texts.*n_way is 5"):
        source(part)
    tasks = source(part, query_per_class=2)
    for index in range(500):
        task = tasks.draw(index)
        assert not {example.row for example in task.support} & {example.row for example in task.query}


def test_all_way_takes_every_class_that_the_others_leave_enough_of(tmp_path, shard):
    assert source(shard, n_way="all").draw(0).n_way == 20
    classes = {f"c{c}": [f"{c} {i}" for i in range(8)] for c in range(4)} | {"twin": [f"0 {i}" for i in range(8)]}
    tasks = source(write_classes(tmp_path / "b.parquet", classes), n_way="all")
    assert {tasks.draw(index).n_way for index in range(10)} == {4}  # the twins' texts are the same


def test_text_is_drawn_once_an_epoch_whoever_asks(tmp_path):
    parts = []
    for number, rows in enumerate((5, 1, 7)):
        path = tmp_path / f"part-{number}.parquet"
        pq.write_table(pa.table({"input_ids": [[number, row] for row in range(rows)]}), path)
        parts.append((path, rows))
    text = TextSource(parts, seed=0)
    everything = sorted([number, row] for number, (_, rows) in enumerate(parts) for row in range(rows))
    epochs = [[text.draw(index) for index in range(epoch * 13, (epoch + 1) * 13)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]
    other = TextSource(parts, seed=0)
    assert [other.draw(index) for index in reversed(range(26))] == (epochs[0] + epochs[1])[::-1]


def test_sentences_that_stand_in_several_classes_are_named_as_what_leaves_too_few(tmp_path):
    classes = {name: [f"the same {i}" for i in range(6)] for name in ("alpha", "beta")}
    tasks = source(write_classes(tmp_path / "a.parquet", classes), n_way=2)
    with pytest.raises(UserError, match="many of their texts stand in several classes, and a text serves one class"):
        tasks.draw(0)


def test_a_pool_bounds_the_texts_that_tasks_are_made_of(shard, tmp_path):
    """It is a share of each class, the same in every task of it; where it does not suffice, others are taken."""

    def rows(pool_texts, **shape):
        drawn = [source(shard, pool_texts=pool_texts, **shape).draw(index) for index in range(200)]
        return {example.row for task in drawn for example in (*task.support, *task.query)}

    assert len(rows(None)) == 400
    assert len(rows(160)) == 160
    assert len(rows(20)) == 20 * 5  # a task's own texts at least
    assert rows(160, n_way="all") == rows(160)
    words = {name: [f"{name} {i}" for i in range(2)] + [f"shared {i}" for i in range(3)] for name in ("a", "b")}
    overlapping = write_classes(tmp_path / "train-00001.parquet", words)
    for index in range(20):  # of two texts of each class's own and three that they share, six
        task = source(overlapping, n_way=2, k_shot=1, query_per_class=2, pool_texts=0).draw(index)
        assert len({example.text for example in (*task.support, *task.query)}) == 6
