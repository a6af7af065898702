"""In a job: what would be deleted with its copy of the code, and what was never uploaded."""

from pathlib import Path

import pytest

from distmeta.errors import UserError
from distmeta.opening import open_run
from distmeta.sweep.command import open_sweep

COPY = "runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef"


@pytest.mark.parametrize("opened", [open_run, open_sweep])
def test_nothing_is_written_where_ray_deletes_it(opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / COPY
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for run_dir in (None, Path("runs/demo")):
        with pytest.raises(UserError, match=r"--run-dir: .* which Ray deletes: give an absolute path"):
            opened(None, [], run_dir)
    with pytest.raises(UserError, match=r"corpus.directory: .* which Ray deletes"):
        opened(None, ["corpus.directory=corpus"], tmp_path / "run")
    with pytest.raises(UserError, match=r"configs/mine.yaml: is not in the job's copy .* what git ignores"):
        opened(Path("configs/mine.yaml"), [], tmp_path / "run")
    with pytest.raises(UserError, match="cannot be read"):  # elsewhere a file that is not there is just that
        opened(tmp_path / "mine.yaml", [], tmp_path / "run")
    opened(None, [], tmp_path / "run")
