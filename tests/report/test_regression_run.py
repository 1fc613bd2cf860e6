"""The charts of a real regression, drawn."""

import re

from PIL import Image

from tests.end_to_end.test_regression import demo, predict  # noqa: F401 (fixtures)


def test_a_run_draws_its_charts(predict, tmp_path):  # noqa: F811
    code, _, err = predict("--task", "r", "--epochs", 2)
    assert code == 0, err
    folder = tmp_path / "output_dir/r"
    with Image.open(folder / "agreement_test_lesion_area.png") as chart:
        assert chart.width > 500
    page = (folder / "report.html").read_text()
    assert len(re.findall(r"<svg [^>]*viewBox", page)) >= 3 and page.count("<path") > 20
