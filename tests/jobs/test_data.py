"""jobs/data.py: which transform evaluation reads images by."""

import types

import numpy as np
import pytest

import models_vit
from jobs.data import evaluation_settings
from jobs.tasks.classification import Classification
from util.data.images.as_shown import FLOATS, WHOLE_NUMBERS
from util.data.images.scan import ImageFacts
from util.data.images.transforms import eval_settings, read_alike, train_settings
from util.options.data import ImageOptions
from util.options.flag import FINETUNE
from util.options.parsing import parse

VIT = models_vit.find_backbone("timm", "vit_tiny_patch16_224")  # timm: mean and standard deviation 0.5
STORED = {"kind": "eval", "input_size": 64, "resize": 90, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
          "decode": "full",
          "kept": 100}  # of before `reduced` was an entry, and with a resize of its own


# 12 bits; 255
DEEP = np.array([(1, WHOLE_NUMBERS, 3000, 0, 9, 9), (2, FLOATS, 200, 0, 9, 9)], ImageFacts.dtype)


def settings(*words, stored=STORED, input_size=64, facts=DEEP):
    options = parse(FINETUNE, "", [str(word) for word in words])
    options = options.having(input_size=options.model.input_size or input_size,
                             decode=options.images.decode or "scaled")
    file = types.SimpleNamespace(rest={"transform": {"eval": dict(stored)}}) if stored else None
    return evaluation_settings(options, VIT, file, facts)


@pytest.mark.parametrize(("words", "changed"), [
    ((), {}),
    (("--input_size", 64), {}),  # typed, and no other
    (("--input_size", 32), {"input_size": 32, "resize": 36}),
    (("--decode", "scaled"), {"decode": "scaled"}),
    (("--cache_size", 50), {"kept": 50}),
    (("--norm", "half"), {"mean": [0.5] * 3, "std": [0.5] * 3}),
    (("--norm", "imagenet"), {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}),
    (("--fundus_crop", "auto"), {"fundus_crop": "auto"}),
    (("--resize", "pad"), {"fit": "pad", "resize": 64}),
    (("--resize", "squash", "--input_size", 32), {"fit": "squash", "input_size": 32, "resize": 32}),
    (("--resize", "crop"), {"fit": "crop"}),
    (("--norm", "0,0,0,1,1,2"), {"mean": [0, 0, 0], "std": [1, 1, 2]}),
    (("--read_images", "as_stored"), {"read_images": "as_stored"}),
    (("--read_images", "as_shown"), {"read_images": "as_shown", "bits": 12, "floats": 255.0}),
])
def test_a_typed_flag_changes_its_own_entry_alone(words, changed):
    assert settings(*words) == STORED | changed


def test_without_a_checkpoint_the_flags_decide():
    assert settings(stored=None, facts=DEEP[:0]) == eval_settings(64, (0.5,) * 3, (0.5,) * 3, "scaled")
    assert settings("--norm", "IMAGENET", stored=None) == settings(stored=None)  # it meant the backbone's own
    assert settings("--norm", "imagenet", stored=None)["mean"] == list(models_vit.IMAGENET_MEAN)


def test_the_range_of_deep_images_is_the_checkpoints_else_that_of_the_files():
    assert (settings(stored=None)["bits"], settings(stored=None)["floats"]) == (12, 255.0)
    assert settings("--read_images", "as_stored", stored=None)["bits"] is None
    stored = STORED | {"read_images": "as_shown", "bits": 10, "floats": None}
    assert settings(stored=stored) == stored | {"floats": 255.0}


def test_training_reads_as_the_run_began():
    now = train_settings(64, (0.5,) * 3, (0.5,) * 3, "scaled", ImageOptions(hflip=0.1))
    before = read_alike(now, STORED)
    assert not {"reduced", "read_images", "bits"} & set(before)
    assert before["decode"] == "full" and before["mean"] == STORED["mean"]
    assert before["hflip"] == 0.1 and before["kind"] == "train" and before["input_size"] == 64
    assert read_alike(now, eval_settings(64, (0.5,) * 3, (0.5,) * 3, "scaled")) == now
    deep = {"read_images": "as_shown", "bits": 12, "floats": 255.0}
    assert read_alike(now, STORED | deep).items() >= deep.items()


def test_the_data_decide_the_number_of_classes_where_it_was_not_typed(pictures):
    """The task then has new options; what was asked for stays what it was."""
    asked = parse(FINETUNE, "", ["--data_path", str(pictures)])
    task = Classification(asked)
    task.read(None, ("train", "val", "test"))
    assert (task.options.data.nb_classes, asked.data.nb_classes) == (3, 8)
    assert task.options.typed == asked.typed == {"data_path"}
