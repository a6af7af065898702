"""Mixtures: which data set a task comes from, and how large it is; seed, split and index decide all of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distmeta.errors import UserError
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup
from distmeta.tasks.draw import TaskSource
from distmeta.tasks.mixture import Mixture, shares_of
from distmeta.train.validate import means_of
from tests.mixtures import mixture, prepared_mixture
from tests.test_tasks import source, write_classes
from tests.training import GPT2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_mixture(tmp_path_factory.mktemp("mixture"))


def tasks_of(folder: Path, split: str = "train", **sections: dict[str, Any]) -> Mixture:
    found = Setup(mixture(folder, **sections), RunDirectory(folder)).tasks(split)  # type: ignore[arg-type]
    assert isinstance(found, Mixture)
    return found


def names(tasks: Mixture) -> list[str]:
    return [each.name for each in tasks.sources]


def test_data_sets_have_their_roles_and_shares(folder: Path) -> None:
    train = tasks_of(folder)
    assert names(train) == ["moods", "pairs", "topics", "words"]
    assert train.shares is not None
    assert train.shares.tolist() == pytest.approx([0.75 * 2 / 4, 0.75 / 4, 0.75 / 4, 0.25])
    drawn = Counter(train.draw(index).source for index in range(1000))
    for name, share in zip(names(train), train.shares, strict=True):
        assert drawn[name] / 1000 == pytest.approx(share, abs=0.05)
    assert names(tasks_of(folder, "valid")) == ["mails", "topics", "words"]
    test = tasks_of(folder, "test")
    assert [test.draw(index).source for index in range(6)] == ["later", "topics", "words"] * 2
    assert names(tasks_of(folder, tasks={"smlmt_share": 0.0})) == ["moods", "pairs", "topics"]


def test_the_size_of_a_data_set_counts_to_a_power(folder: Path) -> None:
    train = tasks_of(folder, tasks={"source_power": 1.0})
    texts = dict(zip(names(train), (each.texts for each in train.sources), strict=True))
    assert texts == {"moods": 40, "pairs": 48, "topics": 84, "words": texts["words"]}
    assert train.shares is not None
    assert train.shares.tolist() == pytest.approx([0.75 * part / 212 for part in (80, 48, 84)] + [0.25])
    assert shares_of([(True, 1.0, 4), (True, 3.0, 16)], 0.5, None) == pytest.approx([2 / 14, 12 / 14])
    assert shares_of([(False, 1.0, 4)], 0.0, None) == [1.0]
    assert shares_of([(True, 0.0, 4), (False, 1.0, 4)], 0.0, 1.0) == [0.0, 1.0]
    with pytest.raises(UserError, match="no data set with a weight above 0 is in meta-train"):
        Mixture(train.sources, [0.0] * 4, split="train", n_way=2, k_shot=1, query_per_class=1, seed=0)


def test_a_task_of_a_mixture_is_the_one_of_that_number_in_its_data_set(folder: Path) -> None:
    """So weights change which tasks come, and not what they are; and nothing depends on who asks, or when."""
    train = tasks_of(folder)
    alone = {each.name: each for each in train.sources}
    digests = [train.draw(index).digest for index in range(60)]
    for index in range(60):
        task = train.draw(index)
        assert task == alone[task.source].draw(index)
        assert {example.pair is not None for example in (*task.support, *task.query)} == {task.source == "pairs"}
    again, others = tasks_of(folder), tasks_of(folder, train={"seed": 8})
    assert [again.draw(index).digest for index in reversed(range(60))] == digests[::-1]
    assert len(set(digests)) > 55
    assert digests != [others.draw(index).digest for index in range(60)]


def test_the_data_set_is_part_of_a_task_as_it_is_shown_and_named(tmp_path: Path) -> None:
    part = write_classes(tmp_path / "a.parquet", {f"c{c}": [f"{c} {i}" for i in range(8)] for c in range(6)})
    plain = source(part).draw(0)
    named = TaskSource([part], "train", n_way=5, k_shot=2, query_per_class=3, seed=0, name="mails").draw(0)
    assert (named.classes, named.support, named.query) == (plain.classes, plain.support, plain.query)
    assert named.digest != plain.digest
    assert "source" not in plain.as_json()
    assert named.as_json()["source"] == "mails"
    assert "task 0 of meta-train from mails, 5-way" in named.as_text()


def test_ways_and_shots_are_drawn_evenly_as_far_as_classes_and_texts_allow(folder: Path) -> None:
    for split in ("train", "valid", "test"):
        tasks = tasks_of(folder, split)
        classes = {each.name: len(each.class_names) for each in tasks.sources}
        for index in range(300):
            task = tasks.draw(index)
            shots = len(task.support) // task.n_way
            assert 2 <= task.n_way <= min(4, classes[task.source])
            assert 1 <= shots <= 3
            assert task.n_way * (shots + 2) <= 16
            assert len(task.support) == shots * task.n_way
            assert len(task.query) == 2 * task.n_way
    words = next(each for each in tasks_of(folder).sources if each.name == "words")
    ways = Counter(words.draw(index).n_way for index in range(600))
    assert all(count == pytest.approx(200, abs=40) for count in ways.values()), ways
    shots = Counter(len(task.support) // 2 for index in range(600) if (task := words.draw(index)).n_way == 2)
    assert set(shots) == {1, 2, 3}


def test_a_class_with_few_texts_bounds_the_shots_of_its_tasks(tmp_path: Path) -> None:
    classes = {f"c{c}": [f"{c} {i}" for i in range(4 + 4 * (c > 0))] for c in range(4)}
    tasks = source(write_classes(tmp_path / "a.parquet", classes), n_way=2, k_shot=[1, 5])
    shots: dict[bool, list[int]] = {True: [], False: []}
    for index in range(200):
        task = tasks.draw(index)
        shots["c0" in task.classes].append(len(task.support) // 2)
    assert set(shots[True]) == {1}
    assert set(shots[False]) == {1, 2, 3, 4, 5}
    assert len(shots[True]) == pytest.approx(100, abs=25)  # it comes as often as the others
    with pytest.raises(UserError, match=r"3 classes with 5 different texts \(k_shot 2 .*n_way is 4 to 6"):
        source(tmp_path / "a.parquet", n_way=[4, 6], k_shot=[2, 5])


def test_where_texts_stand_in_several_classes_a_smaller_task_is_drawn(tmp_path: Path) -> None:
    """Eight texts in all: two classes of four can be filled, and three of them cannot."""
    classes = {name: [f"the same {i}" for i in range(8)] for name in ("alpha", "beta", "gamma")}
    tasks = source(write_classes(tmp_path / "a.parquet", classes), n_way=[2, 3], k_shot=[1, 4])
    for index in range(50):
        task = tasks.draw(index)
        rows = [example.text for example in (*task.support, *task.query)]
        assert len(set(rows)) == len(rows) == 8
        assert task.n_way == 2


def test_one_data_set_has_plain_numbers_exactly(folder: Path, tmp_path: Path) -> None:
    """A range of one value, and a bound that binds nothing, draw the tasks of the plain numbers."""
    part = write_classes(tmp_path / "a.parquet", {f"c{c}": [f"{c} {i}" for i in range(8)] for c in range(9)})
    plain, ranges = source(part), source(part, n_way=[5, 5], k_shot=[2, 2], max_texts=25)
    assert [plain.draw(index) for index in range(50)] == [ranges.draw(index) for index in range(50)]


def test_an_evaluation_bounds_the_ways_to_what_a_data_set_has(folder: Path) -> None:
    setup = Setup(mixture(folder, evaluate={"n_way": 3, "k_shot": 2, "split": "valid"}), RunDirectory(folder))
    episodes = [setup.evaluation_tasks().draw(index) for index in range(9)]
    assert [(task.source, task.n_way) for task in episodes[:3]] == [("mails", 2), ("topics", 3), ("words", 3)]
    all_way = setup.tasks("valid", n_way="all")
    assert [all_way.draw(index).n_way for index in range(3)] == [2, 3, 5]
    assert all_way.whole_turns(1) == all_way.whole_turns(3) == 3
    assert all_way.whole_turns(4) == 6
    with pytest.raises(UserError, match=r"meta-train of moods has 2 classes .*n_way is 3"):
        setup.tasks("train", n_way=3)


def test_the_longest_prompt_of_metaicl_is_told_at_the_start(folder: Path) -> None:
    """Of 2 to 4 ways and 1 to 3 shots in at most 16 texts, 3 x 3 are the most examples of a prompt."""
    for positions, fits in ((329, True), (328, False)):
        settings = {"model": {"config": {**GPT2, "n_positions": positions}}, "meta": {"algorithm": "metaicl"}}
        if fits:
            mixture(folder, **settings)
        else:
            told = r"may have tasks\.n_way 3 x k_shot 3 x \(tokenizer\.max_length 32 \+ 1\) \+ 32 = 329 tokens"
            with pytest.raises(UserError, match=told):
                mixture(folder, **settings)


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ({"max_texts": 5}, "tasks.max_texts: 5 is below tasks.n_way 2 x (tasks.k_shot + tasks.query_per_class) 3"),
        ({"n_way": [4, 2]}, "tasks.n_way: should have its lower end first"),
        ({"k_shot": [0, 2]}, "tasks.k_shot: should be 1 or more"),
        ({"n_way": [2]}, "tasks.n_way: should be a number, or two as [low, high]"),
        ({"max_classes": 5}, "tasks.max_classes: 5 cannot give three splits of tasks.n_way 2 classes"),
    ],
)
def test_what_no_task_can_be_is_told_in_one_line(tasks: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(UserError) as error:
        mixture(folder, tasks=tasks)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_a_validation_is_the_mean_over_data_sets(folder: Path) -> None:
    found = means_of({"prototype": {"a": [1.0, 0.0, 0.5, 0.5], "b": [1.0]}, "inner-loop": {"": [0.0, 1.0]}})
    assert found["prototype"] == 0.75
    assert (found["prototype/a"], found["prototype/b"]) == (0.5, 1.0)
    assert found["inner-loop"] == 0.5
    assert "inner-loop/" not in found
    assert "prototype_ci95" not in found  # of one episode there is none
    halves = means_of({"prototype": {"a": [1.0, 0.0], "b": [1.0, 0.0]}})
    assert halves["prototype_ci95"] == pytest.approx(found["inner-loop_ci95"] / np.sqrt(2))
