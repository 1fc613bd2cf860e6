"""A model sharded over processes: the same training, the same predictions, checkpoints that any number of
them reads."""

import json
import shutil

import pytest
import timm
import torch

from tests.conftest import SMALL, needs_package, start_process, weights_of
from util.metrics.predictions import read_predictions
from util.weights import checkpoint

TWO = [word for word in SMALL if word not in ("--batch_size", "8")]  # with its own batch size
# 24 steps of 7 or 8 images, two batches each; drop path draws by process, so both have the same
JOB = [*TWO, "--batch_size", 2, "--accum_iter", 2, "--epochs", 4, "--clip_grad", 1, "--warmup_epochs", 0]
MOMENTS = 4 * 60000  # bytes: no small file holds this model


def started(*words, folder, processes=2, program="main_finetune.py"):
    run = start_process(*words, folder=folder, processes=processes, program=program, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    return run


def log_of(folder, task):
    return [json.loads(line) for line in (folder / f"output_dir/{task}/log.txt").read_text().splitlines()]


def furthest(a: dict, b: dict) -> float:
    """The largest difference, the biases of the keys aside: softmax takes no notice of them, so their
    gradient is zero but for rounding, and AdamW makes steps of a full rate of that."""
    assert a.keys() == b.keys()
    differences = {name: (a[name].float() - b[name].float()).abs() for name in a}
    for name in differences:
        if name.endswith("qkv.bias"):
            queries, _, values = differences[name].chunk(3)
            differences[name] = torch.cat([queries, values])
    return max(float(difference.max()) for difference in differences.values())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(pictures, weights, tmp_path_factory):
    """One training under ddp, the same under fsdp with activation checkpointing."""
    folder = tmp_path_factory.mktemp("sharded")
    for task, words in (("ddp", ["--parallel", "ddp"]),
                        ("fsdp", ["--parallel", "fsdp", "--activation_checkpointing"])):
        run = started(*JOB, *words, "--finetune", weights, "--data_path", pictures, "--task", task,
                      folder=folder)
        assert f"parallel   {task}, as asked" in run.stdout
        assert "each process built the whole model" not in run.stdout
    return folder


def test_fsdp_equals_ddp_over_24_steps(trained):
    for a, b in zip(log_of(trained, "ddp"), log_of(trained, "fsdp"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-6)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-5)
    best, other = (weights_of(trained / f"output_dir/{task}/checkpoint-best.pth") for task in ("ddp", "fsdp"))
    assert list(best) == list(other) and furthest(best, other) < 1e-5
    last = checkpoint.read(trained / "output_dir/fsdp/checkpoint-last.pth")
    assert furthest(weights_of(trained / "output_dir/ddp/checkpoint-last.pth"), last.tensors) < 1e-5
    for name in ("predictions_val.csv", "predictions_test.csv"):
        a, b = (read_predictions(trained / f"output_dir/{task}/{name}") for task in ("ddp", "fsdp"))
        assert list(a["path"]) == list(b["path"])
        columns = [column for column in a if column.startswith("logit_")]
        assert abs(a[columns] - b[columns]).to_numpy().max() < 1e-4


def test_the_last_checkpoint_is_in_shards_and_the_best_in_one_file(trained):
    folder = trained / "output_dir/fsdp"
    shards = list(folder.glob("checkpoint-last.*.shards"))
    assert len(shards) == 1 and len(list(shards[0].glob("*.distcp"))) == 2
    assert (folder / "checkpoint-last.pth").stat().st_size < MOMENTS
    best = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert {"model", "class_names", "options", "transform"} <= best.keys() and "shards" not in best
    timm.create_model("test_vit", num_classes=3, img_size=32).load_state_dict(best["model"])


def test_it_goes_on_with_two_processes_with_one_and_without_shards(trained, pictures, tmp_path):
    """2 -> 2 and 2 -> ddp are the same run; 2 -> 1 draws otherwise for drop path, and 1 -> 2 is from one
    ordinary file."""
    words = [*JOB, "--data_path", pictures, "--epochs", 5, "--resume", "auto"]
    for task in ("again", "ddp"):
        shutil.copytree(trained / "output_dir/fsdp", tmp_path / "output_dir" / task)
        way = "ddp" if task == "ddp" else "fsdp"
        run = started(*words, "--task", task, "--parallel", way, folder=tmp_path)
        assert "resumed at epoch 4" in run.stdout
        assert len(list((tmp_path / "output_dir" / task).glob("*.shards"))) == (way == "fsdp")
    last = [checkpoint.read(tmp_path / f"output_dir/{task}/checkpoint-last.pth") for task in ("again", "ddp")]
    assert furthest(last[0].tensors, last[1].tensors) < 1e-5
    moments = [file.rest["optimizer"]["state"] for file in last]
    assert all(torch.allclose(moments[0][n]["exp_avg"], moments[1][n]["exp_avg"], atol=1e-6)
               for n in moments[0])
    assert log_of(tmp_path, "again")[-1]["train_loss"] == pytest.approx(
        log_of(tmp_path, "ddp")[-1]["train_loss"], rel=1e-6
    )

    still = [*words, "--drop_path", 0, "--accum_iter", 2]  # nothing is drawn by process
    for task, start, processes in (("one", "fsdp", 1), ("two", "fsdp", 2)):
        shutil.copytree(trained / "output_dir" / start, tmp_path / "output_dir" / task)
        started(*still, "--batch_size", 4 // processes, "--task", task, "--parallel", "fsdp", folder=tmp_path,
                processes=processes)
    one, two = (checkpoint.read(tmp_path / f"output_dir/{task}/checkpoint-last.pth")
                for task in ("one", "two"))
    assert furthest(one.tensors, two.tensors) < 1e-4
    run = started(*still, "--epochs", 6, "--task", "one", "--parallel", "fsdp", folder=tmp_path)
    assert "resumed at epoch 5" in run.stdout
    assert len(list((tmp_path / "output_dir/one").glob("*.shards"))) == 1


def test_predictions_are_the_same_with_fewer_batches_than_processes(trained, pictures, tmp_path):
    best = trained / "output_dir/ddp/checkpoint-best.pth"
    for way in ("ddp", "fsdp"):
        started("--eval", "--resume", best, "--data_path", pictures, "--task", way, "--parallel", way,
                "--batch_size", 25, "--num_workers", 0, "--device", "cpu", folder=tmp_path)
    a, b = ((tmp_path / f"output_dir/{way}/predictions_test.csv").read_bytes() for way in ("ddp", "fsdp"))
    assert a == b


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from util.weights import shard_files
from util.weights import checkpoint
import main_finetune

saves = [0]
if {where!r} == "between":  # the shards are written, the file that names them is not
    write = checkpoint.write
    def killed(path, content):
        saves[0] += path.name == checkpoint.LAST
        if saves[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)
    checkpoint.write = killed
else:  # rank 1 has written no data yet, others may have
    data = shard_files._Writer.write_data
    def killed(self, plan, planner):
        saves[0] += 1
        if saves[0] == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return data(self, plan, planner)
    shard_files._Writer.write_data = killed
from util.core.ending import exit_with
exit_with(main_finetune.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["between", "inside"])
def test_a_kill_while_shards_are_written_leaves_the_pair_before(where, trained, weights, pictures, tmp_path):
    from tests.conftest import ROOT

    (tmp_path / "killed.py").write_text(KILLED.format(root=str(ROOT), where=where))
    words = [*JOB, "--finetune", weights, "--data_path", pictures, "--task", "k", "--parallel", "fsdp"]
    run = start_process(*words, folder=tmp_path, processes=2, program=str(tmp_path / "killed.py"), real=True,
                        OMP_NUM_THREADS="1")
    assert run.returncode == 1 and "-9" in run.stderr
    folder = tmp_path / "output_dir/k"
    # the one that is named and the one that was begun, which a process that outlived the other may have taken
    # away
    assert (
        len(list(folder.glob("*.shards"))) == 2
        if where == "between"
        else 1 <= len(list(folder.glob("*.shards"))) <= 2
    )
    assert checkpoint.read(folder / "checkpoint-last.pth").rest["epoch"] == 0
    run = started(*words, "--resume", "auto", folder=tmp_path)
    assert "resumed at epoch 1" in run.stdout and len(list(folder.glob("*.shards"))) == 1
    assert furthest(checkpoint.read(folder / "checkpoint-last.pth").tensors,
                    checkpoint.read(trained / "output_dir/fsdp/checkpoint-last.pth").tensors) < 1e-6


def test_probes_of_both_tasks(trained, weights, pictures, tmp_path):
    """The frozen backbone is sharded, its features are computed by all, the head is trained on them."""
    for way in ("ddp", "fsdp"):
        started(*SMALL, "--adaptation", "lp", "--lr", 0.05, "--finetune", weights, "--data_path", pictures,
                "--task", way, "--parallel", way, "--output_dir", f"out_{way}", folder=tmp_path)
    a, b = (weights_of(tmp_path / f"out_{way}/{way}/checkpoint-best.pth") for way in ("ddp", "fsdp"))
    assert furthest(a, b) < 1e-5
    run = started(*SMALL, "--adaptation", "lp", "--lr", 0.05, "--data_path", pictures, "--task", "fsdp",
                  "--parallel", "fsdp", "--output_dir", "out_fsdp", "--resume", "auto", folder=tmp_path)
    assert "this run is complete" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", ["main_regression.py", "main_finetune.py"])
def test_a_head_with_covariates_beside_a_sharded_backbone(weights, pictures, tmp_path, program):
    rows = ["path,split,a,b,age,label"]
    for number, path in enumerate(sorted(pictures.glob("*/*/*.png"))):
        rows.append(f"{path},{path.parts[-3]},{(number * 7) % 11},{(number * 5) % 13},{30 + number % 40},"
                    f"{path.parts[-2]}")
    (tmp_path / "r.csv").write_text("\n".join(rows) + "\n")
    words = ["--model", "timm", "--model_arch", "test_vit", "--input_size", 32, "--batch_size", 4, "--epochs",
             2, "--lr", 1e-3,
             "--num_workers", 0, "--aa", "none", "--device", "cpu", "--precision", "fp32", "--csv_file",
             tmp_path / "r.csv", "--covariates", "age", "--finetune", weights]
    words += ["--targets", "a", "b"] if program == "main_regression.py" else []
    for adaptation in ("finetune", "lp"):
        for way in ("ddp", "fsdp"):
            started(*words, "--adaptation", adaptation, "--parallel", way, "--task", way, "--output_dir",
                    f"{adaptation}_{way}", folder=tmp_path, program=program)
        a, b = (tmp_path / f"{adaptation}_{way}" / way for way in ("ddp", "fsdp"))
        assert furthest(weights_of(a / "checkpoint-best.pth"), weights_of(b / "checkpoint-best.pth")) < 1e-5
        assert len(list(b.glob("*.shards"))) == 1


@pytest.mark.slow
def test_adapters_and_last_blocks_in_shards(weights, pictures, tmp_path):
    """What is trained is the same in shards as in a copy each, recomputed blocks included; it goes on, and
    ends whole."""
    needs_package("peft")
    words = [*TWO, "--batch_size", 4, "--drop_path", 0, "--epochs", 2, "--finetune", weights, "--data_path",
             pictures]
    for name, part in (("lora", ["--adaptation", "lora", "--lora_rank", 4]),
                       ("last", ["--train_last_blocks", 2])):
        started(*words, *part, "--parallel", "ddp", "--task", f"{name}_ddp", folder=tmp_path)
        sharded = [*part, "--parallel", "fsdp", "--activation_checkpointing", "--task", f"{name}_fsdp"]
        run = started(*words, *sharded, folder=tmp_path)
        assert "each process built the whole model" not in run.stdout
        for one, other in zip(log_of(tmp_path, f"{name}_ddp"), log_of(tmp_path, f"{name}_fsdp"), strict=True):
            assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
            assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
        best = [weights_of(tmp_path / f"output_dir/{name}_{way}/checkpoint-best.pth")
                for way in ("ddp", "fsdp")]
        assert furthest(*best) < 1e-5
        run = started(*words, *sharded, "--resume", "auto", "--epochs", 3, folder=tmp_path)
        assert "resumed at epoch 2" in run.stdout
        best = weights_of(tmp_path / f"output_dir/{name}_fsdp/checkpoint-best.pth")
        timm.create_model("test_vit", num_classes=3, img_size=32).load_state_dict(best)
        before = torch.load(weights, weights_only=True)
        moved = {key for key, tensor in best.items() if key not in before
                 or not torch.equal(tensor, before[key])}
        assert moved and not {key for key in moved if name == "last"
                              and key.startswith(("blocks.0.", "blocks.3.", "patch"))}
        if name == "lora":
            assert moved == {"head.weight", "head.bias"} | {
                f"blocks.{n}.attn.{layer}.weight" for n in range(6) for layer in ("qkv", "proj")
            }
            assert (tmp_path / "output_dir/lora_fsdp/adapter/adapter_model.safetensors").exists()
