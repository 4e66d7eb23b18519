"""The pixel path: the two resizes against index arithmetic, normalisation, augmentation."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.data.transforms import ImageFormat, augment, augmentation, resize_image, resize_mask
from models import Network
from models.family import NETWORKS
from tests.family import NATIVE
from tests.pixels import denormalise

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random_image(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_the_native_input_is_320_by_640():
    assert NATIVE.hw == (320, 640)


def bilinear_by_hand(values, target):
    """Along the first axis: each output is between the two inputs whose centres are next to its own."""
    length = len(values)
    out = np.empty((target, *values.shape[1:]))
    for index in range(target):
        position = min(max((index + 0.5) * length / target - 0.5, 0), length - 1)
        before = int(position)
        after, share = min(before + 1, length - 1), position - before
        out[index] = (1 - share) * values[before] + share * values[after]
    return out


def nearest_by_hand(length, target):
    """The pixel that each output's centre falls into; where the centre is on a border, also the one before."""
    centres = (2 * np.arange(target) + 1) * length  # in units of 1 / (2 * target) pixels
    pixels = centres // (2 * target)
    return pixels, pixels - (centres % (2 * target) == 0)


@settings(max_examples=100, deadline=None)
@given(sizes, sizes)
def test_masks_take_the_nearest_pixel(size, hw):
    rows, columns = np.indices(size, np.uint8)  # a mask whose values tell where they come from
    (row, row_before), (column, column_before) = (nearest_by_hand(*pair) for pair in zip(size, hw, strict=True))
    resized = resize_mask(rows, hw)
    assert ((resized == row[:, None]) | (resized == row_before[:, None])).all()
    resized = resize_mask(columns, hw)
    assert ((resized == column) | (resized == column_before)).all()


def test_masks_of_the_native_sizes_take_the_pixel_at_the_centre():
    for (height, width), hw in (((990, 1919), (320, 640)), ((611, 1163), (320, 640)), ((640, 1280), (320, 640))):
        ids = np.random.default_rng(0).integers(0, 3, (height, width), dtype=np.uint8)
        rows, columns = nearest_by_hand(height, hw[0])[0], nearest_by_hand(width, hw[1])[0]
        assert (resize_mask(ids, hw) == ids[np.ix_(rows, columns)]).all()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(0, 99))
def test_images_are_resized_bilinearly_without_antialiasing(size, hw, seed):
    image = random_image(seed, *size)
    expected = bilinear_by_hand(bilinear_by_hand(image.astype(float), hw[0]).swapaxes(0, 1), hw[1]).swapaxes(0, 1)
    assert np.abs(resize_image(image, hw) - expected).max() <= 1  # of 255 levels: OpenCV rounds in fixed point


def test_image_and_mask_stay_aligned():
    edge = np.zeros((1080, 1920), np.uint8)
    edge[:, 700:] = 1
    image = resize_image(np.repeat(255 * edge[..., None], 3, axis=2), NATIVE.hw)
    assert (np.abs((image[..., 0] > 127).astype(int) - resize_mask(edge, NATIVE.hw)).sum(axis=1) <= 1).all()


def test_normalisation_by_hand():
    rgb = np.zeros((2, 1, 3), np.uint8)
    rgb[1, 0] = (255, 128, 51)
    image = NATIVE.to_tensor(rgb)
    assert (image.dtype, image.shape, image.is_contiguous()) == (torch.float32, (3, 2, 1), True)
    dark = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    light = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(image[..., 0], torch.tensor([dark, light]).T, rtol=1e-6, atol=1e-6)
    assert (NATIVE.mean, NATIVE.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_normalise_leaves_its_input_alone():
    for image in (torch.full((3, 2, 2), 7, dtype=torch.uint8), torch.full((3, 2, 2), 7.0)):
        NATIVE.normalise(image)
        assert (image == 7).all()


def test_bgr_by_hand():
    """Mean and deviation are of the channels in the network's order, blue first."""
    rgb = np.array([[(255, 128, 51)]], np.uint8)
    image = ImageFormat((1, 1), (0.1, 0.2, 0.5), (0.5, 1.0, 2.0), "BGR").to_tensor(rgb)
    assert (image.shape, image.is_contiguous()) == ((3, 1, 1), True)
    expected = [(0.2 - 0.1) / 0.5, (128 / 255 - 0.2) / 1.0, (1 - 0.5) / 2.0]
    torch.testing.assert_close(image.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_the_format_is_that_of_the_row():
    row = Network(build=object, input_shape=(3, 36, 52), mean=(0.1, 0.2, 0.3), std=(1, 2, 3), channel_order="BGR")
    assert ImageFormat.of(row) == ImageFormat((36, 52), (0.1, 0.2, 0.3), (1, 2, 3), "BGR")
    assert ImageFormat.of(row, (72, 104)).hw == (72, 104)
    for other in (replace(row, mean=None, std=None), NETWORKS["AutoSteer"]):
        with pytest.raises(ValueError, match="input is no image of three channels"):
            ImageFormat.of(other)


def test_every_level_can_be_given_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert (denormalise(NATIVE.to_tensor(levels)) == levels).all()


def draws(strength, count=40):
    rgb = cv2.resize(random_image(0, 6, 12), (64, 32), interpolation=cv2.INTER_CUBIC)
    ids = (rgb[..., 0] // 86).astype(np.uint8)
    transform = augmentation(strength)
    return rgb, ids, [augment(rgb, ids, transform, seed) for seed in range(count)]


def test_augmentation_keeps_shapes_types_and_mask_values():
    rgb, ids, augmented = draws(1.0)
    for image, mask in augmented:
        assert (image.dtype, image.shape) == (torch.uint8, (3, *ids.shape))
        assert mask.dtype == torch.uint8
        assert (mask.numpy() == ids).all() or (mask.numpy() == ids[:, ::-1]).all()


def test_image_and_mask_flip_together():
    rgb, ids, augmented = draws(1.0)
    flips = [(mask.numpy() == ids[:, ::-1]).all() for _, mask in augmented]
    assert 8 <= sum(flips) <= 32  # half of 40
    for (image, _), flip in zip(augmented, flips, strict=True):
        grey = image.as_subclass(Tensor).float().mean(dim=0).numpy()
        original = rgb.astype(float).mean(axis=2)
        likeness = [np.corrcoef(grey.ravel(), side.ravel())[0, 1] for side in (original, original[:, ::-1])]
        assert np.argmax(likeness) == flip


def test_strength_scales_the_change():
    def change(strength):
        rgb, ids, augmented = draws(strength)
        straight = [image for image, mask in augmented if (mask.numpy() == ids).all()]
        images = torch.stack([image.as_subclass(Tensor).float() for image in straight])
        return (images - torch.from_numpy(rgb).permute(2, 0, 1)).abs().mean().item()

    weak, medium, strong = (change(strength) for strength in (0.1, 0.4, 1.0))
    assert 0 < weak < strong / 4
    assert weak < medium < strong


def test_a_draw_depends_on_its_seed_alone():
    _, _, first = draws(1.0, count=8)
    before = torch.get_rng_state()
    torch.manual_seed(17)
    after_seeding = torch.get_rng_state()
    _, _, second = draws(1.0, count=8)
    assert torch.equal(torch.get_rng_state(), after_seeding)
    assert not torch.equal(before, after_seeding)
    for pair in zip(first, second, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(*pair, strict=True))
    assert len({image.as_subclass(Tensor).sum().item() for image, _ in first}) == 8


def test_a_draw_seeds_no_gpu(monkeypatch):
    """Without workers it happens in the process that trains: the GPU's dropout would repeat from sample to sample."""

    def seeded(seed):
        raise AssertionError(f"the GPUs were seeded with {seed}")

    for backend in (torch.cuda, torch.mps, torch.xpu):
        monkeypatch.setattr(backend, "manual_seed" if backend is torch.mps else "manual_seed_all", seeded)
    draws(1.0, count=2)
