"""Malformed configurations by the hundred: each is refused in lines that name what is wrong, or runs as printed."""

import logging
import re
from pathlib import Path

import pytest
import yaml

from distmeta.cluster.connect import check_workers_fit
from distmeta.config import Config, load_config, to_yaml
from distmeta.errors import UserError
from distmeta.plan.memory import check_model_states_fit, choose_weights
from distmeta.setup import resolve
from distmeta.sweep.directory import SweepDirectory
from distmeta.sweep.points import first_values
from distmeta.sweep.prepare import TrialMaker
from distmeta.sweep.run import check_options
from distmeta.sweep.space import Space
from tests.config_fuzzer import KEYS, Case, malformed, put

CASES = 300

OWN_KEY = re.compile(
    rf"""(with\ [^:]+=.*?:\ )?  # a trial of a sweep
    ({"|".join(Config.model_fields)})(\.[^:]*)?:\ .+  # its own key
    | \S*run\.yaml:\ .+ | --set\ .+  # no YAML, or no mapping
    | .*:\ unknown\ key.*""",
    re.VERBOSE,
)


def check(config: Config) -> None:
    """All that `distmeta pretrain` and `distmeta sweep` check before they write or start anything."""
    if config.sweep != type(config.sweep)():
        space = Space(config)
        check_options(config, space)
        TrialMaker(config, SweepDirectory(Path("sweep")), lambda _: None).check(first_values(space, config.sweep))
    made = resolve(config)
    check_workers_fit(made)
    choose_weights(made, lambda _: None)
    check_model_states_fit(made)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)
    (tmp_path / "a.txt").write_text("a text\n")
    return tmp_path


def outcome(case: Case, folder: Path) -> str:
    """What is said of a case; nothing where it is accepted."""
    file = folder / "run.yaml"
    file.write_bytes(case.content)
    before = sorted(folder.rglob("*"))
    try:
        config = load_config(file, case.overrides)
        check(config)
    except UserError as error:
        return str(error)
    finally:
        assert sorted(folder.rglob("*")) == before
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config
    return ""


@pytest.mark.timeout(200)
def test_malformed_configurations_are_refused_by_key_or_accepted(folder: Path) -> None:
    said: dict[int, str] = {}
    for seed in range(CASES):
        try:
            said[seed] = outcome(malformed(seed), folder)
        except Exception as error:
            pytest.fail(f"case {seed}: {type(error).__name__}: {error}")
    lines = [(seed, line) for seed, text in said.items() for line in text.splitlines()]
    assert [(seed, line) for seed, line in lines if not OWN_KEY.fullmatch(line) or len(line) > 700] == []
    accepted = sum(not text for text in said.values())
    assert 0.05 * CASES < accepted < 0.3 * CASES  # it does not refuse everything, nor do most of these run


def test_a_wrong_value_is_told_by_the_name_of_its_key(folder: Path) -> None:
    for key in KEYS:
        tree: dict[str, object] = {}
        put(tree, key, [[{"a": []}]])  # of no key's type
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(UserError) as refusal:
            load_config(folder / "run.yaml")
        assert any(line.startswith((f"{key}:", f"{key}.0")) for line in str(refusal.value).splitlines()), refusal.value
