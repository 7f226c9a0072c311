"""Tiny releases of public datasets, in the files and folders that their users download."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pydicom import Dataset, FileMetaDataset, uid

SIZE = (24, 32)  # (H, W)
CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
VINDR = [
    "Aortic enlargement", "Pleural effusion", "Lung tumor", "Pneumonia", "Tuberculosis",
    "Other diseases", "No finding",
]  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    """(24, 32) uint8 that only this path has."""
    return np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, SIZE, np.uint8)


def image(path: Path) -> None:
    """Writes a random image in the format that the path's ending names; none is DICOM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".jpg"):
        cv2.imwrite(str(path), pixels(path))
    elif path.suffix == ".mha":
        path.write_bytes(metaimage(pixels(path).astype(np.uint16) * 17))
    else:
        dicom(path)


def dicom(path: Path) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = SIZE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels(path).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def metaimage(array: np.ndarray, compressed: bool = True, **header: str) -> bytes:
    """A .mha file of the array, as ITK writes it."""
    kinds = {"u1": "UCHAR", "u2": "USHORT", "i2": "SHORT", "f4": "FLOAT", "f8": "DOUBLE"}
    data = zlib.compress(array.tobytes()) if compressed else array.tobytes()
    lines = {
        "ObjectType": "Image",
        "NDims": "2",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "DimSize": f"{array.shape[1]} {array.shape[0]}",
        "ElementType": f"MET_{kinds[array.dtype.str[1:]]}",
        **header,
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    return f"{text}ElementDataFile = {header.get('ElementDataFile', 'LOCAL')}\n".encode() + data


def relative_rle(mask: np.ndarray) -> str:
    """SIIM-ACR's: down the columns, zeros skipped and ones marked; "-1" where there are none."""
    counts, last, length = [], 0, 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(length)
            last, length = value, 0
        length += 1
    if last:
        counts.append(length)
    return " ".join(map(str, counts)) or "-1"


def block(y1: int, x1: int, y2: int, x2: int) -> np.ndarray:
    """(24, 32) uint8, 1 in rows y1 to y2 and columns x1 to x2, the last not included."""
    mask = np.zeros(SIZE, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(list(rows)).to_csv(path, index=False)


def chexpert(root: Path) -> None:
    """24 patients of two views, 3 of valid.csv; -1, 1, 0 and blank in the first view's labels."""
    for part, count in (("train", 24), ("valid", 3)):
        rows = []
        for patient in range(count):
            for view in ("view1_frontal", "view2_lateral"):
                path = f"{part}/patient{patient + 100 * (part == 'valid'):05d}/study1/{view}.jpg"
                image(root / path)
                # as pandas writes numbers with gaps; in valid.csv there are neither
                filled = 0.0 if part == "valid" else ""
                labels = dict.fromkeys(CHEXPERT, filled) | {"Edema": 1.0, "Fracture": 0.0}
                labels["Pneumonia"] = -1.0 if part == "train" else 1.0
                meta = {"Path": f"CheXpert-v1.0/{path}", "Sex": "Female", "Age": 68}
                rows.append(meta | {"Frontal/Lateral": "Frontal", "AP/PA": ""} | labels)
        csv(root / f"{part}.csv", rows)


def mimic_cxr(root: Path) -> None:
    """Three patients; s50000012 has two images, s50000099 no label, s50000098 no image."""
    studies = [(10000001, 50000011, "train"), (10000001, 50000012, "train"),
               (10000001, 50000012, "train"), (11000002, 50000021, "validate"),
               (12000003, 50000031, "test"), (12000003, 50000099, "test")]  # fmt: skip
    split, labels = [], {}
    for number, (subject, study, name) in enumerate(studies):
        key = f"02aa804e-bde0afdd-{number}"
        image(root / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{key}.jpg")
        split.append({"dicom_id": key, "study_id": study, "subject_id": subject, "split": name})
        one = {"subject_id": subject, "study_id": study} | dict.fromkeys(CHEXPERT, "")
        labels[study] = one | {"Atelectasis": -1.0, "Edema": 1.0}
    del labels[50000099]
    labels[50000098] = labels[50000011] | {"study_id": 50000098}
    csv(root / "mimic-cxr-2.0.0-split.csv.gz", split)
    csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", labels.values())


def nih14_full(root: Path) -> None:
    """20 patients in two image folders, patient 1 with two images; the last 4 patients are test."""
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(20):
        for visit in range(2 if patient == 1 else 1):
            name = f"{patient:08d}_{visit:03d}.png"
            image(root / f"images_{1 + patient // 10:03d}/images/{name}")
            finding = ["No Finding", "Effusion|Mass", "Hernia"][patient % 3]
            rows.append({"Image Index": name, "Finding Labels": finding, "Follow-up #": visit,
                         "Patient ID": patient, "Unnamed: 11": ""})  # fmt: skip
            lists["test_list.txt" if patient >= 16 else "train_val_list.txt"].append(name)
    csv(root / "Data_Entry_2017.csv", rows)
    for name, names in lists.items():
        (root / name).write_text("\n".join(names))


def vindr_cxr(root: Path) -> None:
    """10 training images of three readers, of whom two see a tumor and one sees pneumonia."""
    train = [
        {"image_id": f"a{number}", "rad_id": f"R{reader}"}
        | dict.fromkeys(VINDR, 0)
        | {"Lung tumor": int(reader > 8), "Pneumonia": int(reader == 8), "Pleural effusion": 1}
        for number in range(10)
        for reader in (8, 9, 10)
    ]
    names = [name.replace("diseases", "disease") for name in VINDR]
    test = [{"image_id": f"b{number}"} | dict.fromkeys(names, 0) for number in range(2)]
    test[1]["Other disease"] = 1
    csv(root / "annotations/image_labels_train.csv", train)
    csv(root / "annotations/image_labels_test.csv", test)
    for part, rows in (("train", train), ("test", test)):
        for row in rows:
            image(root / part / f"{row['image_id']}.dicom")


def rsna_pneumonia(root: Path) -> None:
    """p0 has two opacities, p1 and every other odd one is not normal, the rest are normal."""
    boxes, classes = [], []
    for number in range(10):
        patient = f"p{number}"
        image(root / f"stage_2_train_images/{patient}.dcm")
        kind = "No Lung Opacity / Not Normal" if number % 2 else "Normal"
        found = [(2.0, 3.0, 10.0, 8.0), (20.0, 3.0, 5.0, 6.0)] if number == 0 else [("",) * 4]
        for box in found:
            row = dict(zip(("x", "y", "width", "height"), box, strict=True))
            boxes.append({"patientId": patient} | row | {"Target": int(number == 0)})
            kind = "Lung Opacity" if number == 0 else kind
            classes.append({"patientId": patient, "class": kind})
    csv(root / "stage_2_train_labels.csv", boxes)
    csv(root / "stage_2_detailed_class_info.csv", classes)


def shenzhen(root: Path) -> None:
    """20 images, every second one with tuberculosis."""
    for number in range(1, 21):
        image(root / f"CXR_png/CHNCXR_{number:04d}_{number % 2}.png")


GROUPS = ("health", "sick", "tb")
TB_KINDS = ["ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis"]
TB_BOXES = [  # (bbox, category, crowd): the second has no area, the third is a crowd
    ([2, 3, 10, 8], 1, 0), ([4, 4, 0, 5], 2, 0), ([0, 0, 32, 24], 3, 1), ([20, 3, 5, 6], 3, 0),
]  # fmt: skip


def tbx11k(root: Path) -> None:
    """10 training images of each group, 1 of validation; ids from 1."""
    categories = [{"id": number, "name": name} for number, name in enumerate(TB_KINDS, 1)]
    for part, numbers in (("train", range(10)), ("val", range(10, 11))):
        names = [f"{group}/{group[0]}{n:04d}.png" for n in numbers for group in GROUPS]
        images = [{"id": n, "file_name": name} for n, name in enumerate(names, 1)]
        ill = [one for one in images if one["file_name"].startswith("tb/")]
        annotations = [
            {"image_id": one["id"], "category_id": kind, "bbox": box, "iscrowd": crowd}
            for one in ill
            for box, kind, crowd in TB_BOXES
        ]
        annotations = [{"id": n, **one} for n, one in enumerate(annotations, 1)]
        for name in names:
            image(root / "imgs" / name)
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / f"annotations/json/TBX11K_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def node21(root: Path) -> None:
    """n0 has two nodules, n1 to n9 none."""
    rows = []
    for number in range(10):
        name = f"{'n' if number == 0 else 'c'}{number:04d}.mha"
        image(root / "images" / name)
        boxes = [(8, 10, 2, 3), (6, 5, 20, 3)] if number == 0 else [(0, 0, 0, 0)]
        for height, width, x, y in boxes:
            rows.append({"height": height, "img_name": name, "label": int(number == 0),
                         "width": width, "x": x, "y": y})  # fmt: skip
    (root / "metadata.csv").write_text(pd.DataFrame(rows).to_csv())


PTX_AREAS = [block(3, 2, 11, 12), block(3, 20, 9, 25)]


def candid_ptx(root: Path) -> None:
    """P0000 has two areas, P0001 two images, P0002 a blank RLE; the last image two patients."""
    (root / "dataset").mkdir()
    codes = {0: [relative_rle(area) for area in PTX_AREAS], 2: [""]}
    rows = []
    for number in range(20):
        name = f"1.2.840.{number}"
        dicom(root / "dataset" / name)
        patient = 1 if number == 3 else number
        row = {"SOPInstanceUID": name, "Report": "A report, of\ntwo lines"}
        row["filename"] = f"P{patient:04d}_{number}"
        rows += [row | {"EncodedPixels": code} for code in codes.get(number, ["-1"])]
    rows.append(rows[-1] | {"filename": "P0005_19"})
    csv(root / "Pneumothorax_reports.csv", rows)


CHESTX_POLYGON = [[2, 3], [12, 3], [12, 11], [2, 11]]


def chestx_det(root: Path) -> None:
    """The first image of each part has two findings, a degenerate box and a degenerate polygon."""
    for part, numbers in (("train", range(10)), ("test", range(10, 12))):
        entries = []
        for number in numbers:
            name = f"{36199 + number}.png"
            image(root / f"{part}_data" / name)
            entry: dict[str, Any] = {"file_name": name, "syms": [], "boxes": [], "polygons": []}
            if number == numbers[0]:
                entry["syms"] = ["Effusion", "Diffuse Nodule", "Effusion"]
                entry["boxes"] = [[2, 3, 12, 11], [20, 3, 25, 9], [5, 5, 5, 9]]
                entry["polygons"] = [
                    CHESTX_POLYGON,
                    [[20, 3], [25, 3], [25, 9], [20, 9]],
                    [[5, 5], [5, 9]],
                ]
            entries.append(entry)
        (root / f"ChestX_Det_{part}.json").write_text(json.dumps(entries))


def siim_acr(root: Path) -> None:
    """train0 has two areas, train1 no row; a blank before each value, as in the release."""
    rows = ["ImageId, EncodedPixels"]
    for part, count in (("train", 12), ("test", 2)):
        for number in range(count):
            name = f"1.2.276.{part}.{number}"
            image(root / f"dicom-images-{part}/1.2.{number}/1.3.{number}/{name}.dcm")
            codes = [relative_rle(a) for a in PTX_AREAS] if number == 0 else ["-1"]
            rows += [f"{name}, {code}" for code in codes if (part, number) != ("train", 1)]
    (root / "train-rle.csv").write_text("\n".join(rows) + "\n")
