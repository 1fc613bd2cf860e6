"""--tta: means over an image and its mirror image, the same in evaluation and in predict.py."""

import numpy as np
import pandas as pd
import timm
import torch

from util.model.mirrors import Mirrored, with_mirrors


def test_probabilities_of_a_classifier_and_outputs_of_a_regressor_are_averaged():
    torch.manual_seed(0)
    model, images = (
        timm.create_model("test_vit", num_classes=3, img_size=32).eval(),
        torch.randn(4, 3, 32, 32),
    )
    plain, other = model(images), model(torch.flip(images, [3]))
    assert not torch.allclose(plain, other, atol=1e-3)
    by_hand = (plain.softmax(1) + other.softmax(1)) / 2
    assert torch.allclose(Mirrored(model, "classification")(images).softmax(1), by_hand, atol=1e-6)
    # they are logarithms of probabilities
    assert torch.allclose(Mirrored(model, "classification")(images).exp(), by_hand, atol=1e-6)
    assert torch.allclose(Mirrored(model, "regression")(images), (plain + other) / 2, atol=1e-6)
    of_labels = Mirrored(model, "multilabel")(images).sigmoid()
    assert torch.allclose(of_labels, (plain.sigmoid() + other.sigmoid()) / 2, atol=1e-6)
    assert torch.allclose(Mirrored(model, "classification")(images), Mirrored(model, "classification")(images.flip(-1)), atol=1e-6)
    assert with_mirrors(model, "off", "classification") is model


def test_what_a_model_reads_beside_the_image_is_not_mirrored():
    class Sum(torch.nn.Module):
        def forward(self, images, covariates):
            return images[:, :1, 0, 0] + covariates

    images = torch.arange(4.0).view(1, 1, 1, 4)
    assert Mirrored(Sum(), "regression")(images, torch.tensor([[10.0]])).item() == 11.5


def probabilities(path):
    return pd.read_csv(path).filter(like="prob_").to_numpy()


def test_evaluation_and_predictions_take_the_same_means(start, pictures, tmp_path, monkeypatch, capsys):
    import predict

    code, out, err = start("--epochs", 1, "--task", "a", "--tta")
    assert code == 0 and "means over each image and its mirror image" in out, err
    run = tmp_path / "output_dir" / "a"
    best = run / "checkpoint-best.pth"
    monkeypatch.chdir(tmp_path)

    def predicted(name, *words):
        words = ["--resume", str(best), "--input", str(pictures / "test"), "--output", name, "--device",
                 "cpu", *words]
        assert predict.main(words) == 0
        return probabilities(name), capsys.readouterr().out

    with_stored, out = predicted("stored.csv")
    assert "mirror image" in out and np.abs(with_stored
                                            - probabilities(run / "predictions_test.csv")).max() < 1e-6
    plain, out = predicted("plain.csv", "--tta", "off")
    assert (
        "--tta mirror -> off" in out
        and "mirror image" not in out
        and np.abs(plain - with_stored).max() > 1e-4
    )
    code, out, err = start("--task", "b", "--eval", "--resume", best, "--tta", "off")
    assert (
        code == 0
        and np.abs(plain - probabilities(tmp_path / "output_dir/b/predictions_test.csv")).max() < 1e-6
    ), err


def test_a_probe_reads_images_as_they_are(start):
    code, _, err = start("--epochs", 1, "--task", "a", "--adaptation", "lp", "--tta")
    assert code == 2 and "--tta with --adaptation lp" in err
