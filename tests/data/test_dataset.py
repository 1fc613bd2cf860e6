"""util/data/dataset.py: a sample depends on the seed, the epoch and its index alone."""
import os
import pickle
import random

import numpy as np
import pytest
import torch

from engine_finetune import to_device
from tests.data.test_tables import make_folder
from util.core.errors import RunError
from util.data.dataset import ImageDataset
from util.data.images.transforms import TrainTransform, train_settings
from util.data.loader import make_loader
from util.data.tables import read_folder
from util.options.data import ImageOptions


def dataset(tmp_path, **options):
    table = read_folder(make_folder(tmp_path)).table
    transform = TrainTransform(train_settings(16, (0.5,) * 3, (0.2,) * 3, "full", ImageOptions(reprob=1)))
    return ImageDataset(table, table["target"].to_numpy(), transform, **options)


def test_a_sample_is_its_picture_target_and_position(tmp_path):
    samples = dataset(tmp_path, seed=0)
    assert len(samples) == 27
    table = read_folder(str(tmp_path)).table
    for position in (0, 5, 26):
        tensor, target, at = samples[3, position]
        assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
        assert (target, at) == (table["target"][position], position) and target.dtype == torch.int64
        assert samples.path(position) == table["path"][position]


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path):
    samples = dataset(tmp_path, seed=0)
    first = samples[2, 7][0]
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    assert torch.equal(samples[2, 7][0], first)
    assert torch.equal(samples[2, 7, 0][0], first)
    others = [samples[3, 7][0], samples[2, 8][0], dataset(tmp_path, seed=1)[2, 7][0], samples[2, 7, 1][0],
              samples[2, 7, 2][0]]
    assert not any(torch.equal(other, first) for other in others)
    table = read_folder(str(tmp_path)).table
    moved = ImageDataset(table[7:].reset_index(drop=True), table["target"].to_numpy()[7:], samples.transform,
                         seed=0)
    assert torch.equal(moved[2, 0][0], first)


def test_all_three_generators_are_seeded_and_left_as_they_were(tmp_path):
    table = read_folder(make_folder(tmp_path)).table
    drawn = []

    def draw(path):
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item(), np.random.choice(10**6)))
        return torch.zeros(3, 4, 4)

    samples = ImageDataset(table, table["target"].to_numpy(), draw, seed=0)
    for key in ((0, 0), (0, 0), (0, 1)):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        samples[key]
        after = random.random(), np.random.rand(), torch.rand(1).item()
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        assert after == (random.random(), np.random.rand(), torch.rand(1).item())
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])


def test_workers_make_the_same_samples(tmp_path):
    samples = dataset(tmp_path, seed=0)
    keys = [(1, position) for position in (4, 0, 26, 9)]
    batches = list(torch.utils.data.DataLoader(samples, sampler=keys, batch_size=2, num_workers=1))
    assert torch.equal(torch.cat([batch[0] for batch in batches]),
                       torch.stack([samples[key][0] for key in keys]))
    assert torch.cat([batch[2] for batch in batches]).tolist() == [4, 0, 26, 9]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("reprob", [0, 0.5])
def test_a_batch_is_normalised_on_the_device_to_the_same_bits(tmp_path, reprob, workers):
    """Pixels of 8 bits, but for images that random erasing has filled with noise."""
    table = read_folder(make_folder(tmp_path)).table
    transform = TrainTransform(train_settings(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), "scaled",
                                              ImageOptions(reprob=reprob)))
    samples = ImageDataset(table, table["target"].to_numpy(), transform, seed=0)
    whole = ImageDataset(table, table["target"].to_numpy(), transform.__call__, seed=0)
    keys, erased = [[(4, position) for position in range(first, first + 9)] for first in (0, 9)], 0
    loader = make_loader(samples, keys, workers, False)
    for batch, (pixels, targets, positions) in zip(keys, loader, strict=True):
        assert pixels.values.dtype == torch.uint8 and len(pixels) == 9
        images = to_device(pixels, torch.device("cpu"))
        assert torch.equal(images, torch.stack([whole[key][0] for key in batch]))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert positions.tolist() == [position for _, position in batch]
        assert targets.tolist() == table["target"].iloc[positions.tolist()].tolist()
        erased += len(pixels.places)
    assert (erased > 0) == (reprob > 0) and erased < 18


def test_a_picture_that_is_gone_in_mid_run_is_named(tmp_path):
    samples = pickle.loads(pickle.dumps(dataset(tmp_path, seed=0)))
    os.remove(samples.path(3))
    with pytest.raises(RunError, match="no such file") as caught:
        samples[0, 3]
    assert samples.path(3) in str(caught.value)
    state = random.getstate()
    with pytest.raises(RunError):
        samples[0, 3]
    assert random.getstate() == state
    loader = torch.utils.data.DataLoader(samples, sampler=[(0, 2), (0, 3)], num_workers=1)
    with pytest.raises(RunError) as from_worker:
        list(loader)
    assert str(from_worker.value) == str(caught.value)
