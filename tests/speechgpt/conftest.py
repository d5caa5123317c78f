"""Small vocabularies of both profiles."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    from speechgpt.text_tokenizer import train_tokenizer
    from speechgpt.vocabulary import Vocabulary

    folder = tmp_path_factory.mktemp("native")
    texts = ["what is the capital of france", "the capital is paris", "turn on the light", "two and two"]
    train_tokenizer(texts * 5, 320, folder)
    return Vocabulary.create(folder, 20)


@pytest.fixture(scope="session")
def upstream():
    from speechgpt.upstream_vocabulary import UpstreamVocabulary

    return UpstreamVocabulary(GOLDEN / "upstream.model", 1000)


@pytest.fixture(params=["native", "upstream"])
def vocabulary(request):
    return request.getfixturevalue(request.param)
