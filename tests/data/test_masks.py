"""Masks: alpha channel or a file beside the image, cropped with it, and the loss weights of latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gm.data import image_folder, masks
from gm.data.image import CroppedImage, flip_horizontal
from gm.data.image_reader import DecodedImage
from gm.errors import UserError
from tests.data.images import noise, one, save


def left_half(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def with_mask(tmp_path: Path, mask: np.ndarray, height: int = 32, width: int = 64, **options: object) -> CroppedImage:
    save(tmp_path / "a.png", noise(height, width), **options)
    save(tmp_path / "a.mask.png", mask)
    return one(tmp_path, 16)


def mask_of(image: CroppedImage) -> np.ndarray:
    assert image.mask is not None
    return image.mask


def test_a_file_beside_the_image_is_cropped_with_it(tmp_path: Path) -> None:
    mask = mask_of(with_mask(tmp_path, left_half(32, 64)))
    assert mask.dtype == np.float32
    assert mask.shape == (16, 16)
    assert (mask[:, :7] == 1).all()
    assert (mask[:, 9:] == 0).all()


def test_a_smaller_mask_of_the_same_aspect_ratio_is_accepted(tmp_path: Path) -> None:
    mask = mask_of(with_mask(tmp_path, left_half(8, 16)))
    assert (mask[:, :7] == 1).all()
    assert (mask[:, 9:] == 0).all()


def test_a_rotated_image_is_masked_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    mask = mask_of(with_mask(tmp_path, left_half(64, 32), 32, 64, exif=exif))
    assert (mask[:, :7] == 1).all()
    assert (mask[:, 9:] == 0).all()


def test_the_alpha_channel_is_a_mask_and_a_file_overrides_it(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.dstack([noise(16, 16), left_half(16, 16)]))
    image = one(tmp_path, 16)
    assert np.array_equal(mask_of(image), left_half(16, 16) / 255)
    save(tmp_path / "a.mask.png", 255 - left_half(16, 16))  # overrides it
    assert np.array_equal(mask_of(one(tmp_path, 16)), 1 - left_half(16, 16) / 255)
    (without,) = image_folder.load_images(tmp_path, 16, use_masks=False)
    assert without.mask is None
    assert np.array_equal(without.pixels, image.pixels)


@pytest.mark.parametrize("opaque", [np.full((16, 16), 255, np.uint8), None])
def test_all_opaque_is_no_mask(tmp_path: Path, opaque: np.ndarray | None) -> None:
    save(tmp_path / "a.png", noise(16, 16) if opaque is None else np.dstack([noise(16, 16), opaque]))
    assert one(tmp_path, 16).mask is None


def test_a_fully_transparent_image_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.dstack([noise(16, 16), np.zeros((16, 16), np.uint8)]))
    save(tmp_path / "a.mask.png", left_half(16, 16))
    with pytest.raises(UserError, match=r"a.png is fully transparent, so that nothing of it is seen"):
        one(tmp_path, 16)


def test_a_mask_of_16_bits_has_the_weights_of_its_8_bits(tmp_path: Path) -> None:
    soft = np.where(left_half(32, 64), 255, 26).astype(np.uint8)
    expected = mask_of(with_mask(tmp_path, soft))
    Image.fromarray(soft.astype(np.uint16) * 257).save(tmp_path / "a.mask.png")
    assert np.array_equal(mask_of(one(tmp_path, 16)), expected)
    assert expected[:, 9:].max() == pytest.approx(26 / 255)


def test_a_mask_may_be_the_alpha_channel_of_its_file(tmp_path: Path) -> None:
    white = np.full((32, 64, 3), 255, np.uint8)
    mask = mask_of(with_mask(tmp_path, np.dstack([white, left_half(32, 64)])))
    assert (mask[:, :7] == 1).all()
    assert (mask[:, 9:] == 0).all()


def test_a_mask_is_turned_upright_with_its_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: the left half becomes the top
    save(tmp_path / "a.png", noise(16, 16), exif=exif)
    save(tmp_path / "a.mask.png", left_half(16, 16), exif=exif)
    assert np.array_equal(mask_of(one(tmp_path, 16)), left_half(16, 16).T / 255)


@pytest.mark.parametrize(
    "name",
    [
        "a.mask.PNG",
        "a.MASK.png",
        "a.mask.jpg",
        "a.mask.JPEG",
        "a.mask.webp",
        "a.mask.tif",
        "a-masklabel.png",
        "a-masklabel.PNG",
        "a-masklabel.webp",
    ],
)
def test_masks_are_found_by_every_name(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a.JPG", noise(16, 16))
    save(tmp_path / name, left_half(16, 16))
    image = one(tmp_path, 16)  # the mask is not a second image
    assert image.name == "a.JPG"
    np.testing.assert_allclose(mask_of(image), left_half(16, 16) / 255, atol=0.02)
    assert not [message for message in caplog.messages if "mask" in message]


def test_two_masks_of_one_image_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(16, 16))
    save(tmp_path / "a.mask.png", left_half(16, 16))
    save(tmp_path / "a-masklabel.png", left_half(16, 16))
    with pytest.raises(UserError, match=r"a-masklabel.png and a.mask.png are masks of the same image; remove one"):
        one(tmp_path, 16)
    (image,) = image_folder.load_images(tmp_path, 16, use_masks=False)
    assert image.mask is None


def test_a_flipped_image_has_a_flipped_mask(tmp_path: Path) -> None:
    image = with_mask(tmp_path, left_half(32, 64))
    assert np.array_equal(mask_of(flip_horizontal(image)), mask_of(image)[:, ::-1])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((32, 32), 255), r"a.mask.png is 32×32, its image 64×32; give them the same aspect ratio"),
        (np.zeros((32, 64)), "a.mask.png masks the whole image, so that nothing is trained on; paint that part white"),
        (
            np.full((32, 64, 4), [0, 0, 0, 128]),
            r"a.mask.png masks the whole image \(where it is transparent, it counts as black\), so that nothing",
        ),
        (np.eye(32, 64) * 0 + (np.arange(64) < 8) * 255, "the center crop of a.png is masked as a whole"),
    ],
    ids=["shape", "black", "transparent", "cut away"],
)
def test_unusable_masks_are_named(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_mask(tmp_path, mask)


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(16, 16))
    (tmp_path / "a.mask.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the mask .*a.mask.png .*; save it again as PNG, or remove it"):
        one(tmp_path, 16)


@pytest.mark.parametrize("unmasked", [0.0, 0.25, 1.0])
def test_loss_weights_follow_the_unmasked_area_of_each_latent(unmasked: float) -> None:
    mask = np.zeros((1, 16, 16), np.float32)
    mask[0, :8, :12] = 1.0  # of 2 × 2 latents: all, half, none, none
    weights = masks.loss_weights(mask, 8, unmasked)
    assert weights.mean() == pytest.approx(1)
    raw = np.array([[1, unmasked + (1 - unmasked) / 2], [unmasked, unmasked]])
    np.testing.assert_allclose(weights[0], raw / raw.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "image", "same"),
    [
        ((64, 48), (640, 480), True),
        ((640, 483), (64, 48), True),  # 48.3 pixels were rounded
        ((64, 48), (640, 484), True),
        ((64, 48), (640, 520), False),
        ((640, 520), (64, 48), False),
        ((48, 64), (64, 48), False),
    ],
)
def test_aspect_ratios_are_equal_up_to_rounding(mask: tuple[int, int], image: tuple[int, int], same: bool) -> None:
    assert masks.same_aspect_ratio(Image.new("L", mask), Image.new("L", image)) == same


def test_a_mask_of_another_shape_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (9000, 3000)).save(tmp_path / "a.mask.png")
    monkeypatch.setattr(masks, "read_mask", lambda _: pytest.fail("the mask was decoded"))
    image = DecodedImage(Image.new("RGB", (8, 8)), None, ())
    with pytest.raises(UserError, match=r"a\.mask\.png is 9000×3000, its image 8×8"):
        masks.load_mask(tmp_path / "a.mask.png", image)
