"""Shards on the disk and the memory they save, in one process; several processes:
tests/end_to_end/test_sharded.py."""

import copy
import os
import pickle
import shutil
import zipfile

import pytest
import timm
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

import models_vit
from jobs import parallel
from jobs.parallel import pick, recompute_blocks
from jobs.run_folder import RunFolder
from models_vit import find_backbone
from util.core.errors import InputError
from util.model.memory import Need, need_of
from util.options.flag import FINETUNE
from util.options.groups import Options
from util.parallel.processes import World
from util.parallel.sharding import fills_by_itself, local, send_gradients, shard, shard_of, units
from util.parallel.streamed_checkpoint import write_streamed
from util.weights import checkpoint, shard_files
from util.weights.background import Background

NAME = "checkpoint-last.0123456789ab.shards"
GIB = 2**30


def content_of(model: torch.nn.Module) -> dict:
    """A last checkpoint's content after a step of AdamW."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    optimizer = torch.optim.AdamW([{"params": list(parameters), "names": list(names)}], fused=True)
    model(torch.randn(2, 3, 160, 160)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "buffers": {"rope.periods": torch.arange(3.0)}, "format": 1,
            "epoch": 4,
            "options": {}, "optimizer": optimizer.state_dict(), "scaler": {}, "random_states": [],
            "class_names": ["a", "b", "c"],
            "best": {"epoch": 4, "score": 0.5, "figures": {}},
            "schedule": {"position": 5, "effective_batch": 2, "peak": 1e-3}}


@pytest.fixture
def sharded(tmp_path):
    """A sharded last checkpoint of one process -> (its path, the content that it was made of)."""
    content = content_of(timm.create_model("test_vit", num_classes=3))
    small, tensors = shard_files.split(content)
    shard_files.write_shards(tmp_path / NAME, tensors)
    checkpoint.write(tmp_path / checkpoint.LAST, small | {"shards": NAME})
    return tmp_path / checkpoint.LAST, content


def test_a_sharded_checkpoint_is_read_whole_again(sharded):
    path, content = sharded
    assert path.stat().st_size < 200_000  # the tensors are in the folder
    shapes = checkpoint.read(path, whole=False)
    assert all(tensor.is_meta for tensor in shapes.tensors.values())
    file = checkpoint.read(path)
    assert file.tensors.keys() == content["model"].keys() and "shards" not in file.rest
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in content["model"].items())
    for number, entry in content["optimizer"]["state"].items():
        assert all(torch.equal(file.rest["optimizer"]["state"][number][key], tensor)
                   for key, tensor in entry.items())


class Hostile:
    """Leaves a mark where it is built."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_index_executes_nothing(sharded, tmp_path, start):
    path, mark = sharded[0], tmp_path / "mark"
    index = path.parent / NAME / ".metadata"
    index.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(InputError, match="nothing in it was run"):
        checkpoint.read(path)
    code, _, err = start("--eval", "--resume", path, "--task", "x")
    assert code == 2 and err.count("\n") == 1 and "nothing in it was run" in err and not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # it would have
    assert mark.exists()


def test_an_index_that_speaks_of_more_than_tensors_is_refused(sharded, tmp_path):
    """Entries of bytes are unpickled by PyTorch without a question, and files outside the folder read."""
    path = sharded[0]
    index = path.parent / NAME / ".metadata"
    kept = index.read_bytes()
    found = pickle.loads(kept)
    found.state_dict_metadata["model.cls_token"] = BytesStorageMetadata()
    index.write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match="nothing in it was run"):
        checkpoint.read(path)
    found = pickle.loads(kept)
    next(iter(found.storage_data.values())).relative_path = "../../secret.distcp"
    index.write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match="speaks of more than tensors"):
        checkpoint.read(path)
    found = pickle.loads(kept)
    next(iter(found.storage_data.values())).transform_descriptors = ("zstd",)
    index.write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match="speaks of more than tensors"):
        checkpoint.read(path)


def test_shards_that_are_gone_cut_or_elsewhere_are_one_line(sharded):
    path, content = sharded
    data = next((path.parent / NAME).glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.read(path)
    with pytest.raises(InputError, match="holds model.head.weight as .3, 64., not as .4, 64."):
        shard_files.read_shards(path.parent / NAME, {"model.head.weight": torch.empty(4, 64)}, alone=True)
    (path.parent / NAME / ".metadata").unlink()
    with pytest.raises(InputError, match="can't be read .*No such file"):
        checkpoint.read(path)
    small, _ = shard_files.split(content)
    for elsewhere in ("../other", f"../x/{NAME}", 3):
        checkpoint.write(path, small | {"shards": elsewhere})
        with pytest.raises(InputError, match="outside its own folder"):
            checkpoint.read(path)
    checkpoint.write(path, small)  # shapes and no shards
    with pytest.raises(InputError, match="without numbers"):
        checkpoint.read(path)


def test_only_the_named_shards_stay(tmp_path):
    other = "checkpoint-last.ffffffffffff.shards"
    for name in (NAME, other, "checkpoint-last.mine.shards"):
        (tmp_path / name).mkdir()
    shard_files.remove_unnamed(tmp_path, NAME)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "checkpoint-last.mine.shards"]


def test_an_earlier_runs_shards_go_aside_with_it(sharded):
    folder = RunFolder(str(sharded[0].parent), str(sharded[0].parent / "logs"), "")
    folder.put_aside()
    aside = sharded[0].parent / "earlier-1"
    assert {path.name for path in aside.iterdir()} == {NAME, checkpoint.LAST}
    assert checkpoint.read(aside / checkpoint.LAST).rest["epoch"] == 4


def test_a_streamed_file_is_the_ordinary_one(tmp_path):
    content = content_of(timm.create_model("test_vit", num_classes=3))
    del content["optimizer"]
    content["model"]["none"], content["buffers"]["none"] = torch.zeros(0), torch.zeros(0)
    write_streamed(tmp_path / "a.pth", content, World())
    checkpoint.write(tmp_path / "b.pth", content)
    a, b = (torch.load(tmp_path / name, weights_only=True, mmap=True) for name in ("a.pth", "b.pth"))
    assert list(a) == list(b) and list(a["model"]) == list(b["model"]) and a["epoch"] == 4
    assert all(torch.equal(a["model"][name], tensor) for name, tensor in content["model"].items())
    assert torch.equal(a["buffers"]["rope.periods"], content["buffers"]["rope.periods"])
    assert zipfile.ZipFile(tmp_path / "a.pth").testzip() is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# ---- parts -------------------------------------------------------------------------------------------------

def test_units_are_the_blocks_of_a_stage_too():
    assert len(units(timm.create_model("test_vit"))) == 6
    assert len(units(timm.create_model("test_convnext"))) == 1 + 2 + 4 + 2
    assert units(timm.create_model("test_resnet")) == []


def test_a_model_of_shapes_starts_with_the_same_head():
    row = next(row for row in models_vit.BACKBONES if row.arch == "dinov3_vits16")
    torch.manual_seed(7)
    real = models_vit.build_model(row, 5, 32, depth=1)
    torch.manual_seed(7)
    with torch.device("meta"):
        shapes = models_vit.build_model(row, 5, 32, depth=1)
    assert torch.equal(shapes.head.weight, real.head.weight) and not shapes.head.weight.is_meta
    assert shapes.blocks[0].attn.qkv.weight.is_meta
    torch.manual_seed(8)
    assert not torch.equal(models_vit.build_model(row, 5, 32, depth=1).head.weight, real.head.weight)
    assert not fills_by_itself(shapes, [])  # the backbone needs a file
    assert shard_of(torch.arange(3), torch.arange(3)).tolist() == [0, 1, 2]


# ---- activation checkpointing ------------------------------------------------------------------------------

@pytest.mark.parametrize("arch", ["test_vit", "vit_small_patch16_dinov3_qkvb"])
def test_recomputed_blocks_give_the_same_gradients(arch):
    """Also with drop path and dropout, whose draws have to be the same again."""
    settings = {"img_size": 32, "depth": 2} if "dinov3" in arch else {}
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=3, drop_path_rate=0.4, proj_drop_rate=0.2, **settings).train()
    images, gradients = torch.randn(4, 3, *([32, 32] if settings else [160, 160])), []
    for recomputed in (False, True):
        if recomputed:
            recompute_blocks(model)
        model.zero_grad()
        torch.manual_seed(1)
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(gradient.any() for gradient in gradients[0])


def test_models_that_cannot_recompute_are_refused():
    with pytest.raises(InputError, match="batch norm"):
        recompute_blocks(timm.create_model("test_resnet"))
    with pytest.raises(InputError, match="--activation_checkpointing: timm knows no way"):
        recompute_blocks(torch.nn.Linear(2, 2))


# ---- memory ------------------------------------------------------------------------------------------------

@pytest.fixture
def group(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sent_as, most", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_gradients_are_sent_once_a_step_and_blocks_in_the_asked_format(group, sent_as, most):
    """Two micro-steps, beside the same model whole; `most`: the relative difference of the gradients."""
    torch.manual_seed(0)
    images = torch.randn(2, 4, 3, 160, 160)
    whole = models_vit.build_model(find_backbone("timm", "test_vit"), 3, 160, pretrained=False)
    model, seen = copy.deepcopy(whole), []
    shard(model, World(), sent_as=sent_as)
    for part in (model.blocks[1].mlp.fc1, model.head):
        part.register_forward_hook(lambda module, _, output: seen.append((module.weight.dtype, output.dtype)))
    for micro_step, batch in enumerate(images):
        send_gradients(model, micro_step == 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            model(batch).square().sum().backward()
            whole(batch).square().sum().backward()
        # a shard has its gradient when it was sent
        assert {p.grad is None for p in model.parameters()} == {micro_step == 0}
    assert seen == 2 * [(sent_as, torch.bfloat16), (torch.float32, torch.float32)]
    for (name, mine), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert mine.dtype == mine.grad.dtype == torch.float32
        if not name.endswith("qkv.bias"):
            difference = local(mine.grad) - other.grad
            assert difference.norm() <= most * other.grad.norm(), name


def test_gradients_stay_whole_where_there_is_room(monkeypatch):
    model = timm.create_model("test_vit", num_classes=3)
    monkeypatch.setattr(parallel, "device_memory", lambda *_: 20 * GIB)
    assert parallel.keeps_gradients(model, World())
    monkeypatch.setattr(parallel, "device_memory", lambda *_: 10 * 2**20)
    assert not parallel.keeps_gradients(model, World())
    model.requires_grad_(False)  # a probe's backbone has none
    assert parallel.keeps_gradients(model, World())


def test_a_shard_of_everything_and_two_blocks_gathered():
    need = Need(parameters=1000, trained=400, buffers=8, outside=50, inside=(300, 300, 300),
                inputs=(10, 10, 10), units=(200, 200, 200), trained_units=(100, 100, 100))
    alone = need.on()
    assert (alone.weights, alone.gradients, alone.optimizer, alone.activations) == (1008, 400, 800, 950)
    assert need.on(64, "ddp") == alone and need.on(1, "fsdp") == alone
    four = need.on(4, "fsdp")
    assert (four.weights, four.gradients, four.optimizer) == (258, 100, 200)
    assert four.gathered == 400 + 2 * 200 + 2 * 100  # what is outside the blocks, two blocks, their gradients
    assert need.on(4, "fsdp", recomputed=True).activations == 50 + 30 + 300


def test_activations_by_block_and_recomputed_are_what_autograd_keeps():
    model = timm.create_model("test_vit", num_classes=5)
    need = need_of(model, 4, 160, "fp32", units=units(model))
    assert len(need.inside) == 6 and min(need.inside) > 0
    assert need.on().activations == need_of(model, 4, 160, "fp32").on().activations
    assert need.on(recomputed=True).activations < 0.35 * need.on().activations
    assert need.inputs == (4 * 101 * 64 * 4,) * 6  # images x tokens x width x bytes
    model.set_grad_checkpointing(True)
    # counted without it all the same
    assert need_of(model, 4, 160, "fp32", units=units(model)).inside == need.inside


def test_auto_takes_fsdp_where_only_that_fits():
    need = Need(80 * GIB, 0, 0, 0, (0,) * 10, (0,) * 10, (8 * GIB,) * 10, (0,) * 10)
    assert pick(need, 4, 100 * GIB, False)[0] == "ddp"
    way, line = pick(need, 4, 50 * GIB, False)
    assert way == "fsdp" and "80.00 GiB and fsdp 36.00 GiB of 50.00 GiB" in line
    way, line = pick(need, 4, 20 * GIB, False)
    assert way == "ddp" and "fsdp does not fit either" in line
    assert pick(need, 4, 0, False)[0] == "ddp"  # a system that does not tell


@pytest.mark.parametrize("adaptation", ["finetune", "lora"])
def test_a_checkpoints_copy_is_what_background_keeps(adaptation):
    model = timm.create_model("test_vit", num_classes=5)
    if adaptation == "lora":
        model.requires_grad_(False).blocks.requires_grad_(True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values())
    model(torch.zeros(1, 3, 160, 160)).sum().backward()
    optimizer.step()
    with Background() as background:
        kept = background.copied({"model": model.state_dict() if adaptation == "finetune" else trained,
                                  "optimizer": optimizer.state_dict()["state"]})
        tensors = [*kept["model"].values(),
                   *(part for state in kept["optimizer"].values() for part in state.values())]
    needed = need_of(model, 1, 160, "fp32")
    found = parallel.copied_bytes(Options.of(FINETUNE, {"adaptation": adaptation}), needed)
    assert found == pytest.approx(sum(tensor.nbytes for tensor in tensors), rel=1e-3)
    for nothing in ({"adaptation": "lp"}, {"savemodel": False}):
        assert parallel.copied_bytes(Options.of(FINETUNE, nothing), needed) == 0


def test_one_process_holds_the_whole_model():
    options = Options.of(FINETUNE, {"parallel": "fsdp"})
    assert parallel.choose_parallel(options, World(), None) == (
        "ddp",
        "--parallel fsdp: one process alone holds the whole model",
    )


def test_a_dry_run_tells_every_number_of_devices(start):
    code, out, err = start("--dry_run", "--world_size", 2, "--parallel", "fsdp", "--task", "x")
    assert code == 0, err
    lines = out.splitlines()
    assert "        1        2        4        8       16       32       64  devices" in out
    for name in ("finetune, ddp", "finetune, fsdp, checkpointed", "lp, ddp", "lp, fsdp"):
        assert sum(line.strip().startswith(name + "  ") for line in lines) == 1
    assert any(line.startswith("parallel   fsdp, as asked: about ") for line in lines)
    line = "and in the main process 0.00 GiB of the host's memory, from which checkpoints are written"
    assert line in out and line not in start("--dry_run", "--no_savemodel", "--task", "x")[1]


@pytest.mark.long
def test_the_largest_model_is_told_at_full_depth(pictures, tmp_path, monkeypatch, start):
    """6.7 thousand million parameters: shapes alone, no memory for them."""
    code, out, err = start("--dry_run", "--model", "Dinov3", "--model_arch", "dinov3_vit7b16", "--finetune",
                           "", "--nb_classes",
                           3, "--device", "cpu", "--batch_size", 1, "--task", "x", "--precision", "bf16",
                           small=False)
    assert code == 0, err
    assert "6,716,043,267 parameters (all trained)" in out and "weights 25.02 GiB" in out
    row = next(line for line in out.splitlines() if line.strip().startswith("lp, fsdp"))
    sizes = [float(word) for word in row.split()[2:]]
    assert len(sizes) == 7 and sizes[0] > 25 and sizes[-1] < 2 and sizes == sorted(sizes, reverse=True)


def test_flags_that_do_nothing_say_so(start, tmp_path):
    code, out, _ = start("--adaptation", "lp", "--activation_checkpointing", "--dry_run", "--task", "x")
    assert code == 0 and "--activation_checkpointing does nothing in a linear probe" in out
    shutil.rmtree(tmp_path / "output_dir", ignore_errors=True)
    code, out, _ = start("--parallel", "fsdp", "--epochs", 1, "--task", "y")
    assert code == 0 and "--parallel fsdp: one process alone holds the whole model" in out
