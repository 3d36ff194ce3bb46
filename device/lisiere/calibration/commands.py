"""`lisiere models calibrate`: from labelled images to a calibrated package."""

from __future__ import annotations

import argparse
import csv
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisiere.errors import ConfigError, Rejected
from lisiere.terminal import print_json, print_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DONE = 0
_MOST_PIXELS = 64_000_000
_EPILOG = """\
labels:
  a CSV file with the columns `file` and `label`: names within --images, and labels of the model (their text)
  --images may also be an .npz with `images` (uint8, [n, height, width] or [n, height, width, 3] in BGR) and `labels`
  (their text, or indices); then there are no --labels

The images must be like those that the model will see, and no two of them views of the same thing: then the sets of
labels hold the true one as often as is promised. Half of them give the temperature, the other half all the rest.
"""


def register(commands: Any) -> None:
    """Add `calibrate` to the commands of `lisiere models`."""
    text = "fit a classifier's temperature and its sets of labels to labelled images, and write them into its manifest"
    command = commands.add_parser(
        "calibrate",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_calibrate)
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder of images, or an .npz")
    command.add_argument("--labels", type=Path, metavar="FILE", help="a CSV file: file,label")
    command.add_argument(
        "--method", choices=["lac", "aps"], default="lac", help="of the sets: the smallest (lac), or adaptive ones"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _calibrate(args: argparse.Namespace) -> int:
    import numpy as np

    from lisiere.calibration.calibrate import calibrate, run
    from lisiere.models import open_package

    package = open_package(args.folder)
    names = package.labels()
    images: Iterable[NDArray[np.uint8]]
    if args.images.is_file():
        if args.labels is not None:
            raise ConfigError("An .npz holds its labels: leave --labels away.", "--labels")
        images, labels = _arrays(args.images, names)
    else:
        if args.labels is None:
            raise ConfigError("A folder of images needs --labels.", "--labels")
        files, labels = _table(args.images, args.labels, names)
        images = _read(files)
    done = calibrate(args.folder, run(package, images), np.asarray(labels, np.int64), args.method)
    task: Any = done.manifest.task
    figures = done.manifest.figures["calibration"]
    if args.json:
        print_json({"temperature": task.temperature, "digest": done.digest, **figures})
    else:
        print_line(f"{args.folder}: temperature {task.temperature:g}, by {figures['images']} images.")
        for name, what in (("log_loss", "log loss"), ("ece", "expected calibration error")):
            print_line(f"  {what:<27}{figures[f'{name}_before']:.4f} -> {figures[f'{name}_after']:.4f}")
        print_line(f"The model's digest is {done.digest}.")
    return _DONE


def _read(files: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    from lisiere.sources.images import read_image

    return (read_image(file, _MOST_PIXELS) for file in files)


def _table(folder: Path, file: Path, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Return the images that a CSV file names, and their labels' indices."""
    known = {name: index for index, name in enumerate(names)}
    files, labels = [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise Rejected(f"{file} must have the columns `file` and `label` in its first line.")
            for row in rows:
                name, label = row["file"] or "", (row["label"] or "").strip()
                if label not in known:
                    raise Rejected(f"{file}, line {rows.line_num}: {label!r} is none of the model's labels.")
                files.append(folder / name)
                labels.append(known[label])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Rejected(f"{file} cannot be read: {error}") from error
    return files, labels


def _arrays(file: Path, names: Sequence[str]) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images and labels of an .npz."""
    import numpy as np

    try:
        # NumPy does not close what it has opened itself and finds to be no archive.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, labels = np.asarray(arrays["images"]), np.asarray(arrays["labels"])
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise Rejected(f"{file} is no .npz with `images` and `labels`: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise Rejected(
            f"{file}: `images` is uint8 [n, height, width] or [n, height, width, 3] and `labels` is [n], not "
            f"{images.dtype} {list(images.shape)} and {list(labels.shape)}."
        )
    if labels.dtype.kind in "iu":
        return images, labels.tolist()
    known = {name: index for index, name in enumerate(names)}
    if strange := sorted({str(label) for label in labels} - known.keys()):
        raise Rejected(f"{file}: {strange[0]!r} is none of the model's labels.")
    return images, [known[str(label)] for label in labels]
