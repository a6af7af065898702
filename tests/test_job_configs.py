"""The configurations that users start from can be read, and go together with the models that they name."""

import re
from pathlib import Path

import pytest

from distmeta.config import load_config, read_key
from distmeta.corpus.datasets import datasets_of
from distmeta.setup import resolve
from distmeta.sweep.config import SweepConfig
from distmeta.sweep.run import check_options
from distmeta.sweep.space import Space

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
IN_README = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_configuration_resolves(file: Path):
    config = load_config(file, files=False)  # data that is not in the project need not be here
    assert resolve(config).evaluate.n_way is not None
    if config.sweep != SweepConfig():
        check_options(config, Space(config))


@pytest.mark.parametrize("text", IN_README)
def test_what_the_readme_has_one_write_is_taken(text: str, tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    config = load_config(file, files=False)
    if config.sweep != SweepConfig():
        Space(config)


def test_the_mixture_is_what_its_head_says():
    file = next(file for file in FILES if file.stem == "mixture")
    config = load_config(file, ["corpus.sources.sst2.weight=2"], files=False)
    datasets = datasets_of(config.corpus, config.tasks)
    assert all(dataset.labelled and f" {dataset.name}" in file.read_text() for dataset in datasets)
    assert len(datasets) == 8
    assert [dataset.name for dataset in datasets if dataset.role != "train"] == ["clinc150"]
    assert read_key(config, "corpus.sources.sst2.weight") == 2
    most_ways = config.tasks.n_way[1]
    assert most_ways * config.tasks.fewest_texts <= config.tasks.max_texts, "as many ways as it says can be drawn"
