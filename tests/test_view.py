"""The saved view: what it refuses. What it shows is held where runs and sweeps are made."""

import json
from pathlib import Path

import pytest

from distmeta.errors import UserError
from distmeta.tracking import view
from distmeta.tracking.view import Panel, panels, save_view
from tests.runs import begun_run


def test_a_panel_of_which_nothing_is_there_is_left_out():
    sections = {
        "some": [Panel("lines", "a", ("one", "two")), Panel("lines", "b", ("three",))],
        "none": [Panel("scatter", "c", ("one",), x="cost")],
    }
    assert list(panels(sections, {"one"})) == [("some", [Panel("lines", "a", ("one",))])]


def test_nothing_or_an_unknown_owner_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(UserError, match="there is no run and no sweep"):
        save_view(tmp_path)
    _, run = begun_run(tmp_path)
    with pytest.raises(UserError, match=r"whose project it is in is not known.*WANDB_ENTITY"):
        save_view(run.path)


def test_it_is_saved_where_the_run_is_and_a_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, run = begun_run(tmp_path)
    (run.path / "wandb.json").write_text(json.dumps({"run_id": "a1", "url": "https://wandb.invalid/me/shots/runs/a1"}))
    saved = []

    class Saved:
        url = "https://wandb.invalid/me/shots?nw=1"

        def save(self) -> None:
            saved.append(True)

    def build(entity: str, project: str, *_: object) -> Saved:
        assert (entity, project) == ("me", "shots")
        return Saved()

    monkeypatch.setattr(view, "build", build)
    assert (save_view(run.path), saved) == (Saved.url, [True])

    def refused(_: Saved) -> None:
        raise ValueError("permission denied\nand more")

    monkeypatch.setattr(Saved, "save", refused)
    with pytest.raises(UserError, match=r"^view: W&B does not take it \(ValueError: permission denied\)$"):
        save_view(run.path)
