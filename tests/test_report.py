"""The page: what it says, and the file that it is."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distmeta.errors import UserError
from distmeta.report import write_report
from distmeta.report.drawing import LINES, MOST_POINTS
from distmeta.report.sweep_pictures import pareto_front
from distmeta.report.units import count, duration, money, percent
from tests.report_data import Elements, make_run, make_sweep, metrics_rows, write_lines


def text_of(file: Path) -> str:
    """What a page says, with single spaces."""
    body = file.read_text(encoding="utf-8").partition("<body>")[2].partition("<script>")[0]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def headings(file: Path) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<h[23]>(.*?)</h", file.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "rates")


# --- what a page says --------------------------------------------------------------------------------------------


def test_the_page_of_a_run(run: Path) -> None:
    file = write_report([run])
    assert file == run / "report.html"
    text, summary = text_of(file), json.loads((run / "summary.json").read_text())
    assert "Yes: 72.0 ± 2.1 by logistic-regression, better than the strongest rival, tf-idf" in text
    assert "Multi-task training was not run." in text
    assert "inner-loop: better than starting by 46.0 ± 3.0 points." in text
    assert "Highest accuracy of the table: meta-pretrained logistic-regression, 72.0 ± 2.1%." in text
    assert f"step {summary['best_step']}" in text
    assert f"{100 * summary['best_score']:.1f} ± 2.5%" in text
    assert "2 min 30 s" in text
    assert "0.12 EUR" in text
    assert "913 MiB" in text
    assert re.search(r"worker time 4 min 30 s 5 min 0 s 1\.11", text), "plan, reality and their ratio"
    assert re.search(r"meta-pretrained prototype 71\.0 ± 2\.1% – \+46\.0 ± 3\.0", text)
    assert "running mean over 27 steps" in text
    assert f"early in training (steps 61 to {60 + 54})" in text
    for phase in ("data", "inner", "outer", "communication", "optimizer", "validation", "checkpoint"):
        assert re.search(rf"\b{phase} \d+\.\d%", text), phase
    assert "inner_lr: 0.05" in text
    assert "Left out" not in headings(file)
    titles = ("Query accuracy in training", "The inner loop", "Accuracy on meta-valid classes", "Time by phase")
    assert set(titles) <= set(headings(file))


def test_the_page_of_a_sweep(sweep: Path) -> None:
    file = write_report([sweep])
    text = text_of(file)
    assert "Trial 0003. Better than the default? Yes, in every use of the network." in text
    assert re.search(r"0003 best 0\.12 0\.0021 finished", text)
    assert "0000 default" in text
    assert "diverged query loss nan at outer step 100" in text
    assert "RayActorError: <no more memory>" in text
    assert "saved by the scheduler 47.4%" in text
    assert "11.8 s for trial 0000, the first one; 2.75 s for the middle one of the 12 later ones" in text
    assert re.search(r"trial 0003 72\.\d ± 2\.5% 70\.\d ± 2\.1% -2\.0", text), "the winner's luck"
    titles = ("Accuracy over the plane that is swept", "Accuracy against cost", "The winner's luck", "Settings")
    assert set(titles) <= set(headings(file))
    assert "cost (EUR)" in text
    assert "Left out" not in headings(file)


def test_the_page_of_several_runs(run: Path, tmp_path: Path) -> None:
    second = make_run(tmp_path / "second-order", steps=300, peak=0.8, meta__algorithm="maml")
    file = write_report([run, second, run], tmp_path / "new" / "both.html")
    text = text_of(file)
    assert "second-order, with 78.0 ± 2.1% (inner-loop)." in text
    assert "demo finished after 600 outer steps" in text
    assert "second-order ended early, at outer step 300 of 600" in text
    assert re.search(r"meta\.algorithm fomaml maml", text)
    assert "Query accuracy after adaptation" in headings(file)
    evaluation = json.loads((second / "evaluation.json").read_text())
    (second / "evaluation.json").write_text(json.dumps(evaluation | {"k_shot": 1}))
    assert "They can't be ranked" in text_of(write_report([run, second]))


def test_evaluations_are_told_by_their_classes_and_ways(sweep: Path, tmp_path: Path) -> None:
    """Beside each other as well, and never as of held-out classes where they are of others."""
    runs = [make_run(tmp_path / name, steps=20) for name in ("one", "two")]
    for run in runs:
        file = run / "evaluation.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"split": "train", "k_shot": 1}))
    text = text_of(write_report(runs))
    assert "Not known. On the classes that they were trained on: " in text
    assert text.count("meta-train, 5-way 1-shot") == 2
    file = write_report([runs[0]])
    assert "Accuracy on meta-train classes" in headings(file)
    assert "Not known: the evaluation is of the classes that it was trained on." in text_of(file)
    assert "held-out" not in text_of(file)
    assert "meta-test (fresh)" in text_of(write_report([sweep]))
    other = make_sweep(tmp_path / "sweep")
    file = other / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"split": "train"}))
    text = text_of(write_report([other]))
    assert "meta-train (not fresh)" in text
    assert "meta-test (fresh)" not in text


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "run", steps=20) for folder in ("first", "second")]
    assert "first/run, second/run" in text_of(write_report(runs))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("summary.json", "evaluation.json", "plan.json"):
        (run / name).unlink()
    write_lines(run / "metrics.jsonl", metrics_rows(80, warmup=60))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"outer_step": 81, "query_lo')  # being written
    text = text_of(write_report([run]))
    assert "not finished: at outer step 80 of 600" in text
    assert "Not known yet: there is no evaluation." in text
    assert "best so far step" in text
    assert "the few-shot table: there is no evaluation yet" in text
    assert "plan beside reality: there is no plan.json" in text
    assert "cost" not in text.partition("Learning curves")[0]


def test_files_of_an_old_run_and_of_one_without_validation(tmp_path: Path) -> None:
    """Rows without the newer keys, no tasks yet, a summary of which half is written: left out, and said."""
    run = tmp_path / "old"
    run.mkdir()
    rows = [
        {"outer_step": step, "training/lm_loss": 5.0, "time/step": 0.1, "not_finite": ["training/grad_norm"]}
        for step in range(1, 6)
    ]
    write_lines(run / "metrics.jsonl", rows)
    (run / "summary.json").write_text('{"outer_step": 5, "best')
    text = text_of(write_report([run]))
    for said in (
        "old/summary.json is damaged, or was being written",
        "query accuracy: no step has had a task yet",
        "the inner-loop curve: no step has had an inner loop",
        "accuracy on meta-valid classes: there is no validation",
        "time by phase: was not recorded",
        "the settings: there is no config.yaml",
    ):
        assert said in text
    assert not re.search(r"\b0\.0%|\bnan\b|\bNone\b", text)


def test_an_algorithm_without_an_inner_loop(tmp_path: Path) -> None:
    run = make_run(tmp_path / "prototypes")
    inner = ("training/query_accuracy_before", "training/support_loss", "training/inner_lr")
    rows = [{key: value for key, value in row.items() if key not in inner} for row in metrics_rows(80)]
    write_lines(run / "metrics.jsonl", rows)
    file = write_report([run])
    assert "Query accuracy in training" in headings(file)
    assert "the inner-loop curve: no step has had an inner loop" in text_of(file)


def test_a_price_that_is_not_set_is_no_zero(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"cost": 0.0}))
    text = text_of(write_report([run]))
    assert "cost no price is set" in text
    assert "0.00 EUR" not in text
    sweep = make_sweep(tmp_path / "sweep")
    rows = [json.loads(line) | {"cost": 0.0} for line in (sweep / "trials.jsonl").read_text().splitlines()]
    write_lines(sweep / "trials.jsonl", rows)
    (sweep / "summary.json").unlink()
    text = text_of(write_report([sweep]))
    assert "cost no price is set" in text
    assert "worker-seconds" in text
    assert "Trial 0003 is best so far." in text


def test_a_sweep_that_goes_on(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", ended=False)
    text = text_of(write_report([sweep]))
    assert "1 running, 1 interrupted" in text
    assert re.search(r"0012 0\.\d+ 0\.\d+ running – – – 200", text)
    assert "the meta-test table and the winner's luck: there is no evaluation yet" in text
    rows = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    write_lines(sweep / "trials.jsonl", [row for row in rows if row["status"] in ("failed", "diverged")])
    assert "Not known yet: no trial has come to a result." in text_of(write_report([sweep]))


def test_other_keys_than_the_learning_rates(tmp_path: Path) -> None:
    """One numeric key beside one of words: accuracy over the one, and a column for each."""
    sweep = make_sweep(tmp_path / "sweep")
    rows = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["config"] = {"meta.inner_steps": 1 + number % 4, "meta.algorithm": ("maml", "fomaml")[number % 2]}
    write_lines(sweep / "trials.jsonl", rows)
    file = write_report([sweep])
    assert "Accuracy over meta.inner_steps" in headings(file)
    assert "Other keys vary, too: meta.algorithm." in text_of(file)
    for row in rows:
        row["config"].pop("meta.inner_steps")
    write_lines(sweep / "trials.jsonl", rows)
    assert "accuracy over the swept values: no numeric key" in text_of(write_report([sweep]))


def test_the_weights_of_sources_beside_a_rate(tmp_path: Path) -> None:
    """The plane has two keys; each other one has a picture of its own, and names its source."""
    sweep = make_sweep(tmp_path / "sweep")
    rows = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    keys = [f"corpus.sources.{name}.weight" for name in ("sst2", "news.v1", "intents")]
    for number, row in enumerate(rows):
        values = (number % 4, 1.5 * (number % 3), 2)
        row["config"] = {"meta.outer_lr": 1e-4 * (1 + number), **dict(zip(keys, values, strict=True))}
    write_lines(sweep / "trials.jsonl", rows)
    file = write_report([sweep])
    assert "Accuracy over the plane that is swept" in headings(file)
    assert "Accuracy over weight of news.v1" in headings(file)
    assert "Accuracy over weight of intents" not in headings(file), "it has one value alone"
    assert f"Other keys vary, too: {keys[1]}, {keys[2]}." in text_of(file)
    assert re.search(rf"trial meta.outer_lr {'.*'.join(map(re.escape, keys))}", text_of(file))


def test_directories_that_show_nothing(run: Path, sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such directory"):
        write_report([tmp_path / "missing"])
    with pytest.raises(UserError, match="neither a run nor a sweep"):
        write_report([tmp_path])
    (tmp_path / "config.yaml").write_text("meta: {}\n")
    with pytest.raises(UserError, match="nothing to show yet"):
        write_report([tmp_path])
    with pytest.raises(UserError, match=r"rates: is a sweep.*name it alone"):
        write_report([run, sweep])
    (tmp_path / "trials.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to show yet; try again when a trial has begun"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="cannot be written"):
        write_report([run], tmp_path)


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_the_file_stands_alone(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Nothing is loaded, names in drawings don't collide, and the same data make the same file."""
    directory = request.getfixturevalue(kind)
    page = write_report([directory], tmp_path / "page.html").read_text(encoding="utf-8")
    assert write_report([directory], tmp_path / "again.html").read_text(encoding="utf-8") == page
    found = Elements(page).found
    for tag, attributes in found:
        assert tag not in ("link", "img", "image", "iframe", "object", "style") or (tag == "style" and not attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred
    assert referred <= set(ids)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    drawings = [attributes for tag, attributes in found if tag == "svg"]
    assert len(drawings) >= 5
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


def test_text_from_files_stays_text(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>$\\frac{1}{2}$\"'>"
    run = make_run(tmp_path / "a<b>", steps=20, model__name_or_path=attack)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["methods"][0]["name"] = attack
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    sweep = make_sweep(tmp_path / "sweep")
    rows = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["config"] = {attack: number / 7, "model.name_or_path": attack}
        row["reason"] = attack
    write_lines(sweep / "trials.jsonl", rows)
    for file in (write_report([run]), write_report([sweep])):
        page = file.read_text(encoding="utf-8")
        assert page.count("<script") == 1
        drawn = html.unescape(" ".join(re.findall(r"<text[^>]*>(.*?)</text>", page)))
        assert attack in drawn
        assert attack in text_of(file)


def test_a_long_run_makes_no_heavy_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100)
    rows = metrics_rows(20_000)
    write_lines(run / "metrics.jsonl", rows)
    file = write_report([run])
    assert file.stat().st_size < 400_000
    lines = re.findall(r'<path d="(M[^"]*)"', file.read_text(encoding="utf-8"))
    assert 300 < max(line.count("L") for line in lines) <= 2 * MOST_POINTS


def test_the_page_says_where_weights_and_biases_has_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=10)
    assert "Weights &amp; Biases" not in write_report([run]).read_text(encoding="utf-8")
    (run / "wandb" / "offline-run-1-abc").mkdir(parents=True)
    (run / "wandb.json").write_text('{"run_id": "abc", "url": "https://wandb.invalid/me/shots/runs/abc"}')
    page = write_report([run]).read_text(encoding="utf-8")
    assert "W&amp;B: https://wandb.invalid/me/shots/runs/abc" in page
    assert f"wandb sync {run}/wandb/offline-run-1-abc" in page


def test_the_page_needs_neither_ray_nor_torch(run: Path) -> None:
    heavy = ["torch", "ray", "deepspeed", "transformers", "matplotlib.pyplot"]
    code = (
        "import sys, pathlib; from distmeta.report import write_report; write_report([pathlib.Path(sys.argv[1])]); "
        f"sys.exit([name for name in {heavy} if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- parts -------------------------------------------------------------------------------------------------------


def test_pareto_front() -> None:
    points = [(2.0, 0.6), (1.0, 0.5), (3.0, 0.55), (2.0, 0.7), (4.0, 0.7), (5.0, 0.8)]
    assert pareto_front(points) == [(1.0, 0.5), (2.0, 0.7), (5.0, 0.8)]


def test_numbers_as_people_read_them() -> None:
    assert [duration(value) for value in (0.451, 59.96, 61, 3600 * 5.2, 86400 * 2.1)] == [
        "0.45 s",
        "60.0 s",
        "1 min 1 s",
        "5 h 12 min",
        "2 d 2 h",
    ]
    assert [money(value, "USD") for value in (12.4, 0.0101, 0.00000123)] == ["12.40 USD", "0.01 USD", "0.0000012 USD"]
    assert [count(value) for value in (12800, 1.09e12)] == ["12,800", "1.09 × 10¹²"]
    assert [percent(None), percent(0.674), percent(0.674, 0.023)] == ["–", "67.4%", "67.4 ± 2.3%"]


def test_lines_differ_without_colour() -> None:
    assert len({(line["linestyle"], line["marker"]) for line in LINES}) == len(LINES)
