"""The weight of a source as a key: set on the command line, swept, and no part of what a corpus is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from distmeta.config import Config, load_config, read_key, with_values
from distmeta.corpus.config import SourceConfig
from distmeta.errors import UserError
from distmeta.rundir import RunDirectory
from distmeta.sweep.directory import SweepDirectory
from distmeta.sweep.prepare import TrialMaker
from distmeta.sweep.space import Space, trial_config
from tests.corpora import tiny_config, write_labelled_csv

NAMED = ("intents", "sst2", "news")
WEIGHT = "corpus.sources.sst2.weight"


def mixture(folder: Path, *sources: dict[str, Any], **sections: dict[str, Any]) -> Path:
    """The configuration of three data sets, the first of which is two files, or of the sources that are given."""
    for name in ("a", "b", "c", "d"):
        write_labelled_csv(folder / f"{name}.csv", classes=12, rows=8)
    files = dict(zip("abcd", (NAMED[0], NAMED[0], *NAMED[1:]), strict=True))
    entries = sources or tuple({"path": f"{file}.csv", "name": name} for file, name in files.items())
    tree = tiny_config(folder, train={"validate_every": 5}, **sections)
    tree["corpus"] = {"sources": list(entries)}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "mixture.yaml"


def weights(config: Config) -> list[float | None]:
    return [each.weight if isinstance(each, SourceConfig) else None for each in config.corpus.sources]


def test_the_weight_of_a_source_is_set_by_its_name(tmp_path: Path):
    file = mixture(tmp_path)
    config = load_config(file, [f"{WEIGHT}=2.5", "corpus.sources.intents.weight=0"])
    assert weights(config) == [0, 0, 2.5, None]
    assert read_key(config, WEIGHT) == 2.5
    assert read_key(config, "corpus.sources.news.weight") == 1.0
    # What is set later counts, also where all sources are set at once.
    sources = f"corpus.sources=[{{path: {tmp_path}/c.csv, name: sst2, weight: 3}}]"
    assert weights(load_config(file, [f"{WEIGHT}=2", sources])) == [3]
    assert weights(load_config(file, [sources, f"{WEIGHT}=2"])) == [2]


def test_other_settings_of_a_source_are_set_by_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = mixture(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write_labelled_csv(tmp_path / "elsewhere" / "new.csv", classes=12, rows=8)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(file, ["corpus.sources.sst2.path=new.csv", "corpus.sources.intents.role=train"])
    paths = [each.path for each in config.corpus.sources if isinstance(each, SourceConfig)]
    assert paths[2] == str(tmp_path / "elsewhere" / "new.csv")
    assert paths[3] == str(tmp_path / "d.csv")
    assert [each.role for each in config.corpus.sources] == ["train", "train", None, None]


def test_a_source_without_a_name_is_called_as_its_path_is(tmp_path: Path):
    file = mixture(tmp_path, {"path": "a.csv", "label_column": "label"}, {"path": "b.csv", "label_column": "label"})
    config = load_config(file, ["corpus.sources.b.weight=4"])
    assert weights(config) == [None, 4]
    assert read_key(config, "corpus.sources.b.weight") == 4
    assert weights(with_values(config, {"corpus.sources.a.weight": 2})) == [2, 4]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "corpus.sources.sst.weight=2",
            "corpus.sources.sst.weight: no source is called sst; did you mean corpus.sources.sst2.weight?",
        ),
        (
            "corpus.sources.x.weight=2",
            "corpus.sources.x.weight: no source is called x; they are intents, sst2, news",
        ),
        (
            "corpus.sources.sst2.wieght=2",
            "corpus.sources.sst2.wieght: unknown key; did you mean corpus.sources.sst2.weight?",
        ),
        (
            "corpus.sources.sst2=2",
            "corpus.sources.sst2: write it as corpus.sources.NAME.weight, with the name of a source",
        ),
        (f"{WEIGHT}=-1", f"{WEIGHT}: should be greater than or equal to 0, got -1"),
        (f"{WEIGHT}=much", f"{WEIGHT}: should be a valid number, got 'much'"),
        (
            "corpus.sources.intents.path=a.csv",
            "corpus.sources.intents.path: 2 sources are intents, and each has its own path; set it in the file",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, override: str, line: str):
    with pytest.raises(UserError) as refusal:
        load_config(mixture(tmp_path), [override])
    assert str(refusal.value) == line


def test_where_no_source_has_a_name_it_is_said_how_to_give_one(tmp_path: Path):
    config = load_config(mixture(tmp_path, {"path": "a.csv"}, {"path": "b.csv"}))
    with pytest.raises(
        UserError, match=r"no source is called b; none has a name; give it one, as in \{path: .*name: b"
    ):
        read_key(config, "corpus.sources.b.weight")


def test_text_without_labels_has_a_share_and_no_weight(tmp_path: Path):
    (tmp_path / "text.txt").write_text("A sentence.\n")
    with pytest.raises(UserError, match=r"text\.txt: weight: it has no labels, .* tasks\.smlmt_share"):
        load_config(None, [f"corpus.sources=[{tmp_path}/text.txt]", "corpus.sources.text.weight=2"])


def test_a_sweep_over_weights_uses_one_corpus(tmp_path: Path):
    space = {
        WEIGHT: {"type": "uniform", "low": 0.0, "high": 4.0},
        "corpus.sources.news.weight": {"type": "choice", "values": [0, 1, 2]},
        "meta.outer_lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2, "when": {"corpus.sources.news.weight": 1}},
    }
    config = load_config(mixture(tmp_path, sweep={"space": space, "num_trials": 4}))
    drawn = Space(config)
    assert drawn.default() == {WEIGHT: 1.0, "corpus.sources.news.weight": 1.0, "meta.outer_lr": 1e-3}
    values = drawn.random(0, 1)
    assert weights(trial_config(config, values)) == [None, None, values[WEIGHT], values["corpus.sources.news.weight"]]
    assert any("meta.outer_lr" not in drawn.random(0, index) for index in range(9))

    maker = TrialMaker(config, SweepDirectory(tmp_path / "sweep"), print)
    folder = str(tmp_path / "sweep" / "corpus")
    assert maker.resolved({WEIGHT: 3.0, "tasks.source_power": 0.5}).corpus.directory == folder
    assert maker.resolved({"tasks.n_way": [3, 4], "tasks.max_texts": 20}).corpus.directory == folder
    assert maker.resolved({"tasks.query_per_class": 2}).corpus.directory != folder
    assert RunDirectory(tmp_path / "sweep").path.exists() is False


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("corpus.sources.sst.weight", {"type": "choice", "values": [1]}, "did you mean corpus.sources.sst2.weight"),
        ("corpus.sources.sst2.path", {"type": "choice", "values": ["c.csv"]}, "its weight alone can vary"),
        (WEIGHT, {"type": "uniform", "low": -1, "high": 1}, f"{WEIGHT}: {WEIGHT}: should be greater than or equal"),
        (WEIGHT, {"type": "choice", "values": [1, "a"]}, "should be a valid number, got 'a'"),
    ],
)
def test_what_of_a_source_cannot_be_swept_is_told_in_a_line(tmp_path: Path, key: str, entry: Any, words: str):
    config = load_config(mixture(tmp_path, sweep={"space": {key: entry}}))
    with pytest.raises(UserError) as refusal:
        Space(config)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(f"sweep.space.{key}: ")
    assert len(str(refusal.value).splitlines()) == 1


def test_a_range_of_weights_is_set_on_the_command_line(tmp_path: Path):
    file = mixture(tmp_path, sweep={"space": {WEIGHT: {"type": "uniform", "low": 1, "high": 2}}})
    config = load_config(file, [f"sweep.space.{WEIGHT}.high=8"])
    assert config.sweep.space[WEIGHT].high == 8


def test_weights_and_whole_sources_are_changed_together(tmp_path: Path):
    config = load_config(mixture(tmp_path))
    sources = [{"path": str(tmp_path / "d.csv"), "name": "sst2"}]
    assert weights(with_values(config, {WEIGHT: 2.0, "corpus.sources": sources})) == [2.0]
