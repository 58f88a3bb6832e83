"""Context loss: value and gradient beside PyTorch, its prompts, and its part in a training step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.config import ConceptConfig, Config, LossConfig, TrainingConfig
from gm.data.context_prompts import CONTEXT_PROMPTS
from gm.embeddings import init
from gm.errors import UserError
from gm.runtime.backend import Backend, compile_cell
from gm.text.tokenizer import END, Tokenizer
from gm.training import context_prompts, option_checks, setup, trainer
from gm.training.context_prompts import ContextPrompt, ContextSampler
from gm.training.optimizer import create_optimizer, create_train_state
from gm.training.regularization import ContextLoss, InitialDistance
from gm.training.train_state import TrainState
from gm.training.train_step import TrainStep
from tests.project import Workshop, whole_run
from tests.reference.case import Case
from tests.reference.inputs import relative_error

EAGER = Backend("CPU", graph=False, dtype=ms.float32)
WEIGHT = {"context_loss_weight": 0.5}


def concept(token: str = "<toy>", num_vectors: int = 2, word: str | None = "cat", **options: Any) -> ConceptConfig:
    return ConceptConfig(placeholder_token=token, num_vectors=num_vectors, initializer_token=word, **options)


def prompts_file(folder: Path, *lines: str) -> str:
    path = folder / "context.txt"
    path.write_text("\n".join(lines))
    return str(path)


def random_vectors(case: Case, count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng()
    return {
        name: 0.5 * random.standard_normal((count, encoder.width), np.float32)
        for name, encoder in case.config.text_encoders.items()
    }


def by_pytorch(
    case: Case, sampler: ContextSampler, chosen: Sequence[ContextPrompt], vectors: dict[str, np.ndarray]
) -> tuple[float, list[np.ndarray]]:
    """Return loss and gradient with respect to the vectors of every encoder."""
    tensors = {name: torch.from_numpy(each).requires_grad_() for name, each in vectors.items()}
    total = torch.zeros(())
    for encoder in sampler.encoders:
        for prompt in chosen:
            states = _states(case, encoder, prompt.ids[encoder], tensors[encoder])[prompt.positions]
            nothing = torch.zeros((0, tensors[encoder].shape[1]))
            reference = _states(case, encoder, prompt.reference_ids[encoder], nothing)[prompt.reference_positions]
            cosines = torch.nn.functional.cosine_similarity(states, reference.detach(), dim=-1)
            total = total + (1 - cosines).mean() / len(chosen) / len(sampler.encoders)
    gradients = torch.autograd.grad(total, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return total.item(), [each.numpy() for each in gradients]


def _states(case: Case, encoder: str, ids: np.ndarray, vectors: torch.Tensor) -> torch.Tensor:
    reference = case.reference
    if reference.text_encoder_2 is None:
        return reference.condition(ids[None], ids[None], None, vectors, None)[0][0]
    if encoder == "clip_l":
        return reference.encode_text_1(ids[None], vectors)[0]
    return reference.encode_text_2(ids[None], vectors, torch.zeros(1))[0][0]


@pytest.mark.parametrize(("name", "encoders"), [("reversed", "all"), ("reversed", "clip_g"), ("like-sd2", "clip_h")])
def test_value_and_gradient_equal_pytorch(
    cases: Callable[[str], Case], name: str, encoders: str, tmp_path: Path
) -> None:
    case = cases(name)
    file = prompts_file(tmp_path, "a {} in the desert, at night", "{} on the moon", "one photo of {}")
    loss = LossConfig(context_loss_weight=1.0, context_prompt_file=file, context_encoders=encoders)
    config = Config(model=case.config, loss=loss)
    concepts = [concept(num_vectors=2, word="cat"), concept("<hat>", 1, "straw hat")]
    sampler = context_prompts.create_sampler(case.model, config, context_prompts.read(config, concepts))
    assert sampler is not None
    indices, vectors = [0, 1, 2, 3, 4], random_vectors(case, 2)
    chosen = [sampler.prompts[_number(sampler, index)] for index in indices]
    assert len({id(each) for each in chosen}) > 2
    cell = ContextLoss(case.model, sampler.encoders)
    parameters = TrainState(vectors).vectors

    def ours() -> Tensor:
        return cell(parameters, sampler.inputs(indices))

    value, gradients = ms.value_and_grad(ours, None, parameters)()
    expected, expected_gradients = by_pytorch(case, sampler, chosen, vectors)
    assert float(value) == pytest.approx(expected, rel=1e-4)
    for ours_, theirs in zip(gradients, expected_gradients, strict=True):
        if theirs.any():
            assert relative_error(ours_.asnumpy(), theirs) < 1e-3
        else:
            assert not ours_.asnumpy().any()


def _number(sampler: ContextSampler, index: int) -> int:
    """Return the prompt of a sample, as its ids say."""
    ids = sampler.inputs([index])[1].asnumpy()[0]
    encoder = sampler.encoders[0]
    return next(k for k, prompt in enumerate(sampler.prompts) if np.array_equal(prompt.ids[encoder], ids))


def test_the_class_word_itself_has_no_loss(smallest: Case) -> None:
    config = Config(model=smallest.config, loss=LossConfig(**WEIGHT))
    word = "plush toy"
    prompts = context_prompts.read(config, [concept(num_vectors=2, word=word)])
    assert len(prompts) == len(CONTEXT_PROMPTS["object"])
    sampler = context_prompts.create_sampler(smallest.model, config, prompts)
    assert sampler is not None
    ids = init.token_ids(word, Tokenizer())
    tables = smallest.model.token_tables()
    vectors = tuple(Tensor(init.from_tokens(table, ids, 2)) for table in tables.values())
    loss = ContextLoss(smallest.model, sampler.encoders)(vectors, sampler.inputs([0, 1, 2]))
    assert abs(float(loss)) < 1e-5
    others = tuple(Tensor(init.from_tokens(table, [5, 9], 2)) for table in tables.values())
    assert float(ContextLoss(smallest.model, sampler.encoders)(others, sampler.inputs([0, 1, 2]))) > 1e-3


def test_context_tokens_are_those_after_the_token_up_to_the_end_of_the_text(smallest: Case, tmp_path: Path) -> None:
    file = prompts_file(tmp_path, "a photo of {} and {} in the desert")
    config = Config(model=smallest.config, loss=LossConfig(**WEIGHT, context_prompt_file=file))
    (prompt,) = context_prompts.read(config, [concept(num_vectors=3, word="plush toy")])
    tokenizer = Tokenizer()
    context = [*tokenizer.encode("and"), *tokenizer.encode("in the desert"), END]
    for ids, positions in ((prompt.ids, prompt.positions), (prompt.reference_ids, prompt.reference_positions)):
        assert [int(number) for number in ids["clip_l"][positions]] == context
    text = "a photo of plush toy and plush toy in the desert"
    assert np.array_equal(prompt.reference_ids["clip_g"], tokenizer([text], 0)[0])


@pytest.mark.parametrize(
    ("concepts", "lines", "loss", "message"),
    [
        ([concept(word=None)], ["{} here"], {}, "needs the class word of <toy>, and it has no --initializer_token"),
        ([concept(), concept("<hat>")], ["{} and <hat>"], {}, "'<toy> and <hat>' names another concept of the run"),
        ([concept()], ["{} " + "word " * 75], {}, "has more than 75 tokens; shorten it"),
        ([concept()], ["no token"], {}, "line 1: 'no token' has no {}"),
        ([concept()], ["{}"], {"context_encoders": "clip_h"}, "is for another model; this one has clip_l and clip_g"),
    ],
)
def test_prompts_that_cannot_be_compared_are_refused(
    smallest: Case, tmp_path: Path, concepts: list[ConceptConfig], lines: list[str], loss: dict[str, Any], message: str
) -> None:
    options = LossConfig(**WEIGHT, context_prompt_file=prompts_file(tmp_path, *lines), **loss)
    with pytest.raises(UserError) as caught:
        context_prompts.read(Config(model=smallest.config, loss=options), concepts)
    assert message in str(caught.value)


def test_a_missing_file_of_prompts_is_named(smallest: Case, tmp_path: Path) -> None:
    options = LossConfig(**WEIGHT, context_prompt_file=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"cannot read template file .*none.txt: .*; check --context_prompt_file"):
        context_prompts.read(Config(model=smallest.config, loss=options), [concept()])


def test_negative_concepts_and_a_weight_of_0_have_no_prompts(smallest: Case) -> None:
    config = Config(model=smallest.config, loss=LossConfig(**WEIGHT))
    with_negative = context_prompts.read(config, [concept(), concept("<bad>", word=None, negative=True)])
    assert len(with_negative) == len(context_prompts.read(config, [concept()]))
    assert context_prompts.read(Config(model=smallest.config), [concept(word=None)]) == []


def test_options_without_a_weight_are_reported() -> None:
    config = Config(loss=LossConfig(context_encoders="clip_l"))
    sentence = "--context_encoders clip_l has no effect without --context_loss_weight"
    assert sentence in list(option_checks.ineffective_options(config, 10))


def config_with_context(workshop: Workshop, **sections: Any) -> Config:
    sections = {"concept": {"initializer_token": "cat"}, "loss": WEIGHT, **sections}
    return workshop.config(**sections)


def new_state(workshop: Workshop, count: int = 2) -> TrainState:
    random = np.random.default_rng(3)
    widths = {name: encoder.width for name, encoder in workshop.model.config.text_encoders.items()}
    return create_train_state({name: random.standard_normal((count, w), np.float32) for name, w in widths.items()})


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.graph)], ids=["pynative", "graph"])
def test_a_step_adds_the_weighted_loss_and_its_gradient(workshop: Workshop, graph: bool) -> None:
    prepared = trainer.prepare(workshop.model, setup.prepare(config_with_context(workshop)), EAGER)
    batches, loss = prepared.batches, prepared.setup.config.loss
    assert batches.context is not None
    sums, losses = [], []
    for weight in (0.0, 0.5):
        state = new_state(workshop)
        term = ContextLoss(workshop.model, batches.context.encoders) if weight else None
        options = dataclasses.replace(loss, context_loss_weight=weight)
        step = compile_cell(TrainStep(workshop.model, state, False, options, context_loss=term), graph and weight > 0)
        for number in (0, 1):  # the gradients of both are accumulated
            batch = batches.batch(number)
            batch = batch if weight else batch._replace(context=())
            losses.append([float(each) for each in step(*batch.inputs)])
        sums.append([each.asnumpy().copy() for each in state.gradient_sums])
    parameters = new_state(workshop).vectors
    cell = ContextLoss(workshop.model, batches.context.encoders)
    expected = [0.0, 0.0]
    for number in (0, 1):
        inputs = batches.batch(number).context
        value, gradients = ms.value_and_grad(lambda: cell(parameters, inputs), None, parameters)()  # noqa: B023
        assert losses[2 + number][2] == pytest.approx(float(value), rel=1e-4)
        assert losses[2 + number][0] == pytest.approx(losses[number][0] + 0.5 * float(value), rel=1e-4)
        expected = [total + 0.5 * each.asnumpy() for total, each in zip(expected, gradients, strict=True)]
    for without, with_, term_ in zip(*sums, expected, strict=True):
        assert relative_error(with_ - without, term_) < 1e-3
    create_optimizer(state, TrainingConfig(), 1)(*[Tensor(1e-2, ms.float32)] * 2)  # takes the sums as ever


def test_ranks_share_the_prompts_of_a_larger_batch(workshop: Workshop) -> None:
    def inputs(batch: int, rank: int, world: int) -> list[np.ndarray]:
        config = config_with_context(workshop, training={"train_batch_size": batch})
        backend = Backend("CPU", graph=False, dtype=ms.float32, rank=rank, world_size=world)
        loader = trainer.prepare(workshop.model, setup.prepare(config), backend).batches
        return [each.asnumpy() for each in loader.batch(3).context]

    both = [np.concatenate(pair) for pair in zip(inputs(1, 0, 2), inputs(1, 1, 2), strict=True)]
    assert all(np.array_equal(one, two) for one, two in zip(inputs(2, 0, 1), both, strict=True))


def test_a_run_logs_the_context_loss_and_notices_changed_prompts(workshop: Workshop, tmp_path: Path) -> None:
    file = prompts_file(tmp_path, "{} in the desert", "{} on the moon")
    loss = {**WEIGHT, "context_prompt_file": file, "initializer_reg_weight": 0.01}
    training = {"save_path": str(tmp_path / "run"), "total_step": 2}
    concepts = [{"placeholder_token": "<toy>"}, {"placeholder_token": "<hat>", "initializer_token": "straw hat"}]
    config = config_with_context(workshop, loss=loss, training=training, concepts=concepts)
    whole_run(config)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    values = [record["context_loss"] for record in records if "context_loss" in record]
    assert len(values) == 2
    assert all(0 < value < 1 for value in values)
    prompts_file(tmp_path, "{} in the desert", "{} on the sea")
    resumed = config_with_context(
        workshop, loss=loss, training={**training, "total_step": 3, "resume": "latest"}, concepts=concepts
    )
    assert "images, captions or templates" in setup.prepare(resumed).changed_options


def test_distance_from_the_initial_vectors_equals_pytorch(workshop: Workshop) -> None:
    random = np.random.default_rng()
    initial = {name: random.standard_normal((3, width), np.float32) for name, width in (("clip_l", 8), ("clip_g", 5))}
    moved = {name: each + 0.1 * random.standard_normal(each.shape, np.float32) for name, each in initial.items()}
    for vectors in (moved, initial):  # whose gradient exists at the initial vectors, too
        parameters = TrainState(vectors).vectors
        cell = InitialDistance(initial)
        value, gradients = ms.value_and_grad(lambda: cell(parameters), None, parameters)()  # noqa: B023
        tensors = [torch.from_numpy(each).requires_grad_() for each in vectors.values()]
        distances = [
            torch.nn.functional.pairwise_distance(one, torch.from_numpy(two)).mean()
            for one, two in zip(tensors, initial.values(), strict=True)
        ]
        theirs = sum(distances) / 2
        assert float(value) == pytest.approx(theirs.item(), rel=1e-4)
        for one, two in zip(gradients, torch.autograd.grad(theirs, tensors), strict=True):
            assert relative_error(one.asnumpy(), two.numpy()) < 1e-3
