"""Whole text files: settings, task descriptions, blocks of words, prose."""

import pytest

from speechgpt.data.english import read_blocks
from speechgpt.data.files import read_text, read_yaml
from speechgpt.data.instruct import read_descriptions
from speechgpt.data.prose import read_prose


@pytest.mark.parametrize(
    "read",
    [read_yaml, read_descriptions, lambda path: list(read_blocks(path)), lambda path: read_prose([path])],
)
def test_a_file_in_latin_1_is_named_with_what_converts_it(read, tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("caf\u00e9: 1\n".encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: not UTF-8 (") and "iconv" in str(caught.value)


def test_the_mark_that_an_editor_wrote_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "asr.txt"
    path.write_bytes(b"\xef\xbb\xbfWrite down what is said.\n")
    assert read_text(path) == "Write down what is said.\n"
    assert read_descriptions(path) == ["Write down what is said."]
