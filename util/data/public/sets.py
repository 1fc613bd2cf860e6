"""The public data sets of BENCHMARK.md: one table, and for each a reader of the files as their owner
publishes them.

A reader gets all files below RAW_DIR and looks for names, not for fixed places: an archive may have been
unpacked one level deeper, in a folder of its own name, with other capitals or with %20 for blanks. The
layouts are known from what public code says of its own copies, not from the archives themselves; for
Glaucoma_fundus the names of the class folders are known so and the name of the archive is not, for OCTID the
names of the images are and those of the folders are not.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from util.core.errors import InputError
from util.core.plain_numbers import number_of
from util.data.csv_columns import read_columns, some
from util.data.public.raw_folder import Found, Picture, PublicSet, RawFolder, counted, plain, stem_of

DR_GRADES = ("0_no_dr", "1_mild", "2_moderate", "3_severe", "4_proliferative")
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                 "test": "test", "testing": "test"}
# The names of JSIEC's own folders: their order as text is also that of the authors' checkpoints.
JSIEC_CLASSES = (
    "0.0.Normal",
    "0.1.Tessellated fundus",
    "0.2.Large optic cup",
    "0.3.DR1",
    "1.0.DR2",
    "1.1.DR3",
    "10.0.Possible glaucoma",
    "10.1.Optic atrophy",
    "11.Severe hypertensive retinopathy",
    "12.Disc swelling and elevation",
    "13.Dragged Disc",
    "14.Congenital disc abnormality",
    "15.0.Retinitis pigmentosa",
    "15.1.Bietti crystalline dystrophy",
    "16.Peripheral retinal degeneration and break",
    "17.Myelinated nerve fiber",
    "18.Vitreous particles",
    "19.Fundus neoplasm",
    "2.0.BRVO",
    "2.1.CRVO",
    "20.Massive hard exudates",
    "21.Yellow-white spots-flecks",
    "22.Cotton-wool spots",
    "23.Vessel tortuosity",
    "24.Chorioretinal atrophy-coloboma",
    "25.Preretinal hemorrhage",
    "26.Fibrosis",
    "27.Laser Spots",
    "28.Silicon oil in eye",
    "29.0.Blur fundus without PDR",
    "29.1.Blur fundus with suspected PDR",
    "3.RAO",
    "4.Rhegmatogenous RD",
    "5.0.CSCR",
    "5.1.VKH disease",
    "6.Maculopathy",
    "7.ERM",
    "8.MH",
    "9.Pathological myopia",
)


# Labels in tables


def _by_stem(where: Path, column: str, names: pd.Series, values: Iterable[str]) -> dict[str, str]:
    """{stem: value}; a name that is empty or stands there twice is an InputError with its lines."""
    found, line_of = {}, {}
    for (line, name), value in zip(names.items(), values, strict=True):
        stem = stem_of(name)
        if not stem or stem in found:
            problem = f"{name} stands there twice, also on line {line_of[stem]}" if stem else "is empty"
            raise InputError(f"{where}, line {line}: {column} {problem}; keep one row an image")
        found[stem], line_of[stem] = value, line
    return found


def _graded(csv_file: Path, names: str, grades: str) -> dict[str, str]:
    """{stem: grade of retinopathy} of a table with these two columns."""
    cells, _ = read_columns(csv_file, [names, grades], ragged=True)
    labels = [_grade(csv_file, line, grades, text, DR_GRADES) for line, text in cells[grades].items()]
    return _by_stem(csv_file, names, cells[names], labels)


def _grade(where: Path, line: int, column: str, text: str, classes: tuple[str, ...]) -> str:
    """The class that a cell's number stands for ("2" and "2.0" are 2)."""
    try:
        number = number_of(text)
        if number != int(number) or not 0 <= number < len(classes):
            raise ValueError(number)
    except (ValueError, OverflowError):
        raise InputError(f"{where}, line {line}: {column} is {text!r}, not a whole number from 0 to "
                         f"{len(classes) - 1}; mend that cell or remove the row") from None
    return classes[int(number)]


def _read_aptos(raw: RawFolder) -> Found:
    """train.csv (id_code, diagnosis) and train_images/ID.png; test_images/ has no published labels."""
    csv_file = raw.needed("train.csv")
    labels = _graded(csv_file, "id_code", "diagnosis")
    pairs, notes = raw.matched(raw.pictures, labels, csv_file.name)
    return Found([Picture(path, labels[stem]) for path, stem in pairs], notes)


def _read_messidor2(raw: RawFolder) -> Found:
    """IMAGES/ and messidor-2.csv (left;right) of the owner, messidor_data.csv (grades) of those who graded
    them.

    The grades name some images .jpg that are .JPG on disk, and go round with two headers. Rows with
    adjudicated_gradable 0 are left out.
    """
    def wanted(header: list[str]) -> list[str]:
        other = "image_id" not in header and "id_code" in header
        return [*(["id_code", "diagnosis"] if other else ["image_id", "adjudicated_dr_grade"]),
                "adjudicated_gradable"]

    csv_file = raw.needed("messidor_data.csv")
    cells, _ = read_columns(csv_file, wanted, ragged=True)
    names, grades, gradable = (cells[column] for column in cells)
    ungradable = gradable.isin(["0", "0.0"])
    labels = _by_stem(csv_file, names.name, names, [
        "" if ungradable[line] else _grade(csv_file, line, grades.name, grade, DR_GRADES)
        for line, grade in grades.items()])
    pairs, notes = raw.matched(raw.pictures, labels, csv_file.name)
    notes += counted(f"not gradable by {csv_file.name}, left out", list(names[ungradable]))
    pairs_file = raw.file("messidor-2.csv")
    patients, no_patients = {}, ""
    if pairs_file is None:
        no_patients = "no file messidor-2.csv (which two images are one patient's eyes)"
    else:
        eyes, _ = read_columns(pairs_file, ["left", "right"], ragged=True)
        patient = eyes["left"].where(eyes["left"] != "", eyes["right"]).map(stem_of)
        names = eyes.stack()
        names = names[names != ""].droplevel(1)
        patients = _by_stem(pairs_file, "left or right", names, patient[names.index])
        alone = [path.name for path, stem in pairs if labels[stem] and stem not in patients]
        notes += counted(f"in no pair of {pairs_file.name}, each taken as a patient", alone)
    pictures = [Picture(path, labels[stem], patients.get(stem, "" if no_patients else stem))
                for path, stem in pairs if labels[stem]]
    return Found(pictures, notes, no_patients)


def _read_idrid(raw: RawFolder) -> Found:
    """B. Disease Grading: {a. Training Set, b. Testing Set}/IDRiD_001.jpg, the same names in both, and a CSV
    for each."""
    found = Found([])
    for word, split in (("Training", "train"), ("Testing", "test")):
        csv_file = raw.needed(f"IDRiD_Disease Grading_{word} Labels.csv")
        labels = _graded(csv_file, "Image name", "Retinopathy grade")
        pictures = []
        for path in raw.pictures:
            above = [plain(name) for name in raw.folders_of(path)]
            other_part = any(name.endswith(("segmentation", "localization")) for name in above)  # A and C
            if not other_part and any(name.endswith(f"{word.lower()}set") for name in above):
                pictures.append(path)
        pairs, notes = raw.matched(pictures, labels, csv_file.name)
        found.pictures += [Picture(path, labels[stem], split=split) for path, stem in pairs]
        found.notes += notes
    return found


PAPILA_CLASSES = ("0_normal", "1_suspect", "2_glaucoma")
# the workbooks' 0 healthy, 1 glaucoma, 2 suspect, whose order is not that of severity
PAPILA_NUMBERS = ("0_normal", "2_glaucoma", "1_suspect")


def _read_papila(raw: RawFolder) -> Found:
    """FundusImages/RET001OD.jpg and ClinicalData/patient_data_{od,os}.xlsx: patients "#001", their Diagnosis.

    The sheet's headers take two or three rows: Diagnosis is looked for in the first five, patients in the
    first column.
    """
    labels, patients = {}, {}
    for eye in ("od", "os"):
        workbook = raw.needed(f"patient_data_{eye}.xlsx")
        rows = read_first_sheet(workbook)
        column = next((number for row in rows[:5] for number, cell in enumerate(row)
                       if cell.strip().lower() == "diagnosis"), None)
        if column is None:
            raise InputError(f"{workbook}: no column Diagnosis in the first five rows; take the file as "
                             "published")
        for line, row in enumerate(rows, 1):
            patient = re.fullmatch(r"#?\s*(\d+)(\.0)?", row[0].strip())
            if not patient:
                continue
            number = f"{int(patient[1]):03d}"
            stem = f"ret{number}{eye}"
            if stem in labels:
                raise InputError(f"{workbook}, line {line}: patient {row[0]} stands there twice; keep one "
                                 "row a patient")
            labels[stem] = _grade(workbook, line, "Diagnosis", row[column], PAPILA_NUMBERS)
            patients[stem] = number
    if not labels:
        raise InputError(f"{workbook}: no patient (#001) in the first column; take the file as published")
    pairs, notes = raw.matched(raw.pictures, labels, "ClinicalData")
    return Found([Picture(path, labels[stem], patients[stem]) for path, stem in pairs], notes)


MOST_CELLS = 10**6


def read_first_sheet(path: Path) -> list[list[str]]:
    """A workbook's first sheet as rows of text, all of one length; empty cells are "", formulas the values
    that were stored with them. Raises InputError for a file that is no workbook, and without openpyxl."""
    try:
        from openpyxl import load_workbook  # one set alone needs it
    except ImportError:
        raise InputError(f"{path}: a workbook needs openpyxl, which is not installed: pip install -r "
                         "requirements-prepare.txt") from None
    try:
        sheet = load_workbook(path, data_only=True).worksheets[0]
    except Exception as error:  # a damaged file makes it raise nearly anything
        raise InputError(f"{path}: not a workbook that can be read ({error}); save it as .xlsx") from error
    if sheet.max_row * sheet.max_column > MOST_CELLS:  # openpyxl would make every one of them
        raise InputError(f"{path}: its first sheet is used as far as row {sheet.max_row:,}, column "
                         f"{sheet.max_column:,}; delete what stands beyond the table, and save it")
    return [["" if cell is None else str(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]


# Several labels in tables

ODIR_LABELS = ("N", "D", "G", "C", "A", "H", "M", "O")
RFMID_LABELS = (
    "Disease_Risk", "DR", "ARMD", "MH", "DN", "MYA", "BRVO", "TSLN", "ERM", "LS", "MS", "CSR", "ODC", "CRVO",
    "TV", "AH", "ODP", "ODE", "ST", "AION", "PT", "RT", "RS", "CRS", "EDN", "RPEC", "MHL", "RP", "CWS", "CB",
    "ODPM", "PRH", "MNF", "HR", "CRAO", "TD", "CME", "PTCR", "CF", "VH", "MCA", "VS", "BRAO", "PLQ", "HPED",
    "CL",
)


def _several(where: Path, line: int, cells: dict[str, str]) -> str:
    """Those of a row's labels that are 1, parted by ;."""
    return ";".join(name for name, cell in cells.items()
                    if _grade(where, line, name, cell, ("0", "1")) == "1")


def _read_odir(raw: RawFolder) -> Found:
    """The workbook of the training set: a row a patient, Left-Fundus and Right-Fundus its two images, N to O
    its labels, which are the patient's and so those of both images. The test images have no published
    labels."""
    workbook = raw.needed("ODIR-5K_Training_Annotations(Updated)_V2.xlsx", "data.xlsx")
    header, *rows = read_first_sheet(workbook)
    wanted = ("ID", "Left-Fundus", "Right-Fundus", *ODIR_LABELS)
    places = {name: number for number, name in enumerate(cell.strip() for cell in header)}
    lacking = [name for name in wanted if name not in places]
    if lacking:
        raise InputError(f"{workbook}: no column {some(lacking)} in its first row; take the file as "
                         "published")
    names, labels, patients = {}, [], []
    for line, row in enumerate(rows, 2):
        cells = {name: row[places[name]].strip() for name in wanted}
        if not any(cells.values()):
            continue
        label = _several(workbook, line, {name: cells[name] for name in ODIR_LABELS})
        for eye in ("Left-Fundus", "Right-Fundus"):
            names[f"{line}, {eye}"] = cells[eye]
            labels.append(label)
            patients.append(cells["ID"].removesuffix(".0"))
    found = _by_stem(workbook, "Left-Fundus or Right-Fundus", pd.Series(names, dtype=object), labels)
    of_patient = dict(zip(found, patients, strict=True))
    pairs, notes = raw.matched(raw.pictures, found, workbook.name)
    return Found([Picture(path, found[stem], of_patient[stem]) for path, stem in pairs],
                 [*notes, "labels are the patient's: both eyes have them"])


def _read_rfmid(raw: RawFolder) -> Found:
    """Three parts, each with a CSV (ID, Disease_Risk, DR…) and a folder of images 1.png, 2.png…, whose name,
    or that of a folder above, begins with what the part is called."""
    found = Found([])
    for word, also, split in (("Training", (), "train"), ("Validation", ("evaluation",), "val"),
                              ("Testing", ("test",), "test")):
        csv_file = raw.needed(f"RFMiD_{word}_Labels.csv")
        cells, _ = read_columns(csv_file, ["ID", *RFMID_LABELS], ragged=True)
        labels = [_several(csv_file, line, row)
                  for line, row in cells[list(RFMID_LABELS)].to_dict("index").items()]
        of_stem = _by_stem(csv_file, "ID", cells["ID"].map(lambda text: text.removesuffix(".0")), labels)
        begins = (word.lower(), *also)
        pictures = [path for path in raw.pictures
                    if any(re.sub(r"^[abc](?=[a-z]{4})", "", plain(name)).startswith(begins)
                           for name in raw.folders_of(path))]
        pairs, notes = raw.matched(pictures, of_stem, csv_file.name)
        found.pictures += [Picture(path, of_stem[stem], split=split) for path, stem in pairs]
        found.notes += notes
    return found


# Labels in folders


def _by_folders(raw: RawFolder, class_of: Callable[[str], str | None], looked_for: str,
                by_name: bool = False) -> Found:
    """Every image's class from the nearest folder above it that says one (class_of(name)); a split folder
    counts too.

    by_name: where no folder says one, the image's own name may.
    """
    pictures, unlabelled = [], []
    for path in raw.pictures:
        above = raw.folders_of(path)
        label = next(filter(None, map(class_of, above + [path.stem] * by_name)), None)
        split = next(filter(None, (SPLIT_FOLDERS.get(plain(name)) for name in above)), "")
        if label:
            pictures.append(Picture(path, label, split=split))
        else:
            unlabelled.append(str(path.relative_to(raw.folder)))
    absent = sorted(set(raw.set.classes) - {picture.label for picture in pictures}, key=raw.set.classes.index)
    if absent:
        raise raw.missing(f"no image of {some(absent)} (looked for {looked_for})")
    return Found(pictures, counted("in no class's folder, left out", unlabelled))


def _by_words(*words: str, looked_for: str, by_name: bool = False) -> Callable[[RawFolder], Found]:
    """A reader of `_by_folders`. words: a regular expression of each class, of the letters of its folders'
    names without their order ("2_glaucoma" and "3_glaucoma" are one)."""
    def read(raw: RawFolder) -> Found:
        def class_of(name: str) -> str | None:
            letters = re.sub(r"[^a-z]", "", unquote(name).lower())
            return next((label for label, word in zip(raw.set.classes, words, strict=True)
                         if re.fullmatch(word, letters)), None)

        return _by_folders(raw, class_of, looked_for, by_name)
    return read


def _read_jsiec(raw: RawFolder) -> Found:
    """1000images/0.0.Normal/*.JPG…: 39 folders, known by the number that their names begin with."""
    of_number = {_number(name): name for name in raw.set.classes}
    return _by_folders(raw, lambda name: of_number.get(_number(name)),
                       "folders such as 1000images/0.0.Normal")


def _number(name: str) -> str:
    """ "10.1.Optic atrophy" -> "10.1"; "" for a name that is no JSIEC folder's."""
    number = re.match(r"(\d+(?:\.\d)?)\.(?=\D)", name)
    return number[1] if number else ""


_SETS = (
    PublicSet(
        "APTOS2019",
        "https://www.kaggle.com/competitions/aptos2019-blindness-detection",
        "train.csv and train_images/",
        "the competition's rules, to be accepted on its page",
        "fundus",
        "grade of diabetic retinopathy",
        DR_GRADES,
        3662,
        _read_aptos,
    ),
    PublicSet(
        "MESSIDOR2",
        "https://www.adcis.net/en/third-party/messidor2/",
        "IMAGES/, messidor-2.csv (the pairs of eyes) and messidor_data.csv (the grades, from "
        "https://www.kaggle.com/datasets/google-brain/messidor2-dr-grades)",
        "research, after registration",
        "fundus",
        "grade of diabetic retinopathy",
        DR_GRADES,
        1744,
        _read_messidor2,
        patients="pairs of eyes",
    ),
    PublicSet(
        "IDRID",
        "https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
        "B. Disease Grading/ with its two folders 1. Original Images and 2. Groundtruths",
        "CC BY 4.0",
        "fundus",
        "grade of diabetic retinopathy",
        DR_GRADES,
        516,
        _read_idrid,
        published=("train", "test"),
    ),
    PublicSet(
        "PAPILA",
        "https://doi.org/10.6084/m9.figshare.14798004",
        "FundusImages/ and ClinicalData/ with patient_data_od.xlsx and patient_data_os.xlsx",
        "CC BY 4.0",
        "fundus",
        "glaucoma: none, suspected, present",
        PAPILA_CLASSES,
        488,
        _read_papila,
        patients="both eyes of each",
    ),
    PublicSet(
        "Glaucoma_fundus",
        "https://doi.org/10.7910/DVN/1YRRAC",
        "the folders normal_control/, early_glaucoma/, advanced_glaucoma/",
        "CC0 1.0",
        "fundus",
        "glaucoma: none, early, advanced",
        ("0_normal", "1_early", "2_advanced"),
        1544,
        # with 1.png, 2.png… each, whole or in split folders
        _by_words("normal(control)?", "early(glaucoma)?", "advanced(glaucoma)?",
                  looked_for="the folders normal_control, early_glaucoma, advanced_glaucoma"),
    ),
    PublicSet(
        "JSIEC",
        "https://zenodo.org/records/3477553",
        "1000images/ with its 39 folders",
        "open on Zenodo; see the record",
        "fundus",
        "39 conditions",
        JSIEC_CLASSES,
        1000,
        _read_jsiec,
    ),
    PublicSet(
        "Retina",
        "https://www.kaggle.com/datasets/jr2ngb/cataractdataset",
        "dataset/ with 1_normal/, 2_cataract/, 2_glaucoma/, 3_retina_disease/",
        "not stated; see the page",
        "fundus",
        "normal, cataract, glaucoma, other retinal disease",
        ("0_normal", "1_cataract", "2_glaucoma", "3_retina_disease"),
        601,
        # copies number the folders otherwise
        _by_words("normal", "cataract", "glaucoma", "retinadisease",
                  looked_for="the folders 1_normal, 2_cataract, 2_glaucoma, 3_retina_disease"),
    ),
    PublicSet(
        "OCTID",
        "https://borealisdata.ca/dataverse/OCTID",
        "the images of NORMAL, AMRD, CSR, DR and MH, a folder each",
        "CC0 1.0",
        "OCT",
        "normal, AMD, central serous retinopathy, diabetic retinopathy, macular hole",
        ("0_normal", "1_amrd", "2_csr", "3_dr", "4_mh"),
        572,
        # one archive a class with NORMAL1.jpeg, AMRD1.jpeg, CSR1.jpeg, DR1.jpeg, MH1.jpeg…
        _by_words("normal.*", "amr?d|agerelatedmaculardegeneration.*", "cs[rc]|centralserous.*",
                  "dr|diabeticretinopathy.*", "mh|macularhole.*", by_name=True,
                  looked_for="the folders NORMAL, AMRD, CSR, DR, MH, or images named NORMAL1.jpeg, "
                             "AMRD1.jpeg…"),
    ),
    PublicSet(
        "ODIR5K",
        "https://odir2019.grand-challenge.org/dataset/",
        "ODIR-5K_Training_Images/ and ODIR-5K_Training_Annotations(Updated)_V2.xlsx",
        "the challenge's terms, after registration",
        "fundus",
        "8 labels of a patient: normal, diabetes, glaucoma, cataract, AMD, hypertension, myopia, other",
        ODIR_LABELS,
        7000,
        _read_odir,
        patients="both eyes of each",
        several=True,
    ),
    PublicSet(
        "RFMiD",
        "https://ieee-dataport.org/open-access/retinal-fundus-multi-disease-image-dataset-rfmid",
        "the images and RFMiD_Training_Labels.csv, RFMiD_Validation_Labels.csv, RFMiD_Testing_Labels.csv",
        "CC BY 4.0",
        "fundus",
        "46 labels: whether there is any disease, and 45 of them",
        RFMID_LABELS,
        3200,
        _read_rfmid,
        published=("train", "val", "test"),
        several=True,
    ),
)
SETS = {public_set.name: public_set for public_set in _SETS}
