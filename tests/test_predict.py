"""`distmeta adapt` and `distmeta predict`: from a table of examples to a table of predictions."""

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmeta import Classifier
from distmeta.adapt import command, parts
from distmeta.adapt.command import Columns, predict
from distmeta.adapt.parts import predict_parts
from distmeta.corpus.executor import LocalExecutor
from distmeta.errors import UserError
from distmeta.pipeline import write_models
from distmeta.setup import Setup
from tests.commands import DISTMETA, distmeta_here, environment
from tests.runs import begun_run, quiet
from tests.test_adapt import examples

TEXT = "bin dor topicao topicau"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a file of examples, and a classifier of both."""
    folder = tmp_path_factory.mktemp("project")
    config, run = begun_run(folder)
    write_models(Setup(config, run), run)
    with (folder / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "class"])
        writer.writerows(zip(*examples(4), strict=True))
        writer.writerow(["", "class a"])
    done = adapt(folder, "--output", "mine")
    assert done.returncode == 0, done.stderr
    (folder / "adapted.txt").write_text(done.stdout + "\n---\n" + done.stderr)
    return folder


def adapt(folder: Path, *arguments: str, examples: str = "mine.csv", label: str = "class"):
    asked = ["run", "--examples", examples, "--text-column", "sentence", "--label-column", label]
    return distmeta_here("adapt", *asked, "--seconds", "0", *arguments, cwd=folder)


def test_adapting_says_what_was_tried_and_taken(project):
    out, err = (project / "adapted.txt").read_text().split("\n---\n")
    assert out.splitlines()[0].startswith("12 examples of 3 classes, 4 to 4 of each")
    assert "meta-pretrained logistic-regression" in out
    assert "starting prototype" in out
    assert "taken: " in out
    assert "kept in mine" in out
    assert "1 rows left out: empty, the first in line 14" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"examples": "none.csv"}, "--examples none.csv: no file was found"),
        ({"label": "klass"}, "has no column 'klass'"),
    ],
)
def test_a_mistake_of_adapting_is_told_in_a_line(arguments, told, project):
    done = adapt(project, "--output", "other", **arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "other").exists()


def test_examples_of_one_class_are_refused(project, tmp_path):
    (tmp_path / "one.csv").write_text("sentence,class\na b,x\nc d,x\n")
    done = adapt(project, "--output", "other", examples=str(tmp_path / "one.csv"))
    assert done.returncode == 2
    assert "two classes or more, in 'class' all have 'x'" in done.stderr


def write_table(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = io.StringIO()
    if ".jsonl" in name:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read_table(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("written", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("read", ["in.csv", "in.tsv", "in.jsonl.gz", "in.parquet"])
def test_rows_come_back_with_label_and_probability(read, written, project, tmp_path):
    """Values stay as they stand, also those that look like numbers."""
    rows = [{"id": f"00{number}", "text": text} for number, text in enumerate([TEXT, "kast lin topicbo topicbu"])]
    source = write_table(tmp_path, read, rows)
    done = distmeta_here("predict", "mine", source, "--output", tmp_path / written, cwd=project)
    assert done.returncode == 0, done.stderr
    found = read_table(tmp_path / written)
    assert [{"id": row["id"], "text": row["text"]} for row in found] == rows
    assert [row["label"] for row in found] == ["class a", "class b"]
    assert all(1 / 3 < float(row["probability"]) <= 1 for row in found)


def test_without_an_output_rows_go_where_output_goes(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}])
    done = distmeta_here("predict", "mine", source, cwd=project)
    assert done.stdout.splitlines()[0] == "text,label,probability"
    assert done.stdout.splitlines()[1].startswith(f"{TEXT},class a,0.")


def test_a_column_of_that_name_stays(project, tmp_path):
    source = write_table(tmp_path, "in.jsonl", [{"text": TEXT, "label": "known"}])
    distmeta_here("predict", "mine", source, "--output", tmp_path / "out.jsonl", cwd=project)
    (row,) = read_table(tmp_path / "out.jsonl")
    assert (row["label"], row["predicted_label"]) == ("known", "class a")


def test_no_column_takes_the_place_of_another(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": TEXT, "label": "known", "predicted_label": "mine"}])
    distmeta_here("predict", "mine", source, "--output", tmp_path / "out.csv", cwd=project)
    (row,) = read_table(tmp_path / "out.csv")
    kept = (row["label"], row["predicted_label"], row["predicted_predicted_label"])
    assert kept == ("known", "mine", "class a")
    later = write_table(tmp_path, "in.jsonl", [{"text": TEXT}, {"text": TEXT, "label": "known"}])
    done = distmeta_here("predict", "mine", later, "--output", tmp_path / "out.jsonl", cwd=project)
    assert done.returncode == 2
    assert "a row has 'label', which the first has not" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("indent", [None, 1])
def test_json_that_is_no_lines_is_not_an_empty_table(indent, project, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps([{"text": TEXT}], indent=indent))
    done = distmeta_here("predict", "mine", tmp_path / "in.jsonl", "--output", tmp_path / "out.csv", cwd=project)
    assert done.returncode == 2
    assert "no row of it can be read: line 1: not" in done.stderr
    assert "JSON is read by lines, an object each" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_files_of_another_encoding_are_read(project, tmp_path):
    (tmp_path / "mine.csv").write_bytes("sentence,class\nbin dör,ä\nbin dor,ä\ntopica,b\n".encode("cp1252"))
    examples = str(tmp_path / "mine.csv")
    done = adapt(project, "--output", str(tmp_path / "odd"), examples=examples)
    assert done.returncode == 2
    assert "give --encoding cp1252" in done.stderr
    done = adapt(project, "--output", str(tmp_path / "odd"), "--encoding", "cp1252", examples=examples)
    assert done.returncode == 0, done.stderr
    options = ["--text-column", "sentence", "--output", tmp_path / "out.jsonl"]
    done = distmeta_here("predict", tmp_path / "odd", examples, *options, cwd=project)
    assert done.returncode == 2
    assert "give --encoding cp1252" in done.stderr
    done = distmeta_here("predict", tmp_path / "odd", examples, *options, "--encoding", "cp1252", cwd=project)
    assert done.returncode == 0, done.stderr
    assert read_table(tmp_path / "out.jsonl")[0]["class"] == "ä"
    done = distmeta_here("predict", tmp_path / "odd", examples, *options, "--encoding", "cp12", cwd=project)
    assert "--encoding: no text encoding of Python's is called 'cp12'" in done.stderr


def test_labels_that_are_doubtful_are_told(project, tmp_path):
    rows = ["bin dor,pos", "bin dor,neg", "topicao,Pos", "topicau,nan"]
    (tmp_path / "odd.csv").write_text("\n".join(["sentence,class", *rows]))
    done = adapt(project, "--output", str(tmp_path / "odd"), examples=str(tmp_path / "odd.csv"))
    assert "labels that look the same, each a class of its own: 'Pos', 'pos'" in done.stderr
    assert "label 'nan' is a class like others" in done.stderr
    assert "1 texts have several labels, the first 'bin dor': pos, neg" in done.stderr


@pytest.mark.parametrize("place", ["file/out.csv", "link/out.csv"])
def test_an_output_that_cannot_be_there_is_told(place, project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}])
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    done = distmeta_here("predict", "mine", source, "--output", tmp_path / place, cwd=project)
    assert done.returncode == 2
    assert done.stderr.startswith("distmeta: --output: ")
    done = distmeta_here(
        "adapt", "run", "--examples", "none.csv", "--label-column", "a", "--output", tmp_path / place, cwd=project
    )
    assert done.stderr.startswith("distmeta: --output: "), "before anything is read"


def test_a_full_disk_is_told(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}])
    command = [*DISTMETA, "predict", str(project / "mine"), str(source)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, timeout=120)
    assert done.returncode == 2
    assert "standard output cannot be written: [Errno 28] No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_sure_enough_or_has_no_text_has_no_label(project, tmp_path):
    source = write_table(tmp_path, "in.jsonl", [{"text": TEXT}, {"text": ""}, {"other": 1}, {"text": " \u200b"}])
    done = distmeta_here(
        "predict", "mine", source, "--output", tmp_path / "out.jsonl", "--abstain-below", "1", cwd=project
    )
    rows = read_table(tmp_path / "out.jsonl")
    assert [row["label"] for row in rows] == [None, None, None, None]
    assert rows[0]["probability"] > 0
    assert [row["probability"] for row in rows[1:]] == [None, None, None]
    assert "1 rows have no label: the probability is below 1" in done.stderr
    assert "3 rows have no text in 'text', and no label" in done.stderr


def test_a_row_that_cannot_be_read_is_told(project, tmp_path):
    (tmp_path / "in.csv").write_text(f"id,text\n1,{TEXT}\n2,a,b\n3,{TEXT}\n")
    done = distmeta_here("predict", "mine", tmp_path / "in.csv", "--output", tmp_path / "out.csv", cwd=project)
    assert [row["id"] for row in read_table(tmp_path / "out.csv")] == ["1", "3"]
    assert "left out, since it cannot be read: line 3: 3 fields, 2 wanted" in done.stderr


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("in.csv", ["--text-column", "txt"], "no column 'txt'; it has 'text'"),
        ("none.csv", [], "none.csv: no file is there"),
        ("in.csv", ["--output", "out.xlsx"], "its name must end in one of"),
        ("in.csv", ["--text-pair-column", "text"], "leave --text-pair-column out"),
        ("in.parquet", [], "in.parquet: Parquet magic bytes"),
    ],
)
def test_a_mistake_of_predicting_is_told_in_a_line(name, options, told, project, tmp_path):
    write_table(tmp_path, "in.csv", [{"text": TEXT}])
    (tmp_path / "in.parquet").write_bytes(b"no parquet at all")
    done = distmeta_here("predict", project / "mine", tmp_path / name, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "in.parquet"], "nothing is left half-written"


def test_what_breaks_off_leaves_no_output(project, tmp_path):
    whole = gzip.compress(f"text\n{TEXT}\n".encode() * 1 + f"{TEXT}\n".encode() * 5000, mtime=0)
    (tmp_path / "in.csv.gz").write_bytes(whole[:-20])
    done = distmeta_here("predict", project / "mine", tmp_path / "in.csv.gz", "--output", "out.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv.gz"]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
def test_memory_does_not_grow_with_the_table(name, project, tmp_path, monkeypatch):
    """Beyond what is predicted together; the network's part is left out, which takes texts a batch at a time."""
    monkeypatch.setattr(command, "predictions", lambda _, rows, *__: [("class a", 0.5)] * len(rows))
    peaks = []
    for rows in (10_000, 30_000):
        source = write_table(
            tmp_path, name, [{"text": f"{TEXT} {number}", "other": "x" * 100} for number in range(rows)]
        )
        tracemalloc.start()
        predict(project / "mine", source, tmp_path / f"out{source.suffix}", Columns("text"), abstain_below=0, say=quiet)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000


@pytest.mark.parametrize("written", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_table_without_rows_is_one(written, project, tmp_path):
    (tmp_path / "in.csv").write_text("text\n")
    done = distmeta_here("predict", "mine", tmp_path / "in.csv", "--output", tmp_path / written, cwd=project)
    assert done.returncode == 0, done.stderr
    assert read_table(tmp_path / written) == []


@pytest.mark.parametrize("written", ["out.csv", "out.parquet"])
def test_a_column_that_comes_later_is_not_lost_in_silence(written, project, tmp_path):
    source = write_table(tmp_path, "in.jsonl", [{"text": TEXT}, {"text": TEXT, "more": 1}])
    done = distmeta_here("predict", "mine", source, "--output", tmp_path / written, cwd=project)
    assert done.returncode == 2
    assert "a row has 'more', which the first ones have not; write JSON lines" in done.stderr
    assert not (tmp_path / written).exists()


def test_labels_that_are_numbers_stay_such(project, tmp_path):
    texts, labels = examples(2)
    made = Classifier(project / "run", method="prototype").fit(texts, [int(label == "class a") for label in labels])
    made.save(tmp_path / "numbers")
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}, {"text": ""}])
    distmeta_here("predict", tmp_path / "numbers", source, "--output", tmp_path / "out.parquet", cwd=tmp_path)
    assert [row["label"] for row in read_table(tmp_path / "out.parquet")] == [1, None]


# The page


def test_a_page_shows_what_was_seen_of_the_examples(project):
    about = json.loads((project / "mine" / "adaptation.json").read_text())
    assert (about["examples"], sum(map(sum, about["confusion"]))) == ([4, 4, 4], pytest.approx(12, abs=0.05))
    diagonal = sum(about["confusion"][number][number] for number in range(3))
    assert diagonal / 12 == pytest.approx(about["accuracy"], abs=0.01)
    assert [each["examples"] for each in about["growth"]] == [1, 2, 3]
    hardest = [each["probability"] for each in about["hardest"]]
    assert hardest == sorted(hardest)
    assert len(hardest) == 12
    done = distmeta_here("report", "mine", cwd=project)
    page = Path(done.stdout.strip()).read_text()
    for text in ("How often is it right?", "Would more examples pay?", "class b", about["hardest"][0]["text"]):
        assert text in page


def test_a_page_of_one_example_each_says_what_is_not_known(project, tmp_path):
    (tmp_path / "one.csv").write_text("sentence,class\nbin dor,a\nkast lin,b\n")
    adapt(project, "--output", str(tmp_path / "one"), examples=str(tmp_path / "one.csv"))
    page = Path(distmeta_here("report", tmp_path / "one", cwd=project).stdout.strip()).read_text()
    assert "Not known yet." in page
    assert "each class has one example, so that none could be left out" in page


# In parts


def in_parts(project: Path, files: list[Path], output: Path, format: str = "jsonl", **changes):
    said: list[str] = []
    options = {"format": format, "abstain_below": 0.0, "say": said.append} | changes
    predict_parts(LocalExecutor(), project / "mine", files, output, Columns("text"), **options)
    return said


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_parts_have_together_what_one_process_predicts(format, project, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 3)
    rows = [{"id": str(number), "text": text} for number, text in enumerate(examples(3)[0])]
    files = [write_table(tmp_path, "one.csv", rows[:7]), write_table(tmp_path, "two.csv", rows[7:])]
    said = in_parts(project, files, tmp_path / "parts", format)
    made = [path for path in sorted((tmp_path / "parts").iterdir()) if path.suffix == f".{format}"]
    assert [len(read_table(path)) for path in made] == [3, 3, 1, 2]
    assert said[-1].startswith("9 rows in 4 parts")
    whole = []
    for file in files:
        predict(project / "mine", file, tmp_path / f"whole.{format}", Columns("text"), abstain_below=0, say=quiet)
        whole += read_table(tmp_path / f"whole.{format}")
    found = [row for path in made for row in read_table(path)]
    probabilities = [[float(row.pop("probability")) for row in table] for table in (found, whole)]
    assert found == whole
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)


def test_in_bf16_probabilities_are_nearly_the_same_and_parts_are_others(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": text} for text in examples(3)[0]])
    found = []
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.jsonl"
        done = distmeta_here("predict", "mine", source, "--output", output, "--precision", precision, cwd=project)
        assert done.returncode == 0, done.stderr
        found.append([row["probability"] for row in read_table(output)])
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    in_parts(project, [source], tmp_path / "parts")
    with pytest.raises(UserError, match=r"parts of another call \(precision\)"):
        in_parts(project, [source], tmp_path / "parts", precision="bf16")
    refused = distmeta_here("predict", "mine", source, "--precision", "fp16", cwd=project)
    assert (refused.returncode, refused.stderr) == (2, "distmeta: precision: fp16 is none of fp32, bf16, auto\n")


def test_parts_that_are_there_are_not_made_again(project, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}] * 5)
    in_parts(project, [source], tmp_path / "parts")
    first, second, third = sorted((tmp_path / "parts").glob("*.jsonl"))
    first.write_text("as it was")
    second.unlink()
    said = in_parts(project, [source], tmp_path / "parts")
    assert said[0] == "2 of 3 parts are there already"
    assert first.read_text() == "as it was"
    assert len(read_table(second)) == 2
    assert len(read_table(third)) == 1


def test_parts_of_something_else_are_not_mixed(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}])
    in_parts(project, [source], tmp_path / "parts")
    with pytest.raises(UserError, match=r"parts of another call \(abstain_below\)"):
        in_parts(project, [source], tmp_path / "parts", abstain_below=0.9)
    with pytest.raises(UserError, match="something else is there"):
        in_parts(project, [source], tmp_path)
    source.write_text(source.read_text().replace("bin", "fin"))
    with pytest.raises(UserError, match=r"parts of another call \(files\)"):
        in_parts(project, [source], tmp_path / "parts")


def test_parts_of_a_classifier_with_other_names_of_its_classes_are_not_mixed(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": TEXT}])
    shutil.copytree(project / "mine", tmp_path / "mine")
    in_parts(tmp_path, [source], tmp_path / "parts")
    description = tmp_path / "mine" / "distmeta.json"
    description.write_text(description.read_text().replace("class a", "class z"))
    with pytest.raises(UserError, match=r"parts of another call \(classifier\)"):
        in_parts(tmp_path, [source], tmp_path / "parts")


def predict_job(cwd: Path, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    job = Path(__file__).parents[1] / "jobs" / "predict.py"
    command = [sys.executable, str(job), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_job_refuses_an_address(tmp_path):
    done = predict_job(tmp_path, tmp_path / "mine", tmp_path / "in.csv", "--output", "s3://bucket/parts")
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert done.stderr.startswith("predict: --output: s3://bucket/parts is an address")


@pytest.mark.slow
def test_a_job_predicts_on_a_cluster(project, tmp_path):
    source = write_table(tmp_path, "in.csv", [{"text": text} for text in examples(3)[0]])
    done = predict_job(tmp_path, project / "mine", source, "--output", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    (part,) = (tmp_path / "parts").glob("*.jsonl")
    assert [row["label"] for row in read_table(part)] == examples(3)[1]
