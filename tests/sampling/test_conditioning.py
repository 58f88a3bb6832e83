"""Conditioning of prompts, beside the formulas on PyTorch's text encoders and beside the conditioner alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from gm.embeddings.embedding import Embedding, LoadedEmbeddings, combine
from gm.runtime.backend import Backend
from gm.sampling.conditioning import PromptEncoder
from gm.text.bpe import END
from gm.text.chunks import Chunk, TokenChunks
from gm.text.prompt_parser import parse
from gm.text.tokenizer import pool_positions
from tests.reference.case import Case, filled
from tests.reference.inputs import relative_error
from tests.sampling.generation import PYNATIVE

SIZES = (900.0, 1100.0, 3.0, 5.0, 512.0, 768.0)
SIZES_OF_EACH = [SIZES, (200.0, 300.0, 0.0, 7.0, 1024.0, 1024.0)]
PLAIN = ["a photo of <toy> and <hat>, 4k", "", "<hat>", "word " * 75]
WEIGHTED = [
    "a (<toy>:1.4) in [the] rain, (blue sky:0.6)",
    "((cat)) (dog:0) (sky:-0.5)",
    "plain BREAK (heavy <hat>:1.5)",
    "(one:1.2) BREAK two <toy> BREAK three",
]


@pytest.fixture(scope="module", params=["like-base", "reversed"])
def with_vocabulary(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """The small models that have the published vocabulary."""
    return cases(request.param)


def prompt_encoder(case: Case, pooling: str = "end_of_text") -> PromptEncoder:
    return PromptEncoder(case.model, PYNATIVE, pooling)


def two_embeddings(case: Case, seed: int = 0) -> LoadedEmbeddings:
    random = np.random.default_rng(seed)
    concepts = [
        Embedding(
            token,
            {
                name: 0.1 * random.standard_normal((num_vectors, encoder.width), dtype=np.float32)
                for name, encoder in case.config.text_encoders.items()
            },
        )
        for token, num_vectors in (("<toy>", 2), ("<hat>", 1))
    ]
    return combine(concepts, case.config)


def chunked(embeddings: LoadedEmbeddings, *prompts: str) -> list[TokenChunks]:
    return [parse(prompt, embeddings.tokenizer, 1).variants[0] for prompt in prompts]


def by_conditioner(
    case: Case, embeddings: LoadedEmbeddings, prompts: Sequence[str], sizes: np.ndarray, pooling: str
) -> list[np.ndarray]:
    """Return context and y of the conditioner for whole prompts, encoded by the tokenizer alone."""
    ids_1, ids_2 = embeddings.tokenizer(prompts, padding=END), embeddings.tokenizer(prompts, padding=0)
    ids, vectors = (Tensor(ids_1), Tensor(ids_2)), tuple(map(Tensor, embeddings.vectors.values()))
    position = Tensor(pool_positions(ids_2, pooling))
    return [x.asnumpy() for x in case.model.conditioner(ids, vectors, position, Tensor(sizes))]


def by_pytorch(case: Case, embeddings: LoadedEmbeddings, text: TokenChunks) -> tuple[np.ndarray, np.ndarray]:
    """Return context [positions · chunks, C] and pooled vector [V] of a text by PyTorch, chunk by chunk."""
    contexts, pooled = [], []
    for chunk in text:
        (c, p), (e, _) = (_ids_by_pytorch(case, embeddings, ids) for ids in (chunk.ids, ()))
        w = np.ones((len(c), 1))
        w[1 : 1 + len(chunk.ids), 0] = chunk.weights
        contexts.append(e + w * (c - e))
        pooled.append(p)
    return np.concatenate(contexts), pooled[0]


def _ids_by_pytorch(case: Case, embeddings: LoadedEmbeddings, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    rows = [[49406, *ids, 49407, *[padding] * (75 - len(ids))] for padding in (49407, 0)]
    ids_1, ids_2 = (np.array([row], np.int32) for row in rows)
    position = np.array([len(ids) + 1])
    vectors = embeddings.vectors["clip_l"], embeddings.vectors["clip_g"]
    context, pooled = case.reference.condition(ids_1, ids_2, position, *vectors)
    return context[0].numpy().astype(np.float64), pooled[0].numpy()


@pytest.mark.parametrize("pooling", ["end_of_text", "argmax"])
def test_plain_prompts_are_encoded_as_by_the_conditioner(with_vocabulary: Case, pooling: str) -> None:
    case = with_vocabulary
    embeddings, encoder = two_embeddings(case), prompt_encoder(case, pooling)
    for prompts, sizes in ((PLAIN[:1], SIZES), (PLAIN, SIZES), (PLAIN[:2], SIZES_OF_EACH)):
        all_sizes = np.broadcast_to(np.array(sizes, np.float32), (len(prompts), 6)).copy()
        context, y = by_conditioner(case, embeddings, prompts, all_sizes, pooling)
        ours = encoder.encode(chunked(embeddings, *prompts), embeddings, sizes)
        assert np.array_equal(ours[0].asnumpy(), context)
        assert np.array_equal(ours[1].asnumpy(), y)


@pytest.mark.reference
@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("prompt", WEIGHTED)
def test_weights_against_pytorch(with_vocabulary: Case, prompt: str) -> None:
    embeddings = two_embeddings(with_vocabulary, seed=3)
    (text,) = chunked(embeddings, prompt)
    context, y = (x.asnumpy()[0] for x in prompt_encoder(with_vocabulary).encode([text], embeddings, SIZES))
    expected, pooled = by_pytorch(with_vocabulary, embeddings, text)
    assert relative_error(context, expected) < 2e-5  # measured: 3e-7
    assert relative_error(y[: len(pooled)], pooled) < 2e-5
    unweighted = tuple(Chunk(chunk.ids, (1.0,) * len(chunk.ids)) for chunk in text)
    assert relative_error(by_pytorch(with_vocabulary, embeddings, unweighted)[0], expected) > 1e-3, "weights matter"


@pytest.mark.reference
@pytest.mark.usefixtures("no_grad")
def test_texts_of_different_weights_and_lengths_in_one_batch(with_vocabulary: Case) -> None:
    embeddings = two_embeddings(with_vocabulary)
    texts = chunked(embeddings, *WEIGHTED, PLAIN[0])
    context, y = (x.asnumpy() for x in prompt_encoder(with_vocabulary).encode(texts, embeddings, SIZES))
    assert context.shape[:2] == (5, 3 * 77)
    for row, text in enumerate(texts):
        expected, pooled = by_pytorch(with_vocabulary, embeddings, (*text, *[Chunk()] * (3 - len(text))))
        assert relative_error(context[row], expected) < 2e-5
        assert relative_error(y[row, : len(pooled)], pooled) < 2e-5


def test_chunks_are_encoded_alone_and_the_first_is_pooled(smallest: Case) -> None:
    embeddings, encoder = two_embeddings(smallest), prompt_encoder(smallest)
    parts = ["a (<toy>:1.3)", "word " * 75, "[two] <hat>"]
    whole, y = encoder.encode(chunked(embeddings, " BREAK ".join(parts)), embeddings, SIZES)
    alone = [encoder.encode(chunked(embeddings, part), embeddings, SIZES) for part in parts]
    assert np.array_equal(whole.asnumpy(), np.concatenate([context.asnumpy() for context, _ in alone], axis=1))
    assert np.array_equal(y.asnumpy(), alone[0][1].asnumpy())
    assert not np.array_equal(y.asnumpy(), alone[2][1].asnumpy())


def test_a_weight_leaves_other_tokens_and_other_texts_alone(smallest: Case) -> None:
    embeddings, encoder = two_embeddings(smallest), prompt_encoder(smallest)
    plain, _ = encoder.encode(chunked(embeddings, "a cat and <toy>", "a dog"), embeddings, SIZES)
    heavy, _ = encoder.encode(chunked(embeddings, "a cat and (<toy>:1.5)", "a dog"), embeddings, SIZES)
    changed = (plain.asnumpy() != heavy.asnumpy()).all(axis=-1)
    assert np.argwhere(changed).tolist() == [[0, 4], [0, 5]], "both vectors of the placeholder token"
    assert np.array_equal(plain.asnumpy()[~changed], heavy.asnumpy()[~changed])


def test_the_encoders_run_no_more_than_needed_and_in_one_shape(smallest: Case) -> None:
    embeddings, encoder, shapes = two_embeddings(smallest), prompt_encoder(smallest), []
    conditioner = encoder.conditioner

    def counted(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append([x.shape for x in inputs])
        return conditioner(*inputs)

    encoder.conditioner = counted
    for prompt, runs in (("plain", 1), ("(1)", 2), ("a BREAK b", 2), ("a BREAK (b)", 3), ("[(c)]", 1), ("(c:1)", 1)):
        shapes.clear()
        context, _ = encoder.encode(chunked(embeddings, "<toy>", prompt), embeddings, SIZES)
        encoder.encode_unconditional(context, embeddings, SIZES_OF_EACH)
        assert len(shapes) == runs + 1, prompt
        assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.reference
@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("prompt", ["a cat", "a BREAK b BREAK c"])
def test_unconditional_is_zeros_but_for_the_sizes(with_vocabulary: Case, prompt: str) -> None:
    case = with_vocabulary
    embeddings, encoder = two_embeddings(case), prompt_encoder(case)
    conditional, _ = encoder.encode(chunked(embeddings, prompt, "a cat"), embeddings, SIZES)
    context, y = encoder.encode_unconditional(conditional, embeddings, SIZES_OF_EACH)
    assert (context.shape, context.dtype) == (conditional.shape, conditional.dtype)
    assert not context.asnumpy().any()
    width = case.config.text_encoder_2.width
    pooled, sizes = np.zeros((2, width), np.float32), np.array(SIZES_OF_EACH, np.float32)
    expected = case.reference.class_embedding(pooled, sizes).numpy()
    assert not y.asnumpy()[:, :width].any()
    assert relative_error(y.asnumpy(), expected) < 5e-5  # as of the conditioner: float32's for sizes of 2000


def test_half_precision_keeps_its_type(smallest: Case) -> None:
    embeddings = two_embeddings(smallest)
    half = PromptEncoder(
        filled(smallest.config, smallest.weights, ms.float16), Backend("Ascend", False, ms.float16), "argmax"
    )
    plain, heavy = (half.encode(chunked(embeddings, prompt), embeddings, SIZES) for prompt in ("a cat", "a (cat:1.5)"))
    expected = prompt_encoder(smallest, "argmax").encode(chunked(embeddings, "a (cat:1.5)"), embeddings, SIZES)
    assert [x.dtype for x in heavy] == [x.dtype for x in plain]
    assert relative_error(heavy[0].asnumpy(), expected[0].asnumpy()) < 5e-3


@pytest.mark.graph
def test_graph_mode_encodes_the_same(smallest: Case) -> None:
    embeddings = two_embeddings(smallest)
    texts = chunked(embeddings, "a (<toy>:1.4) BREAK [rain]", "a cat")
    graph = PromptEncoder(smallest.model, Backend("CPU", graph=True, dtype=ms.float32), "end_of_text")
    ours, expected = (encoder.encode(texts, embeddings, SIZES_OF_EACH) for encoder in (graph, prompt_encoder(smallest)))
    for a, b in zip(ours, expected, strict=True):
        assert relative_error(a.asnumpy(), b.asnumpy()) < 1e-5
