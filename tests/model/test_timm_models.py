"""Any name of timm: it trains and predicts as its evaluation does, or it is refused in one line before
anything begins.

benchmarks/architectures.py does the same with a hundred more.
"""

import pytest
import timm
import torch
from timm.models import get_deprecated_models

import models_vit
from benchmarks import architectures
from util.core.errors import InputError
from util.model import timm_models
from util.model.precision import Precision

SMALL_ONES = {"lambda_resnet26t": 64, "efficientvit_m0": 64, "test_resnet": 64, "test_vit2": 64,
              "test_byobnet": 64,
              "test_nfnet": 64, "levit_128s": 64, "edgenext_xx_small": 64,
              "deit_tiny_distilled_patch16_224": 32,
              "test_efficientnet_evos": 64, "xcit_nano_12_p16_224": 32, "lcnet_035": 64}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    architectures.write_pictures(folder, 16)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL_ONES)
def test_it_trains_and_predicts_as_its_evaluation_does(name, noise, tmp_path):
    found = architectures.one(name, noise, tmp_path, (SMALL_ONES[name],))
    assert found["line"] == architectures.TRAINS, found


def test_old_names_are_those_that_timm_maps_them_to():
    old, wrong = get_deprecated_models(), []
    for name, new in old.items():
        try:
            assert models_vit.find_backbone("timm", name).timm_name == new
        except InputError as error:  # timm maps a few to tags that it does not have
            assert f"no tag {new.partition('.')[2]} of" in str(error) and new not in timm.list_models(
                include_tags=True
            )
            wrong.append(name)
    assert len(old) > 100 and len(wrong) < len(old) / 10, wrong
    assert (
        models_vit.find_backbone("timm", "timm/tf_efficientnet_b4_ns").timm_name
        == "tf_efficientnet_b4.ns_jft_in1k"
    )


def test_an_old_name_is_said_to_be_one_and_is_the_same_model_when_it_goes_on(start):
    words = ("--model_arch", "xcit_nano_12_p16_224_dist", "--input_size", 32, "--epochs", 1, "--task", "t",
             "--resume", "same")
    new = "xcit_nano_12_p16_224.fb_dist_in1k"
    for _ in range(2):
        code, out, err = start(*words)
        assert code == 0, err
        assert f"--model_arch xcit_nano_12_p16_224_dist is an old name of timm's: it is {new} now" in out
        assert "differs" not in out
    assert torch.load("output_dir/t/checkpoint-best.pth", weights_only=True)["backbone"]["timm"] == new


@pytest.mark.parametrize("name, says", [
    ("resnet10t.a1_in1k", "no tag a1_in1k of resnet10t: choose resnet10t, resnet10t.c3_in1k"),
    ("hf-hub:timm/resnet10t.a1_in1k", "no tag a1_in1k of resnet10t: choose resnet10t, resnet10t.c3_in1k"),
    ("resnet10t.", "no tag"),
])
def test_tags_that_timm_does_not_have(name, says):
    with pytest.raises(InputError, match=says):
        models_vit.find_backbone("timm", name)


@pytest.mark.long
@pytest.mark.parametrize("name, size, works", [
    ("crossvit_9_240", 64, "what works is 240"),
    ("halonet26t", 100, "what works is 256"),
])
def test_a_size_that_a_model_does_not_take_is_refused_with_those_that_work(name, size, works):
    backbone = models_vit.find_backbone("timm", name)
    with pytest.raises(InputError, match=f"--model_arch {name} does not take --input_size {size} .*: "
                                         f"{works}$"):
        models_vit.resolve_input_size(backbone, size)
    assert models_vit.resolve_input_size(backbone, None) == timm_models.own_size(name)


def test_a_model_that_gives_out_something_else_is_refused():
    def build(size):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(5))
    with pytest.raises(InputError, match=r"gives out \[2, 5\]"):
        timm_models.require_size("test_vit", build, 32)


def test_a_full_memory_is_not_taken_for_the_models_refusal():
    def build(size):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        timm_models.require_size("test_vit", build, 32)


@pytest.mark.long
def test_the_check_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    models_vit.resolve_input_size(models_vit.find_backbone("timm", "test_resnet"), 64)
    with pytest.raises(InputError):
        models_vit.resolve_input_size(models_vit.find_backbone("timm", "crossvit_9_240"), 64)
    assert torch.equal(torch.rand(3), expected)


def test_five_dimensions_keep_their_layout_and_four_have_their_channels_last():
    model = Precision("fp32", "cpu").place(timm.create_model("lambda_resnet26t", num_classes=2))
    weights = {parameter.ndim: parameter for parameter in model.parameters()}
    assert weights[4].is_contiguous(memory_format=torch.channels_last) and weights[5].is_contiguous()
    # kernels of one pixel are contiguous either way; their strides decide which way their convolutions take
    ours, torchs = (timm.create_model("test_efficientnet") for _ in range(2))
    Precision("fp32", "cpu").place(ours)
    torchs.to(memory_format=torch.channels_last)
    assert [p.stride() for p in ours.parameters()] == [p.stride() for p in torchs.parameters()]
