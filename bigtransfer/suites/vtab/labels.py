"""How the tasks' labels are made of what the data sets state about an image. Pure functions on arrays, all labels int64 from 0.

Sources: google-research/task_adaptation, `task_adaptation/data/*.py`, and the builders of tensorflow/datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = ("Car", "Van", "Truck")
KITTI_NO_VEHICLE = 1000.0
"""What stands for the distance, m, where no vehicle is in sight."""

DSPRITES_FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
"""Name of each factor of dSprites -> its values, in the order in which they count: that of y changes from image to image."""


def clevr_count(objects: Sequence[int] | np.ndarray) -> np.ndarray:
    """Class of images with 3 to 10 objects: their number less 3."""
    return np.asarray(objects, np.int64) - 3


def clevr_distance(depths: Iterable[float]) -> int:
    """Class of one image, by the least of its objects' depths (the third of `pixel_coords`): the last threshold strictly below it."""
    return _above(CLEVR_DISTANCES, min(depths))


def kitti_distance(objects: Iterable[tuple[str, float]]) -> int:
    """Class of one image of objects (type, distance forward in m: the third coordinate of `location`), by the nearest car, van or truck:
    0 up to 8 m, 1 up to 20 m, 2 beyond, 3 none in sight."""
    distances = [distance for kind, distance in objects if kind in KITTI_VEHICLES]
    return _above(KITTI_DISTANCES, min(distances, default=KITTI_NO_VEHICLE))


def _above(thresholds: Sequence[float], value: float) -> int:
    """The last of the ascending thresholds that is strictly less than the value; the first if none is."""
    return max(int(np.searchsorted(thresholds, value, side="left")) - 1, 0)


def dsprites_factors(positions: np.ndarray) -> dict[str, np.ndarray]:
    """The factors of the images at these places of the archive's array, by name (`DSPRITES_FACTORS`)."""
    rest, found = np.asarray(positions, np.int64), {}
    for name, count in reversed(DSPRITES_FACTORS.items()):
        found[name], rest = rest % count, rest // count
    return {name: found[name] for name in DSPRITES_FACTORS}


def dsprites_location(positions: np.ndarray) -> np.ndarray:
    """16 classes of where a sprite is from left to right: its x of 0 to 31, halved. Its y does not matter."""
    return dsprites_factors(positions)["x"] // 2


def dsprites_orientation(positions: np.ndarray) -> np.ndarray:
    """16 classes of how far a sprite is turned: floor(orientation / 2.5), so that classes hold three and two of the 40 angles in turn."""
    return dsprites_factors(positions)["orientation"] * 2 // 5


def smallnorb_azimuth(info: np.ndarray) -> np.ndarray:
    """18 classes: azimuths are stored as 0, 2, ..., 34 (tens of degrees). info: int (n, 4): instance, elevation, azimuth, lighting."""
    return np.asarray(info, np.int64)[:, 2] // 2


def smallnorb_elevation(info: np.ndarray) -> np.ndarray:
    """9 classes, as they are stored."""
    return np.asarray(info, np.int64)[:, 1]


def kitti_splits(drives: Sequence[str]) -> np.ndarray:
    """Which part every labelled image of KITTI belongs to: "train", "validation" or "test", array of str.

    drives: of each image, the recording it is from. Whole recordings are held out: a tenth of them for test, as many for validation,
    drawn with NumPy's legacy generator and the seed 123, of their sorted names (TFDS's object_detection/kitti.py).
    """
    generator = np.random.RandomState(123)
    videos = sorted(set(drives))
    count = max(1, 10 * len(videos) // 100)
    test = set(generator.choice(videos, count, replace=False).tolist())
    rest = sorted(set(videos) - test)
    validation = set(generator.choice(rest, count, replace=False).tolist())
    return np.array(["test" if one in test else "validation" if one in validation else "train" for one in drives])


CALTECH_TRAIN = 30
"""Images of each class that Caltech-101's train part has."""


def caltech_split(classes: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[str], list[str]]:
    """(train, test) as "Folder/file" of (folder, file names in it), drawn with NumPy's legacy generator and the seed 1234 as TFDS draws:
    30 of each class to train on. What it gives depends on the order of folders and files, which TFDS takes from the file system."""
    generator = np.random.RandomState(1234)
    train, test = [], []
    for folder, files in classes:
        drawn = set(generator.choice(list(files), CALTECH_TRAIN, replace=False).tolist())
        for file in files:
            if file.endswith(".jpg"):
                (train if file in drawn else test).append(f"{folder}/{file}")
    return train, test
