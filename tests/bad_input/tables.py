"""CSV files: how they are written, what their columns hold, and which images they name."""

import os
import shutil

from tests.bad_input.csv_rows import (
    ABSENT,
    CASE,
    CLASSES,
    EMPTY_CELL,
    GROUPS,
    LABEL_CONSTANT,
    LABEL_NAMES,
    LABEL_VALUE,
    LACKS_SPLIT,
    NO_COLUMN,
    NO_ROW,
    NOT_TEXT,
    NOT_THERE,
    NULS,
    NUMBERS,
    ODD,
    ONE_CLASS,
    PATHS,
    PREDICTED,
    QUOTES,
    SPELLING,
    SPLIT,
    TABLE,
    TEST_SET,
    TWICE,
    TWICE_COLUMN,
    UNEVEN,
    UNSEEN,
    file,
    rows_of,
    text_of,
    with_cell,
    words_for,
)
from tests.bad_input.place import Place

# ---- the file ----------------------------------------------------------------------------------------------

TABLE.add(
    NOT_THERE, "not there", lambda place: words_for(place, CLASSES, "none.csv"), "none.csv", "no such file"
)
TABLE.add(NOT_THERE, "a folder", lambda place: words_for(place, CLASSES, place.folder), "is a directory")
TABLE.add(NOT_THERE, "a pipe", lambda place: [os.mkfifo(place.folder / "p")]
          and words_for(place, CLASSES, "p"), "pipe")
TABLE.add(NOT_THERE, "a device", lambda place: words_for(place, CLASSES, "/dev/zero"), "device")
TABLE.add(NOT_THERE, "numbers, not there", lambda place: words_for(place, NUMBERS, "none.csv"), "none.csv",
          program=NUMBERS)
TABLE.add(NOT_THERE, "a name too long", lambda place: words_for(place, CLASSES, "x" * 3000))


@TABLE.case(NOT_THERE, "not to be read", "permission denied")
def _(place: Place):
    place.as_nobody = True
    place.write("d.csv", "path\n").chmod(0)
    return words_for(place, CLASSES)


file(NOT_TEXT, "an excel file", b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\xb5U0#\xf4\xff", "line 1")
file(NOT_TEXT, "latin-1", lambda rows: text_of([*rows, ["é.png", "dry", "train", "1"]]).encode("latin-1"),
     "line 16")
file(
    NOT_TEXT,
    "windows-1252 in a header",
    lambda rows: text_of([["path", "label", "split", "größe"], *rows[1:]]).encode("cp1252"),
    "line 1",
)
file(NOT_TEXT, "an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1", program=NUMBERS)
file(NOT_TEXT, "utf-16 cut in a letter", lambda rows: text_of(rows).encode("utf-16")[:-1])
file(NULS, "utf-16 without a mark", lambda rows: text_of(rows).encode("utf-16-le"))
file(NULS, "in a path", with_cell(3, 0, "a\0b.png"), "line 3")
file(NULS, "in a header", with_cell(1, 3, "de\0pth"), "line 1", program=NUMBERS)
file(NULS, "zeros", bytes(500), "line 1", program=PREDICTED)
file(NO_ROW, "empty", b"", "empty")
file(NO_ROW, "blank lines", b"\n\n \n", "empty")
file(NO_ROW, "header alone", b"path,label,split\n", "no row below the header")
file(NO_ROW, "a mark alone", b"\xef\xbb\xbf", "empty")
file(NO_ROW, "numbers, header alone", b"path,split,depth\n", "no row below the header", program=NUMBERS)
file(NO_ROW, "prediction, header alone", b"path\n", "no row below the header", program=PREDICTED)
file(
    NO_COLUMN,
    "no label",
    lambda rows: [["path", "grade", "split", "depth"], *rows[1:]],
    "no column label (--label_col)",
    "grade",
)
file(NO_COLUMN, "upper case", lambda rows: [["Path", "Label", "Split", "x"], *rows[1:]], "no column path",
     "Path")
file(NO_COLUMN, "no header", lambda rows: rows[1:], "no column path")
file(
    NO_COLUMN,
    "no target",
    lambda rows: [["path", "label", "split", "x"], *rows[1:]],
    "no column depth (--targets)",
    program=NUMBERS,
)
file(NO_COLUMN, "no patients", lambda rows: rows, "no column who (--patient_col)",
     words=("--patient_col", "who"))
file(
    NO_COLUMN, "prediction", lambda rows: [["image", *rows[0][1:]], *rows[1:]], "no column path (--path_col)",
    program=PREDICTED
)
file(
    NO_COLUMN,
    "200,000 columns",
    lambda rows: ",".join(f"c{n}" for n in range(200_000)) + "\n1\n",
    "no column path",
    "c19 and 199980 more",
)
file(NO_COLUMN, "separated by bars", lambda rows: text_of(rows, "|"), "no column path")
file(
    TWICE_COLUMN,
    "two labels",
    lambda rows: [["path", "label", "split", "label"], *rows[1:]],
    "columns 2 and 4 are both named label",
)
file(
    TWICE_COLUMN,
    "two targets",
    lambda rows: [["path", "depth", "split", "depth"], *rows[1:]],
    "columns 2 and 4",
    program=NUMBERS,
)
file(
    TWICE_COLUMN,
    "prediction",
    lambda rows: [["path", "path", "split", "depth"], *rows[1:]],
    "columns 1 and 2",
    program=PREDICTED,
)
file(
    UNEVEN,
    "a cell too many",
    lambda rows: [*rows[:4], [*rows[4], "x"], *rows[5:]],
    "line 5: 5 columns where the header has 4",
)
file(UNEVEN, "a cell too few", lambda rows: [*rows[:4], rows[4][:2], *rows[5:]], "line 5: 2 columns")
file(UNEVEN, "a comma in a path", with_cell(4, 0, "a,b.png"), "line 4: 5 columns", program=NUMBERS)
file(UNEVEN, "a decimal comma", with_cell(4, 3, "1,5"), "line 4: 5 columns", program=NUMBERS)
file(QUOTES, "not closed", with_cell(5, 1, '"dry'), "line")
file(QUOTES, "text behind a quote", with_cell(5, 1, '"dry"x'), "line 5")
file(QUOTES, "a cell of 200,000 letters", with_cell(5, 3, "x" * 200_000), "line 5")

# ---- classes -----------------------------------------------------------------------------------------------

for number, column in enumerate(("path", "label", "split")):
    file(EMPTY_CELL, f"a {column}", with_cell(6, number, " "), f"column {column} is empty in 1 rows: line 6")
file(EMPTY_CELL, "prediction", with_cell(6, 0, ""), "column path is empty", program=PREDICTED)
for name in ("holdout", "training", "0", "train;val"):
    file(SPLIT, name, with_cell(7, 2, name), "column split takes train, val, test, iv, ev", f"line 7 {name}")
def grouped(values):
    """The rows with a column `site`, whose cells are these, in turn."""
    return lambda rows: [[*row, "site" if line == 0 else values[(line - 1) % len(values)]]
                         for line, row in enumerate(rows)]


for name, values, says, words in (
        ("one group", ("A",), "has 1 group", ()), ("no cell", ("",), "has 0 group", ()),
        ("another spelling", ("A", "a"), "in two ways", ()),
        ("an identifier", tuple(f"P{number}" for number in range(50)), "at most 12", ()),
        ("text in bands", ("30", "50", "old", "60"), "'old'", ("--group_bins", "site=40")),
        ("bands of another column", ("30", "50"), "age is none of", ("--group_bins", "age=40")),
        ("falling bands", ("30", "50"), "rising", ("--group_bins", "site=60,40"))):
    file(GROUPS, name, grouped(values), says, words=("--group_col", "site", *words))
file(GROUPS, "a lone image", lambda rows: [[*row, "site" if line == 0 else "B" if line == 5 else "A"]
                                          for line, row in enumerate(rows)], "line 6",
     words=("--group_col", "site"))
file(NO_COLUMN, "of groups", lambda rows: rows, "no column site (--group_col)", words=("--group_col", "site"))
def _cases(rows):
    """The kit's rows with a column of one case for all images of a label in a split."""
    return [[*rows[0], "eye"], *([*row, f"{row[1]} {row[2]}"] for row in rows[1:])]


for name, place, text, says in (
        ("two labels", 1, "wet", "1 cases have images with different labels, the first is dry train"),
        ("two splits", 2, "val", "1 cases stand in two splits, the first is dry train")):
    file(CASE, name, lambda rows, place=place, text=text: [
        [*row[:place], text, *row[place + 1:]] if line == 1 else row for line, row in enumerate(_cases(rows))],
        says, words=("--case_col", "eye"))
file(CASE, "two splits by name", lambda rows: rows, "stand in two splits", words=("--case_regex", "(.)"))
file(NO_COLUMN, "of cases", lambda rows: rows, "no column eye (--case_col)", words=("--case_col", "eye"))
file(TEST_SET, "a slash", with_cell(15, 2, "test:a/b"), "'a/b' becomes part of file names")
file(TEST_SET, "numbers, a blank", with_cell(15, 2, "ev:a b"), "'a b'", program=NUMBERS)
file(TEST_SET, "internal and external", lambda rows: [
    [*row[:2], {13: "ev:A", 14: "test:A"}.get(line, row[2]), *row[3:]] for line, row in enumerate(rows)],
    "both internal (test:A) and external (ev:A)")
file(TEST_SET, "a capital letter", lambda rows: [
    [*row[:2], {13: "ev:Far", 14: "ev:far"}.get(line, row[2]), *row[3:]] for line, row in enumerate(rows)],
    "test sets Far and far differ in upper and lower case alone")
for split in ("train", "val", "test"):
    file(
        LACKS_SPLIT,
        split,
        lambda rows, split=split: [row for row in rows if row[2] != split],
        f"no row with split {split}",
    )
file(
    LACKS_SPLIT,
    "numbers, test",
    lambda rows: [row for row in rows if row[2] != "test"],
    "no row with split test",
    program=NUMBERS,
)
file(
    LACKS_SPLIT,
    "after --dropna",
    lambda rows: [[*row[:3], "" if row[2] == "val" else row[3]] for row in rows],
    "no row with split val after --dropna",
    program=NUMBERS,
    words=("--dropna",),
)
file(UNSEEN, "in test", with_cell(15, 1, "moist"), "test has classes that train has not: moist")
file(SPELLING, "Wet and wet", with_cell(15, 1, "Wet"), "Wet and wet")
file(
    SPELLING,
    "1 and 1.0",
    lambda rows: [
        rows[0],
        *([row[0], "1.0" if n == 3 else "1" if n % 2 else "0", row[2], row[3]]
          for n, row in enumerate(rows[1:])),
    ],
    "1 and 1.0",
)
file(
    SPELLING,
    "01 and 1",
    lambda rows: [
        rows[0],
        *([row[0], "01" if n == 3 else "1" if n % 2 else "0", row[2], row[3]]
          for n, row in enumerate(rows[1:])),
    ],
    "01 and 1",
)
file(
    SPELLING,
    "dry and Dry",
    lambda rows: [
        rows[0],
        *([row[0], "Dry" if n == 3 else "dry" if n % 2 else "wet", row[2], row[3]]
          for n, row in enumerate(rows[1:])),
    ],
    "Dry and dry",
)
file(ONE_CLASS, "dry", lambda rows: [rows[0], *([row[0], "dry", *row[2:]] for row in rows[1:])], "dry")
file(
    TWICE,
    "in two splits",
    lambda rows: [*rows, [rows[1][0], "dry", "test", "1"]],
    "in two splits",
    "lines 2 and 16",
)
file(TWICE, "with two labels", lambda rows: [*rows, [rows[1][0], "wet", "train", "1"]], "with two labels")
file(TWICE, "twice", lambda rows: [*rows, rows[1]], "twice", "lines 2 and 16")
file(
    TWICE,
    "by another way",
    lambda rows: [*rows, [rows[1][0].replace("/data/", "/data/./train/../"), "dry", "test", "1"]],
    "in two splits",
)
file(TWICE, "numbers", lambda rows: [*rows, [rows[1][0], "dry", "test", "1"]], "in two splits",
     program=NUMBERS)

# ---- paths -------------------------------------------------------------------------------------------------

for name, path in {
    "gone": "gone.png",
    "Windows paths": "C:\\fundus\\1.png",
    "backslashes": "data\\train\\0.png",
    "home": "~/0.png",
    "a web address": "https://host/0.png",
    "a folder": "/tmp",
    "a device": "/dev/null",
    "a name of 5,000 letters": "x" * 5000 + ".png",
    "another case": "DATA/train/dry/0.png",
    "a formula": "=HYPERLINK(0)",
    "the parent's folder": "../../../nowhere.png",
    "a variable": "$HOME/0.png",
}.items():
    file(ABSENT, name, with_cell(3, 0, path), "1 of 14 files are not there: line 3")
file(
    ABSENT,
    "all relative to elsewhere",
    lambda rows: [rows[0], *(["data/" + row[0].split("/data/")[1], *row[1:]] for row in rows[1:])],
    "14 of 14 files",
)
file(ABSENT, "prediction", with_cell(3, 0, "gone.png"), "line 3 gone.png", program=PREDICTED)
file(ABSENT, "numbers", with_cell(3, 0, "gone.png"), "line 3 gone.png", program=NUMBERS)


@TABLE.case(ABSENT, "a pipe", "line 2 p.png")
def _(place: Place):
    os.mkfifo(place.folder / "p.png")
    place.write("d.csv", text_of(with_cell(2, 0, "p.png")(rows_of(place))))
    return words_for(place, CLASSES)


def _paths(place: Place, paths) -> list:
    """The kit's images by other paths, made from a copy of its folder."""
    shutil.copytree(place.kit.data, place.folder / "data")
    place.write("d.csv", text_of([["path", "label", "split"],
                                  *([paths(row[0]), *row[1:3]] for row in place.kit.rows)]))
    place.pictures = 4
    return words_for(place, CLASSES, trained=True)


TABLE.add(PATHS, "absolute", lambda place: _paths(place, lambda path: str(place.folder / path)))
TABLE.add(PATHS, "below the CSV's folder", lambda place: _paths(place, lambda path: path))
TABLE.add(PATHS, "by way of ..", lambda place: _paths(place, lambda path: f"data/../{path}"))
TABLE.add(PATHS, "from the folder here", lambda place: _paths(place, lambda path: f"./{path}"))
TABLE.add(PATHS, "with doubled slashes", lambda place: _paths(place, lambda path: path.replace("/", "//")))


@TABLE.case(PATHS, "a CSV of another folder")
def _(place: Place):
    _paths(place, lambda path: f"../{path}")
    place.write("deep/d.csv", (place.folder / "d.csv").read_bytes())
    return words_for(place, CLASSES, "deep/d.csv", trained=True)


# ---- ways of writing that are read -------------------------------------------------------------------------

for name, (encoding, separator, end) in {
    "byte-order mark": ("utf-8-sig", ",", "\n"),
    "utf-16": ("utf-16", "\t", "\r\n"),
    "semicolons": ("utf-8", ";", "\n"),
    "tabs": ("utf-8", "\t", "\n"),
    "Windows line ends": ("utf-8", ",", "\r\n"),
    "old Mac line ends": ("utf-8", ",", "\r"),
}.items():
    file(
        ODD, name, lambda rows, encoding=encoding, separator=separator,
        end=end: text_of(rows, separator, end).encode(encoding)
    )
file(ODD, "quotes", lambda rows: text_of([[f'"{cell}"' for cell in row] for row in rows]))
file(ODD, "line ends in a quoted cell",
     lambda rows: text_of([*rows[:3], [*rows[3][:3], '"1\n2\n3"'], *rows[4:]]))
file(
    ODD,
    "blank rows and blanks",
    lambda rows: "\n".join(",".join(f" {cell} " for cell in row) + "\n,,," for row in rows),
    words=(),
)
file(ODD, "long other columns", lambda rows: [[*row[:3], "depth" if n == 0 else "x" * 100_000]
                                              for n, row in enumerate(rows)])
file(
    ODD,
    "upper-case splits, iv and ev",
    lambda rows: [rows[0], *([*row[:2], {"train": "TRAIN", "val": "iv", "test": "EV"}[row[2]], row[3]]
                             for row in rows[1:])],
)
file(ODD, "no line end at the end", lambda rows: text_of(rows)[:-1])
file(
    ODD,
    "formulas as labels",
    lambda rows: [rows[0], *([row[0], "=1+1" if row[1] == "dry" else "@x", *row[2:]] for row in rows[1:])],
)
file(
    ODD,
    "labels of any letters",
    lambda rows: [rows[0], *([row[0], "轻度/<b>" if row[1] == "dry" else '"a ""b"""', *row[2:]]
                             for row in rows[1:])],
)
file(ODD, "prediction, an image twice and other columns", lambda rows: [rows[0], rows[1], *rows[1:14]],
     program=PREDICTED)
file(
    ODD,
    "prediction, a column called predicted_class",
    lambda rows: [["path", "predicted_class", "prob_dry", "logit_wet"], *rows[1:]],
    "is now",
    program=PREDICTED,
)


# ---- several labels an image -------------------------------------------------------------------------------

LABELS = ["--multilabel", "--label_cols", "wet", "dry"]


def with_labels(wet, dry=None):
    """The rows with two columns of 0 and 1, from functions of a row's number and class."""
    dry = dry or (lambda number, label: int(label == "dry"))

    def content(rows):
        return [[*rows[0], "wet", "dry"],
                *([*row, str(wet(number, row[1])), str(dry(number, row[1]))] for number, row in enumerate(rows[1:]))]

    return content


def is_wet(number, label):
    return int(label == "wet")


for name, cell in (("two", "2"), ("half", "0.5"), ("a word", "yes"), ("a minus", "-1"), ("infinite", "inf"),
                   ("a class", "wet")):
    file(LABEL_VALUE, name, with_labels(lambda number, label, cell=cell: cell if number == 3 else is_wet(number, label)),
         "label wet", "line 5", repr(cell), words=LABELS)
file(LABEL_CONSTANT, "in all images", with_labels(lambda number, label: 1), "label wet is constant in train (1 in all 6",
     words=LABELS)
file(LABEL_CONSTANT, "in no image", with_labels(is_wet, lambda number, label: 0), "label dry is constant in train (0",
     words=LABELS)
file(LABEL_CONSTANT, "known of none", with_labels(lambda number, label: ""), "label wet is known in no row of train",
     words=LABELS)
file(LABEL_CONSTANT, "a name that train lacks", lambda rows: [
    rows[0], *([row[0], f"{row[1]};new" if row[2] == "test" else row[1], *row[2:]] for row in rows[1:])],
     "label new is constant in train (0", words=["--multilabel"])
file(LABEL_NAMES, "twice in a cell", with_cell(3, 1, "wet; wet"), "names a label twice in one cell: line 3",
     words=["--multilabel"])
file(SPELLING, "of labels", with_cell(3, 1, "Wet|dry"), "writes one value in two ways: Wet and wet",
     words=["--multilabel"])
file(LABEL_NAMES, "none at all", lambda rows: [rows[0], *([row[0], "none", *row[2:]] for row in rows[1:])],
     "names no label at all", words=["--multilabel"])
file(NO_COLUMN, "of a label", with_labels(is_wet), "no column moist (--label_cols)",
     words=["--multilabel", "--label_cols", "moist"])
file(TWICE, "with other labels", lambda rows: [*with_labels(is_wet)(rows), [*rows[1], "1", "1"]], "with other labels",
     words=LABELS)
