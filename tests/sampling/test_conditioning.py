"""What the encoders make of readings, against the formulas on PyTorch's encoders and against the conditioner alone."""

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

TOLD = (900.0, 1100.0, 3.0, 5.0, 512.0, 768.0)
EACH = [TOLD, (200.0, 300.0, 0.0, 7.0, 1024.0, 1024.0)]
PLAIN = ["a photo of <toy> and <hat>, 4k", "", "<hat>", "word " * 75]
WEIGHTED = [
    "a (<toy>:1.4) in [the] rain, (blue sky:0.6)",
    "((cat)) (dog:0) (sky:-0.5)",
    "plain BREAK (heavy <hat>:1.5)",
    "(one:1.2) BREAK two <toy> BREAK three",
]


@pytest.fixture(scope="module", params=["like-base", "reversed"])
def reader(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """The small models that have the published vocabulary."""
    return cases(request.param)


def conditions(case: Case, pooling: str = "end_of_text", graph: bool = False) -> PromptEncoder:
    return PromptEncoder(case.model, Backend("CPU", graph=graph, dtype=ms.float32), pooling)


def learned(case: Case, seed: int = 0) -> LoadedEmbeddings:
    random = np.random.default_rng(seed)
    widths = case.config.text_encoder_1.width, case.config.text_encoder_2.width
    concepts = [
        Embedding(
            word,
            dict(
                zip(
                    ("clip_l", "clip_g"),
                    (0.1 * random.standard_normal((n, width), dtype=np.float32) for width in widths),
                    strict=True,
                )
            ),
        )
        for word, n in (("<toy>", 2), ("<hat>", 1))
    ]
    return combine(concepts, case.config)


def texts(known: LoadedEmbeddings, *prompts: str) -> list[TokenChunks]:
    return [parse(prompt, known.tokenizer, 1).variants[0] for prompt in prompts]


def encoded(
    case: Case, known: LoadedEmbeddings, prompts: Sequence[str], sizes: np.ndarray, pooling: str
) -> list[np.ndarray]:
    """Return what the conditioner says of whole prompts, read by the tokenizer alone."""
    ids_1, ids_2 = known.tokenizer(prompts, padding=END), known.tokenizer(prompts, padding=0)
    ids, vectors = (Tensor(ids_1), Tensor(ids_2)), tuple(map(Tensor, known.vectors.values()))
    position = Tensor(pool_positions(ids_2, pooling))
    return [found.asnumpy() for found in case.model.conditioner(ids, vectors, position, Tensor(sizes))]


def expected(case: Case, known: LoadedEmbeddings, variant: TokenChunks) -> tuple[np.ndarray, np.ndarray]:
    """Return context [positions · chunks, C] and pooled vector [V] of a text by PyTorch, chunk by chunk."""
    contexts, pooled = [], []
    for chunk in variant:
        (c, p), (e, _) = (_by_pytorch(case, known, ids) for ids in (chunk.ids, ()))
        w = np.ones((len(c), 1))
        w[1 : 1 + len(chunk.ids), 0] = chunk.weights
        contexts.append(e + w * (c - e))
        pooled.append(p)
    return np.concatenate(contexts), pooled[0]


def _by_pytorch(case: Case, known: LoadedEmbeddings, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    rows = [[49406, *ids, 49407, *[padding] * (75 - len(ids))] for padding in (49407, 0)]
    ids_1, ids_2 = (np.array([row], np.int32) for row in rows)
    position = np.array([len(ids) + 1])
    context, pooled = case.reference.condition(ids_1, ids_2, position, known.vectors["clip_l"], known.vectors["clip_g"])
    return context[0].numpy().astype(np.float64), pooled[0].numpy()


@pytest.mark.parametrize("pooling", ["end_of_text", "argmax"])
def test_plain_prompts_are_what_the_conditioner_says(reader: Case, pooling: str) -> None:
    known, read_by = learned(reader), conditions(reader, pooling)
    for prompts, told in ((PLAIN[:1], TOLD), (PLAIN, TOLD), (PLAIN[:2], EACH)):
        sizes = np.broadcast_to(np.array(told, np.float32), (len(prompts), 6)).copy()
        context, vector = encoded(reader, known, prompts, sizes, pooling)
        ours = read_by.of(texts(known, *prompts), known, told)
        assert np.array_equal(ours[0].asnumpy(), context)
        assert np.array_equal(ours[1].asnumpy(), vector)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("prompt", WEIGHTED)
def test_weights_against_pytorch(reader: Case, prompt: str) -> None:
    known = learned(reader, seed=3)
    (variant,) = texts(known, prompt)
    context, vector = (found.asnumpy()[0] for found in conditions(reader).of([variant], known, TOLD))
    wanted, pooled = expected(reader, known, variant)
    assert relative_error(context, wanted) < 2e-5  # measured: 3e-7
    assert relative_error(vector[: len(pooled)], pooled) < 2e-5
    unweighted = tuple(Chunk(chunk.ids, (1.0,) * len(chunk.ids)) for chunk in variant)
    assert relative_error(expected(reader, known, unweighted)[0], wanted) > 1e-3, "the weights matter"


@pytest.mark.usefixtures("no_grad")
def test_texts_of_unlike_weights_and_lengths_in_one_batch(reader: Case) -> None:
    known = learned(reader)
    variants = texts(known, *WEIGHTED, PLAIN[0])
    context, vector = (found.asnumpy() for found in conditions(reader).of(variants, known, TOLD))
    assert context.shape[:2] == (5, 3 * 77)
    for row, variant in enumerate(variants):
        wanted, pooled = expected(reader, known, (*variant, *[Chunk()] * (3 - len(variant))))
        assert relative_error(context[row], wanted) < 2e-5
        assert relative_error(vector[row, : len(pooled)], pooled) < 2e-5


def test_chunks_are_read_alone_and_the_first_is_pooled(smallest: Case) -> None:
    known, read_by = learned(smallest), conditions(smallest)
    parts = ["a (<toy>:1.3)", "word " * 75, "[two] <hat>"]
    whole, vector = read_by.of(texts(known, " BREAK ".join(parts)), known, TOLD)
    alone = [read_by.of(texts(known, part), known, TOLD) for part in parts]
    assert np.array_equal(whole.asnumpy(), np.concatenate([context.asnumpy() for context, _ in alone], axis=1))
    assert np.array_equal(vector.asnumpy(), alone[0][1].asnumpy())
    assert not np.array_equal(vector.asnumpy(), alone[2][1].asnumpy())


def test_a_weight_leaves_other_tokens_and_other_texts_alone(smallest: Case) -> None:
    known, read_by = learned(smallest), conditions(smallest)
    plain, _ = read_by.of(texts(known, "a cat and <toy>", "a dog"), known, TOLD)
    heavy, _ = read_by.of(texts(known, "a cat and (<toy>:1.5)", "a dog"), known, TOLD)
    changed = (plain.asnumpy() != heavy.asnumpy()).all(axis=-1)
    assert np.argwhere(changed).tolist() == [[0, 4], [0, 5]], "both rows of the word"
    assert np.array_equal(plain.asnumpy()[~changed], heavy.asnumpy()[~changed])


def test_the_encoders_run_no_more_than_needed_and_in_one_shape(smallest: Case) -> None:
    known, read_by, shapes = learned(smallest), conditions(smallest), []
    condition = read_by.condition

    def counted(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append([x.shape for x in inputs])
        return condition(*inputs)

    read_by.condition = counted
    for prompt, runs in (("plain", 1), ("(1)", 2), ("a BREAK b", 2), ("a BREAK (b)", 3), ("[(c)]", 1), ("(c:1)", 1)):
        shapes.clear()
        context, _ = read_by.of(texts(known, "<toy>", prompt), known, TOLD)
        read_by.nothing(context, known, EACH)
        assert len(shapes) == runs + 1, prompt
        assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("prompt", ["a cat", "a BREAK b BREAK c"])
def test_nothing_is_zeros_but_for_the_sizes(reader: Case, prompt: str) -> None:
    known, read_by = learned(reader), conditions(reader)
    like, _ = read_by.of(texts(known, prompt, "a cat"), known, TOLD)
    context, vector = read_by.nothing(like, known, EACH)
    assert (context.shape, context.dtype) == (like.shape, like.dtype)
    assert not context.asnumpy().any()
    width = reader.config.text_encoder_2.width
    wanted = reader.reference.class_embedding(np.zeros((2, width), np.float32), np.array(EACH, np.float32)).numpy()
    assert not vector.asnumpy()[:, :width].any()
    assert relative_error(vector.asnumpy(), wanted) < 5e-5  # as of the conditioner: float32's for sizes of 2000


def test_half_precision_keeps_its_type(smallest: Case) -> None:
    known = learned(smallest)
    half = PromptEncoder(
        filled(smallest.config, smallest.weights, ms.float16), Backend("Ascend", False, ms.float16), "argmax"
    )
    plain, heavy = (half.of(texts(known, prompt), known, TOLD) for prompt in ("a cat", "a (cat:1.5)"))
    wanted = conditions(smallest, "argmax").of(texts(known, "a (cat:1.5)"), known, TOLD)
    assert [x.dtype for x in heavy] == [x.dtype for x in plain]
    assert relative_error(heavy[0].asnumpy(), wanted[0].asnumpy()) < 5e-3


def test_graph_mode_reads_the_same(smallest: Case) -> None:
    known = learned(smallest)
    variants = texts(known, "a (<toy>:1.4) BREAK [rain]", "a cat")
    ours, wanted = (conditions(smallest, graph=graph).of(variants, known, EACH) for graph in (True, False))
    for a, b in zip(ours, wanted, strict=True):
        assert relative_error(a.asnumpy(), b.asnumpy()) < 1e-5
