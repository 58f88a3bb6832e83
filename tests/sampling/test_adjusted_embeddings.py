"""Adjusted embeddings: which are adjusted and towards what, what the text encoders see, files, API, metadata."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gm import api
from gm.api import Toolkit
from gm.config import SamplingConfig, cli
from gm.embeddings import io as embedding_io
from gm.embeddings.adjustment import adjust
from gm.embeddings.embedding import Embedding, LoadedEmbeddings, combine
from gm.errors import UserError
from gm.sampling import adjusted_embeddings, image_files, metadata, option_checks, request
from gm.sampling.conditioning import PromptEncoder
from gm.sampling.interactive import Session
from gm.text.prompt_parser import parse
from tests.project import Workshop
from tests.reference.case import Case
from tests.sampling.generation import PYNATIVE, toy

CAT, DOG, RED = 2368, 1929, 736  # OpenAI's ids
SIZES = (16.0, 16.0, 0.0, 0.0, 16.0, 16.0)


def of_class(word: str, token: str = "<toy>", seed: int = 0) -> Embedding:
    return dataclasses.replace(toy(seed, token), metadata={"recipe": {"concept": {"initializer_token": word}}})


def load(workshop: Workshop, *concepts: Embedding, **sampling: Any) -> LoadedEmbeddings:
    return adjusted_embeddings.load(concepts, [SamplingConfig(**sampling)], workshop.model.config)


def by_hand(workshop: Workshop, embedding: Embedding, ids: list[int], alpha: float, rho: float) -> Embedding:
    """Return the embedding with its two vectors adjusted towards the table's rows `ids`."""
    tables = workshop.model.token_tables()
    vectors = {name: adjust(each, tables[name][ids], alpha, rho) for name, each in embedding.vectors.items()}
    return dataclasses.replace(embedding, vectors=vectors)


def encoded(workshop: Workshop, embeddings: LoadedEmbeddings, *prompts: str) -> list[np.ndarray]:
    texts = [parse(prompt, embeddings.tokenizer, 1).variants[0] for prompt in prompts]
    result = PromptEncoder(workshop.model, PYNATIVE, "end_of_text").encode(texts, embeddings, SIZES)
    return [each.asnumpy() for each in result if each is not None]


def test_the_text_encoders_see_the_adjusted_vectors(workshop: Workshop) -> None:
    one, two = of_class("cat"), of_class("red dog", "<hat>", 1)
    prompts = ["a <toy> and a (<hat>:1.2)", "a <toy>{0.3,0.9,dog} and a <hat>{0,0}"]
    loaded = adjusted_embeddings.load(
        [one, two], [SamplingConfig(prompt=each, embedding_adjust="0.5,0.2") for each in prompts], workshop.model.config
    )
    ours = encoded(workshop, loaded, *prompts)
    all_of = [by_hand(workshop, one, [CAT, CAT], 0.5, 0.2), by_hand(workshop, two, [RED, DOG], 0.5, 0.2)]
    of_second = [by_hand(workshop, one, [DOG, DOG], 0.3, 0.9), two]
    for number, concepts in enumerate((all_of, of_second)):
        plain = "a <toy> and a (<hat>:1.2)" if number == 0 else "a <toy> and a <hat>"
        theirs = encoded(workshop, combine(concepts, workshop.model.config), plain)
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found[number], expected[0], rtol=1e-4, atol=1e-5)
    without = encoded(workshop, combine([one, two], workshop.model.config), "a <toy> and a (<hat>:1.2)")
    assert not np.allclose(ours[0][0], without[0][0], atol=1e-3)


def test_a_refiner_has_the_adjusted_vectors_of_its_encoder(workshop: Workshop, refiner: Case) -> None:
    loaded = load(workshop, of_class("cat"), embedding_adjust="0.5,0.2")
    texts = [parse("a <toy>", loaded.tokenizer, 1).variants[0]]
    sizes = (16.0, 16.0, 0.0, 0.0, 6.0)
    encoder = PromptEncoder(refiner.model, PYNATIVE, "end_of_text")
    rows = refiner.model.conditioner.token_embeddings()["clip_g"].embedding_table.asnumpy()[[CAT, CAT]]
    vectors = {**toy().vectors, "clip_g": adjust(toy().vectors["clip_g"], rows, 0.5, 0.2)}
    expected = LoadedEmbeddings(loaded.tokenizer, vectors)
    ours, theirs = (encoder.encode(texts, each, sizes)[0].asnumpy() for each in (loaded, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, []),
        ({"embedding_adjust": "0,0"}, []),
        ({"embedding_adjust": "0.5, 0.2"}, [((0, 2), (CAT,), 0.5, 0.2), ((2, 4), (DOG,), 0.5, 0.2)]),
        ({"negative_prompt": "<hat>{1,0}"}, [((4, 6), (DOG,), 1.0, 0.0)]),
        ({"prompt": "<toy>{1,0,red} <toy>{1,0,red}"}, [((4, 6), (RED,), 1.0, 0.0)]),
        ({"prompt": "<toy>{1,0,red}", "prompt_weights": False}, []),
        (
            {"embedding_adjust": "1,0", "embedding_class_word": ["red", "<HAT>=cat"]},
            [((0, 2), (RED,), 1.0, 0.0), ((2, 4), (CAT,), 1.0, 0.0)],
        ),
    ],
)
def test_what_is_adjusted_and_towards_what(workshop: Workshop, sampling: dict[str, Any], expected: list[Any]) -> None:
    loaded = load(workshop, of_class("cat"), of_class("dog", "<hat>", 1), **sampling)
    found = [((a.vector_slice.start, a.vector_slice.stop), a.class_ids, a.alpha, a.rho) for a in loaded.adjustments]
    assert found == expected


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"embedding_adjust": "0.5"}, "--embedding_adjust '0.5' is not two numbers; write --embedding_adjust alpha"),
        ({"embedding_adjust": "0.5,2"}, "--embedding_adjust '0.5,2' has alpha 0.5 and rho 2; both must be from 0"),
        (
            {"embedding_adjust": "0.5,0.2"},
            "<toy> cannot be adjusted: the file toys/toy.pt does not say its class word; give --embedding_class_word",
        ),
        ({"prompt": "a <toy>{0.5,0.2}"}, "or write <toy>{0.5,0.2,word} in the prompt"),
        ({"embedding_class_word": ["<hat>=cat"]}, "'<hat>=cat' is for '<hat>', and the embeddings are <toy>"),
        ({"embedding_class_word": ["<toy>="]}, "holds no word; write it as dog or"),
        ({"embedding_class_word": ["cat", "dog"]}, "has two words for all embeddings; give one"),
    ],
)
def test_a_mistake_is_named(workshop: Workshop, sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(workshop, dataclasses.replace(toy(), source="toys/toy.pt"), **sampling)
    assert message in str(caught.value)


def test_class_words_without_effect_or_too_long_are_reported(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    load(workshop, toy(), embedding_class_word=["cat"])
    assert "--embedding_class_word cat has no effect without --embedding_adjust" in caplog.text
    load(workshop, toy(), embedding_adjust="0.5,0.2", embedding_class_word=["a red cat"])
    assert "the class word 'a red cat' has 3 tokens; <toy> has 2 vectors, which use the first 2" in caplog.text
    config = workshop.config(sampling={"embedding_adjust": "0.5,0.2"})
    sentences = list(option_checks.ineffective_options(config))
    assert "--embedding_adjust 0.5,0.2 has no effect without --textual_inversion_weight" in sentences


def test_old_files_are_adjusted_with_a_class_word_of_the_command_line(workshop: Workshop, tmp_path: Path) -> None:
    vectors = toy().vectors
    path = tmp_path / "old.pt"  # of oss-roettger's program, which tells no class word
    embedding_io.save(Embedding("<old>", vectors), tmp_path / "a.safetensors")
    file = embedding_io.read_file(tmp_path / "a.safetensors")
    one = {encoder: array[:1] for encoder, array in vectors.items()}
    embedding_io.write_file(dataclasses.replace(file, vectors={"<old>": one}, metadata={}), path, "roettger")
    sampling = {
        "textual_inversion_weight": [f"{path}=<old>"],
        "prompt": "an <old> in the rain",
        "embedding_adjust": "0.5,0.2",
    }
    with pytest.raises(UserError, match=r"the file .*old.pt does not say its class word"):
        request.prepare(workshop.config(sampling=sampling))
    job = request.prepare(workshop.config(sampling={**sampling, "embedding_class_word": ["cat"]}))
    (adjustment,) = job.embeddings.adjustments
    assert (adjustment.class_ids, adjustment.alpha, adjustment.rho) == ((CAT,), 0.5, 0.2)


def test_parameters_repeat_the_adjustment(workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedding_io.save(of_class("cat"), tmp_path / "toy.safetensors")
    sampling = {
        "textual_inversion_weight": [str(tmp_path / "toy.safetensors")],
        "prompt": "a <toy>{0.3,0.1} here",
        "embedding_adjust": "0.5,0.2",
        "embedding_class_word": ["dog"],
    }
    config = workshop.config(sampling=sampling)
    job = request.prepare(config)
    assert "no prompt uses <toy>" not in caplog.text
    (parameters,) = metadata.generation_parameters(config, job.grids[0], "abc")
    path = image_files.save(np.zeros((4, 4, 3), np.uint8), parameters, tmp_path, "image")
    again = cli.parse("", ("run", "sampling"), ["--parameters_from", str(path)], metadata.config_overrides)
    assert request.prepare(again).embeddings.adjustments == job.embeddings.adjustments
    assert len(job.embeddings.adjustments) == 2
    text = metadata.a1111_infotext(parameters, job.grids[0].requests[0].resolution, job.concepts)
    assert 'Embedding adjust: "0.5,0.2"' in text


def test_a_line_of_the_session_has_an_adjustment_of_its_own(workshop: Workshop, tmp_path: Path) -> None:
    embedding_io.save(of_class("cat"), tmp_path / "toy.safetensors")
    weights = [str(tmp_path / "toy.safetensors")]
    session = Session(workshop.config(sampling={"textual_inversion_weight": weights}))
    sampling = session.options("a *{0.3,0.1} --embedding_adjust=0.5,0.2 -s 2")
    assert (sampling.prompt, sampling.embedding_adjust) == ("a <toy>{0.3,0.1}", "0.5,0.2")
    job = request.prepare(dataclasses.replace(session.config, sampling=sampling), literal=True)
    assert [each.alpha for each in job.embeddings.adjustments] == [0.5, 0.3]


def test_the_api_generates_with_adjusted_embeddings(workshop: Workshop) -> None:
    toolkit = Toolkit(workshop.config(), workshop.model, PYNATIVE)
    options = {"seed": 1, "sample_step": 1, "guidance_scale": 1.0}
    (ours,) = api.generate(toolkit, "a <toy>", [of_class("cat")], embedding_adjust="0.5,0.2", **options)
    (theirs,) = api.generate(toolkit, "a <toy>", [by_hand(workshop, toy(), [CAT, CAT], 0.5, 0.2)], **options)
    (in_prompt,) = api.generate(toolkit, "a <toy>{0.5,0.2,cat}", [toy()], **options)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(ours, in_prompt)


def test_sample_images_of_training_are_checked_before_it_starts(workshop: Workshop, tmp_path: Path) -> None:
    from gm.training import setup

    sections: dict[str, Any] = {
        "training": {"infer_during_train": True, "save_path": str(tmp_path)},
        "sampling": {"embedding_adjust": "0.5,0.2"},
    }
    with pytest.raises(UserError, match="<toy> cannot be adjusted: its metadata does not say its class word"):
        setup.prepare(workshop.config(**sections))
    setup.prepare(workshop.config(**sections, concept={"initializer_token": "cat"}))
