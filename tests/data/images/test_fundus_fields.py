"""--fundus_crop: the square that is read, what is remembered of fields, and every program that reads
images."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from tests.drawn_fields import draw_field, draw_scan
from util.data.images import fundus_fields
from util.data.images.as_shown import AS_SHOWN
from util.data.images.cache import Kept, open_cache
from util.data.images.files import ImageError, ImageSource
from util.data.images.fundus import Field
from util.data.images.fundus_fields import Fields, SquareSource, source_of
from util.data.images.reading_pass import read_images
from util.data.images.transforms import EvalTransform, TrainTransform, eval_settings, train_settings
from util.options.data import ImageOptions
from util.options.model import ModelOptions
from util.report import fundus_sheet

HALF = (0.5, 0.5, 0.5)
CROPPED, WHOLE = ModelOptions(fundus_crop="auto"), ModelOptions(fundus_crop="off")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two drawn photographs, 1000 pixels high, whose field is cut above and below, as JPEG and PNG; an
    OCT-like scan."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        drawn = Image.fromarray(draw_field(number + 20, "cut top and bottom")[0])
        drawn.resize((round(drawn.width * 1000 / drawn.height), 1000)).save(folder / f"f{number}.png")
        Image.open(folder / f"f{number}.png").save(folder / f"f{number}.jpg", quality=92)
    Image.fromarray(draw_scan(3)).save(folder / "scan.png")
    return folder


def square_by_hand(pixels, field):
    """The square, cut out of the image after black was added on all sides."""
    left, top, side = field.square
    far = 2 * side
    padded = np.pad(pixels, ((far, far), (far, far), (0, 0)))
    return padded[top + far:top + far + side, left + far:left + far + side]


@pytest.mark.parametrize("field", [Field(750, 500, 300), Field(750, 480, 560), Field(0, 1000, 200),
                                   Field(760, 500, 900)])
def test_the_square_is_that_of_the_padded_image(photographs, field):
    path = str(photographs / "f0.png")
    by_hand = square_by_hand(np.asarray(Image.open(path)), field)
    side = len(by_hand)

    def source():
        return SquareSource(ImageSource(path), field.square)

    assert source().size == (side, side)
    assert np.array_equal(source().decode(), by_hand)
    assert np.array_equal(source().part(), by_hand)
    pixels, covers = source().whole((64, 64))
    assert np.array_equal(pixels, by_hand) and covers == (side, side)
    rng = np.random.default_rng(0)
    for _ in range(30):
        left, top = rng.integers(side - 20, size=2)
        right, bottom = rng.integers([left + 1, top + 1], side)
        box = tuple(map(int, (left, top, right, bottom)))
        expected = by_hand[top:bottom, left:right]
        found = source().part(box, (10, 10))
        assert np.array_equal(found, expected) or not expected.any() and not found.any()


@pytest.mark.parametrize("name", ["f0.jpg", "f1.jpg"])
def test_a_reduced_jpeg_gives_the_same_square(photographs, name):
    path = str(photographs / name)
    whole, scaled = (EvalTransform(eval_settings(112, HALF, HALF, decode, model=CROPPED))(path)
                     for decode in ("full", "scaled"))
    assert (whole - scaled).abs().mean() * 127.5 < 1  # grey levels
    uncut = EvalTransform(eval_settings(112, HALF, HALF, "full"))(path)
    assert (whole - uncut).abs().mean() * 127.5 > 5


def test_evaluation_is_that_of_the_square_as_a_file(photographs, tmp_path):
    path = str(photographs / "f1.png")
    field = fundus_fields._found(ImageSource(path))
    Image.fromarray(square_by_hand(np.asarray(Image.open(path)), field)).save(tmp_path / "square.png")
    for decode in ("full", "scaled"):
        cut, plain = (EvalTransform(eval_settings(96, HALF, HALF, decode, model=model))(str(file))
                      for file, model in ((path, CROPPED), (tmp_path / "square.png", WHOLE)))
        assert torch.equal(cut, plain)


def test_training_crops_lie_in_the_square(photographs):
    path = str(photographs / "f0.jpg")
    field = fundus_fields._found(ImageSource(path))
    square = Image.fromarray(square_by_hand(np.asarray(Image.open(path)), field))
    settings = train_settings(64, HALF, HALF, "full", ImageOptions(aa="none", reprob=0), CROPPED)
    plain = TrainTransform({**settings, "fundus_crop": "off"})

    class OfSquare:
        size = square.size

        @staticmethod
        def decode():
            return square

    for seed in range(5):
        found = []
        for transform, source in ((TrainTransform(settings), path), (plain, OfSquare)):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            found.append(transform(source))
        assert torch.equal(*found)


def test_an_image_without_a_field_stays_whole(photographs):
    path = str(photographs / "scan.png")
    assert isinstance(source_of(path, AS_SHOWN, "auto", False), ImageSource)
    assert torch.equal(*(EvalTransform(eval_settings(64, HALF, HALF, "scaled", model=model))(path)
                         for model in (CROPPED, WHOLE)))


def test_a_field_is_looked_for_once_a_file(photographs, tmp_path, monkeypatch):
    paths = [str(photographs / name) for name in ("f0.jpg", "f1.png", "scan.png")]
    looked = []
    plain = fundus_fields._found
    monkeypatch.setattr(fundus_fields, "_found", lambda source: looked.append(source.path) or plain(source))
    fields = Fields(tmp_path / "fields.npy")
    assert read_images([(fields, paths)], 2, False) == [] and sorted(looked) == sorted(paths)
    again = Fields(tmp_path / "fields.npy")
    assert read_images([(again, paths)], 2, False) == []
    for memory in (fields, again):
        assert [memory(path) for path in paths] == [plain(ImageSource(path)) for path in paths]
        table = memory.table(paths)
        assert list(table["radius"].isna()) == [False, False, True] and list(table["path"]) == paths
    assert len(looked) == 3
    Image.open(paths[1]).transpose(Image.Transpose.ROTATE_90).save(paths[1])  # another file now
    assert list(again.lacks(paths)) == [False, True, False]
    assert again(paths[1]) == plain(ImageSource(paths[1])) and looked[3:] == [paths[1]]
    Image.open(paths[1]).transpose(Image.Transpose.ROTATE_270).save(paths[1])


def test_a_damaged_memory_is_said_and_written_anew(photographs, tmp_path):
    file = tmp_path / "fields.npy"
    file.write_bytes(b"no array")
    fields = Fields(file)
    assert "not usable" in fields.note
    read_images([(fields, [str(photographs / "f0.jpg")])], 1, False)
    assert len(Fields(file).table([str(photographs / "f0.jpg")]).dropna()) == 1


def test_a_damaged_image_is_found_by_the_same_pass(photographs, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((photographs / "f0.jpg").read_bytes()[:20000])
    fields = Fields(tmp_path / "fields.npy")
    (path, reason), = read_images([(fields, [str(cut), str(photographs / "f1.jpg")])], 1, False)
    assert path == str(cut) and "truncated" in reason
    with pytest.raises(ImageError):
        fields(str(cut))


def test_a_cache_keeps_squares_apart_from_whole_images(photographs, tmp_path):
    path = str(photographs / "f0.jpg")
    settings = eval_settings(64, HALF, HALF, "scaled", 100, CROPPED)
    lines = []
    caches = [open_cache(tmp_path, [path], Kept.of({**settings, "fundus_crop": crop}), 1, lines.append)
              for crop in ("auto", "off")]
    assert len(lines) == 2 and len(list(tmp_path.iterdir())) == 2
    assert caches[0](path).size == (100, 100) and caches[1](path).size[0] in (127, 128)
    assert torch.equal(EvalTransform(settings)(path), EvalTransform(settings)(caches[0](path)))


# ---- the programs ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train, val and test of two classes, all with fields, and one scan."""
    place = tmp_path_factory.mktemp("fundus")
    number = 0
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        for name in ("a", "b"):
            (place / split / name).mkdir(parents=True)
            for _ in range(count):
                Image.fromarray(draw_field(number, "plain")[0]).save(
                    place / split / name / f"{number}.jpg", quality=90
                )
                number += 1
    Image.fromarray(draw_scan(1)).save(place / "test" / "a" / "scan.png")
    return place


def test_the_sheet_shows_24_images(folder, tmp_path):
    fields, paths = Fields(tmp_path / "fields.npy"), sorted(map(str, folder.rglob("*.*")))
    read_images([(fields, paths)], 1, False)
    lines = fundus_sheet.report(fields, paths, tmp_path / "fields.csv", tmp_path / "sheet.png")
    assert "found in 28 of 29 images" in lines[0] and "sheet.png shows 24" in lines[1]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 1440


def test_the_whole_way(folder, start, tmp_path, capsys):
    words = ("--nb_classes", 2, "--epochs", 1, "--task", "run", "--image_cache", "cache", "--fundus_crop",
             "auto")
    code, out, err = start(*words, data=folder)
    assert code == 0, err
    assert "the round field was found in 28 of 29 images; 1 stay whole:" in out and "scan.png" in out
    assert "cut to the round field (--fundus_crop auto)" in out and "-fundus1 (short side" in out
    run = tmp_path / "output_dir" / "run"
    table = pd.read_csv(run / "fundus_crop.csv")
    assert len(table) == 29 and list(table["path"][table["radius"].isna()]) == [
        str(folder / "test" / "a" / "scan.png")
    ]
    assert (run / "fundus_crop.png").exists()
    stored = torch.load(run / "checkpoint-best.pth", weights_only=True)["transform"]["eval"]
    assert stored["fundus_crop"] == "auto"
    predicted = pd.read_csv(run / "predictions_test.csv")

    # without a cache, and what is remembered deleted: the same figures, read as the checkpoint says
    (tmp_path / "output_dir" / ".fundus_fields.npy").unlink()
    code, out, err = start("--nb_classes", 2, "--task", "again", "--eval", "--resume",
                           run / "checkpoint-best.pth", data=folder)
    assert code == 0, err
    assert "found in 8 of 9 images" in out and (tmp_path / "output_dir" / "again"
                                                / "fundus_crop_test.csv").exists()
    again = pd.read_csv(tmp_path / "output_dir" / "again" / "predictions_test.csv")
    pd.testing.assert_frame_equal(predicted, again)

    # typed, it changes the reading
    code, out, err = start("--nb_classes", 2, "--task", "off", "--eval", "--resume",
                           run / "checkpoint-best.pth", "--fundus_crop", "off", data=folder)
    assert code == 0 and "--fundus_crop auto -> off" in out and "round field" not in out
    other = pd.read_csv(tmp_path / "output_dir" / "off" / "predictions_test.csv")
    assert (other["prob_a"] - predicted["prob_a"]).abs().max() > 1e-4

    # predict.py and latent_feature.py read as the checkpoint says
    import latent_feature
    import predict
    from util.core.ending import exit_code_of

    assert exit_code_of(predict.main, ["--resume", str(run / "checkpoint-best.pth"), "--input",
                                       str(folder / "test"),
                                       "--output", "p.csv", "--device", "cpu", "--num_workers", "0"]) == 0
    assert "found in 8 of 9 images" in capsys.readouterr().out
    rows = pd.read_csv("p.csv").assign(name=lambda t: t["path"]).set_index("name")["prob_a"]
    np.testing.assert_allclose(rows[predicted["path"]].to_numpy(), predicted["prob_a"], atol=1e-6)
    assert len(pd.read_csv("p.fundus_crop.csv")) == 9 and Path("p.fundus_crop.png").exists()
    assert not list(tmp_path.glob(".p.csv*"))
    assert exit_code_of(latent_feature.main,
                        ["--resume", str(run / "checkpoint-best.pth"), "--input", str(folder / "test"),
                                              "--output", "f.npz", "--device", "cpu", "--num_workers",
                                              "0"]) == 0
    assert len(pd.read_csv("f.npz.fundus_crop.csv")) == 9


def test_a_run_of_before_goes_on_uncut_and_refuses_another_reading(folder, start, tmp_path):
    code, _, err = start("--nb_classes", 2, "--epochs", 1, "--task", "old", data=folder)
    assert code == 0, err
    for name in ("checkpoint-best.pth", "checkpoint-last.pth"):
        path = tmp_path / "output_dir" / "old" / name
        content = torch.load(path, weights_only=True)
        del content["options"]["fundus_crop"], content["transform"]["eval"]["fundus_crop"]
        torch.save(content, path)
    code, out, err = start("--nb_classes", 2, "--epochs", 1, "--task", "old", "--resume", "same", data=folder)
    assert code == 0 and "round field" not in out, err
    code, out, err = start("--nb_classes", 2, "--epochs", 1, "--task", "old", "--resume", "same",
                           "--fundus_crop", "auto", data=folder)
    assert code == 2 and "--fundus_crop off -> auto" in err


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Images without a field."""
    place = tmp_path_factory.mktemp("scans")
    for number, (split, name) in enumerate((split, name) for split in ("train", "val", "test")
                                           for name in "ab"):
        (place / split / name).mkdir(parents=True)
        for seed in range(3):
            Image.fromarray(draw_scan(10 * number + seed)).save(place / split / name / f"{seed}.png")
    return place


def test_scans_alone_are_warned_of(scans, start, tmp_path):
    code, out, err = start("--nb_classes", 2, "--fundus_crop", "auto", "--dry_run", data=scans)
    assert code == 0, err
    assert "found in 0 of 18 images" in out and "warning: most of these images have no round field" in out
    assert not list((tmp_path / "output_dir").glob("**/fundus_crop*"))


@pytest.mark.parametrize("cache", ["off", "cache"])
def test_a_pretrained_cnn_cuts_photographs_and_leaves_scans_alone(folder, scans, start, tmp_path, cache):
    """By default; where no image has a field, its checkpoint says that none is looked for."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "cnn.pth")
    words = ("--model_arch", "test_resnet", "--finetune", "cnn.pth", "--nb_classes", 2, "--epochs", 1,
             "--image_cache", cache, "--resume", "same")
    said = {}
    for task, data, asked in (("photos", folder, ()), ("scans", scans, ()),
                              ("whole", scans, ("--fundus_crop", "off")),
                              ("lp", folder, ("--adaptation", "lp"))):
        code, said[task], err = start(*words, *asked, "--task", task, data=data)
        assert code == 0, err
    assert "--fundus_crop auto instead of off" in said["photos"] and "found in 28 of 29" in said["photos"]
    assert "found in 28 of 29" in said["lp"]
    assert "no image has a round field: all stay whole" in said["scans"]
    assert "most of these images" not in said["scans"]
    runs = tmp_path / "output_dir"
    stored = {task: torch.load(runs / task / "checkpoint-best.pth", weights_only=True) for task in said}
    for task, crop in (("photos", "auto"), ("lp", "auto"), ("scans", "off"), ("whole", "off")):
        assert stored[task]["transform"]["eval"]["fundus_crop"] == crop
        assert stored[task]["options"]["fundus_crop"] == crop
    first, second = (pd.read_csv(runs / task / "predictions_test.csv") for task in ("scans", "whole"))
    pd.testing.assert_frame_equal(first, second)
    assert not (runs / "scans" / "fundus_crop.csv").exists()
    for task, data in (("photos", folder), ("scans", scans)):  # both go on as they began
        code, out, err = start(*words, "--task", task, data=data)
        assert code == 0 and "differs" not in out and "no image has" not in out, (out, err)
    # a model that learned from cropped photographs meets scans: that is told, and stays as it was
    code, out, err = start("--model_arch", "test_resnet", "--nb_classes", 2, "--task", "met", "--eval", "--resume",
                           runs / "photos" / "checkpoint-best.pth", data=scans)
    assert code == 0 and "warning: most of these images have no round field" in out, (out, err)


def test_a_pretrained_plain_vit_reads_whole_photographs(folder, start, tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    code, out, err = start("--model_arch", "test_vit", "--finetune", "vit.pth", "--nb_classes", 2, "--dry_run",
                           data=folder)
    assert code == 0 and "round field" not in out, err
