"""Batches: exact cases of crop and flip, agreement with torchvision, seeds and workers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from conftest import SHARED_DATA
from isonet import load_cfg
from isonet.data import build_loader
from isonet.data.augment import image_transforms
from isonet.data.loader import Normalise
from isonet.data.memory import CropFlip, Decoded, MemoryLoader
from isonet.data.random_streams import EpochBatches
from isonet.errors import DataError

CPU = torch.device("cpu")


def loader(
    images, augment=None, batch_size=4, mean=(0, 0, 0), std=(1, 1, 1), shuffle=False, seed=0, channels_last=False
):
    decoded = Decoded(images, torch.arange(len(images)), range(len(images)))
    batches = EpochBatches(len(images), batch_size, shuffle, seed)
    return MemoryLoader(decoded, batches, Normalise(mean, std, CPU, channels_last), augment)


def random_images(n, size=8):
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_batches_cover_every_image_once_with_its_label():
    images = random_images(10)
    batches = list(loader(images, shuffle=True))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(10))
    pixels = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(pixels, images[labels].permute(0, 3, 1, 2) / 255)


def test_normalisation_equals_torchvisions():
    images, mean, std = random_images(3), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    ((batch, _),) = loader(images, mean=mean, std=std)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([reference(Image.fromarray(image.numpy())) for image in images])
    torch.testing.assert_close(batch, expected, rtol=1e-6, atol=1e-6)


def test_every_crop_and_flip_is_one_that_torchvision_can_draw_and_all_occur():
    """The pixels are distinct, so a crop shows its corner. All (2p+1)^2 corners and both flips occur equally often."""
    image = random_images(1, size=6)
    padded = torch.nn.functional.pad(image[0].permute(2, 0, 1), (1, 1, 1, 1)) / 255
    possible = {}
    for top in range(3):
        for left in range(3):
            crop = padded[:, top : top + 6, left : left + 6]
            possible[crop.numpy().tobytes()] = (top, left, 0)
            possible[crop.flip(2).contiguous().numpy().tobytes()] = (top, left, 1)
    assert len(possible) == 18
    many = loader(image.expand(1800, -1, -1, -1), CropFlip(padding=1, flip=True), batch_size=600)
    counts = dict.fromkeys(possible.values(), 0)
    for batch, _ in many:
        for x in batch:
            counts[possible[x.contiguous().numpy().tobytes()]] += 1
    assert all(60 < n < 140 for n in counts.values()), counts  # 100 are expected, with a standard deviation below 10


def test_augmentation_depends_only_on_seed_epoch_and_image():
    images = random_images(9)

    def epoch(number, **changes):
        augmented = loader(images, CropFlip(padding=2, flip=True), **changes)
        augmented.set_epoch(number)
        pairs = [(label.item(), x) for batch, labels in augmented for x, label in zip(batch, labels, strict=True)]
        return torch.stack([x for _, x in sorted(pairs, key=lambda pair: pair[0])])

    first = epoch(1)
    assert torch.equal(first, epoch(1, shuffle=True, batch_size=2))
    assert not torch.equal(first, epoch(2))
    assert not torch.equal(first, epoch(1, seed=1))


def test_digits_are_never_flipped():
    train = build_loader(load_cfg(None, ["DATASET.NAME", "digits", "DATASET.NUM_CLASSES", 10]), "train")
    assert train.augment == CropFlip(padding=1, flip=False)


@pytest.fixture
def photographs(tmp_path):
    """A folder of eight pictures of 80 x 60 pixels in two classes."""
    for i, image in enumerate(torch.randint(0, 256, (8, 60, 80, 3), dtype=torch.uint8)):
        folder = tmp_path / "mine" / ("train" if i % 2 else "val") / f"class{i % 4 // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return ["DATASET.ROOT", str(tmp_path), "DATASET.NAME", "mine", "DATASET.NUM_CLASSES", 2]


def test_workers_do_not_change_what_a_seed_gives(photographs):
    def epochs(workers, *opts):
        sizes = ["DATASET.IMAGE_SIZE", 96, "SOLVER.TRAIN_BATCH_SIZE", 3]
        batches = build_loader(load_cfg(None, [*photographs, *sizes, "DATASET.NUM_WORKERS", workers, *opts]), "train")
        found = []
        for epoch in (1, 2):
            batches.set_epoch(epoch)
            torch.manual_seed(epoch + workers)  # other random numbers in the process do not matter
            found.append(torch.cat([x for x, _ in batches]))
        return found

    alone, shared = epochs(0), epochs(2)
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], epochs(0, "RUNTIME.SEED", 1)[0])


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("size", "workers"), [(32, 0), (96, 0), (96, 2)], ids=["memory", "0 workers", "2 workers"])
def test_an_epoch_can_start_in_the_middle(photographs, size, workers, drop_last):
    for i in range(7):  # 11 images in all
        Image.effect_noise((80, 60), 50 + i).convert("RGB").save(f"{photographs[1]}/mine/train/class0/more{i}.png")
    opts = ["DATASET.IMAGE_SIZE", size, "SOLVER.TRAIN_BATCH_SIZE", 3, "DATASET.NUM_WORKERS", workers]
    batches = build_loader(load_cfg(None, [*photographs, *opts, "SOLVER.DROP_LAST", drop_last]), "train")
    undivided = build_loader(load_cfg(None, [*photographs, *opts[:3], 11, *opts[4:]]), "train")
    undivided.set_epoch(2)
    (everything,) = undivided

    def epoch(number, skip=0):
        batches.set_epoch(number, skip)
        assert batches.taken == skip
        found, expected = [], len(batches)
        end = 11 - (11 - skip) % 3 * drop_last
        assert batches.epoch_images == end
        for images, labels in batches:
            taken = min(skip + 3 * (len(found) + 1), end)
            assert batches.taken == taken  # up to the current batch, although the workers have read ahead
            found.append((images, labels))
        assert len(found) == expected == -(-(end - skip) // 3)
        assert all(len(labels) == 3 for _, labels in found) or not drop_last
        return found

    def equal(a, b):
        return len(a) == len(b) and all(
            torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
        )

    whole = epoch(2)
    assert not equal(whole, epoch(1))
    assert equal(epoch(2, skip=3), whole[1:])
    assert equal(epoch(2, skip=9), whole[3:])
    assert epoch(2, skip=11) == []
    assert (epoch(2, skip=10) == []) == drop_last
    for skip in (0, 1, 4):
        rest = [torch.cat(part) for part in zip(*epoch(2, skip), strict=True)]
        assert equal([rest], [[part[skip : batches.epoch_images] for part in everything]])
    for _ in batches:
        break  # left in the middle
    assert equal(epoch(2), whole)
    assert equal(list(batches), whole)  # again, without a call of set_epoch
    assert batches.num_images == 11


def test_loading_does_not_change_the_random_state_of_training(photographs):
    batches = build_loader(load_cfg(None, [*photographs, "DATASET.NUM_WORKERS", 0, "DATASET.IMAGE_SIZE", 96]), "train")
    before = torch.get_rng_state()
    list(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_resizes_and_crops_the_centre(photographs):
    cfg = load_cfg(None, [*photographs, "DATASET.NUM_WORKERS", 0, "DATASET.IMAGE_SIZE", 224])
    batches = build_loader(cfg, "val")
    ((images, _),) = batches
    reference = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    first = sorted((Path(cfg.DATASET.ROOT) / "mine/val").rglob("*.png"))[0]
    torch.testing.assert_close(images[0], reference(Image.open(first)))


def test_small_images_of_a_folder_are_resized_once_and_kept(photographs):
    cfg = load_cfg(None, [*photographs, "DATASET.IMAGE_SIZE", 32])
    batches = build_loader(cfg, "val")
    assert isinstance(batches, MemoryLoader)
    assert next(iter(batches))[0].shape == (4, 3, 32, 32)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the photographs in ../shared/data are not here")
def test_real_photographs(tmp_path):
    with tarfile.open(SHARED_DATA / "imagenet-sample-val.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    opts = ["DATASET.ROOT", str(tmp_path), "DATASET.NUM_WORKERS", 2, "SOLVER.TEST_BATCH_SIZE", 64]
    batches = build_loader(load_cfg(None, opts), "val")
    shapes = [tuple(images.shape) for images, _ in batches]
    assert shapes == [(64, 3, 224, 224)] * 3 + [(8, 3, 224, 224)]


def test_batches_have_the_memory_format_of_the_network():
    images = random_images(4)
    ((batch, _),) = loader(images, channels_last=True)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, next(iter(loader(images)))[0])


@pytest.mark.parametrize("size", [(70, 90), (90, 70), (20, 200), (200, 20), (1, 1)], ids=str)  # crops may not fit
@pytest.mark.parametrize("kind", ["CHW", "HWC", "PIL"])
@pytest.mark.parametrize("flip", [True, False])
def test_random_resized_crops_are_bit_identical_to_torchvisions(kind, size, flip):
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    image = Image.fromarray(image.numpy()) if kind == "PIL" else image.permute(2, 0, 1)
    image = image.contiguous() if kind == "CHW" else image
    ours = image_transforms(48, small=False, augment=CropFlip(0, flip))
    reference = v2.Compose([v2.RandomResizedCrop(48), *([v2.RandomHorizontalFlip()] if flip else [])])
    for seed in range(20):
        torch.manual_seed(seed)
        expected, next_draw = v2.functional.to_image(reference(image)), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(v2.functional.to_image(ours(image)), expected)
        assert torch.equal(torch.rand(1), next_draw)  # the same number of draws


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the photographs in ../shared/data are not here")
@pytest.mark.parametrize("split", ["train", "val"])
def test_torchvisions_decoder_equals_pillow_up_to_rounding(tmp_path, split):
    with tarfile.open(SHARED_DATA / "imagenet-sample-val.tar") as archive:
        members = [m for m in archive.getmembers() if m.isfile()][:20]
        archive.extractall(tmp_path, members, filter="data")
    (tmp_path / "ILSVRC2012/train").symlink_to(tmp_path / "ILSVRC2012/val")
    plain = ["DATASET.MEAN", [0.0, 0.0, 0.0], "DATASET.STD", [1 / 255] * 3]  # pixels from 0 to 255

    def pixels(decoder):
        opts = ["DATASET.ROOT", str(tmp_path), "DATASET.NUM_WORKERS", 0, "RUNTIME.DECODER", decoder, *plain]
        return torch.cat([images for images, _ in build_loader(load_cfg(None, opts), split)])

    difference = (pixels("torch") - pixels("pil")).abs()
    assert 0 < difference.mean() < 0.05  # 0.003 with torchvision 0.26 and 0.29 and Pillow 13, 0.03 with other versions
    assert difference.max() < 3.5


def test_pillow_reads_other_formats_and_damaged_files_for_torchvisions_decoder_too(photographs, tmp_path):
    folder = tmp_path / "mine/val"
    misnamed = next(folder.rglob("*.png"))
    misnamed.rename(misnamed.with_suffix(".jpg"))
    opts = ["DATASET.NUM_WORKERS", 0, "DATASET.IMAGE_SIZE", 96]
    found = [
        next(iter(build_loader(load_cfg(None, [*photographs, *opts, "RUNTIME.DECODER", d]), "val")))[0]
        for d in ("pil", "torch")
    ]
    torch.testing.assert_close(found[0], found[1], atol=0.05, rtol=0)
    misnamed.with_suffix(".jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        next(iter(build_loader(load_cfg(None, [*photographs, *opts, "RUNTIME.DECODER", "torch"]), "val")))
