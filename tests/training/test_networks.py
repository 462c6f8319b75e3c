"""What learning begins with."""

from training.learning.networks import new_student


def test_words_have_one_table_under_both_its_names():
    """Two tables would learn apart, and a checkpoint keeps one of them."""
    t5 = new_student().t5
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
