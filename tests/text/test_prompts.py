"""Files of prompts, each kind as its benchmark writes it, and those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lgpl.errors import UserError
from lgpl.text.prompts import read

ONE = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
ONE["prompt"] = "a photo of a red car"


def test_a_table_of_partiprompts(tmp_path: Path) -> None:
    """Tabs divide it; quotation marks inside a prompt are its own."""
    table = tmp_path / "PartiPrompts.tsv"
    words = 'A robot. The words "Fly an airplane" are on it, in red.'
    table.write_text(
        f"Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\n{words}\tArts\tComplex\tn\n"
    )
    found = read(str(table))
    assert found.texts == ["bond", words] and found.layout is None
    assert [row["Category"] for row in found.rows] == ["Abstract", "Arts"]
    table.write_text('Prompt\tCategory\n"Hello" on a wall\tArts\n')
    assert read(str(table)).texts == ['"Hello" on a wall']


def test_a_table_of_one_column_may_have_commas(tmp_path: Path) -> None:
    table = tmp_path / "coco_captions.csv"
    table.write_text("Prompt\nA furry, black bear standing.\n\n A man, a plan \n")
    assert read(str(table)).texts == ["A furry, black bear standing.", "A man, a plan"]


def test_a_column_of_a_csv(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text('\ufeffid,caption\n7,"red, ""big""\nand round"\n8,blue\n')
    assert read(str(table), "caption").texts == ['red, "big"\nand round', "blue"]
    with pytest.raises(UserError, match=r"captions.csv has no column 'Prompt' but id, caption; n"):
        read(str(table))


def test_the_prompts_of_geneval_and_dpg_bench(tmp_path: Path) -> None:
    lines = tmp_path / "evaluation_metadata.jsonl"
    lines.write_text(json.dumps(ONE) + "\n\n" + json.dumps(ONE) + "\n")
    found = read(str(lines))
    assert found.texts == [ONE["prompt"]] * 2 and found.rows == [ONE, ONE]
    assert found.layout == "geneval"
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "b12.txt").write_text("A large\nship.\n")
    (folder / "a3.txt").write_text("A house")
    found = read(str(folder))
    assert (found.texts, found.names) == (["A house", "A large ship."], ["a3", "b12"])
    assert found.layout == "dpg"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "Prompt,x\na,1\n,2\n", r"row 2 of .*a.csv has no Prompt"),
        ("a.csv", "Prompt,x\n", "holds no prompts"),
        ("a.csv", "", "has no column 'Prompt' but none at all"),
        ("a.csv", 'Prompt,x\n"a,1\nb,2\n', r"a.csv cannot be read as a table \(unexpected end"),
        ("a.jsonl", '{"text": "a cat"}\n', "line 1 of .*a.jsonl is no prompt of GenEval, a JSON"),
        ("a.jsonl", json.dumps({**ONE, "include": [{"count": 1}]}), "is no prompt of GenEval"),
        ("a.jsonl", "[1]\n", "is no prompt of GenEval"),
        ("a.jsonl", "\n", "holds no prompts"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=said) as failed:
        read(str(path))
    assert "\n" not in str(failed.value)


def test_folders_without_prompts_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt files; DPG-bench has one a prompt"):
        read(str(tmp_path))
    (tmp_path / "1.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"1\.txt is empty"):
        read(str(tmp_path))
