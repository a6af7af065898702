"""A prepared corpus: what the manifest counts, what is done again and what is not, and the tokenizer in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from distmeta.corpus.encoder import Encoder
from distmeta.corpus.executor import LocalExecutor
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.segments import cut_document
from distmeta.errors import UserError
from tests.preparing import ANIMALS, examples, prepare_small, segments, sentences, write_sentences


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
    manifest = prepare_small(tmp_path / "out", [tmp_path / "in"])
    rows = manifest.rows
    assert (rows.read, rows.kept) == (243, 240)
    assert rows.dropped == {"empty": 1, "invalid_utf8": 1, "repeat": 1}
    assert manifest.repeats == 1
    assert manifest.files_skipped == {".pdf": 1}
    problems = {source.name: source.problems for source in manifest.sources}
    assert problems == {
        "a.txt": [],
        "b.csv": ["has no column 'text'; its columns are 'title'"],
        "c.txt": ["empty: it has no records"],
    }
    assert [source.records for source in manifest.sources] == [243, 0, 0]
    assert manifest.bytes == sum(len(line) for line in lines)
    assert manifest.tokens == sum(len(row["input_ids"]) for row in segments(tmp_path / "out", manifest))
    assert Manifest.load(tmp_path / "out") == manifest
    assert "b.csv: has no column 'text'" in manifest.describe()
    kept_twice = prepare_small(tmp_path / "out2", [tmp_path / "in"], corpus={"deduplicate": False})
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


# The tokenizer


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_a_trained_tokenizer_knows_every_word_and_loads_without_network(
    tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case D1."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    manifest = prepare_small(
        tmp_path / "out", [write_sentences(tmp_path / "a.txt")], tokenizer={"algorithm": algorithm}
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    special = [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert len({*special} - {None}) == 5
    for word in ("qux", "猫", "🦊"):
        assert tokenizer(word, add_special_tokens=False)["input_ids"]
    assert len(tokenizer("qux 猫 🦊", add_special_tokens=False)["input_ids"]) >= 3
    assert tokenizer.model_max_length == 32
    assert len(tokenizer) <= 600
    assert manifest.tokenizer_tokens_added == 0
    assert max(max(row["input_ids"]) for row in examples(tmp_path / "out", manifest)) < len(tokenizer)
    for row in examples(tmp_path / "out", manifest)[:40]:
        assert tokenizer(row["text"])["input_ids"] == row["input_ids"]


@pytest.mark.parametrize("first", [0xAC00, 0x4E00, 0x2CEB0], ids=["Korean", "Chinese", "rare Chinese"])
def test_a_trained_vocabulary_is_never_larger_than_asked(tmp_path: Path, first: int) -> None:
    lines = ["".join(chr(first + (7 * i + j * j) % 400) + " " * (j % 3 == 2) for j in range(20)) for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    for name in ("one", "two"):
        no_classes = {"min_sentences": 1000, "max_sentences": 1000}
        prepare_small(tmp_path / name, [tmp_path / "a.txt"], tokenizer={"vocab_size": 300}, tasks=no_classes, splits=())
    tokenizers = [(tmp_path / name / "tokenizer/tokenizer.json").read_text() for name in ("one", "two")]
    assert tokenizers[0] == tokenizers[1]
    assert 200 < Tokenizer.from_str(tokenizers[0]).get_vocab_size() <= 300


def test_training_gives_the_same_tokenizer_in_every_process(tmp_path: Path) -> None:
    """The trainer of `tokenizers` alone breaks ties by the order of a hash table, which differs from run to run."""
    text = "\n".join(
        f"{line} 第{i}只猫和狗在{chr(0x4E00 + i * 7)}里。 naïve Łódź {i}" for i, line in enumerate(sentences())
    )
    (tmp_path / "a.txt").write_text(text)
    hashes = {
        prepare_small(tmp_path / f"out{i}", [tmp_path / "a.txt"], tokenizer={"vocab_size": 900}).tokenizer_hash
        for i in range(3)
    }
    assert len(hashes) == 1


def test_a_tokenizer_is_trained_on_an_even_bounded_sample(tmp_path: Path) -> None:
    write_sentences(tmp_path / "a.txt", 1200)  # 72 kB
    prepare_small(tmp_path / "out", [tmp_path / "a.txt"], tokenizer={"train_bytes": 20_000})
    [sample] = (tmp_path / "out/work/samples").glob("*/sample.parquet")
    sampled = pq.read_table(sample)["sentence"].to_pylist()
    assert 10_000 < sum(map(len, sampled)) < 30_000
    days = [int(sentence.split()[9]) for sentence in sampled]
    assert 0.3 < sum(day < 600 for day in days) / len(days) < 0.7


def test_a_tokenizer_without_pad_and_mask_gets_them(tmp_path: Path) -> None:
    """Case D2, as far as the tokenizer goes."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    gpt2 = byte_level_tokenizer()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=gpt2, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    wrapped.save_pretrained(tmp_path / "gpt2")
    source = str(tmp_path / "gpt2")
    manifest = prepare_small(tmp_path / "out", [write_sentences(tmp_path / "a.txt")], tokenizer_source=source)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    assert (tokenizer.pad_token, tokenizer.mask_token, manifest.tokenizer_tokens_added) == ("[PAD]", "[MASK]", 2)
    assert len(tokenizer) == len(wrapped) + 2
    for row in examples(tmp_path / "out", manifest):
        assert row["input_ids"][row["mask_position"]] == tokenizer.mask_token_id
        assert tokenizer(row["text"])["input_ids"] == row["input_ids"]


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: no tokenizer can be loaded"):
        prepare_small(tmp_path / "out", [write_sentences(tmp_path / "a.txt")], tokenizer_source=str(tmp_path / "none"))


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    source = write_sentences(folder / "a.txt")
    prepare_small(folder / "out", [source], tokenizer={"algorithm": request.param, "lowercase": request.param != "bpe"})
    return Encoder(folder / "out/tokenizer")


@settings(deadline=None)
@given(
    text=st.text(st.sampled_from("aA bç.,'‘ \u0301\t\n\u3000猫龦ﬁßİΣ12[MASK]\x1c"), max_size=30) | st.text(max_size=40)
)
@example(text="one\x1ctwo")  # white space to Python, nothing to BERT
@example(text="three\u200bfour猫\u2028five")
@example(text="a long" + "word" * 20 + " and a  gap")
def test_remembered_stretches_give_the_ids_of_the_whole(encoder: Encoder, text: str) -> None:
    [ids] = encoder.encode([text])
    assert ids == encoder.tokenizer.encode(text, add_special_tokens=False).ids
    assert encoder.mask_id not in ids  # a special token that is spelled out is text


def test_special_tokens_are_found_whatever_the_tokenizer_knows(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE({"[CLS]": 0, "[SEP]": 1, "d": 2}, []))  # of "a" it makes nothing
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", pad_token="[PAD]")
    wrapped.save_pretrained(tmp_path / "words")
    encoder = Encoder(tmp_path / "words")
    assert (encoder.prefix, encoder.suffix, encoder.encode(["a d"])) == ([0], [1, 1], [[2]])
    assert encoder.mask_id == wrapped.mask_token_id > 2
    settings = json.loads((tmp_path / "words/tokenizer_config.json").read_text())
    (tmp_path / "words/tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": "<absent>"}))
    with pytest.raises(UserError, match=r"words: the mask token '<absent>' has no id in tokenizer\.json"):
        Encoder(tmp_path / "words")


# Hierarchical encoding


@given(st.lists(st.lists(st.integers(0, 99), max_size=12), max_size=12), st.integers(1, 8))
def test_segments_know_where_they_belong(document: list[list[int]], room: int) -> None:
    tokens = [each for sentence in document for each in sentence]
    starts = {sum(map(len, document[:number])): number for number in reversed(range(len(document))) if document[number]}
    position = 0
    for segment in cut_document(document, room):
        assert segment.token_start == position
        assert 0 < len(segment.input_ids) <= room
        assert segment.input_ids == tokens[position : position + len(segment.input_ids)]
        inside = [start - position for start in sorted(starts) if position <= start < position + len(segment.input_ids)]
        assert segment.sentence_offsets == inside
        last_start = max(start for start in starts if start <= position)
        assert segment.sentence == starts[last_start]
        position += len(segment.input_ids)
    assert position == len(tokens)


def test_a_document_is_encoded_as_its_segments(tmp_path: Path) -> None:
    text = " ".join(f"The {animal} went home." for animal in ANIMALS)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    write_sentences(tmp_path / "b.txt")
    manifest = prepare_small(tmp_path / "out", [tmp_path / "a.jsonl", tmp_path / "b.txt"], max_length=16)
    document = [row for row in segments(tmp_path / "out", manifest) if row["document"] == "a.jsonl:1"]
    assert [row["segment"] for row in document] == list(range(len(document)))
    assert len(document) > 3
    assert all(len(row["input_ids"]) <= 14 for row in document)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [each for row in document for each in row["input_ids"]] == whole


def test_stop_words_and_normal_form_are_asked_for(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "a.txt").write_text("\n".join(sentences()).replace("long", "ｌｏｎｇ"))
    options = {"remove_stop_words": True, "normalize": "NFKC"}
    manifest = prepare_small(tmp_path / "out", [tmp_path / "a.txt"], corpus=options)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    [first, *_] = segments(tmp_path / "out", manifest)
    assert tokenizer.decode(first["input_ids"]) == "cat went barn day number 0 long walk."
    classes = {row["class"] for row in examples(tmp_path / "out", manifest)}
    assert "cat" in classes
    assert not classes & {"the", "on", "of", "our"}
    assert " the " in examples(tmp_path / "out", manifest)[0]["text"]  # as people read it


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
