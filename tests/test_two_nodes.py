"""A run on two nodes that share nothing but a bucket: `ray job submit` prepares, trains, exports and evaluates."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.commands import distmeta, read_rows
from tests.corpora import tiny_config, write_labelled_csv
from tests.test_cluster_scripts import ROOT, environment
from tests.training import is_measured

STEPS = 20
JOBS = """
set -e
cd "$1"
for stage in 2 3; do
  ray job submit --working-dir . -- python jobs/pretrain.py --config run.yaml --run-dir s3://two-nodes/run-$stage \
    --set engine.zero_stage=$stage
done
ray job submit --working-dir . -- python jobs/pretrain.py --config run.yaml --run-dir s3://two-nodes/run-3 \
  --set engine.zero_stage=3
python -c "
import pyarrow.fs
bucket = pyarrow.fs.FileSystem.from_uri('s3://two-nodes')[0]
pyarrow.fs.copy_files('two-nodes', '$2', source_filesystem=bucket)
"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root, and iproute2")
def test_two_nodes_that_share_nothing_but_a_bucket_come_to_what_one_does(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name in ("distmeta", "jobs"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_labelled_csv(work / "texts.csv")
    train = {"outer_steps": STEPS, "checkpoint_every": 5, "num_workers": 2, "validate_every": 10}
    settings = tiny_config(Path("texts.csv"), tracking={"wandb": "offline"})
    settings["train"] |= train
    (work / "run.yaml").write_text(yaml.safe_dump(settings))
    distmeta("pretrain", "--config", "run.yaml", "--run-dir", "one", "--set", "train.cpus_per_worker=0.5", cwd=work)
    there = tmp_path / "bucket"
    there.mkdir()
    script = [str(ROOT / "clusters" / "two-nodes.sh"), "--separate-files", "--", "bash", "-c", JOBS, "jobs"]
    done = subprocess.run(
        [*script, str(work), str(there)], env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "network interface between the nodes: eth0 on 10.231." in done.stdout
    assert "s3://two-nodes/run-3: the run is complete" in done.stdout
    expected = read_rows(work / "one")
    table = json.loads((work / "one/evaluation.json").read_text())["methods"]
    for stage in (2, 3):
        run = there / f"run-{stage}"
        rows = read_rows(run)
        assert [row["outer_step"] for row in rows] == list(range(1, STEPS + 1))
        for row, other in zip(rows, expected, strict=True):
            for key in filter(lambda key: not is_measured(key), other):
                assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), (stage, key)
        found = json.loads((run / "evaluation.json").read_text())["methods"]
        assert [each["accuracy"] for each in found] == pytest.approx([each["accuracy"] for each in table], abs=1e-9)
        for file in ("model/model.safetensors", "summary.json", "corpus/manifest.json", "wandb.json"):
            assert (run / file).exists(), file
        assert list(run.glob("wandb/offline-run-*/*.wandb"))
        assert len(list(run.glob("checkpoints/checkpoint_*/checkpoint.json"))) == 2
