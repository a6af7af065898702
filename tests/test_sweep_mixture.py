"""A whole sweep over the weights of a mixture's sources and a rate, on real Ray Tune, and its page."""

import html
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from distmeta.config import load_config, read_key
from tests.commands import distmeta, distmeta_here
from tests.corpora import tiny_config, write_labelled_csv
from tests.wandb_files import offline_records

FIRST, SECOND, RATE = "corpus.sources.first.weight", "corpus.sources.second.weight", "meta.outer_lr"


@pytest.mark.slow
def test_a_sweep_over_source_weights_and_a_rate(tmp_path: Path):
    sources = []
    for name in ("first", "second", "third"):
        write_labelled_csv(tmp_path / f"{name}.csv", classes=18, rows=12 + len(sources))
        sources.append({"name": name, "path": f"{name}.csv"})
    space = {
        FIRST: {"type": "grid", "values": [0, 3]},
        SECOND: {"type": "choice", "values": [0]},
        RATE: {"type": "loguniform", "low": 1e-4, "high": 1e-2},
    }
    tree = tiny_config(
        tmp_path,
        train={"outer_steps": 6, "checkpoint_every": 3, "validate_every": 3, "validate_episodes": 4},
        tracking={"wandb": "offline"},
        sweep={"num_trials": 3, "scheduler": "none", "space": space},
    )
    tree["corpus"] = {"sources": sources}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    done = distmeta("sweep", "--config", "sweep.yaml", "--run-dir", "sweep", cwd=tmp_path)
    sweep = tmp_path / "sweep"
    rows = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["finished"] * 3, done.stdout
    assert rows[0]["config"] == {FIRST: 1.0, SECOND: 1.0, RATE: 1e-3}
    assert {row["config"][FIRST] for row in rows[1:]} == {0, 3}

    assert len(list(sweep.glob("corpus*"))) == 1, "weights make no other corpus"
    for row in rows:
        trial = sweep / "trials" / row["trial_id"]
        config = load_config(trial / "config.yaml", check=False)
        assert {key: read_key(config, key) for key in row["config"]} == row["config"]
        shown = distmeta_here("tasks", "--run-dir", trial, "--count", "24", "--json", cwd=tmp_path).stdout
        drawn = Counter(json.loads(line)["source"] for line in shown.splitlines())
        assert set(drawn) == {name for name in ("first", "second", "third") if weight_of(row["config"], name)}
        recorded = {
            item.key: json.loads(item.value_json)
            for record in offline_records(trial)
            for item in record.run.config.update
        }
        assert {key: recorded[key] for key in row["config"]} == row["config"]

    page = (sweep / "report.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert f"trial {FIRST} {SECOND} {RATE}" in re.sub(r"\s+", " ", text)
    assert "weight of first" in page
    assert "Accuracy over meta.outer_lr" in page or "outer learning rate" in page


def weight_of(values: dict[str, float], name: str) -> float:
    return values.get(f"corpus.sources.{name}.weight", 1.0)
