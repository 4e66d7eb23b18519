import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.data.datasets import find_spec, spread
from common.data.loading import AugmentedDataset, EpochSampler, SampleDataset, worker_init
from common.data.pairs import find_pairs
from examples.make_scenes import write_dataset
from models.network import IMAGENET_MEAN as MEAN
from models.network import IMAGENET_STD as STD
from models.scene_seg import CLASSES, PALETTE
from tests.family import LABELS, NATIVE, format_of, found
from tests.pixels import denormalise


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, "Town", 23, seed=0, size=(48, 80))
    write_dataset(root, "comma10k", 11, seed=0, size=(60, 90))
    return root


def write_pair(root, image, mask, name="Own", stem="0001"):
    for part, rgb, suffix in (("images", image, ".png"), ("gt_masks", mask, ".png")):
        folder = root / name / name / part
        folder.mkdir(parents=True, exist_ok=True)
        if rgb is not None:
            cv2.imwrite(str(folder / f"{stem}{suffix}"), rgb[..., ::-1])


def slow_reference(sample, hw, region):
    """Decode with another library, walk the pixels, resize by index arithmetic; no code of ours but the palette."""
    classes = {colour: CLASSES.index(name) for _, colour, name in PALETTE}
    image = np.asarray(Image.open(sample.image).convert("RGB"), np.float64)
    mask = Image.open(sample.mask).convert("RGB")
    left, top, right, bottom = region
    image = image[top:bottom, left:right]
    height, width = image.shape[:2]
    ids = [[classes[mask.getpixel((left + x, top + y))] for x in range(width)] for y in range(height)]
    out_ids, out_image = np.zeros(hw, int), np.zeros((*hw, 3))
    for row in range(hw[0]):
        y = (row + 0.5) * height / hw[0]
        for column in range(hw[1]):
            x = (column + 0.5) * width / hw[1]
            out_ids[row, column] = ids[int(y)][int(x)]
            v, u = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            dy, dx = v - y0, u - x0
            upper = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            lower = image[y1, x0] * (1 - dx) + image[y1, x1] * dx
            out_image[row, column] = upper * (1 - dy) + lower * dy
    counts = np.bincount(np.ravel(ids), minlength=3)
    return (out_image / 255 - MEAN) / STD, out_ids, height * width / (counts + 5120)


@pytest.mark.parametrize(("name", "region"), [("Town", (0, 0, 80, 48)), ("comma10k", (0, 0, 89, 42))])
def test_the_loader_equals_a_slow_walk_over_the_pixels(root, name, region):
    samples = found(root, [name], "val")
    if name == "Town":  # JPEG decoders differ; the reference gets the same pixels as PNG
        rgb = cv2.imread(str(samples[0].image))
        png = samples[0].image.with_suffix(".reference.png")
        cv2.imwrite(str(png), rgb)
        reference = replace(samples[0], image=png)
    else:
        reference = samples[0]
    image, mask, weights = SampleDataset(samples, format_of((32, 64)))[0]
    expected_image, expected_ids, expected_weights = slow_reference(reference, (32, 64), region)
    if reference is not samples[0]:
        png.unlink()
    assert (mask.numpy() == expected_ids).all()
    levels = np.abs(image.permute(1, 2, 0).numpy() - expected_image) * STD * 255
    assert levels.max() <= 1.01  # OpenCV interpolates uint8 in fixed point
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)


def test_every_tenth_file_is_validation(root):
    names = {split: [s.image.name for s in found(root, ["Town"], split)] for split in ("train", "val")}
    assert names["val"] == ["0009.jpg", "0019.jpg"]
    assert len(names["train"]) == 21
    assert not set(names["train"]) & set(names["val"])


def test_bdd100k_is_for_validation_only(tmp_path):
    write_dataset(tmp_path, "BDD100K", 10, seed=0, size=(40, 60))
    assert len(found(tmp_path, ["bdd100k"], "val")) == 1
    with pytest.raises(ValueError, match="no train images in BDD100K"):
        found(tmp_path, None, "train")


@pytest.mark.parametrize(
    ("name", "size", "region"),
    [
        ("ACDC", (1920, 1080), (0, 0, 1919, 990)),
        ("BDD100K", (1280, 720), (0, 0, 1000, 500)),
        ("IDDAW", (2048, 1536), (0, 476, 2047, 1500)),
        ("MUSES", (1920, 1080), (0, 0, 1919, 918)),
        ("mapillary_vistas", (4032, 3024), (0, 0, 4032, 3024)),
        ("comma10k", (1164, 874), (0, 0, 1163, 611)),
        ("MyOwn", (100, 50), (0, 0, 100, 50)),
    ],
)
def test_regions_of_interest(name, size, region):
    assert find_spec(name).region(*size) == region


def test_default_is_every_dataset_found_and_the_absent_are_named(root, caplog):
    caplog.set_level("INFO")
    samples = found(root, None, "train")
    assert {sample.dataset for sample in samples} == {"comma10k"}  # Town is not a known name
    assert "not below" in caplog.text
    assert "ACDC, IDDAW, MUSES, Mapillary_Vistas, BDD100K" in caplog.text


def test_no_dataset_shows_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="ROOT/NAME/NAME/images"):
        found(tmp_path, None, "train")
    with pytest.raises(FileNotFoundError, match="Absent"):
        found(tmp_path, ["Absent"], "train")


BLACK = np.zeros((8, 12, 3), np.uint8)


def test_files_without_a_partner_are_named(tmp_path):
    write_pair(tmp_path, BLACK, BLACK)
    write_pair(tmp_path, BLACK, None, stem="0002")
    write_pair(tmp_path, None, BLACK, stem="0003")
    with pytest.raises(ValueError, match=r"2 files have no partner: images/0002.png, gt_masks/0003.png"):
        found(tmp_path, ["Own"], "train")


def test_an_empty_folder_and_twins_are_errors(tmp_path):
    write_pair(tmp_path, None, None)
    with pytest.raises(FileNotFoundError, match=r"images: no \.png, \.jpg, \.jpeg file"):
        found(tmp_path, ["Own"], "train")
    write_pair(tmp_path, BLACK, BLACK)
    (tmp_path / "Own/Own/images/0001.jpg").write_bytes((tmp_path / "Own/Own/images/0001.png").read_bytes())
    with pytest.raises(ValueError, match="same stem"):
        found(tmp_path, ["Own"], "train")


def first_example(root, name="Own"):
    return SampleDataset(found(root, [name], "train"), format_of((32, 32)))[0]


def test_a_mask_of_another_size_is_an_error(tmp_path):
    write_pair(tmp_path, BLACK, BLACK[:4])
    with pytest.raises(ValueError, match=r"0001.png: 12x4, but 0001.png is 12x8"):
        first_example(tmp_path)


def test_an_unknown_colour_names_the_file(tmp_path):
    write_pair(tmp_path, BLACK, BLACK + 7)
    with pytest.raises(ValueError, match=r"gt_masks/0001.png: 1 colours .*\(7, 7, 7\): 96 pixels"):
        first_example(tmp_path)


def test_an_image_smaller_than_its_region_is_an_error(tmp_path):
    write_pair(tmp_path, BLACK, BLACK, name="ACDC")
    with pytest.raises(ValueError, match=r"12x8, smaller than .* ACDC, which ends at 1919x990"):
        first_example(tmp_path, "ACDC")


def test_a_damaged_image_names_the_file(tmp_path):
    write_pair(tmp_path, BLACK, BLACK)
    for content in (b"", b"not an image"):
        (tmp_path / "Own/Own/images/0001.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"images/0001.png: not an image"):
            first_example(tmp_path)


def test_long_lists_of_files_are_cut_short(tmp_path):
    write_pair(tmp_path, BLACK, BLACK)
    for number in range(7):
        write_pair(tmp_path, BLACK, None, stem=f"lonely{number}")
    with pytest.raises(ValueError, match=r"7 files have no partner: (images/lonely\d.png, ){5}\.\.\.; images/X"):
        found(tmp_path, ["Own"], "train")


def test_hidden_files_are_ignored_and_suffixes_take_any_case(tmp_path):
    write_pair(tmp_path, BLACK, BLACK)
    folder = tmp_path / "Own" / "Own"
    for part in ("images", "gt_masks"):
        (folder / part / ".DS_Store").write_bytes(b"x")
        (folder / part / "notes.txt").write_bytes(b"x")
    (folder / "images" / "._0001.png").write_bytes(b"x")
    for stem, suffix in (("0002", ".JPG"), ("0003", ".Jpeg"), ("0004", ".PNG")):
        (folder / "images" / f"{stem}{suffix}").write_bytes(b"x")
        (folder / "gt_masks" / f"{stem}.PNG").write_bytes(b"x")
    samples = found(tmp_path, ["Own"], "train")
    assert [(s.image.name, s.mask.name) for s in samples] == [
        ("0001.png", "0001.png"),
        ("0002.JPG", "0002.PNG"),
        ("0003.Jpeg", "0003.PNG"),
        ("0004.PNG", "0004.PNG"),
    ]


def test_the_split_goes_by_file_name(tmp_path):
    stems = [f"{number}" for number in range(30)]  # as text: 0, 1, 10, 11, ..., 2, 20, ...
    for stem in stems:
        write_pair(tmp_path, BLACK, BLACK, stem=stem)
    names = sorted(f"{stem}.png" for stem in stems)
    assert [s.image.name for s in found(tmp_path, ["Own"], "val")] == [names[9], names[19], names[29]]
    kept = [name for index, name in enumerate(names) if index % 10 != 9]
    assert [s.image.name for s in found(tmp_path, ["Own"], "train")] == kept


def test_samples_do_not_depend_on_the_order_of_the_names(root):
    samples = found(root, ["comma10k", "Town"], "train")
    assert samples == found(root, ["Town", "COMMA10K"], "train")
    assert [sample.dataset for sample in samples] == ["Town"] * 21 + ["comma10k"] * 10


def test_names_and_splits_that_cannot_be_meant(root, tmp_path):
    with pytest.raises(ValueError, match="more than once: comma10k"):
        found(root, ["comma10k", "Town", "Comma10K"], "val")
    with pytest.raises(ValueError, match="no split 'validation'; there are train and val"):
        found(root, ["Town"], "validation")
    write_pair(tmp_path, BLACK, BLACK)
    with pytest.raises(ValueError, match=r"Own: 1 images; every tenth is validation, so 10 are the least"):
        found(tmp_path, ["Own"], "val")


def test_validation_only_data_is_left_out_beside_others(root, tmp_path):
    (tmp_path / "comma10k").symlink_to(root / "comma10k")
    write_dataset(tmp_path, "BDD100K", 10, seed=0, size=(40, 60))
    assert {s.dataset for s in found(tmp_path, None, "train")} == {"comma10k"}
    assert {s.dataset for s in found(tmp_path, None, "val")} == {"comma10k", "BDD100K"}


@pytest.mark.parametrize(
    ("name", "size", "region"),
    [
        ("ACDC", (1080, 1920), (0, 0, 1919, 990)),
        ("BDD100K", (720, 1280), (0, 0, 1000, 500)),
        ("IDDAW", (1536, 2048), (0, 476, 2047, 1500)),
        ("MUSES", (1080, 1920), (0, 0, 1919, 918)),
        ("comma10k", (874, 1164), (0, 0, 1163, 611)),
        ("Mapillary_Vistas", (700, 900), (0, 0, 900, 700)),
        ("Own", (50, 100), (0, 0, 100, 50)),
    ],
)
def test_nothing_outside_the_region_is_seen_and_its_corners_are(tmp_path, name, size, region):
    left, top, right, bottom = region
    image, mask = np.full((*size, 3), 9, np.uint8), np.full((*size, 3), 13, np.uint8)  # 13: not in the palette
    image[top:bottom, left:right] = 200
    mask[top:bottom, left:right] = (0, 255, 220)
    write_pair(tmp_path, image, mask, name=name)
    example = SampleDataset(find_pairs(tmp_path / name / name, name, LABELS), format_of((32, 32)))[0]
    assert (denormalise(example.image) == 200).all()
    assert (example.mask == 2).all()
    pixels = (right - left) * (bottom - top)
    np.testing.assert_allclose(example.class_weights, [pixels / 5120] * 2 + [pixels / (pixels + 5120)], rtol=1e-6)


def test_a_batch_is_an_example_too(root):
    batch = next(iter(DataLoader(SampleDataset(found(root, ["Town"], "train"), format_of((32, 64))), 4)))
    assert (batch.image.shape, batch.image.dtype) == ((4, 3, 32, 64), torch.float32)
    assert (batch.mask.shape, batch.mask.dtype) == ((4, 32, 64), torch.int64)
    assert (batch.class_weights.shape, batch.class_weights.dtype) == ((4, 3), torch.float32)


def test_real_images_load(shared):
    samples = found(shared / "data", ["CamVid"], "val")
    assert len(samples) == 46
    for example in SampleDataset(samples[::15], NATIVE):
        assert example.image.shape == (3, 320, 640)
        assert set(example.mask.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_any_seed_is_taken_and_makes_a_difference(root, seed):
    samples = found(root, ["Town"], "train")
    first, second = (AugmentedDataset(samples, format_of((32, 64)), 1.0, each)[0, 0].image for each in (seed, seed + 1))
    assert not torch.equal(first, second)
    orders = [[index for _, index in EpochSampler(30, 0, each)] for each in (seed, seed + 1)]
    assert orders[0] != orders[1]


def test_a_resumed_sampler_yields_the_rest():
    whole = list(EpochSampler(17, 3, seed=5))
    for start in range(19):
        sampler = EpochSampler(17, 3, seed=5, start=start)
        assert list(sampler) == whole[start:]
        assert len(sampler) == len(whole[start:])


def test_spread_takes_evenly_spaced_files(root):
    samples = found(root, ["Town", "comma10k"], "train")
    assert [s.image.name for s in spread(samples, 3)] == [
        "0000.jpg",
        "0007.jpg",
        "0015.jpg",
        "0000.png",
        "0003.png",
        "0006.png",
    ]
    assert spread(samples, None) == samples
    assert len(spread(samples, 1000)) == len(samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_seed_epoch_and_index_alone(root, workers):
    samples = found(root, ["Town"], "train")
    dataset = AugmentedDataset(samples, format_of((32, 64)), 1.0, seed=3)
    alone = [dataset[epoch, index] for epoch, index in EpochSampler(len(samples), 2, seed=3)]
    torch.manual_seed(5)
    sampler = EpochSampler(len(samples), 2, seed=3, start=4)
    before = torch.get_rng_state()
    loader = DataLoader(
        dataset, 1, sampler=sampler, num_workers=workers, worker_init_fn=worker_init, generator=torch.Generator()
    )
    loaded = list(loader)
    assert torch.equal(before, torch.get_rng_state())
    assert len(loaded) == len(samples) - 4
    for expected, actual in zip(alone[4:], loaded, strict=True):
        for left, right in zip(expected, actual, strict=True):
            assert torch.equal(left, right[0])


def test_augmentation_changes_images_and_keeps_masks_aligned(root):
    samples = found(root, ["Town"], "train")[:1]
    plain, augmented = (
        SampleDataset(samples, format_of((32, 64)))[0],
        AugmentedDataset(samples, format_of((32, 64)), 1.0, seed=0),
    )
    draws = [augmented[epoch, 0] for epoch in range(12)]
    assert len({draw.image.sum().item() for draw in draws}) > 6
    flipped = [torch.equal(draw.mask, plain.mask.flip(1)) for draw in draws]
    same = [torch.equal(draw.mask, plain.mask) for draw in draws]
    assert any(flipped)
    assert any(same)
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    untouched = AugmentedDataset(samples, format_of((32, 64)), 0.0, seed=0)[0, 0]
    assert all(torch.equal(a, b) for a, b in zip(untouched, plain, strict=True))


def test_the_sampler_visits_every_index_once_and_differently_each_epoch():
    orders = [[index for _, index in EpochSampler(50, epoch, seed=0)] for epoch in range(2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1]
    assert [index for _, index in EpochSampler(50, 0, seed=0, start=30, stop=40)] == orders[0][30:40]


def test_normalisation_is_inverted_for_pictures(root):
    example = SampleDataset(found(root, ["Town"], "val"), format_of((48, 80)))[0]
    rgb = denormalise(example.image)
    original = cv2.imread(str(found(root, ["Town"], "val")[0].image))[..., ::-1]
    assert np.abs(rgb.astype(int) - original).max() <= 1
    assert math.isclose(example.image.mean().item(), ((original / 255 - MEAN) / STD).mean(), abs_tol=1e-3)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_network_that_takes_bgr_gets_the_same_images_with_their_channels_turned_round(root, strength):
    samples = found(root, ["Town"], "train")[:1]
    rgb = format_of((32, 64))
    bgr = replace(rgb, mean=rgb.mean[::-1], std=rgb.std[::-1], channel_order="BGR")
    first, second = (SampleDataset(samples, each)[0] for each in (rgb, bgr))
    assert torch.equal(second.image, first.image.flip(0)) and torch.equal(second.mask, first.mask)
    first, second = (AugmentedDataset(samples, each, strength, seed=0)[0, 0] for each in (rgb, bgr))
    assert torch.equal(second.image, first.image.flip(0)) and torch.equal(second.mask, first.mask)
