"""util/data/csv_columns.py: what people's CSV files look like is read as written; what is wrong is named with
its line."""
import os

import pandas as pd
import pytest

from util.core.errors import InputError
from util.data.csv_columns import (
    file_names,
    joined,
    located,
    read_columns,
    refuse_absent,
    refuse_empty,
    refuse_repeated,
    refuse_two_spellings,
    refuse_unknown,
    some,
)


def write(folder, content):
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def column(cells, name="label", lines=None):
    """Cells as `read_columns` gives them: by default from line 2 on."""
    return pd.Series(list(cells), range(2, 2 + len(cells)) if lines is None else lines, dtype=object, name=name)


def cells_of(path, columns, **how):
    """What `read_columns` gives, as lists."""
    table, _ = read_columns(path, columns, **how)
    return [list(table[name]) for name in table], list(table.index)


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_marks_and_line_ends(tmp_path, encoding, separator, end):
    rows = [["path", "label", "split"], ["ä.png", " 01", "train "], ["b.png", "1.50", ""]]
    path = write(tmp_path, (end.join(separator.join(row) for row in rows) + end).encode(encoding))
    expected = [["01", "1.50"], ["ä.png", "b.png"], ["train", ""]]
    assert cells_of(path, ["label", "path", "split"]) == (expected, [2, 3])
    note = {",": [], ";": ["separated by semicolon"], "\t": ["separated by tab"]}[separator]
    said = read_columns(path, ["label"])[1]
    assert [line.removeprefix(f"{path}: columns are ") for line in said] == note


def test_lines_are_counted_through_blank_lines_and_quoted_line_ends(tmp_path):
    path = write(tmp_path, 'a,b\n\n1,"x\ny"\n,\n2,"q,""r"\n\n')
    assert cells_of(path, ["a", "b"]) == ([["1", "2"], ["x\ny", 'q,"r']], [3, 6])


def test_one_column_and_unnamed_columns(tmp_path):
    assert cells_of(write(tmp_path, "path\na.png\n"), ["path"])[0] == [["a.png"]]
    assert cells_of(write(tmp_path, ",path,,\n0,a.png,,\n"), ["path"])[0] == [["a.png"]]


def test_headers_that_do_not_fit(tmp_path):
    refused(
        lambda: read_columns(write(tmp_path, "image,label\na,b\n"), ["path"]),
        "no column path",
        "image, label",
    )
    refused(lambda: read_columns(write(tmp_path, "path,x,path\na,b,c\n"), ["path"]), "columns 1 and 3",
            "named path")
    assert cells_of(write(tmp_path, "path,x,x\na,b,c\n"), ["path"])[0] == [["a"]]  # nobody asks for x
    for content in ("", "\n", "\ufeff"):
        refused(lambda content=content: read_columns(write(tmp_path, content), ["path"]), "empty", "path")
    refused(lambda: read_columns(write(tmp_path, "path,label\n\n"), ["path"]), "no row")


def test_files_that_cannot_be_read(tmp_path):
    refused(
        lambda: read_columns(str(tmp_path / "none.csv"), ["path"]), "--csv_file", "none.csv", "no such file"
    )
    refused(lambda: read_columns(str(tmp_path), ["path"]), "directory")
    latin = "path,label\na.png,x\nb.png,größer\n".encode("latin-1")
    refused(lambda: read_columns(write(tmp_path, latin), ["path"]), "line 3", "UTF-8")
    refused(lambda: read_columns(write(tmp_path, "a,b\n1,2\n1,2,3\n"), ["a"]), "line 3", "3 columns", "2")
    refused(lambda: read_columns(write(tmp_path, "a,b\n1,2\n1\n"), ["a"]), "line 3", "1 columns")
    refused(lambda: read_columns(write(tmp_path, 'a,b\n1,"2\n1,2\n'), ["a"]), "line", "end of data")


def test_empty_and_unknown_cells():
    refuse_empty("t.csv", column(["x"] * 8))
    cells = column([""] * 7 + ["x"])
    refused(lambda: refuse_empty("t.csv", cells), "label", "7 rows", "2, 3, 4, 5, 6 and 2 more")
    known = ["train", "iv"]
    refuse_unknown("t.csv", column(["Train", "IV"], "split"), known)
    refused(
        lambda: refuse_unknown("t.csv", column(["train", "trian"], "split"), known),
        "train, iv",
        "line 3 trian",
    )


def test_one_number_in_two_spellings():
    for cells in (["1", "1.0"], ["01", "1"], ["2.", "+2", "x"], ["-3", "-3.00"]):
        refused(lambda cells=cells: refuse_two_spellings("t.csv", column(cells)), "label", cells[0], cells[1])
    refuse_two_spellings("t.csv", column(["1", "1", "10", "1.5", "1.50x", "one", "-1", "1e0"]))


def test_a_picture_that_stands_there_twice(tmp_path):
    csv_file = str(tmp_path / "t.csv")

    def check(paths, splits, labels):
        refuse_repeated(csv_file, column(paths),
                        {"in two splits": column(splits), "with two labels": column(labels)})

    check(["a.png", "x/a.png"], ["train", "val"], ["0", "1"])
    whole = str(tmp_path / "a.png")
    for other in ("a.png", "./a.png", "x/../a.png", ".//a.png", whole):
        refused(lambda other=other: check(["a.png", "b.png", other], ["train", "val", "val"], list("010")),
                "1 images", "in two splits", "lines 2 and 4", "a.png")
    refused(lambda: check(["a", "a"], ["val", "val"], ["0", "1"]), "with two labels", "lines 2 and 3")
    refused(lambda: check(["a", "a"], ["val", "val"], ["0", "0"]), "twice")


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("d/folder.png")
    for name in ("a.png", "d/a.png"):
        open(name, "w").close()
    good = ["a.png", "./a.png", "d/a.png", "d/../a.png", str(tmp_path / "d" / "a.png")]
    refuse_absent("t.csv", column(good))
    wrong = ["b.png", "d/b.png", "e/a.png", "d/folder.png", "/a.png", "d\\a.png", ""]
    for line, path in enumerate(wrong, 2):
        refused(lambda line=line, path=path: refuse_absent("t.csv", column([path], lines=[line])),
                f"line {line} {path}", "1 of 1")
    refused(
        lambda: refuse_absent("t.csv", column(good + wrong[:6])),
        "6 of 11",
        "line 7 b.png",
        "and 1 more",
    )


def test_joined_is_join_and_some_is_short():
    for folder in ("", "a", "a/", "/"):
        for paths in (["x", "y/z"], ["x", "/y"]):
            assert joined(folder, paths) == [os.path.join(folder, path) for path in paths]
    assert some("abc", 3) == "a, b, c" and some("abcd", 3) == "a, b, c and 1 more" and some([]) == ""


def test_rows_of_a_spreadsheet_may_be_shorter_or_longer_by_empty_cells(tmp_path):
    path = tmp_path / "saved.csv"
    path.write_text("name,grade,,\na,1,,\nb,2\nc\n\nd,4,,,,\n")
    assert cells_of(str(path), ["name", "grade"], ragged=True) == ([["a", "b", "c", "d"], ["1", "2", "", "4"]], [2, 3, 4, 6])
    with pytest.raises(InputError, match="line 3: 2 columns where the header has 4"):
        read_columns(str(path), ["name", "grade"])
    path.write_text("name,grade\na,1,x\n")
    with pytest.raises(InputError, match="line 2: 3 columns where the header has 2"):
        read_columns(str(path), ["name", "grade"], ragged=True)


def test_optional_columns_are_empty_where_they_are_absent(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,split\na,train\nb,test\n")
    assert cells_of(str(path), ["sha256", "path"], optional=("sha256",))[0] == [["", ""], ["a", "b"]]
    with pytest.raises(InputError, match="no column sha256"):
        read_columns(str(path), ["sha256", "path"])


@pytest.mark.parametrize("mark", [";", ",", "\t", "|"])
def test_excels_own_first_line_says_the_separator(tmp_path, mark):
    path = tmp_path / "x.csv"
    path.write_text(f"sep={mark}\nname{mark}grade\na.png{mark}1\n\nb.png{mark}2\n", newline="")
    assert cells_of(str(path), ["name", "grade"]) == ([["a.png", "b.png"], ["1", "2"]], [3, 5])
    path.write_text(f"sep={mark}\nname{mark}grade\na.png\n", newline="")
    with pytest.raises(InputError, match="line 3: 1 columns where the header has 2"):
        read_columns(str(path), ["name", "grade"])


@pytest.mark.parametrize(("there", "written", "hint"), [
    (["ab.png", "abc.png"], "ab", "; ab.png is there: --path_suffix .png adds the ending"),
    (["ab.jpg"], "ab.JPG", "; ab.jpg is there"), (["ab.jpeg"], "ab.jpg", "; ab.jpeg is there"),
    (["ab.png", "ab.jpg"], "ab", "; ab"), (["other.png"], "ab", "the CSV's folder"),
])
def test_files_that_are_not_there_have_a_hint(tmp_path, there, written, hint):
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        refuse_absent("x.csv", column([str(tmp_path / written)]))
    assert hint in str(caught.value) and (hint.startswith(";") or str(caught.value).endswith(hint))


def test_a_table_of_predictions_is_read_from_anywhere(tmp_path, monkeypatch):
    """Its paths are those that were typed where the run was started."""
    (tmp_path / "project/data/test").mkdir(parents=True)
    (tmp_path / "project/output_dir/run").mkdir(parents=True)
    (tmp_path / "project/data/test/a.png").touch()
    table, paths = (
        tmp_path / "project/output_dir/run/predictions_test.csv",
        ["data/test/a.png", "data/test/b.png"],
    )
    for folder in (tmp_path / "project", tmp_path / "project/output_dir/run", tmp_path):
        monkeypatch.chdir(folder)
        for name in (str(table), os.path.relpath(table)):
            assert [os.path.abspath(path) for path in located(name, paths)] == [
                str(tmp_path / "project" / path) for path in paths]
    # in no folder above either: from the table's folder
    beside = [f"{tmp_path.name}_x.png", f"{tmp_path.name}_y.png"]
    assert located(str(table), beside) == [str(table.parent / path) for path in beside]
    (table.parent / "data/test").mkdir(parents=True)  # what lies beside the table comes first
    (table.parent / "data/test/a.png").touch()
    assert located(str(table), paths)[0] == str(table.parent / paths[0])


def test_blanks_at_the_ends_of_names(tmp_path):
    """A file whose name ends in a blank can be named; a cell with blanks around a plain name means that."""
    path = tmp_path / "x.csv"
    (tmp_path / "a.png ").touch()
    (tmp_path / "b.png").touch()
    path.write_text("path,label\na.png ,1 \n b.png ,2\nc.png ,3\n")
    cells, _ = cells_of(str(path), ["path", "label"], exact="path")
    assert cells == [["a.png ", " b.png ", "c.png "], ["1", "2", "3"]]
    assert list(file_names(str(path), column(cells[0]))) == ["a.png ", "b.png", "c.png"]
    assert list(file_names(str(path), column(["a", " b ", ""]), ".png")) == ["a.png", "b.png", ""]
    with pytest.raises(InputError, match="line 4 'd.png ', line 5 /x/e.png"):
        refuse_absent("x.csv", column(["d.png ", "/x/e.png"], lines=[4, 5]))
