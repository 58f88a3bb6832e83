"""Pictures: which options change them, and which must not."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from gm import sdxl
from gm.backend import Backend
from gm.concepts import files as concept_files
from gm.concepts.concept import Concept, words
from gm.config import SamplingConfig
from gm.diffusion import samplers
from gm.errors import UserError
from gm.generation import files, orders, run, sizes
from gm.generation.job import Job, make
from gm.generation.orders import Drawn, Order
from gm.generation.painter import Painter
from gm.model_config import ModelConfig
from gm.weights import transfer
from tests.reference.inputs import relative_error
from tests.workshop import Workshop


@pytest.fixture(scope="module")
def painter(workshop: Workshop) -> Painter:
    return Painter(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")


def toy(seed: int = 0, word: str = "<toy>") -> Concept:
    random = np.random.default_rng(seed)
    return Concept(word, *(random.standard_normal((2, width)).astype(np.float32) for width in (16, 24)))


def draw(
    painter: Painter, *orders: Order, concepts: tuple[Concept, ...] = (toy(),), **options: Any
) -> tuple[np.ndarray, np.ndarray, list[Drawn]]:
    sampling = SamplingConfig(**{"sample_step": 3, **options})
    drawn = list(painter.draw(orders, words(concepts, painter.model.config), sampling))
    latents = np.concatenate([d.latents for d in drawn if d.latents is not None])
    return np.stack([p for d in drawn for p in d.pictures]), latents, drawn


def test_pictures_and_progress(painter: Painter) -> None:
    pictures, latents, drawn = draw(painter, *(Order("a <toy>", k) for k in range(3)), batch_size=2)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert latents.shape == (3, 4, 8, 8)
    assert [(d.done, len(d.pictures)) for d in drawn] == [(1, 0), (2, 0), (3, 2), (4, 0), (5, 0), (6, 1)]
    assert {d.total for d in drawn} == {6}


def test_narrow_weights_draw_the_very_same(workshop: Workshop, tmp_path: Path) -> None:
    config, latents = workshop.config(), []
    transfer.convert(config.run.weight, tmp_path / "half.safetensors", config.model, "float16")
    for widened in (math.inf, 300):
        model = sdxl.build(config.model)
        transfer.load(model, tmp_path / "half.safetensors", config.model, widened)
        painter = Painter(model, Backend("CPU", graph=False, dtype=ms.float32), "end_of_text")
        latents.append(draw(painter, Order("a <toy>", 7))[1])
    assert model.unet.time_embed[0].weight.dtype == ms.float16
    assert relative_error(latents[1], latents[0]) < 1e-6


def test_a_picture_is_the_same_whatever_the_batch(painter: Painter) -> None:
    orders = [Order("a <toy>", 7), Order("two <toy>", 8), Order("a <toy>", 9)]
    together, alone = draw(painter, *orders, batch_size=3)[1], draw(painter, *orders, batch_size=1)[1]
    padded = draw(painter, *orders, batch_size=2)[1]
    assert relative_error(together, alone) < 1e-5
    assert relative_error(padded, alone) < 1e-5
    assert relative_error(draw(painter, orders[1])[1], alone[1:2]) < 1e-5


def test_everything_that_should_change_a_picture_does(painter: Painter) -> None:
    base = draw(painter, Order("a <toy>", 7))[1]
    others = {
        "seed": draw(painter, Order("a <toy>", 8))[1],
        "prompt": draw(painter, Order("one <toy>", 7))[1],
        "rows": draw(painter, Order("a <toy>", 7), concepts=(toy(1),))[1],
        "guidance": draw(painter, Order("a <toy>", 7), guidance_scale=2.0)[1],
        "no guidance": draw(painter, Order("a <toy>", 7), guidance_scale=1.0)[1],
        "negative": draw(painter, Order("a <toy>", 7), negative_prompt="blurry")[1],
        "negative with a concept": draw(painter, Order("a <toy>", 7), negative_prompt="<toy>")[1],
        "steps": draw(painter, Order("a <toy>", 7), sample_step=4)[1],
        "original size": draw(painter, Order("a <toy>", 7), orig_width=400)[1],
        "original height": draw(painter, Order("a <toy>", 7), orig_height=400)[1],
        "target size": draw(painter, Order("a <toy>", 7), target_width=400)[1],
        "target height": draw(painter, Order("a <toy>", 7), target_height=400)[1],
        "crop": draw(painter, Order("a <toy>", 7), crop_coords_top=50)[1],
        "crop left": draw(painter, Order("a <toy>", 7), crop_coords_left=50)[1],
        "noise": draw(painter, Order("a <toy>", 7, np.zeros((4, 8, 8), np.float32)))[1],
        "weight": draw(painter, Order("a (<toy>:1.5)", 7))[1],
        "BREAK": draw(painter, Order("a BREAK <toy>", 7))[1],
        "by step": draw(painter, Order("a [<toy>|cat]", 7))[1],
        "long": draw(painter, Order("a <toy>" + " and more" * 60, 7))[1],
        "plain brackets": draw(painter, Order("a (<toy>:1.5)", 7), prompt_weights=False)[1],
    }
    same = [name for name, latents in others.items() if relative_error(latents, base) < 1e-4]
    assert same == []
    assert relative_error(draw(painter, Order("a <TOY> ", 7))[1], base) == 0


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        *(({}, {"sampler": name}) for name in samplers.SAMPLERS if name != "euler"),
        ({}, {"schedule": "karras"}),
        ({}, {"schedule": "edm"}),
        *(({"schedule": "edm"}, {name: 2.0}) for name in ("sigma_min", "sigma_max", "rho")),
        ({"sampler": "euler_ancestral"}, {"eta": 0.5}),
        ({"sampler": "dpmpp_2m_sde"}, {"s_noise": 0.9}),
        ({"sampler": "heun"}, {"s_churn": 1.0}),
        ({"sampler": "euler", "s_churn": 1.0}, {"s_tmin": 10.0}),
        ({"sampler": "euler", "s_churn": 1.0}, {"s_tmax": 1.0}),
        ({}, {"guider": "rescaled"}),
        ({}, {"guider": "none"}),
        ({"guider": "rescaled"}, {"guidance_rescale": 0.2}),
    ],
    ids=str,
)
def test_every_way_from_noise_draws_another_picture(
    painter: Painter, base: dict[str, Any], changed: dict[str, Any]
) -> None:
    a, b = (draw(painter, Order("a <toy>", 7), sample_step=4, **options)[1] for options in (base, base | changed))
    assert relative_error(b, a) > 1e-3
    assert np.isfinite(b).all()


def test_without_guidance_the_negative_prompt_is_not_heard(painter: Painter) -> None:
    a = draw(painter, Order("a <toy>", 7), guider="none", negative_prompt="<toy>")[1]
    b = draw(painter, Order("a <toy>", 7), guider="IdentityGuider", guidance_scale=9.0)[1]
    c = draw(painter, Order("a <toy>", 7), guidance_scale=1.0)[1]
    assert np.array_equal(a, b)
    assert np.array_equal(a, c)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_fresh_noise_is_a_pictures_own(painter: Painter, sampler: str) -> None:
    orders = [Order("a <toy>", 7), Order("a (<toy>:1.2)", 8), Order("[two|<toy>]", 9)]
    together = draw(painter, *orders, batch_size=3, sampler=sampler)[1]
    for order, latents in zip(orders, together, strict=True):
        assert relative_error(draw(painter, order, sampler=sampler)[1][0], latents) < 1e-5


def test_prompts_of_other_lengths_are_drawn_in_batches_of_their_own(painter: Painter) -> None:
    long = "a <toy>" + " and more" * 40
    orders = [Order("a <toy>", 7), Order(long, 8), Order("two <toy>", 9)]
    together, _, drawn = draw(painter, *orders, batch_size=2)
    assert [(d.done, d.total) for d in drawn] == [(k, 9) for k in range(1, 10)]
    for order, picture in zip(orders, together, strict=True):
        assert np.abs(draw(painter, order)[0][0].astype(int) - picture).max() <= 1


def test_previews_come_between(painter: Painter) -> None:
    *_, drawn = draw(painter, Order("a <toy>", 7), Order("a <toy>", 8), batch_size=2, sample_step=5, preview_interval=2)
    assert [len(d.previews) for d in drawn] == [0, 2, 0, 2, 0]
    assert drawn[1].previews[0].shape == (8, 8, 3)
    # They show what is believed in, not what is still noise: the last one is nearly the picture's.
    assert drawn[-1].latents is not None
    end = painter.decoder.preview(drawn[-1].latents)[0].astype(int)
    assert np.abs(drawn[3].previews[0] - end).mean() < np.abs(drawn[1].previews[0] - end).mean()


def test_any_number_of_concepts_and_none(painter: Painter) -> None:
    both = (toy(), toy(3, "<hat>"))
    with_both = draw(painter, Order("a <toy> with <hat>", 7), concepts=both)[1]
    swapped = draw(painter, Order("a <hat> with <toy>", 7), concepts=both)[1]
    assert relative_error(swapped, with_both) > 1e-4
    # The order in which files are given does not matter, and a concept that is not named changes nothing.
    assert relative_error(draw(painter, Order("a <toy> with <hat>", 7), concepts=both[::-1])[1], with_both) < 1e-6
    alone = draw(painter, Order("a <toy>", 7))[1]
    assert relative_error(draw(painter, Order("a <toy>", 7), concepts=both)[1], alone) < 1e-6
    draw(painter, Order("a cat", 7), concepts=())


def test_pictures_of_other_shapes(painter: Painter) -> None:
    # 24 pixels are 12 latents, 6 below; 8 pixels are 4, then 2. Height and width are not mixed up.
    assert draw(painter, Order("a <toy>", 7), height=24, width=8)[0].shape == (1, 24, 8, 3)


def frame(**options: Any) -> sizes.Frame:
    return sizes.frame(SamplingConfig(**options), ModelConfig())


def test_frame() -> None:
    assert frame() == sizes.Frame(1024, 1024, (1024, 1024, 0, 0, 1024, 1024))
    wide = frame(sd_xl_base_ratios="1.75")
    assert (wide.height, wide.width, wide.told) == (768, 1344, (768, 1344, 0, 0, 768, 1344))
    told = frame(height=512, orig_height=1, orig_width=2, crop_coords_top=3, crop_coords_left=4, target_height=5)
    assert (told.height, told.width, told.told) == (512, 1024, (1, 2, 3, 4, 5, 1024))


def test_every_ratio_is_named_by_its_sides_and_of_the_trained_area() -> None:
    for name, (width, height) in sizes.RATIOS.items():
        assert width / height == pytest.approx(float(name), abs=0.0051)
        assert width % 64 == height % 64 == 0
        assert 0.9 < width * height / 1024**2 <= 1.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sd_xl_base_ratios": "1.74"}, "unknown --sd_xl_base_ratios '1.74'; known are .* did you mean '1.75'"),
        ({"sd_xl_base_ratios": "1.0", "height": 8}, "leave --height and --width out"),
        ({"height": 1028}, "--height is 1028; it must be a multiple of 8"),
        ({"width": 1001}, "--width is 1001; it must be a multiple of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        frame(**options)


def test_grid_lays_out_in_rows_and_leaves_the_rest_white() -> None:
    pictures = [np.full((2, 3, 3), k, np.uint8) for k in range(3)]
    sheet = files.grid(pictures, 2)
    assert sheet.shape == (4, 6, 3)
    assert [sheet[0, 0, 0], sheet[0, 3, 0], sheet[2, 0, 0], sheet[2, 3, 0]] == [0, 1, 2, 255]


def test_saving_never_overwrites_and_keeps_the_recipe(tmp_path: Path) -> None:
    recipe = {"prompt": "grün <toy> \U0001f408", "seed": 3, "nested": {"a": [1, None]}}
    picture = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    (tmp_path / "picture_00007.png").write_bytes(b"mine")
    first = files.save(picture, recipe, tmp_path, "picture")
    second = files.save(picture, recipe, tmp_path, "picture")
    assert [first.name, second.name] == ["picture_00008.png", "picture_00009.png"]
    assert (tmp_path / "picture_00007.png").read_bytes() == b"mine"
    assert files.recipe(first) == recipe
    assert np.array_equal(np.asarray(Image.open(first)), picture)
    Image.fromarray(picture).save(tmp_path / "bare.png")
    with pytest.raises(UserError, match="holds no recipe"):
        files.recipe(tmp_path / "bare.png")


def job(workshop: Workshop, tmp_path: Path, **sampling: Any) -> Job:
    concept_files.save(toy(), tmp_path / "toy.ckpt")
    options = {"textual_inversion_weight": [str(tmp_path / "toy.ckpt")], "save_path": str(tmp_path / "out")}
    return make(workshop.config(sampling={**options, **sampling}))


def test_a_sampling_run_writes_every_picture_and_a_grid(workshop: Workshop, painter: Painter, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a <toy>\n\n  a red <toy>  \n")
    made = job(workshop, tmp_path, num_cols=2, num_rows=2, prompt=str(tmp_path / "prompts.txt"), seed=40)
    paths = [event for event in run.run(workshop.model, painter, made) if isinstance(event, Path)]
    names = [f"picture_{k:05d}.png" for k in range(4)] + ["grid_00000.png"]
    names += [f"picture_{k:05d}.png" for k in range(4, 8)] + ["grid_00001.png"]
    assert [p.name for p in paths] == names
    recipes = [files.recipe(p) for p in paths]
    assert [(r["prompt"], r["seed"]) for r in recipes[:5]] == [("a <toy>", 40 + k) for k in range(4)] + [
        ("a <toy>", 40)
    ]
    assert recipes[5]["prompt"] == "a red <toy>"
    run_again = [e for e in run.run(workshop.model, painter, made) if isinstance(e, Path)]
    assert run_again[0].name == "picture_00008.png"
    assert run_again[0].read_bytes() == paths[0].read_bytes()


def test_noise_from_a_file_replaces_the_seeds(workshop: Workshop, painter: Painter, tmp_path: Path) -> None:
    config = workshop.model.config
    seed = orders.noise(Order("", 40), sizes.frame(SamplingConfig(), config), config.autoencoder)
    np.save(tmp_path / "n.npy", np.stack([seed, -seed]).astype(np.float64))
    made = job(workshop, tmp_path, num_cols=2, init_latent_path=str(tmp_path / "n.npy"), seed=99)
    ours = job(workshop, tmp_path, seed=40)
    first, second = (draw(painter, made.sheets[0].orders[k])[1] for k in (0, 1))
    assert relative_error(first, draw(painter, ours.sheets[0].orders[0])[1]) < 1e-6
    assert relative_error(second, first) > 1e-2


def test_concepts_learned_otherwise_are_warned_about(
    workshop: Workshop, painter: Painter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = dataclasses.replace(toy(word="<other>"), pooling="argmax", details={"base_model": "0" * 16})
    concept_files.save(other, tmp_path / "o.ckpt")
    made = job(workshop, tmp_path, textual_inversion_weight=[str(tmp_path / "o.ckpt")], prompt="a cat")
    assert "no prompt uses <other>" in caplog.text
    assert (
        "<other> was learned with pooling argmax, but end_of_text is used; --pooling argmax matches it" in caplog.text
    )
    next(run.run(workshop.model, painter, made))
    assert "<other> was learned on other weights than these" in caplog.text


def test_pooling_changes_the_picture(workshop: Workshop, painter: Painter) -> None:
    other = Painter(workshop.model, Backend("CPU", graph=False, dtype=ms.float32), "argmax")
    a, b = (draw(p, Order("a <toy>", 7))[1] for p in (painter, other))
    assert relative_error(a, b) > 1e-4


def test_graph_mode_draws_the_same(workshop: Workshop, painter: Painter) -> None:
    graph = Painter(workshop.model, Backend("CPU", graph=True, dtype=ms.float32), "end_of_text")
    a, b = (draw(p, Order("a <toy>", 7), negative_prompt="blurry")[1] for p in (painter, graph))
    assert relative_error(b, a) < 1e-4


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"prompt": " "}, "there is nothing to draw; give --prompt"),
        ({"prompt": "@empty.txt"}, "is an empty file; write a prompt a line"),
        ({"prompt": "@toy.ckpt"}, "is no text file of prompts"),
        ({"sampler": "ddim"}, "unknown sampler 'ddim'; known are euler"),
        ({"init_latent_path": "@nowhere.npy"}, "no file .*nowhere.npy"),
        ({"init_latent_path": "@toy.ckpt"}, "is no .npy of numbers"),
        (
            {"init_latent_path": "@small.npy"},
            r"holds float64 \[1, 4, 4, 8\]; 1 pictures of 16×16 need floats \[1, 4, 8, 8\]",
        ),
        ({"init_latent_path": "@right.npy", "num_cols": 2}, r"2 pictures of 16×16 need floats \[2, 4, 8, 8\]"),
        ({"textual_inversion_weight": ["@nowhere.ckpt"]}, "there is no file .*nowhere.ckpt"),
        ({"textual_inversion_weight": ["@toy.ckpt", "@toy.ckpt"]}, "<toy>"),
        ({"schedule": "karas"}, "unknown schedule 'karas'; known are legacy"),
        ({"guider": "cgf"}, "unknown guider 'cgf'; known are cfg"),
        ({"schedule": "edm", "sigma_min": 20.0}, "sigma_min is 20.0; it must be less than sigma_max"),
        ({"vae_tiling": True, "vae_tile": 1001}, "vae_tile is 1001; it must be a multiple of 8"),
        ({"task": "img2img"}, "--img is empty"),
        ({"img": ["@small.png"]}, "--img is for --task img2img or inpaint"),
        ({"task": "img2img", "img": ["@small.png"], "mask": "@small.png"}, "--mask is for --task inpaint"),
        ({"task": "inpaint", "img": ["@small.png"]}, "--task inpaint needs --mask"),
        (
            {"task": "img2img", "img": ["@small.png"], "strength": 0.3},
            "--strength 0.3 of 3 steps is none; give at least 0.33",
        ),
        ({"add_pipeline": True, "pipeline_config": "@nowhere.yaml"}, "no config file .*nowhere.yaml"),
        ({"add_pipeline": True, "pipeline_config": "@base.yaml"}, "is a base model; give a refiner"),
        ({"add_pipeline": True, "pipeline_config": "@refiner.yaml"}, "leaves the refiner none; give at least 0.33"),
        (
            {"add_pipeline": True, "pipeline_config": "@refiner.yaml", "stage2strength": 0.5, "pipeline_weight": "@no"},
            "no weights .*no; --pipeline_weight names the refiner's",
        ),
        (
            {"add_pipeline": True, "pipeline_config": "configs/sampling/sd_xl_refiner.yaml"},
            "SD-XL-refiner-1.0 has other latents or noise levels than smallest",
        ),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(
    workshop: Workshop, tmp_path: Path, sampling: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    np.save(tmp_path / "small.npy", np.zeros((1, 4, 4, 8)))
    np.save(tmp_path / "right.npy", np.zeros((1, 4, 8, 8)))
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    shutil.copy(workshop.yaml, tmp_path / "base.yaml")
    shutil.copy(workshop.folder / "refiner.yaml", tmp_path / "refiner.yaml")

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(v) for v in value]
        return value.replace("@", f"{tmp_path}/") if isinstance(value, str) else value

    with pytest.raises(UserError, match=message):
        job(workshop, tmp_path, **{name: placed(value) for name, value in sampling.items()})
    assert not (tmp_path / "out").exists()
