"""From directories to one HTML file that needs nothing but a browser."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from distmeta.errors import UserError
from distmeta.files import write_output
from distmeta.report.blocks import Page
from distmeta.report.classifier_page import classifier_page, is_classifier, read_classifier
from distmeta.report.compare_page import compare_page
from distmeta.report.evaluations_page import evaluations_page, has_evaluations, read_evaluations
from distmeta.report.read import read_run, read_sweep
from distmeta.report.run_page import run_page
from distmeta.report.sweep_page import sweep_page
from distmeta.sweep.directory import is_sweep


def write_report(directories: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page of a run, a sweep, evaluations, a classifier, or several runs side by side; returns the file.

    The default file is `report.html` in the first directory.

    Raises:
        UserError: a directory is neither a run nor a sweep or has nothing to show, a sweep is to stand beside others,
            or the file cannot be written.
    """
    paths = list(dict.fromkeys(path.resolve() for path in directories))
    page = _page(paths)
    file = output or paths[0] / "report.html"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html.j2").render(page=page)
    try:
        write_output(file, text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    return file


def _page(paths: Sequence[Path]) -> Page:
    if not paths:
        raise UserError("name at least one directory of a run or a sweep")
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: there is no such directory")
    sweeps = [path for path in paths if is_sweep(path)]
    if sweeps and len(paths) > 1:
        raise UserError(f"{sweeps[0]}: is a sweep, which has a page of its own; name it alone, or only runs")
    names = _names(paths)
    if len(paths) == 1 and is_classifier(paths[0]):
        return classifier_page(read_classifier(paths[0]), names[0])
    if len(paths) == 1 and has_evaluations(paths[0]):
        return evaluations_page(read_evaluations(paths[0], names[0]))
    if sweeps:
        return sweep_page(read_sweep(paths[0], names[0]))
    runs = [read_run(path, name) for path, name in zip(paths, names, strict=True)]
    return run_page(runs[0]) if len(runs) == 1 else compare_page(runs)


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    length = 1
    while True:
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
        length += 1
