"""The tokenizer of a prepared corpus, and how it encodes sentences and documents."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from distmeta.corpus.encoder import Encoder
from distmeta.corpus.segments import cut_document
from distmeta.errors import UserError
from tests.preparing import ANIMALS, examples, prepare_small, segments, sentences, write_sentences


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


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "llama", "distilbert", "electra", "albert"])
def test_a_model_without_the_files_of_its_tokenizer_is_refused_before_anything_is_written(
    model_type: str, tmp_path: Path
) -> None:
    """transformers would make a tokenizer to which every word is unknown, without a word."""
    from transformers import AutoConfig

    AutoConfig.for_model(model_type).save_pretrained(tmp_path / "model")
    for own in (None, {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}):
        if own:
            (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(own))
        source = [write_sentences(tmp_path / "a.txt")]
        with pytest.raises(UserError, match=r"set tokenizer.name_or_path to a folder or hub name") as refusal:
            prepare_small(tmp_path / "out", source, tokenizer_source=str(tmp_path / "model"))
        assert len(str(refusal.value).splitlines()) == 1
        assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
@pytest.mark.parametrize("strips", [False, True])
def test_folding_case_keeps_accents_and_taking_them_away_keeps_vowel_signs(
    tmp_path: Path, algorithm: str, strips: bool
) -> None:
    from transformers import AutoTokenizer

    lines = [f"Ich möchte oder mochte {line} में मां ма йод" for line in sentences(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    prepare_small(
        tmp_path / "out",
        [tmp_path / "a.txt"],
        tokenizer={"algorithm": algorithm, "strip_accents": strips},
        tasks={"min_sentences": 1000, "max_sentences": 1000},
        splits=(),
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    assert ids("MÖCHTE") == ids("möchte")
    assert (ids("möchte") == ids("mochte")) == strips
    assert (ids("йод") == ids("иод")) == strips
    assert ids("में") != ids("म")
    assert ids("मां") != ids("मा")
    assert tokenizer.unk_token_id not in ids("Möchte में йод")
    assert Encoder(tmp_path / "out/tokenizer").encode(["möchte में"]) == [ids("möchte में")[1:-1]]
