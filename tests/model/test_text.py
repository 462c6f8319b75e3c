"""Prompts to text features: lengths, padding, and what each of the two models sees."""

import pytest
import torch

from pulid.engine import GenerationRequest
from pulid.seeded import seeded_text_encoder


@pytest.fixture(scope="module")
def text():
    return seeded_text_encoder(torch.device("cpu"))


@pytest.mark.parametrize("length", [128, 200, 512])
def test_t5_tokens_are_padded_to_the_asked_length(text, length):
    assert text.encode("portrait of a woman", length).tokens.shape == (1, length, 64)


def test_a_long_prompt_is_cut_without_a_warning(text):
    assert text.encode("portrait " * 2000, 128).tokens.shape == (1, 128, 64)


def test_the_default_length_is_128():
    assert GenerationRequest(prompt="", seed=0).max_sequence_length == 128


def test_padding_is_attended_to(text):
    """A masked encoder would give the same first tokens at every length."""
    short, long = (text.encode("portrait of a woman", length).tokens[:, :4] for length in (128, 256))
    assert not torch.allclose(short, long, atol=1e-4)


def test_the_pooled_vector_is_clips_state_at_the_end_token(text):
    short, long = (text.encode("portrait of a woman", length).pooled for length in (128, 256))
    assert torch.equal(short, long)  # CLIP's own length does not change with T5's
    assert short.shape == (1, 64)
    ids = text._ids(text._clip_tokenizer, "portrait of a woman", 77)
    states = text._clip(input_ids=ids).last_hidden_state
    end = (ids[0] == text._clip.config.eos_token_id).nonzero()[0, 0]
    assert torch.equal(states[:, end], short)


@pytest.mark.parametrize(
    "prompt", ["", "  ", "портрет", "肖像", "🙂", "<s> </s> <pad> <|endoftext|>", "a\nb"]
)
def test_any_text_is_a_prompt(text, prompt):
    features = text.encode(prompt, 128)
    assert features.tokens.isfinite().all()
    assert features.pooled.isfinite().all()


def test_different_texts_have_different_features(text):
    one, other = (text.encode(prompt, 128) for prompt in ("a red hat", "a blue hat"))
    assert not torch.allclose(one.tokens, other.tokens)
    assert not torch.allclose(one.pooled, other.pooled)


def test_an_encoded_prompt_is_kept(text):
    assert text.encode("kept", 128) is text.encode("kept", 128)
    assert text.encode("kept", 128) is not text.encode("kept", 256)
