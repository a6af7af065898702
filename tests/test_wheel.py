"""The package as others install it: a wheel, tried from an empty folder with nothing of this checkout on the path."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distmeta import Classifier
from distmeta.pipeline import write_models
from distmeta.setup import Setup
from tests.runs import begun_run
from tests.test_adapt import examples

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, beside the packages of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves folders behind
    shutil.copytree(ROOT / "distmeta", source / "distmeta", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("distmeta-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"distmeta/py.typed", "distmeta/report/page.html.j2"} <= set(names)
    assert not any(name.startswith(("tests/", "jobs/")) for name in names)
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return target


def run_installed(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder with the installed package in front of everything."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_its_command_adapts_predicts_and_reports(installed, tmp_path):
    config, run = begun_run(tmp_path)
    write_models(Setup(config, run), run)
    texts, labels = examples(2)
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    script = [sys.executable, str(installed / "bin" / "distmeta")]
    for arguments in (
        ["adapt", "run", "--examples", "mine.csv", "--label-column", "label", "--output", "mine", "--seconds", "0"],
        ["predict", "mine", "mine.csv", "--output", "out.csv"],
        ["report", "mine"],
    ):
        done = run_installed(installed, tmp_path, *script, *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "report.html").exists()
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 7


def test_it_is_the_installed_one_that_runs_and_a_job_uses_it(installed, tmp_path):
    where = run_installed(installed, tmp_path, sys.executable, "-c", "import distmeta; print(distmeta.__file__)")
    assert where.stdout.startswith(str(installed))
    job = run_installed(installed, tmp_path, sys.executable, str(ROOT / "jobs" / "pretrain.py"), "--help")
    assert job.returncode == 0, job.stderr
    assert "meta-pretrain" in job.stdout


def test_setfit_takes_the_network_for_its_body(tmp_path):
    setfit = pytest.importorskip("setfit", reason="setfit is not installed")
    config, run = begun_run(tmp_path)
    write_models(Setup(config, run), run)
    base = Classifier(run.path).fit(*examples(2)).base_
    body = setfit.SetFitModel.from_pretrained(str(run.model)).model_body
    assert body.encode(["bin dor"]).shape == (1, base.scorer.network.hidden_size)
