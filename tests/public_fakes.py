"""Small fakes of the public data sets: the layouts and the file names of the real ones, a few bytes an image.

The two workbooks in tests/fixtures/papila were written with openpyxl.
"""

import csv
import shutil
from pathlib import Path

from util.data.public.sets import JSIEC_CLASSES, ODIR_LABELS, RFMID_LABELS

WORKBOOKS = Path(__file__).parent / "fixtures" / "papila"



def put(path: Path, text: str = "") -> Path:
    """A file that no other equals; nothing here decodes an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or str(path.relative_to(path.parents[2])), encoding="utf-8")
    return path


def fake_aptos(raw: Path) -> int:
    grades = {f"{number:012x}": number % 5 for number in range(60)}
    put(
        raw / "train.csv",
        "id_code,diagnosis\n" + "".join(f"{name},{grade}\n" for name, grade in grades.items()),
    )
    put(raw / "test.csv", "id_code\n" + "".join(f"ffff{number:08x}\n" for number in range(4)))
    put(raw / "sample_submission.csv", "id_code,diagnosis\nffff00000000,0\n")
    for name in grades:
        put(raw / "train_images" / f"{name}.png")
    for number in range(4):
        put(raw / "test_images" / f"ffff{number:08x}.png")
    return 60


def fake_messidor2(raw: Path) -> int:
    """Pairs of eyes; the owner's .JPG is .jpg in the list of grades; two images that nobody could grade."""
    names = [f"200510{number:02d}_4{number:04d}_0100_PP.png" if number % 2 else f"IM00{number:04d}.JPG"
             for number in range(80)]
    pairs = list(zip(names[0:78:2], names[1:78:2], strict=True)) + [(names[78], ""), (names[79], "")]
    put(raw / "messidor-2.csv", "left;right\n" + "".join(f"{left};{right}\n" for left, right in pairs))
    rows = [f"{name.replace('.JPG', '.jpg')},,,0" if number in (6, 7) else
            f"{name.replace('.JPG', '.jpg')},{number // 2 % 5 if number % 3 else number // 4 % 5},0,1"
            for number, name in enumerate(names)]
    put(raw / "messidor_data.csv", "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
        + "\n".join(rows))
    for name in names:
        put(raw / "IMAGES" / name)
    return 78


def fake_idrid(raw: Path) -> int:
    part = raw / "B. Disease Grading"
    for letter, folder, word, count in (("a", "Training", "Training", 50), ("b", "Testing", "Testing", 12)):
        # A spreadsheet saved this: columns without a name, and rows that lack some of them.
        rows = [f"IDRiD_{number:03d},{number % 5},1{',' * (9 if number < 17 else 0)}"
                for number in range(1, count + 1)]
        put(part / "2. Groundtruths" / f"{letter}. IDRiD_Disease Grading_{word} Labels.csv",
            "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\n" + "\n".join(rows) + "\n")
        for number in range(1, count + 1):
            put(part / "1. Original Images" / f"{letter}. {folder} Set" / f"IDRiD_{number:03d}.jpg")
    for number in (1, 55):  # the part for segmentation is often there too, with shorter names
        put(raw / "A. Segmentation" / "1. Original Images" / "a. Training Set" / f"IDRiD_{number:02d}.jpg")
    return 62


def fake_papila(raw: Path) -> int:
    inner = raw / "PapilaDB-PAPILA-17f8fa77"  # as the archive unpacks
    (inner / "ClinicalData").mkdir(parents=True)
    for eye in ("od", "os"):
        shutil.copy(WORKBOOKS / f"patient_data_{eye}.xlsx", inner / "ClinicalData")
        for number in papila_patients():
            put(inner / "FundusImages" / f"RET{number:03d}{eye.upper()}.jpg")
    put(inner / "ExpertsSegmentations" / "Contours" / "RET002OD_cup_exp1.txt")
    put(inner / "ExpertsSegmentations" / "ImagesWithContours" / "Opht_cont_RET002OD.jpg")
    return 2 * len(papila_patients())


def papila_patients() -> list[int]:
    return [number for number in range(2, 40) if number % 7]


def fake_folders(raw: Path, folders: dict[str, list[str]]) -> int:
    for folder, names in folders.items():
        for name in names:
            put(raw / folder / name)
    return sum(map(len, folders.values()))


def fake_glaucoma(raw: Path) -> int:
    return fake_folders(raw, {name: [f"{number}.png" for number in range(1, 13)]
                              for name in ("advanced_glaucoma", "early_glaucoma", "normal_control")})


def fake_jsiec(raw: Path) -> int:
    return fake_folders(
        raw,
        {
            f"1000images/{name}": [f"{code:08x}-{number}-11e8-9daf-6045cb817f5b..JPG" for number in range(4)]
            for code, name in enumerate(JSIEC_CLASSES)
        },
    )


def fake_retina(raw: Path) -> int:
    names = {"1_normal": "NL", "2_cataract": "cataract", "2_glaucoma": "Glaucoma",
             "3_retina_disease": "Retina"}
    put(raw / "README.md")
    return fake_folders(raw, {f"dataset/{folder}": [f"{name}_{number:03d}.png" for number in range(1, 11)]
                              for folder, name in names.items()})


def fake_octid(raw: Path) -> int:
    put(raw / "__MACOSX" / "NORMAL" / "._NORMAL1.jpeg")
    return fake_folders(raw, {f"{name}/{name}": [f"{name}{number}.jpeg" for number in range(1, 13)]
                              for name in ("NORMAL", "AMRD", "CSR", "DR", "MH")})


def fake_odir(raw: Path) -> int:
    """40 patients, a row each; both images of one lie beside those of the test, which have no labels."""
    from openpyxl import Workbook

    book, images = Workbook(), raw / "ODIR-5K_Training_Images" / "ODIR-5K_Training_Dataset"
    book.worksheets[0].append(["ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus",
                               "Left-Diagnostic Keywords", "Right-Diagnostic Keywords", *ODIR_LABELS])
    for number in range(40):
        labels = [int(number % 8 == place or (number % 16 == 5 and place == 1)) for place in range(8)]
        book.worksheets[0].append([number, 60, "Male", f"{number}_left.jpg", f"{number}_right.jpg", "a", "b", *labels])
        for eye in ("left", "right"):
            put(images / f"{number}_{eye}.jpg")
    put(raw / "ODIR-5K_Testing_Images" / "900_left.jpg")
    book.save(raw / "ODIR-5K_Training_Annotations(Updated)_V2.xlsx")
    return 80


def fake_rfmid(raw: Path) -> int:
    """As unpacked from the owner's archives: the same numbers in each part."""
    parts = {"Training": ("Training_Set/Training", 100), "Validation": ("Evaluation_Set/Validation", 50),
             "Testing": ("Test_Set/Test", 50)}
    for word, (folder, count) in parts.items():
        rows = [f"{number},{int(number % 7 > 0)}," + ",".join(
            str(int(number % 45 == place or number % 45 + 1 == place)) for place in range(45))
            for number in range(1, count + 1)]
        put(raw / folder / ".." / f"RFMiD_{word}_Labels.csv", "ID," + ",".join(RFMID_LABELS) + "\n" + "\n".join(rows))
        for number in range(1, count + 1):
            put(raw / folder / f"{number}.png")
    return 200


FAKES = {"APTOS2019": fake_aptos, "MESSIDOR2": fake_messidor2, "IDRID": fake_idrid, "PAPILA": fake_papila,
         "Glaucoma_fundus": fake_glaucoma, "JSIEC": fake_jsiec, "Retina": fake_retina, "OCTID": fake_octid,
         "ODIR5K": fake_odir, "RFMiD": fake_rfmid}


def make(name: str, place: Path) -> Path:
    raw = place / f"raw_{name}"
    raw.mkdir(parents=True)
    FAKES[name](raw)
    return raw


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "split_list.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file()}


def hidden(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if path.name.startswith(".")]
