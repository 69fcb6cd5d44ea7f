"""Instructions: known ones from the table, close ones through the encoder, foreign ones refused."""

import numpy as np
import pytest

from valueguide.critics.language import InstructionTable, MiniLMEncoder
from valueguide.errors import ConfigError

KNOWN = ["open the drawer", "put the carrot on the plate"]


class FakeSentenceEncoder:
    """Two dimensions: cosine to "open the drawer" and to "put the carrot on the plate"."""

    dim = 3

    def __init__(self) -> None:
        self.calls: list[str] = []

    def encode(self, sentences):
        self.calls += sentences
        near, far = [0.6, 0.0, 0.8], [0.3, 0.3, np.sqrt(0.82)]
        return np.array([near if "drawer" in s else far for s in sentences], np.float32)


@pytest.fixture
def table():
    return InstructionTable(KNOWN, np.eye(2, 3, dtype=np.float32), FakeSentenceEncoder(), threshold=0.45)


def test_a_training_instruction_needs_no_encoder(table):
    assert table.embed(KNOWN[1]).tolist() == [0, 1, 0]
    assert table._encoder.calls == []


def test_a_paraphrase_is_encoded_once(table):
    first, second = table.embed("pull the drawer open"), table.embed("pull the drawer open")
    assert first.tolist() == pytest.approx([0.6, 0, 0.8])
    assert second is first
    assert table._encoder.calls == ["pull the drawer open"]


def test_a_foreign_instruction_is_refused_with_the_nearest_known_one(table):
    with pytest.raises(ConfigError, match=r"'dance'.*nearest: 'open the drawer', 0.30 < 0.45"):
        table.embed("dance")
    with pytest.raises(ConfigError):
        table.embed("dance")


def test_a_paraphrase_just_above_the_threshold_passes_and_just_below_does_not():
    for threshold, passes in ((0.59, True), (0.61, False)):
        table = InstructionTable(KNOWN, np.eye(2, 3, dtype=np.float32), FakeSentenceEncoder(), threshold)
        if passes:
            table.embed("the drawer, please")
        else:
            with pytest.raises(ConfigError):
                table.embed("the drawer, please")


def test_real_sentence_embeddings_know_paraphrases_and_refuse_other_tasks():
    encoder = MiniLMEncoder()
    vectors = encoder.encode([*KNOWN, KNOWN[0]])
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[2])
    # padding of a batch must not change a sentence
    np.testing.assert_allclose(encoder._compute(KNOWN[:1])[0], vectors[0], atol=1e-5)
    table = InstructionTable(KNOWN, vectors[:2], encoder)
    paraphrase = table.embed("pull the drawer open")
    assert paraphrase @ vectors[0] > paraphrase @ vectors[1]
    with pytest.raises(ConfigError, match="nearest"):
        table.embed("what is the capital of France?")
