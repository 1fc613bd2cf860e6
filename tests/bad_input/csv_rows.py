"""The rows of the table about CSV files, and how a case writes one."""


from tests.bad_input.place import TRAINING, Place, predicting, train
from tests.bad_input.table import ACCEPTED, Row, Table

KIND = "CSV files"
TABLE = Table()

NOT_THERE = Row(
    KIND,
    "The CSV is not there, is a folder, a pipe or a device, or may not be read",
    "--csv_file …",
    "pass the path of a CSV file",
)
NOT_TEXT = Row(
    KIND,
    "The CSV is an Excel file, an image, or text of another encoding than UTF-8 and UTF-16",
    "…, line …; save it as CSV UTF-8",
    "in the spreadsheet program: save as, CSV UTF-8",
)
NO_ROW = Row(
    KIND,
    "The CSV is empty, or holds its header alone",
    "…: …",
    "the first line names the columns, a line an image follows",
    does="one line that says what is missing",
)
NO_COLUMN = Row(
    KIND,
    "A column is not there or has another name",
    "…, line 1: no column …; there is …",
    "rename it, or name it: `--path_col`, `--label_col`, `--split_col`, `--patient_col`, `--targets`",
)
TWICE_COLUMN = Row(
    KIND,
    "Two columns have one name",
    "…, line 1: columns … are both named …; rename one",
    "rename one of the two",
)
UNEVEN = Row(
    KIND,
    "A row has more or fewer cells than the header",
    "…, line …: … columns where the header has …; a name that holds the separator needs quotes",
    "put quotes round cells that hold the separator",
)
QUOTES = Row(
    KIND,
    "A quote is opened and not closed, or a cell is longer than 131,072 letters",
    "…, line …: …; mend the quotes of that row or of those above it",
    "close the quote; a quote within a cell is written twice",
)
EMPTY_CELL = Row(
    KIND,
    "A path, label or split is empty",
    "…: column … is empty in … rows: line …",
    "fill the cells, or remove the rows",
)
SPLIT = Row(
    KIND,
    "A split has an unknown name",
    "…: column … takes …; other values in … rows: line …",
    "write train, val and test (or iv, ev)",
)
TEST_SET = Row(
    KIND,
    "A test set's name holds what no file's name can (`test:a/b`), or one name is internal and external, "
    "or spelt in two ways",
    "…: …",
    "letters, numbers and . _ - alone; a name for each set",
    does="one line that names the set",
)
GROUPS = Row(
    KIND,
    "A column of `--group_col` has one group, a group of one image, more than 12 groups, or text where "
    "`--group_bins` needs numbers",
    "…: …",
    "merge groups, leave cells empty, or cut numbers into bands: `--group_bins age=40,60`",
    does="one line that names the column, and the line of a lone image",
)
CASE = Row(
    KIND,
    "The images of a case (`--case_col`, `--case_regex`, `--case patient`) have different labels, splits or "
    "patients",
    "… cases …, the first is … (…): …",
    "one label, split and patient a case",
    does="one line that names the first such case and two of its images",
)
LACKS_SPLIT = Row(
    KIND,
    "No row belongs to train, val or test",
    "…: no row with … …; there is …",
    "give each split some rows",
)
UNSEEN = Row(
    KIND,
    "val or test has a class that train has not",
    "…: … has classes that train has not: …",
    "add images of it to train, or remove the rows",
)
SPELLING = Row(
    KIND,
    "One class, or one patient, is written in two ways (1 and 1.0, 2 and 02, Mild and mild)",
    "…: column … writes one … in two ways: …; use one",
    "write it in one way",
)
TWICE = Row(
    KIND,
    "An image stands there twice: in two splits, with two labels, or just twice",
    "…: … images stand there …, the first on lines … (…); keep one row an image",
    "remove the other rows",
)
ABSENT = Row(
    KIND,
    "Files are not where the paths say; a path names a folder or a pipe, or is written with `\\`, `~` or for "
    "another computer",
    "…: … of … files are not there: …; relative paths start at the CSV's folder…",
    "correct the paths; relative ones start at the CSV's folder",
)
ONE_CLASS = Row(
    KIND,
    "All labels are the same",
    "found 1 class (…): at least 2 are needed",
    "two classes or more can be learned",
)
NULS = Row(
    KIND,
    "The CSV holds NUL bytes (UTF-16 without its mark, or a damaged file)",
    "…, line …: holds NUL bytes…; save it as CSV UTF-8",
    "save it again as CSV UTF-8",
)
NUMBER = Row(
    KIND,
    "A target holds text, a decimal comma, a date, a percent sign or a formula",
    "…: column … has text in … of … rows: …",
    "correct the cells, or leave them empty (missing)",
)
INFINITE = Row(
    KIND,
    "A target is infinite",
    "…: column … is infinite in … rows: …; correct them, or leave the cells empty (missing)",
    "correct the cells, or leave them empty",
)
CONSTANT = Row(
    KIND,
    "A target is the same in all rows of train, or hardly known there",
    "target … in train…: leave it out of --targets…",
    "leave it out of `--targets`, or fill it in",
)
LABEL_VALUE = Row(
    KIND,
    "With `--multilabel`, a label's column holds something else than 0 and 1",
    "…: label … is neither 0 nor 1 in … of … rows: line …",
    "correct the cells, or leave them empty (not known)",
)
LABEL_CONSTANT = Row(
    KIND,
    "A label is there in all images of train, or in none, or known of none",
    "label …in…train…: leave it out, or …",
    "leave it out of `--label_cols`, or add images of the other kind",
)
LABEL_NAMES = Row(
    KIND,
    "A column of labels' names names one twice in a cell, or none at all",
    "…: column … name…",
    "part the names by `;` or `|`, each once",
    does="one line that names the column, and the line of the file",
)
LOGARITHM = Row(
    KIND,
    "`--target_transform log` meets values that are not above 0",
    "…: --target_transform log, but column … is not above 0 in … rows: …",
    "pass `none`, or correct the cells",
)
ROLES = Row(
    KIND, "One column is asked for in two roles, or a target is named twice", "--…", "name each column once"
)
COVARIATE = Row(
    KIND,
    "A covariate has one value alone, is infinite, or is text where train has numbers",
    "…covariate …",
    "correct the column, or leave it out of `--covariates`",
)
ODD = Row(
    KIND,
    "A byte-order mark, UTF-16, semicolons or tabs, Windows or old Mac line ends, quotes, blank rows, very "
    "long cells",
    "",
    "nothing to do",
    ACCEPTED,
    "they are read; another separator than the comma is said",
)
PATHS = Row(
    KIND,
    "Absolute paths, paths with `..`, paths below the CSV's folder, links",
    "",
    "nothing to do",
    ACCEPTED,
    "they are found",
)
MISSING = Row(
    KIND,
    "Targets or covariates are missing in some rows (empty, NA, nan, null, unknown, ?, -)",
    "… is missing in some rows (…)…",
    "nothing to do, or `--dropna` to leave the rows out",
    ACCEPTED,
    "a missing target is left out of loss and figures, and counted",
)

CLASSES, NUMBERS, PREDICTED = "main_finetune.py", "main_regression.py", "predict.py"
TAIL = {CLASSES: [], NUMBERS: ["--targets", "depth", "--finetune", "", "--head_depth", 1]}


def rows_of(place: Place) -> list[list[str]]:
    return [["path", "label", "split", "depth"],
            *([str(place.kit.folder / row[0]), *row[1:]] for row in place.kit.rows)]


def text_of(rows, separator=",", end="\n") -> str:
    return "".join(separator.join(row) + end for row in rows)


def words_for(place: Place, program: str, file="d.csv", trained=False) -> list:
    if program == PREDICTED:
        return predicting(place, file)
    begin = [*TRAINING, "--task", "t"] if trained else train(place)
    return [*begin, "--csv_file", file, *TAIL[program]]


def file(row: Row, name: str, content, *names: str, program=CLASSES, words=(), **more) -> None:
    """A CSV of these bytes; content may be a function of the kit's rows."""

    def make(place: Place):
        made = content(rows_of(place)) if callable(content) else content
        place.write("d.csv", made if isinstance(made, str | bytes) else text_of(made))
        trained = row.outcome == ACCEPTED and program != PREDICTED
        if row.outcome == ACCEPTED:
            place.pictures = 14 if program == PREDICTED else 4
        return [*words_for(place, program, trained=trained), *words]

    TABLE.add(row, name, make, *names, program=program, **more)


def with_cell(line: int, column: int, text: str):
    """The rows with another text on a line of the file (the header is line 1)."""

    def content(rows):
        rows[line - 1][column] = text
        return rows

    return content
