"""Sentence splitting, words and stop words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmeta.corpus.boundaries import find_words
from distmeta.corpus.sentences import split_sentences
from distmeta.corpus.words import StopWords, load_stop_words, near_key, text_key
from distmeta.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.14 to J. R. Jones. He left.", ["Dr. Smith paid $3.14 to J. R. Jones.", "He left."]),
        ('"Really?" she said. "Yes!" Bob replied.', ['"Really?" she said.', '"Yes!"', "Bob replied."]),
        ("See e.g. Fig. 3. The end", ["See e.g. Fig. 3.", "The end"]),
        ("It is so... Then it was not?! No.", ["It is so...", "Then it was not?!", "No."]),
        ("1. Begin here. Go on at 5 p.m. today.", ["1. Begin here.", "Go on at 5 p.m. today."]),
        ("the film . it was good ! yes .", ["the film .", "it was good !", "yes ."]),
        ("A heading\n\nA line\nand its end. More.", ["A heading", "A line\nand its end.", "More."]),
        (
            "他说：“走吧。”然后离开了！真的吗？？好吧……再见。",
            ["他说：“走吧。”", "然后离开了！", "真的吗？？", "好吧……", "再见。"],
        ),
        ("“你好！”，他说。", ["“你好！”，他说。"]),
        ("I like 猫。It is small. 狗也好！", ["I like 猫。", "It is small.", "狗也好！"]),
        ("हमने पाया। तुमने सुना॥ है", ["हमने पाया।", "तुमने सुना॥", "है"]),
        ("هل هو؟ نعم، قال. كتب۔ ثم", ["هل هو؟", "نعم، قال.", "كتب۔", "ثم"]),
        ("ሰላም። እንዴት ነህ፧ ደህና", ["ሰላም።", "እንዴት ነህ፧", "ደህና"]),
        ("Բարեւ։ Ես եմ։", ["Բարեւ։", "Ես եմ։"]),
        ("စာဖတ်သည်။ ကျောင်း", ["စာဖတ်သည်။", "ကျောင်း"]),
        ("ខ្ញុំទៅ។ ឆ្មា៕", ["ខ្ញុំទៅ។", "ឆ្មា៕"]),
        ("བོད་སྐད། །སྐད་ཡིག།", ["བོད་སྐད། །", "སྐད་ཡིག།"]),
        ("Τι κάνεις; Καλά. Πού\u037e Εδώ a; B", ["Τι κάνεις;", "Καλά.", "Πού\u037e", "Εδώ a; B"]),
        ("ის წავიდა. მან ნახა? კი", ["ის წავიდა.", "მან ნახა?", "კი"]),
        ("וַיְהִי אוֹר׃ וַיַּרְא", ["וַיְהִי אוֹר׃", "וַיַּרְא"]),
        ("はい！？「ええ。」3．5円．次", ["はい！？", "「ええ。」", "3．5円．", "次"]),
        ("А. С. Пушкин родился. Это я. Да.", ["А. С. Пушкин родился.", "Это я.", "Да."]),
    ],
)
def test_sentences_are_cut_where_a_reader_would(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(st.sampled_from("aB 3.!?…。！？”’\"'，\n\t)）Dr猫"), max_size=60) | st.text())
def test_no_character_is_lost(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


def test_words_have_letters_and_chinese_characters_are_words() -> None:
    assert find_words("Don't STOP the 3rd_café, 猫狗 20！")[0] == ["don't", "stop", "the", "3rd_café", "猫", "狗"]


def test_texts_are_the_same_without_case_and_white_space() -> None:
    assert text_key("A  cat\n sat") == text_key(" a CAT sat ")
    assert text_key("a", "b c") != text_key("a b", "c")


def test_texts_are_nearly_the_same_without_case_spaces_and_punctuation() -> None:
    assert near_key("A cat, sat!") == near_key("“a CAT” sat")
    assert near_key("पढ़ा है।") == near_key("पढ़ा है") != near_key("पढ है")  # signs are no punctuation
    assert near_key(":-)") != near_key(":-(")
    assert near_key("a", "b c") != near_key("a b", "c")


def test_stop_words_are_taken_out_whole_and_in_any_case(tmp_path) -> None:
    stop_words = StopWords(load_stop_words(None))
    assert stop_words.remove("The theory of Cats and dogs") == "theory Cats dogs"
    assert stop_words.remove("猫的家在这里") == "猫 家 里"
    assert stop_words.remove("To be, or not to be") == "To be, or not to be"
    (tmp_path / "own.txt").write_text("Cats\n因为\n")
    assert StopWords(load_stop_words(str(tmp_path / "own.txt"))).remove("cats 因为 love") == "love"
    with pytest.raises(UserError, match=r"stop_words_file.*absent"):
        load_stop_words(str(tmp_path / "absent.txt"))
