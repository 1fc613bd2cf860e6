"""Features are those of the weights that were named, computed once more here with timm and torchvision
alone."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms as T

import latent_feature
import models_vit
from jobs.feature_vectors import FeatureParts
from tests import parity
from tests.conftest import SMALL, needs_package, write_pictures
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.data.feature_files import require_parquet, write_features

HERE = ["--device", "cpu", "--num_workers", "0", "--precision", "fp32", "--decode", "full"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Some images that are resized and cropped on their way."""
    folder = write_pictures(tmp_path_factory.mktemp("features"), numbers=(1, 1, 1))
    for path in folder.rglob("*.png"):
        Image.open(path).resize((97, 81)).save(path)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, pictures):
    """run(*words) starts latent_feature.py in this process -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def start(*words, output="f.npz", source=pictures):
        capsys.readouterr()
        code = exit_code_of(latent_feature.main,
                            [*map(str, words), *HERE, "--input", str(source), "--output", output])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return start


def images_by_hand(paths, size, mean=models_vit.IMAGENET_MEAN, std=models_vit.IMAGENET_STD):
    transform = T.Compose([T.Resize(int(size / 0.875), interpolation=T.InterpolationMode.BICUBIC),
                           T.CenterCrop(size),
                           T.ToTensor(), T.Normalize(mean, std)])
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


@pytest.fixture
def two_blocks(monkeypatch):
    """The large models cut to two blocks."""
    build = models_vit.build_model
    monkeypatch.setattr(models_vit, "build_model", lambda *words, **more: build(*words, **more, depth=2))


def plain(timm_name, path, size, **options):
    """timm's own model with the tensors of a file in timm's names; nothing of this program."""
    model = timm.create_model(timm_name, num_classes=0, img_size=size, **options).eval()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model


def random_weights(timm_name, path, size, **options):
    """A file of weights that differ from timm's start in every tensor (gammas of 1e-5 would hide the
    blocks)."""
    torch.manual_seed(0)
    model = timm.create_model(timm_name, num_classes=0, img_size=size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    torch.save(model.state_dict(), path)


def test_mae_with_its_mean_and_fc_norm(run, tmp_path, two_blocks):
    options = {"global_pool": "avg", "depth": 2}
    random_weights("vit_large_patch16_224", tmp_path / "w.pth", 64, **options)
    code, out, err = run("--model", "RETFound_mae", "--finetune", "w.pth", "--input_size", 64)
    assert code == 0 and "cls 1,024, patch_mean 1,024, pooled 1,024" in out, err
    file, model = np.load("f.npz"), plain("vit_large_patch16_224", tmp_path / "w.pth", 64, **options)
    with torch.no_grad():
        tokens = model.forward_features(images_by_hand(file["paths"], 64))
        pooled = model.fc_norm(tokens[:, 1:].mean(1)).numpy()
        classes = model.fc_norm(tokens[:, 0]).numpy()
    assert np.allclose(file["pooled"], pooled, atol=1e-4) and np.allclose(
        file["patch_mean"], pooled, atol=1e-4
    )
    assert np.allclose(file["cls"], classes, atol=1e-4) and not np.allclose(classes, pooled, atol=0.1)


def test_mae_with_its_class_token(run, tmp_path, two_blocks):
    options = {"global_pool": "token", "depth": 2}
    random_weights("vit_large_patch16_224", tmp_path / "w.pth", 64, **options)
    assert run("--model", "RETFound_mae", "--cls_token", "--finetune", "w.pth", "--input_size", 64)[0] == 0
    file, model = np.load("f.npz"), plain("vit_large_patch16_224", tmp_path / "w.pth", 64, **options)
    with torch.no_grad():
        tokens = model.forward_features(images_by_hand(file["paths"], 64)).numpy()  # behind the norm
    assert np.allclose(file["pooled"], tokens[:, 0], atol=1e-4) and np.array_equal(
        file["cls"], file["pooled"]
    )
    assert np.allclose(file["patch_mean"], tokens[:, 1:].mean(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    "model, arch, size, registers", [("Dinov2", "dinov2_vits14", 56, 0), ("Dinov3", "dinov3_vits16", 64, 4)]
)
def test_dino_without_its_registers(run, tmp_path, two_blocks, model, arch, size, registers):
    name = parity.row(arch).timm_name
    options = {"depth": 2, "global_pool": "token"}
    random_weights(name, tmp_path / "w.pth", size, **options)
    code, out, err = run("--model", model, "--model_arch", arch, "--finetune", "w.pth", "--input_size", size)
    assert code == 0, err
    file, whole = np.load("f.npz"), plain(name, tmp_path / "w.pth", size, **options)
    assert whole.num_prefix_tokens == 1 + registers
    with torch.no_grad():
        tokens = whole.forward_features(images_by_hand(file["paths"], size)).numpy()
    assert tokens.shape[1] == 1 + registers + 16
    assert np.allclose(file["cls"], tokens[:, 0], atol=1e-4) and np.array_equal(file["cls"], file["pooled"])
    assert np.allclose(file["patch_mean"], tokens[:, 1 + registers:].mean(axis=1), atol=1e-4)
    if registers:
        assert not np.allclose(file["patch_mean"], tokens[:, 1:].mean(axis=1), atol=1e-2)


@pytest.mark.parametrize("name, pooled_is_mean", [("test_resnet", True), ("test_convnext", False)])
def test_a_model_without_class_token(run, tmp_path, name, pooled_is_mean):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    size = model.default_cfg["input_size"][-1]
    code, out, err = run("--model", "timm", "--model_arch", name, "--finetune", "w.pth", "--input_size", size)
    assert code == 0 and f"cls is absent: {name} has no class token" in out, err
    file = np.load("f.npz")
    assert set(file) == {"paths", "patch_mean", "pooled", "facts"}
    with torch.no_grad():
        images = images_by_hand(file["paths"], size, model.default_cfg["mean"], model.default_cfg["std"])
        features, pooled = model.forward_features(images).numpy(), model(images).numpy()
    mean = features.mean(axis=(2, 3))
    assert np.allclose(file["pooled"], pooled, atol=1e-4) and np.allclose(file["patch_mean"], mean, atol=1e-4)
    assert np.allclose(mean, pooled, atol=1e-4) or not pooled_is_mean


def test_channels_last_and_other_kinds_of_models():
    """Swin's map has its channels last; a distilled model has two class tokens; a head may come after the
    pooling."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=56, window_size=7,
                             embed_dim=24, depths=(1, 1), num_heads=(1, 2)).eval()
    parts = FeatureParts(swin, 56)
    images = torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        found = parts.split(parts(images).numpy())
        assert parts.widths == {"patch_mean": 48, "pooled": 48}
        assert np.allclose(found["patch_mean"], swin.forward_features(images).mean(dim=(1, 2)).numpy(),
                           atol=1e-6)
        assert np.allclose(found["pooled"], swin(images).numpy(), atol=1e-6)
    deit = FeatureParts(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0, img_size=32,
                                          depth=1).eval(), 32)
    with torch.no_grad():
        images = torch.randn(3, 3, 32, 32)
        found, tokens = deit.split(deit(images).numpy()), deit.model.forward_features(images).numpy()
    assert tokens.shape[1] == 2 + 4 and np.allclose(
        found["patch_mean"], tokens[:, 2:].mean(axis=1), atol=1e-6
    )
    assert np.allclose(found["cls"], tokens[:, 0], atol=1e-6)
    assert FeatureParts(timm.create_model("pit_ti_224", num_classes=0), 224).widths == {
        "cls": 256,
        "pooled": 256,
    }
    late = FeatureParts(timm.create_model("mobilenetv3_small_050", num_classes=0), 64)
    assert late.widths["pooled"] == 1024 != late.widths["patch_mean"]


def test_a_model_that_does_more_than_pool_is_refused(monkeypatch):
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    whole = model.forward
    monkeypatch.setattr(model, "forward", lambda images: whole(images) * 2)
    with pytest.raises(InputError, match="VisionTransformer does more than pool its last features"):
        FeatureParts(model, 32)


def test_a_trained_checkpoint_says_model_and_transform(run, tmp_path, pictures):
    import main_finetune

    words = [*SMALL, "--epochs", "1", "--decode", "full", "--data_path", str(pictures), "--task", "c"]
    assert exit_code_of(main_finetune.main, words) == 0
    best = tmp_path / "output_dir/c/checkpoint-best.pth"
    code, out, err = run("--resume", best, source=pictures / "test")
    assert code == 0 and "78/78 tensors" in out, err
    content, file = torch.load(best, weights_only=True), np.load("f.npz")
    predictions = np.genfromtxt(tmp_path / "output_dir/c/predictions_test.csv", delimiter=",",
                                skip_header=1)[:, -3:]
    logits = (
        file["pooled"] @ content["model"]["head.weight"].numpy().T + content["model"]["head.bias"].numpy()
    )
    assert np.allclose(logits, predictions, atol=1e-5)
    facts = json.loads(str(file["facts"]))
    assert (
        facts["transform"] == content["transform"]["eval"]
        and facts["weights"]["used"] == facts["weights"]["expected"] == 78
    )
    assert (
        facts["weights"]["sha256"] in out
        and facts["model_arch"] == "test_vit"
        and "torch" in facts["versions"]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"output_dir", "output_logs", "f.npz"}


def test_weights_are_named_or_refused(run, tmp_path):
    words = ("--model", "timm", "--model_arch", "test_vit", "--input_size", 32)

    def wrong(result, *says):
        code, _, err = result
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert all(text in err for text in says), err

    wrong(run(*words), "no weights are named", "--random_weights")
    wrong(
        run(*words, "--finetune", "w.pth", "--random_weights"),
        "--finetune and --random_weights each name the weights",
    )
    wrong(run(*words, "--finetune", "none.pth"), "no such file here")
    torch.save({name: tensor for name, tensor in timm.create_model("test_vit").state_dict().items()
                if "blocks.0" not in name}, tmp_path / "w.pth")
    wrong(run(*words, "--finetune", "w.pth"), "does not fit --model timm", "missing")
    wrong(run(*words, "--random_weights", output="f.csv"), "has to end in .npz or .parquet")
    code, out, err = run(*words, "--random_weights")
    assert code == 0 and "weights    RANDOM, drawn with seed 0" in out, err
    first = np.load("f.npz")["pooled"]
    assert run(*words, "--random_weights")[0] == 0 and np.array_equal(np.load("f.npz")["pooled"], first)
    code, out, _ = run(*words, "--random_weights", "--seed", 1, "--allow_partial", "--cls_token")
    assert code == 0 and "--cls_token changes nothing" in out and "--allow_partial does nothing" in out
    assert not np.allclose(np.load("f.npz")["pooled"], first)


def test_parquet(run, tmp_path, monkeypatch):
    parquet = needs_package("pyarrow.parquet")
    words = ("--model", "timm", "--model_arch", "test_vit", "--input_size", 32, "--random_weights")
    assert run(*words)[0] == 0 and run(*words, output="f.parquet")[0] == 0
    table, file = parquet.read_table("f.parquet"), np.load("f.npz")
    assert table.column_names == ["paths", "cls", "patch_mean", "pooled"]
    assert table.column("paths").to_pylist() == list(file["paths"])
    for name in table.column_names[1:]:
        assert np.array_equal(np.stack(table.column(name).to_numpy()), file[name])
    facts = json.loads(table.schema.metadata[b"facts"])
    assert facts["arrays"]["pooled"] == "what a classifier's head reads"
    # several groups of rows
    monkeypatch.setattr("util.data.feature_files.ROWS_A_GROUP", 4)
    write_features(tmp_path / "g.parquet", list("abcdefghij"),
                   {"x": np.arange(30, dtype=np.float32).reshape(10, 3)}, "{}")
    again = parquet.ParquetFile(tmp_path / "g.parquet")
    assert again.num_row_groups == 3 and np.array_equal(
        np.stack(again.read().column("x").to_numpy()).ravel(), np.arange(30)
    )


def test_without_pyarrow_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="pip install -r requirements-parquet.txt, or name the --output "
                                         "FILE.npz"):
        require_parquet()


def test_help_shows_how_to_start(capsys):
    with pytest.raises(SystemExit):
        latent_feature.main(["--help"])
    assert "torchrun --nproc_per_node=4 latent_feature.py --model RETFound_dinov2" in capsys.readouterr().out
