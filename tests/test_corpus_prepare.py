"""A prepared corpus: what the manifest counts, what is done again and what is not."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distmeta.corpus.executor import LocalExecutor
from distmeta.corpus.manifest import Manifest
from distmeta.errors import UserError
from tests.preparing import examples, prepare_small, segments, sentences, write_sentences


def parts(directory: Path) -> dict[str, int]:
    """Return when each part of the work was written, in nanoseconds."""
    return {
        str(part.parent.relative_to(directory)): part.stat().st_mtime_ns
        for part in directory.glob("work/*/*/summary.json")
    }


def test_every_row_is_kept_or_dropped_for_a_reason(tmp_path: Path) -> None:
    lines = sentences()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(
        "\n".join([*lines, lines[0], "", "bad \udcff"]).encode(errors="surrogateescape")
    )
    (tmp_path / "in/b.csv").write_text("title\nno text here\n")
    (tmp_path / "in/c.txt").write_text("")
    (tmp_path / "in/d.pdf").write_text("%PDF")
    (tmp_path / "in/README.md").write_text("# About it")
    with pytest.raises(UserError, match="3 of 4 sources cannot be read whole") as refused:
        prepare_small(tmp_path / "out", [tmp_path / "in"])
    for told in ("a.txt: .*line 243", "b.csv: has no column 'text'", "d.pdf: no reader knows the ending .pdf"):
        assert re.search(told, str(refused.value))
    assert not (tmp_path / "out/manifest.json").exists()
    manifest = prepare_small(tmp_path / "out", [tmp_path / "in"], corpus={"accept_losses": True})
    with pytest.raises(UserError, match="3 of 4 sources cannot be read whole"):  # nor what is there already
        prepare_small(tmp_path / "out", [tmp_path / "in"])
    rows = manifest.rows
    assert (rows.read, rows.kept) == (243, 240)
    assert rows.dropped == {"empty": 1, "invalid_utf8": 1, "repeat": 1}
    assert manifest.repeats == 1
    assert manifest.files_skipped == {"README.md": 1}
    a, b, c, d = manifest.sources
    assert b.problems == ["has no column 'text'; its columns are 'title'"]
    assert (c.problems, c.notes) == ([], ["empty: it has no records"])
    assert (a.places["empty"], a.places["invalid_utf8"]) == (["line 242"], ["line 243: byte 0xff after 'bad '"])
    assert [source.records for source in (a, b, c, d)] == [243, 0, 0, 0]
    assert manifest.bytes == sum(len(line) for line in lines)
    assert manifest.tokens == sum(len(row["input_ids"]) for row in segments(tmp_path / "out", manifest))
    assert Manifest.load(tmp_path / "out") == manifest
    lost = manifest.describe().splitlines()[-3:]
    assert all(line.startswith(f"lost: {tmp_path}/in/") for line in lost)
    kept_twice = prepare_small(
        tmp_path / "out2", [tmp_path / "in"], corpus={"deduplicate": False, "accept_losses": True}
    )
    assert (kept_twice.rows.kept, kept_twice.repeats) == (241, 1)


def test_nothing_that_can_be_used_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title\nx\n")
    with pytest.raises(UserError, match=r"a\.csv: has no column 'text'; its columns are 'title'"):
        prepare_small(tmp_path / "out", [tmp_path / "a.csv"])
    assert not (tmp_path / "out/manifest.json").exists()


def test_what_is_finished_is_not_done_again_and_what_changed_is(tmp_path: Path) -> None:
    for name in "abc":
        write_sentences(tmp_path / "in" / f"{name}.txt", 240)
    (tmp_path / "in/b.txt").write_text("\n".join(f"{line[:-1]} in b." for line in sentences()) + "\n")
    (tmp_path / "in/c.txt").write_text("\n".join(f"{line[:-1]} in c." for line in sentences()) + "\n")
    manifest = prepare_small(tmp_path / "out", [tmp_path / "in"])
    before = parts(tmp_path / "out")
    assert prepare_small(tmp_path / "out", [tmp_path / "in"]) == manifest
    assert parts(tmp_path / "out") == before

    changed = tmp_path / "in/b.txt"
    times = changed.stat()
    changed.write_text(changed.read_text().replace(" barn ", " shed "))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time
    again = prepare_small(tmp_path / "out", [tmp_path / "in"])
    assert again.content_digest != manifest.content_digest
    assert again.sources[0].content_hash == manifest.sources[0].content_hash
    assert any(" shed " in row["text"] for row in examples(tmp_path / "out", again))
    assert not any(
        " barn in b" in row["text"] for row in examples(tmp_path / "out", again) if row["row"].startswith("b.txt")
    )
    whole = prepare_small(tmp_path / "fresh", [tmp_path / "in"])
    assert whole.content_digest == again.content_digest
    assert set(parts(tmp_path / "out")) == set(parts(tmp_path / "fresh"))  # nothing is left of what was


def test_only_what_depends_on_a_changed_source_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmeta.corpus.ingest.UNIT_BYTES", 1)  # a unit a file, as if the files were big
    for name in "abc":
        write_sentences(tmp_path / "in" / f"{name}.txt", 240)
        file = tmp_path / "in" / f"{name}.txt"
        file.write_text(file.read_text().replace("our", name))
    options = {"tokenizer_source": str(prepare_tokenizer(tmp_path))}
    prepare_small(tmp_path / "out", [tmp_path / "in"], **options)
    before = parts(tmp_path / "out")
    (tmp_path / "in/b.txt").write_text((tmp_path / "in/b.txt").read_text().replace(" barn ", " shed "))
    prepare_small(tmp_path / "out", [tmp_path / "in"], **options)
    after = parts(tmp_path / "out")
    kept = {part for part in after if before.get(part) == after[part]}
    for step in ("records", "examples", "counts", "segments"):
        assert sum(part.startswith(f"work/{step}/") for part in kept) == 2, step
        assert sum(part.startswith(f"work/{step}/") for part in after) == 3, step


def prepare_tokenizer(tmp_path: Path) -> Path:
    write_sentences(tmp_path / "tokenizer.txt")
    prepare_small(tmp_path / "for-tokenizer", [tmp_path / "tokenizer.txt"])
    return tmp_path / "for-tokenizer/tokenizer"


KILLED = """
import os, signal, sys
from pathlib import Path
import distmeta.corpus.parts as parts
from tests.preparing import prepare_small
import distmeta.corpus.ingest as ingest
ingest.UNIT_BYTES = 1
whole = parts.write_json
def killed(path, content):
    whole(path, content)
    if len(list(Path(sys.argv[2]).glob("work/records/*/summary.json"))) >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
parts.write_json = killed
prepare_small(Path(sys.argv[2]), [Path(sys.argv[1])])
"""


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        file = write_sentences(tmp_path / "in" / f"{number}.txt", 60)
        file.write_text(file.read_text().replace("our", str(number)))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out")]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    before = parts(tmp_path / "out")
    assert len(before) == 4
    monkeypatch.setattr("distmeta.corpus.ingest.UNIT_BYTES", 1)
    manifest = prepare_small(tmp_path / "out", [tmp_path / "in"])
    after = parts(tmp_path / "out")
    finished = [part for part in before if "unfinished" not in part]
    assert finished
    assert all(after[part] == before[part] for part in finished)
    assert manifest.content_digest == prepare_small(tmp_path / "fresh", [tmp_path / "in"]).content_digest
    assert not list((tmp_path / "out").rglob("unfinished*"))


def test_the_result_is_the_same_in_another_folder(tmp_path: Path) -> None:
    for place in "xy":
        write_sentences(tmp_path / place / "in/a.txt")
    digests = {prepare_small(tmp_path / p / "out", [tmp_path / p / "in"]).content_digest for p in "xy"}
    assert len(digests) == 1


def test_files_of_unlike_length_lose_no_row(tmp_path: Path) -> None:
    """Case B2, its counting half; the other is in test_corpus_ray. There need be no classes for it."""
    for name, lines in (("a", 50), ("b", 50), ("c", 1)):
        (tmp_path / f"{name}.txt").write_text("".join(f"the {name} cat and dog number {i}\n" for i in range(lines)))
    sources = [tmp_path / f"{name}.txt" for name in "abc"]
    manifest = prepare_small(tmp_path / "out", sources, tasks={"n_way": 5}, splits=())
    assert (manifest.rows.read, manifest.rows.kept, manifest.rows.dropped) == (101, 101, {})


def test_the_corpus_needs_no_ray_torch_or_deepspeed() -> None:
    code = "import sys, distmeta.corpus.prepare; print({'ray', 'torch', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_finished_corpus_is_returned_at_once(tmp_path: Path) -> None:
    source = write_sentences(tmp_path / "a.txt")
    manifest = prepare_small(tmp_path / "out", [source])
    shutil.rmtree(tmp_path / "out/work")  # what is published is enough
    steps = []

    class Recorder(LocalExecutor):
        def map(self, function: Any, units: Any, description: str) -> Iterator[Any]:
            steps.append(description)
            return super().map(function, units, description)

    assert prepare_small(tmp_path / "out", [source], executor=Recorder()) == manifest
    assert steps == ["corpus: hashing the sources"]
    assert parts(tmp_path / "out") == {}


def test_its_own_output_and_runs_are_no_source(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_sentences(source / "a.txt")
    manifest = prepare_small(source / "run/corpus", [source])
    (source / "run/config.yaml").write_text("train: {}")
    (source / "run/environment.json").write_text("{}")
    (source / "run/metrics.jsonl").write_text('{"text": "no text of a corpus"}')
    (source / "run/corpus/manifest.json").unlink()  # as if interrupted
    assert prepare_small(source / "run/corpus", [source]) == manifest
    other = prepare_small(source / "other", [source])
    assert prepare_small(source / "third", [f"{source}/**"]).content_digest == other.content_digest
    assert [each.name for each in other.sources] == ["a.txt"]
    assert (other.input_hash, other.files_skipped) == (manifest.input_hash, {})


def test_stray_files_do_no_harm(tmp_path: Path) -> None:
    source = write_sentences(tmp_path / "a.txt")
    manifest = prepare_small(tmp_path / "out", [source])
    (tmp_path / "out/work/.DS_Store").write_text("")
    (tmp_path / "out/work/records/.DS_Store").write_text("")
    (tmp_path / "out/segments/.ipynb_checkpoints").mkdir()
    (tmp_path / "out/manifest.json").unlink()
    assert prepare_small(tmp_path / "out", [source]) == manifest


def test_a_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    source = write_sentences(tmp_path / "a.txt")
    for directory in (source, source / "corpus"):
        with pytest.raises(UserError, match=rf"corpus\.directory: {directory}: no folder can be made there"):
            prepare_small(directory, [source])


def test_the_order_of_the_sources_means_nothing(tmp_path: Path) -> None:
    """Also where files have the same name or the same texts: a corpus is its content, and so are its tasks."""
    one = sentences()
    for folder, lines in (("a", one[:120]), ("b", [f"{line[:-1]} in b." for line in one]), ("c", one[60:])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "z.txt").write_text("\n".join(one[30:90]) + "\n")
    sources = [tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "z.txt"]
    first = prepare_small(tmp_path / "out", sources)
    for number, order in enumerate(([3, 2, 1, 0], [1, 3, 0, 2])):
        other = prepare_small(tmp_path / f"out{number}", [sources[place] for place in order])
        assert other.model_dump() | {"sources": []} == first.model_dump() | {"sources": []}
        assert segments(tmp_path / f"out{number}", other) == segments(tmp_path / "out", first)
        assert examples(tmp_path / f"out{number}", other) == examples(tmp_path / "out", first)
    assert [source.name for source in first.sources] == ["text.txt", "text.txt~2", "text.txt~3", "z.txt"]


@pytest.mark.parametrize("moment", ["unfinished", "staged", "installed"])
def test_a_corpus_is_whole_whenever_what_replaces_it_is_interrupted(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one until the new one is whole; from then on the new one, if need be when it is next looked for."""
    text = write_sentences(tmp_path / "in/a.txt")
    old = prepare_small(tmp_path / "out", [text])
    before = examples(tmp_path / "out", old)
    text.write_text(text.read_text().replace(" barn ", " shed "))
    new = prepare_small(tmp_path / "fresh", [text])

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    rename = Path.rename
    patches = {
        "unfinished": ("distmeta.corpus.prepare.publish_tokenizer", killed),
        "staged": ("distmeta.corpus.prepare.install", killed),
        "installed": (
            "pathlib.Path.rename",
            lambda self, to: killed() if to.name == "tokenizer" else rename(self, to),
        ),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*patches[moment])
        with pytest.raises(Killed):
            prepare_small(tmp_path / "out", [text])

    if moment != "installed":  # while it takes its place there is none; that does not last a second
        assert Manifest.load_whole(tmp_path / "out") == old
        assert examples(tmp_path / "out", old) == before
    assert prepare_small(tmp_path / "out", [text]) == new
    assert Manifest.load_whole(tmp_path / "out") == new
    assert examples(tmp_path / "out", new) == examples(tmp_path / "fresh", new)
    assert set(os.listdir(tmp_path / "out")) == {"manifest.json", "segments", "classes", "tokenizer", "work"}
