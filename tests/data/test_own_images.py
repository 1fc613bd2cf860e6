"""What the program wrote is not read as photographs, wherever it lies."""

import shutil

import pandas as pd
import pytest

from tests.conftest import write_pictures
from util.core.ending import exit_code_of
from util.data.own_images import is_marker, own_pictures
from util.data.unlabelled import read_unlabelled


@pytest.mark.parametrize(("names", "own"), [
    (["heatmaps.json", "eye_0123456789.png", "eye.png", "eye_0123456789.jpg"], {"eye_0123456789.png"}),
    # nothing says that they are ours
    (["eye_0123456789.png", "roc_test.png", "comparison.png", "x.fundus_crop.png"], set()),
    (["run.json", "roc_test.png", "learning_curves.png", "fundus_crop.png", "confusion_matrix_val.png",
      "eye.png"],
     {"roc_test.png", "learning_curves.png", "fundus_crop.png", "confusion_matrix_val.png"}),
    (["x.fundus_crop.png", "x.fundus_crop.csv", "x.png"], {"x.fundus_crop.png"}),
    (["comparison.csv", "comparison.png"], {"comparison.png"}),
    (["optuna_best.json", "optuna_history.png"], {"optuna_history.png"}),
])
def test_names(names, own):
    assert own_pictures(names, list(filter(is_marker, names))) == own


def test_everything_inside_the_input_folder_twice(start, tmp_path, capsys):
    """A run, its report, predictions with heat maps and fundus sheets, all below the folder that is read: the
    second time as the first."""
    import predict

    data = write_pictures(tmp_path / "eyes", numbers=(2, 1, 3))
    code, _, err = start("--epochs", 1, "--task", "run", "--fundus_crop", "auto", data=data)
    assert code == 0, err
    shutil.copytree(tmp_path / "output_dir" / "run", data / "test" / "results" / "run")
    checkpoint = data / "test" / "results" / "run" / "checkpoint-best.pth"
    rows = []
    for _ in range(2):
        capsys.readouterr()
        assert exit_code_of(predict.main,
                            ["--resume", str(checkpoint), "--input", str(data / "test"), "--output",
                                           str(data / "test" / "mild" / "p.csv"), "--heatmaps", "--device",
                                           "cpu",
                                           "--num_workers", "0"]) == 0
        assert "this program's own" in capsys.readouterr().out
        rows.append(len(pd.read_csv(data / "test" / "mild" / "p.csv")))
    assert rows == [10, 10]
    assert len(list((data / "test" / "mild" / "heatmaps").glob("*.png"))) == 10


def test_overlays_of_a_start_that_was_killed(tmp_path):
    write_pictures(tmp_path / "eyes", numbers=(1, 1, 1))
    maps = tmp_path / "eyes" / "heatmaps"
    maps.mkdir()
    (maps / "heatmaps.json").write_text("{}\n")
    (maps / "00_0123456789.png").write_bytes((tmp_path / "eyes/test/mild/00.png").read_bytes())
    data = read_unlabelled(str(tmp_path / "eyes"))
    assert len(data.table) == 12 and "left out 2 files" in data.notes[0]
