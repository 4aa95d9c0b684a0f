"""Reading model configurations without open_clip, against open_clip itself; and the word tokenizer."""

import numpy as np
import pytest

from catalog.errors import RecipeError
from tasks.encoders.open_clip_config import WordTokenizer, builtin_models, pretrained_tags, read_config
from tasks.encoders.torchvision_on_cpu import ensure_torchvision


def test_every_model_and_tag_of_open_clip() -> None:
    ensure_torchvision()
    import open_clip

    known = set(open_clip.list_models()) - {"tiny-clip"}  # registered by another test
    assert known <= set(builtin_models())
    for model in known:
        ours, theirs = read_config(model), open_clip.get_model_config(model)
        assert ours["embed_dim"] == theirs["embed_dim"], model
    for model, tag in open_clip.list_pretrained():
        assert tag in pretrained_tags(model), (model, tag)


def test_unknown_model() -> None:
    with pytest.raises(RecipeError, match="did you mean 'RN50'"):
        read_config("RN5O")


def test_tokenizer_is_frequent_words_and_marks() -> None:
    tokenizer = WordTokenizer.of(["A red car", "a RED bus!", "the bus stop"], limit=2, context_length=6)
    assert tokenizer.words == ["a", "bus"]  # three words occur twice: ties alphabetically, and `red` is over the limit
    found = tokenizer.numbers(["a red bus", "", "bus " * 9])
    assert found.tolist() == [[4, 1, 3, 2, 5, 0], [4, 5, 0, 0, 0, 0], [4, 2, 2, 2, 2, 5]]
    assert found.max() == tokenizer.vocab_size - 1


def test_tokenizer_does_not_depend_on_order_or_form() -> None:
    captions = ["Ünï cafe\u0301 ２ cats", "caf\u00e9 2 cats", "cats\0dogs", "dogs"]
    one = WordTokenizer.of(captions, 100, 8)
    other = WordTokenizer.of(captions[::-1], 100, 8)
    assert one.words == other.words == ["cats", "2", "café", "dogs"]
    np.testing.assert_array_equal(one.numbers(["cafe\u0301"]), one.numbers(["CAFÉ"]))


def test_the_end_token_is_where_the_text_tower_expects_it() -> None:
    tokens = WordTokenizer(["a"], 5)(["a a", "a " * 50, "\0"])
    assert tokens.argmax(1).tolist() == [3, 4, 1]
