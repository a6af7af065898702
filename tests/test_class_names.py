"""The names of classes as one more support example: off unless asked for, and told where they are used."""

import csv
import json
from pathlib import Path

import pytest

from distmeta.config import load_config
from distmeta.errors import UserError
from distmeta.run_evaluation import evaluate
from distmeta.rundir import RunDirectory
from distmeta.setup import Setup, resolve
from distmeta.tasks.names import name_text
from tests.commands import distmeta_here
from tests.corpora import tiny_config
from tests.runs import begun_run, quiet


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    begun_run(folder, evaluate={"fine_tuning_episodes": 0, "episodes": 3})
    return folder


def setup_of(project: Path, *settings: str) -> Setup:
    return Setup(resolve(load_config(project / "run.yaml", list(settings))), RunDirectory(project / "run"))


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("{}", "card_arrival", "card arrival"),
        ("This is about {}.", "NUM:dist", "This is about NUM dist."),
        ("{}", "sci-fi / fantasy", "sci fi fantasy"),
        ("{}", "__", "__"),
        ("{}", "体育", "体育"),
    ],
)
def test_a_name_is_read_as_words(template, name, text):
    assert name_text(template, name) == text


def test_each_class_has_its_name_as_one_more_support_example(project):
    plain = setup_of(project).tasks("train").draw(3)
    setup = setup_of(project, "tasks.class_names=It is {}.")
    named = setup.tasks("train").draw(3)
    assert named.classes == plain.classes
    assert named.query == plain.query
    names = [example for example in named.support if example.row.startswith("name:")]
    assert [example for example in named.support if example not in names] == list(plain.support)
    assert [(example.label, example.text) for example in names] == [
        (label, f"It is {name}.") for label, name in enumerate(named.classes)
    ]
    for example in names:
        assert list(example.input_ids) == setup.tokenizer(example.text)["input_ids"]
    assert named.digest != plain.digest


def test_an_evaluation_uses_names_as_training_did_or_as_it_is_told(project):
    def names(*settings: str) -> int:
        task = setup_of(project, *settings).evaluation_tasks().draw(0)
        return sum(example.row.startswith("name:") for example in task.support)

    assert names() == 0
    assert names("tasks.class_names={}") == names("tasks.class_names=true") == 3
    assert names("tasks.class_names=false") == 0
    assert names("evaluate.class_names=true") == 3
    assert names("tasks.class_names={}", "evaluate.class_names=false") == 0


def test_words_that_are_hidden_have_no_names(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"the {a} {b} is here" for a in "abcdef" for b in "uvwxyz"))
    tree = tiny_config(tmp_path / "text.txt", tasks={"label_column": None, "class_names": "{}", "min_sentences": 5})
    from distmeta.config import Config
    from distmeta.corpus.executor import LocalExecutor
    from distmeta.run_corpus import prepare_with

    config, run = resolve(Config.model_validate(tree)), RunDirectory(tmp_path / "run")
    prepare_with(LocalExecutor(), config, run, quiet)
    task = Setup(config, run).tasks("train").draw(0)
    assert len(task.support) == 3 * 2


def test_a_report_with_names_is_another_one_and_says_so(project):
    run = RunDirectory(project / "run")
    config = resolve(load_config(run.config, ["evaluate.class_names=true"]))
    table = evaluate(config, run, quiet)
    assert "3-way 2-shot and the class's name" in table
    assert "; class names;" in table
    (file,) = run.evaluations.glob("*class-names*.json")
    assert json.loads(file.read_text())["used"]["class_names"] is True
    assert not run.evaluation.exists(), "the run's own evaluation is without them"


def test_given_rows_get_names_too(project, tmp_path):
    with (tmp_path / "given.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "part"])
        for name in "ab":
            parts = ["train", "train", "test", "test"]
            writer.writerows([f"bin topic{name}o {n}", f"class_{name}", part] for n, part in enumerate(parts))
    arguments = ["--on", tmp_path / "given.csv", "--label-column", "label", "--part-column", "part"]
    done = distmeta_here("evaluate", "--run-dir", "run", *arguments, "--set", "evaluate.class_names=true", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "2-way 2-shot and the class's name" in done.stdout
    plain = distmeta_here("evaluate", "--run-dir", "run", *arguments, cwd=project)
    assert "2-way 2-shot," in plain.stdout


def test_what_cannot_be_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("text,second,label\n")
    tree = ["tasks.class_names=true", "tasks.text_pair_column=second", "tasks.label_column=label"]
    with pytest.raises(UserError, match="a name is one text, and the labelled set has pairs"):
        load_config(None, [f"corpus.sources=[{tmp_path / 'pairs.csv'}]", *tree])
    with pytest.raises(UserError, match=r"tasks\.class_names.*should have \{\}"):
        load_config(None, ["tasks.class_names=name"])
