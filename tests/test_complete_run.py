"""A job that is submitted again when its run is complete tells the result, and only then."""

import json
from pathlib import Path

import pytest

from distmeta.config import to_yaml
from distmeta.pipeline import CHANGEABLE, _table_of_complete
from tests.runs import begun_run


def test_only_a_complete_run_of_the_same_configuration_has_nothing_left(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("distmeta.evaluate.table.evaluation_table", lambda report: report["table"])
    config, run = begun_run(tmp_path)
    run.config.write_text(to_yaml(config))
    run.model.mkdir(exist_ok=True)
    run.evaluation.write_text('{"table": "as it was"}')
    steps = config.train.outer_steps
    for summary, table in (
        ({"outer_step": steps - 1}, None),
        ({"outer_step": steps}, "as it was"),
        ({"outer_step": 1, "ended_early": "it had turned"}, "as it was"),
    ):
        run.summary.write_text(json.dumps(summary))
        assert _table_of_complete(config, run) == table
    other = config.model_copy(deep=True)
    other.evaluate.episodes += 1
    assert _table_of_complete(other, run) is None
    run.evaluation.unlink()
    assert _table_of_complete(config, run) is None


@pytest.mark.parametrize("key", ["wait_for_nodes", "wait_for_worker", "wait_for_storage", "num_workers"])
def test_what_a_run_waits_for_may_change_when_it_goes_on(key: str) -> None:
    assert f"train.{key}" in CHANGEABLE
