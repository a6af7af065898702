"""Ray Data gives the same corpus as one process, on any number of CPUs (case B2)."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preparing import prepare_small, sentences, write_sentences
from tests.test_corpus_mixture import prepare_mixture, write_mixture

SCRIPT = """
import json, sys
import ray
import distmeta.corpus.ingest as ingest
from pathlib import Path
from distmeta.corpus.executor import RayExecutor
from tests.preparing import prepare_small
from tests.test_corpus_mixture import prepare_mixture

ingest.UNIT_BYTES = 1
cpus = int(sys.argv[4])
ray.init("local", num_cpus=cpus, include_dashboard=False, configure_logging=False, log_to_driver=False)
prepare_small(Path(sys.argv[2]), [Path(sys.argv[1])], executor=RayExecutor())
if cpus == 2:
    prepare_mixture(Path(f"{sys.argv[2]}-mixture"), json.loads(sys.argv[3]), executor=RayExecutor())
"""


def files_of(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for kind in ("segments", "classes", "tokenizer", "manifest.json")
        for path in [*(directory / kind).glob("*"), directory / kind]
        if path.is_file()
    }


@pytest.mark.parametrize("cpus", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_process_and_ray_make_the_same_files(cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        file = write_sentences(tmp_path / "in" / f"{number}.txt", 120)
        file.write_text(file.read_text().replace("our", str(number)))
    (tmp_path / "in/5.txt").write_text(sentences()[0])
    monkeypatch.setattr("distmeta.corpus.ingest.UNIT_BYTES", 1)
    prepare_small(tmp_path / "local", [tmp_path / "in"])
    expected = files_of(tmp_path / "local")
    mixture = write_mixture(tmp_path / "mixture")
    prepare_mixture(tmp_path / "local-mixture", mixture)
    expected_mixture = files_of(tmp_path / "local-mixture")
    assert len(json.loads((tmp_path / "local/manifest.json").read_text())["segment_parts"]) == 5
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(tmp_path / "ray"), json.dumps(mixture), str(cpus)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert files_of(tmp_path / "ray") == expected
    if cpus == 2:
        assert files_of(tmp_path / "ray-mixture") == expected_mixture
