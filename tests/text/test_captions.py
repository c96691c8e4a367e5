"""Captions are cleaned and parted in linear time; a file of prompts has a prompt in every line."""

import random
import re
import time
from pathlib import Path

import pytest

from lgpl.errors import UserError
from lgpl.text.captions import clean, first_line, first_sentence, read_prompts


def test_file_names_are_what_one_expression_would_find() -> None:
    """By a regular expression that says it in one line, and takes the square of the length."""
    name = re.compile(r"\b\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?)\b", re.IGNORECASE)
    rng = random.Random(0)
    parts = ["a", "-", "(", ".", ".jpg", ".PNG", ".tif", ".pngs", " ", "é", "猫", "_", "1"]
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
        assert clean(text) == re.sub(r"\s+", " ", name.sub(" ", text)).strip(), text


@pytest.mark.parametrize(
    "unit", ["猫が好き、", "a", "a.", ".jpg", "<b", "&amp", "http:", "www.", "a.jpg-", "\u0301"]
)
def test_long_captions_take_no_longer_by_the_letter(unit: str) -> None:
    def seconds(length: int) -> float:
        text = (unit * length)[:length]
        begin = time.process_time()
        clean(text)
        return time.process_time() - begin

    seconds(1000)
    assert seconds(100_000) < 1.0  # a square would be minutes


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (
            "pizza\ncat face\u2028dog face\nrocket\x0cship\n".encode(),
            ["pizza", "cat face\u2028dog face", "rocket\x0cship"],
        ),
        (b"a\r\nb\rc\n\n \n", ["a", "b", "c"]),
        ("\ufeffpizza\n".encode(), ["pizza"]),  # as Windows' editors write it
    ],
)
def test_prompt_i_is_line_i(tmp_path: Path, content: bytes, prompts: list[str]) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    assert read_prompts(str(tmp_path / "prompts.txt")) == prompts


def test_control_characters_are_spaces() -> None:
    assert clean("a\x00cat\x1b[2J \x7f\x9b") == "a cat [2J"
    assert clean("\x00\x08\x85") == ""


def test_an_empty_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\nb\n")
    with pytest.raises(UserError, match=r"line 2 of .*prompts.txt is empty; each line is the"):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("caption", "sentence", "line"),
    [
        ("A fox. It runs.\nFast.", "A fox.", "A fox. It runs."),
        ("  \n a fox\r\na dog", "a fox\r\na dog", "a fox"),
        ("It is 3.5 cm, example.org says! Yes", "It is 3.5 cm, example.org says!", None),
        ('He said "stop." Then', 'He said "stop."', None),
        ("狐がいる。犬もいる。", "狐がいる。", None),
        ("Wait... what?", "Wait...", None),
        ("", "", None),
    ],
)
def test_parts_of_a_caption(caption: str, sentence: str, line: str | None) -> None:
    assert first_sentence(caption) == sentence
    assert first_line(caption) == (caption if line is None else line)


@pytest.mark.parametrize("unit", [".", '."', "a.", "!?", "\n"])
def test_a_long_caption_is_parted_in_linear_time(unit: str) -> None:
    begin = time.process_time()
    first_sentence(unit * 100_000 + "x")
    assert time.process_time() - begin < 1.0
