"""What a word is in every script, and that SMLMT hides whole words and nothing else."""

import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from distmeta.corpus import boundaries
from distmeta.corpus.boundaries import find_segments, find_word, find_words
from distmeta.corpus.manifest import Manifest
from distmeta.corpus.words import StopWords
from distmeta.errors import UserError
from distmeta.tasks.smlmt import split_at_word
from tests.preparing import examples, prepare_small

SENTENCES = {
    "English": ("The dog's 3rd BONE, don't", "the dog 3rd bone don't"),
    "other apostrophes": (
        "the dog`s and cat´s boneʼs day＇s end‘s it`ll café´s",
        "the dog and cat bone day end it café",
    ),
    "tokenized English": ("the dog 's bone do n't cost 3.50", "the dog bone do n't cost"),
    "French": ("l’homme d'été", "l’homme d'été"),
    "German": ("Die Straße müsste", "die straße müsste"),
    "Latin, decomposed": (unicodedata.normalize("NFD", "Việt möchte"), unicodedata.normalize("NFD", "việt möchte")),
    "Turkish": ("Işık İstanbul'da", "ışık istanbul'da"),
    "Greek": ("ΛΌΓΟΣ λόγος", "λόγος λόγος"),
    "Russian, with stress": ("За\u0301мок стоит", "за\u0301мок стоит"),
    "Hindi": ("हमने पढ़ा क्\u200dष।", "हमने पढ़ा क्\u200dष"),
    "Bengali": ("বাংলা ভাষা।", "বাংলা ভাষা"),
    "Tamil": ("பூனை வீட்டில்", "பூனை வீட்டில்"),
    "Arabic, with vowel signs": ("مَرْحَبًا بِكُمْ؟", "مَرْحَبًا بِكُمْ"),
    "Persian": ("می\u200cخواهم بروم", "می\u200cخواهم بروم"),
    "Hebrew, with points": ("\u200fשָׁלוֹם צה״ל\u200e", "שָׁלוֹם צה״ל"),
    "Amharic": ("ሰላም ዓለም።", "ሰላም ዓለም"),
    "Korean": ("한국어 KBS가", "한국어 kbs가"),
    "Korean, decomposed": (unicodedata.normalize("NFD", "한국어"), unicodedata.normalize("NFD", "한국어")),
    "Chinese": ("T恤3件，猫和人々", "t 恤 件 猫 和 人々"),
    "Thai": ("ฉันรักแมวและสุนัข ๑๒", "ฉัน รัก แมว และ สุนัข"),
    "Lao": ("ຂ້ອຍຮັກແມວ", "ຂ້ອຍ ຮັກ ແມວ"),
    "Khmer": ("ខ្ញុំស្រឡាញ់ឆ្មា។", "ខ្ញុំ ស្រឡាញ់ ឆ្មា"),
    "Burmese": ("ကြောင်ကို ချစ်တယ်။", "ကြောင် ကို ချစ် တယ်"),
    "Japanese": ("彼女は図書館でコンピュータを", "彼女 図書館 コンピュータ"),
    "soft hyphens": ("hy\u00adphen hyphen", "hyphen hyphen"),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_words_are_whole_in_every_script(language: str) -> None:
    text, words = SENTENCES[language]
    assert find_words(text)[0] == words.split(" ")


LEFT_OUT = {
    "ค ณ แมว": ["Thai", "Thai"],
    "猫が食べる": ["Japanese"] * 3,
    "ꦧꦱꦗꦮ ᨠᩥ᩠᩵ᨶ word": ["Javanese", "Tai Tham"],
}


@pytest.mark.parametrize("text", LEFT_OUT)
def test_what_nothing_can_tell_from_its_neighbours_is_left_out_by_script(text: str) -> None:
    assert find_words(text)[1] == LEFT_OUT[text]


ANY_TEXT = st.text(
    st.sampled_from("aéЯsS1２_＿:.'’․‧：,;， \t\n-“—猫狗のカक्षเ้ก가İıςİ\u0301\u200c\u200d\xad\u200b"), max_size=16
)


@given(ANY_TEXT | st.text(max_size=16))
def test_a_mask_touches_no_letter_of_its_word_and_no_combining_sign(text: str) -> None:
    names, _ = find_words(text)
    assert sum(len(split_at_word(text, name)) - 1 for name in set(names)) == len(names)
    for start, end, _ in find_segments(text):
        assert not regex.match(r"\p{M}", text, pos=end)
        assert regex.search(rf"[\p{{L}}\p{{Nl}}{boundaries.CHINESE}]", text[start:end])
        spaced = r"[\p{Latin}\p{Cyrillic}\p{Devanagari}\p{Hangul}]"
        if regex.fullmatch(rf"(?:{spaced}|\p{{M}})+", text[start:end]):
            beside = text[start - 1 : start], text[end : end + 1]
            assert not any(regex.fullmatch(rf"(?!\p{{M}}){spaced}|\p{{Nd}}", each) for each in beside)


SIMPLE = "aAsStre`´Я1２_＿:.'‘’․‧·：．＇,;，；猫狗 \t\né-“—。！Ａ\u3000\x85\xa0\x0b"


@given(st.text(st.sampled_from(SIMPLE), max_size=12) | st.text(st.characters(max_codepoint=0xFFFF), max_size=6))
@example("don't 's a_b 3.14a a:b U.S.'s")
@example("dog`s a`s 1`s `s` é´t")
@example("狗´s")
@example("a¸b")  # what looks like punctuation is a letter to Unicode
def test_the_pattern_for_simple_text_finds_what_the_rules_find(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "_is_simple", lambda _: False)
        segments, names = list(find_segments(text)), find_words(text)
        places = {name: find_word(text, name) for name in names[0]}
    assert list(find_segments(text)) == segments
    assert find_words(text) == names
    assert {name: find_word(text, name) for name in names[0]} == places


def test_stop_words_are_words_of_any_script() -> None:
    assert StopWords(["का", "को"]).remove("राजा का किताब को पढ़ा का") == "राजा किताब पढ़ा"
    assert StopWords(["的", "因为", "，"]).remove("他的猫，因为") == "他 猫"
    assert StopWords(["ที่"]).remove("หนังสือที่ตลาด") == "หนังสือ ตลาด"
    assert StopWords(["of course", "it"]).remove("It is, of  course, its bit") == "is, , its bit"


HINDI = ["राजा", "किताब", "पेड़", "पानी", "माँ", "बाज़ार", "दोस्त", "रास्ता", "गाँव", "कहानी"]


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_classes_and_tokens_keep_their_combining_signs(tmp_path: Path, algorithm: str) -> None:
    lines = [f"{HINDI[i % 10]} ने {HINDI[(i // 10 + i) % 10]} को {i} देखा।" for i in range(10, 100)]
    (tmp_path / "hi.txt").write_text("\n".join(lines))
    manifest = prepare_small(tmp_path / "out", [tmp_path / "hi.txt"], tokenizer={"algorithm": algorithm})
    assert {row["class"] for row in examples(tmp_path / "out", manifest)} == set(HINDI)
    assert manifest.unknown_tokens == 0
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    for word in HINDI:
        assert len(tokenizer.tokenize(word)) == 1


def test_a_script_without_word_boundaries_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"ꦧꦱꦗꦮ ꦲꦏ꧀ꦱꦫ {i} ꦧꦱ" for i in range(40)))
    with pytest.raises(UserError, match=r"meta-train has 0 classes.*are no classes: 120 of Javanese"):
        prepare_small(tmp_path / "out", [tmp_path / "a.txt"])
    assert Manifest.load(tmp_path / "out").datasets[0].words_left_out == {"Javanese": 120}
