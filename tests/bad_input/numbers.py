"""CSV files: the numbers of a regression."""

from tests.bad_input.csv_rows import (
    CONSTANT,
    COVARIATE,
    INFINITE,
    LOGARITHM,
    MISSING,
    NUMBER,
    NUMBERS,
    ROLES,
    file,
    text_of,
    with_cell,
)
from tests.bad_input.tables import TABLE as TABLE  # its cases come first

# ---- numbers -----------------------------------------------------------------------------------------------

for name, text in {
    "text": "much",
    "a percent sign": "5%",
    "a date": "2024-01-02",
    "a formula": "=1+1",
    "a unit": "5 mm",
    "thousands": "1.000.000",
    "less than": "<5",
}.items():
    file(NUMBER, name, with_cell(4, 3, text), f"line 4 {text!r}", program=NUMBERS)
file(
    NUMBER,
    "a decimal comma",
    lambda rows: text_of(with_cell(4, 3, "1,5")(rows), ";"),
    "write decimals with a point",
    program=NUMBERS,
)
for text in ("inf", "-Infinity", "1e999"):
    file(INFINITE, text, with_cell(4, 3, text), f"line 4 {text!r}", program=NUMBERS)
file(CONSTANT, "constant", lambda rows: [rows[0], *([*row[:3], "3"] for row in rows[1:])], "constant",
     program=NUMBERS)
file(
    CONSTANT,
    "unknown",
    lambda rows: [rows[0], *([*row[:3], "nan" if row[2] == "train" else row[3]] for row in rows[1:])],
    "0 values",
    program=NUMBERS,
)
file(
    CONSTANT,
    "known once",
    lambda rows: [*rows[:2], *([*row[:3], "" if row[2] == "train" else row[3]] for row in rows[2:])],
    "1 values",
    program=NUMBERS,
)
file(LOGARITHM, "zero", lambda rows: rows, "line 2 0", program=NUMBERS, words=("--target_transform", "log"))
file(LOGARITHM, "below zero", with_cell(5, 3, "-4"), "line 5 -4", program=NUMBERS,
     words=("--target_transform", "log"))
file(ROLES, "a target twice", lambda rows: rows, "twice", program=NUMBERS,
     words=("--targets", "depth", "depth"))
file(ROLES, "the path as target", lambda rows: rows, "path", program=NUMBERS, words=("--targets", "path"))
file(ROLES, "a target as covariate", lambda rows: rows, "depth", program=NUMBERS,
     words=("--covariates", "depth"))
file(ROLES, "the label as covariate", lambda rows: rows, "label", words=("--covariates", "label"))
file(ROLES, "a covariate twice", lambda rows: rows, "twice", words=("--covariates", "depth", "depth"))
file(
    COVARIATE,
    "one value, of a classification",
    lambda rows: [rows[0], *([*row[:3], "5"] for row in rows[1:])],
    "1 value(s) in train",
    words=("--covariates", "depth"),
)
file(
    COVARIATE,
    "text in test, of a classification",
    lambda rows: [rows[0], *([*row[:3], "deep" if row[2] == "test" else row[3]] for row in rows[1:])],
    "'deep'",
    words=("--covariates", "depth"),
)
file(
    COVARIATE,
    "one value",
    lambda rows: [rows[0], *([row[0], "x", *row[2:]] for row in rows[1:])],
    "1 value(s) in train",
    program=NUMBERS,
    words=("--covariates", "label"),
)
file(
    COVARIATE,
    "infinite",
    lambda rows: [rows[0], *([row[0], "inf" if n == 2 else str(n), *row[2:]]
                             for n, row in enumerate(rows[1:]))],
    "infinite values",
    program=NUMBERS,
    words=("--covariates", "label"),
)
file(
    COVARIATE,
    "infinite in test",
    lambda rows: [rows[0], *([row[0], "inf" if n == 13 else str(n), *row[2:]]
                             for n, row in enumerate(rows[1:]))],
    "'inf'",
    program=NUMBERS,
    words=("--covariates", "label"),
)
file(
    COVARIATE,
    "text in test",
    lambda rows: [rows[0], *([row[0], "x" if n == 13 else str(n), *row[2:]]
                             for n, row in enumerate(rows[1:]))],
    "'x'",
    program=NUMBERS,
    words=("--covariates", "label"),
)
for text in ("", "NA", "nan", "NULL", "-", "?", "unknown"):
    file(
        MISSING,
        f"a target, {text or 'empty'}",
        with_cell(4, 3, text),
        "depth is missing in some rows (train 1 of 6)",
        program=NUMBERS,
    )
file(
    MISSING,
    "a covariate",
    with_cell(4, 1, ""),
    "label is missing in some rows (train 1 of 6)",
    program=NUMBERS,
    words=("--covariates", "label"),
)
file(
    MISSING,
    "all of test",
    lambda rows: [rows[0], *([*row[:3], "" if row[2] == "test" else row[3]] for row in rows[1:])],
    "test 4 of 4",
    program=NUMBERS,
)
