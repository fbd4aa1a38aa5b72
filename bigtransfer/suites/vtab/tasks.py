"""The nineteen tasks: what each is, and where its images come from.

Source: google-research/task_adaptation (splits, labels) and the builders of tensorflow/datasets (keys, counts); what may be flipped and
cropped: arXiv 1912.11370, appendix F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bigtransfer.data import ImageSet
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.vtab import labels, prepared, sources
from bigtransfer.suites.vtab.prepared import Prepared, number
from bigtransfer.suites.vtab.sources import Archive, Slice

Group = Literal["natural", "specialized", "structured"]

TRAIN = {"train1000": 1000, "train800": 800, "val200": 200}
"""Parts of every task, and their images; "train1000" is the other two together."""


@dataclass(frozen=True, kw_only=True)
class VtabTask:
    """One of the nineteen."""

    name: str
    title: str
    group: Group
    classes: int
    test: int
    """Images of the test part."""
    native: tuple[int, int]
    """Typical height and width, px, by which the HyperRule chooses the resolution; (0, 0) where they vary and are large."""
    folders: tuple[str, ...]
    """Names that the task's folder has in a `vtab-1k` folder; the first is the usual one."""
    archive: Archive
    prepared: Prepared
    """The same images as TensorFlow Datasets keeps them."""
    flip: bool = True
    """Whether training images may be mirrored."""
    crop: bool = True
    """Whether training images may be cropped."""

    def benchmark(self) -> Benchmark:
        """Its images, as a benchmark of the parts "train1000", "train800", "val200" and "test"."""
        archive = self.archive
        return Benchmark(
            name=f"vtab-{self.name.replace('_', '-')}",
            title=f"VTAB-1k's {self.title}",
            revision="1k",
            parts={**TRAIN, "test": self.test},
            classes=self.classes,
            licence=archive.licence,
            obtain="the folder vtab-1k as the repositories NOAH, SSF and PETL-ViT describe and link it, with this task's folder in it; or "
            f"{archive.obtain}; or what TensorFlow Datasets has prepared ({self.prepared.folders[0]})",
            gigabytes=archive.gigabytes,
            folders=tuple(
                dict.fromkeys((*(f"vtab-1k/{name}" for name in self.folders), *archive.folders, *self.prepared.folders))
            ),
            read=self._read,
        )

    def _read(self, folder: Path, parts: Iterable[str]) -> Mapping[str, ImageSet]:
        # A folder of vtab-1k is known by its lists, one of TFDS by its versions; whatever else it is called, anything else is the authors'
        # files.
        if any((folder / name).is_file() for name in ("test.txt", "train800val200.txt", "train800.txt")):
            return sources.from_folder(self.classes, folder, parts)
        archive = self.archive
        if (version := self.prepared.find(folder)) is not None:
            return prepared.read(self.prepared, archive.pools, archive.parts, self.classes, version, parts)
        return sources.from_archive(archive, self.classes, folder, parts)


def _slices(
    train: int | None = None, *, test: tuple[str, int] = ("test", 0), val: tuple[str, int] = ("validation", 0)
) -> dict[str, Slice]:
    """The parts of a set: the first 800 of "train"; 200 from where full training ends in it (`train`), or of `val`."""
    split, start = ("train", train) if train is not None else val
    return {
        "train800": Slice(split="train", start=0, stop=800),
        "val200": Slice(split=split, start=start, stop=start + 200),
        "test": Slice(split=test[0], start=test[1]),
    }


def _clevr(label: Callable[[Any], int]) -> Archive:
    return Archive(
        folders=("CLEVR_v1.0", "clevr"),
        pools={"train": 70_000, "validation": 15_000},
        parts=_slices(63_000, test=("validation", 0)),
        read=sources.clevr(label),
        obtain="CLEVR_v1.0.zip (cs.stanford.edu/people/jcjohns/clevr), unpacked",
        gigabytes=18,
        licence="CC BY 4.0",
    )


def _dsprites(label: Callable[[np.ndarray], np.ndarray]) -> Archive:
    return Archive(
        folders=("dsprites",),
        pools={"train": 737_280},
        parts=_slices(589_824, test=("train", 663_552)),
        read=sources.dsprites(label),
        obtain=f"{sources.DSPRITES} (github.com/google-deepmind/dsprites-dataset)",
        gigabytes=0.03,
        licence="Apache-2.0",
    )


def _smallnorb(label: Callable[[np.ndarray], np.ndarray]) -> Archive:
    return Archive(
        folders=("smallnorb",),
        pools={"train": 24_300, "test": 24_300},
        parts=_slices(val=("test", 0), test=("test", 12_150)),
        read=sources.smallnorb(label),
        obtain="the dat and info files of smallNORB's two parts (cs.nyu.edu/~ylclab/data/norb-v1.0-small), packed or not",
        gigabytes=0.25,
        licence="for research",
    )


TASKS: tuple[VtabTask, ...] = (
    VtabTask(
        name="caltech101",
        title="Caltech-101",
        group="natural",
        classes=102,
        test=6_084,
        native=(0, 0),
        folders=("caltech101",),
        prepared=Prepared(name="caltech101", major=(3,), label=number("label"), called="image/file_name"),
        archive=Archive(
            folders=("caltech-101", "caltech101"),
            pools={"train": 3_060, "test": 6_084},
            parts=_slices(2_754),
            read=sources.caltech101,
            obtain="caltech-101.zip (data.caltech.edu/records/mzrjq-6wc02) with 101_ObjectCategories unpacked; its parts are then drawn in "
            "the order of sorted names, and are not those of others, who draw in the order of their file system",
            gigabytes=0.13,
            licence="CC BY 4.0",
        ),
    ),
    VtabTask(
        name="cifar100",
        title="CIFAR-100",
        group="natural",
        classes=100,
        test=10_000,
        native=(32, 32),
        folders=("cifar", "cifar100"),
        prepared=Prepared(name="cifar100", major=(3,), label=number("label"), called="id"),
        archive=Archive(
            folders=("cifar-100-binary", "cifar-100-python", "cifar100"),
            pools={"train": 50_000, "test": 10_000},
            parts=_slices(45_000),
            read=sources.cifar100,
            obtain="cifar-100-binary.tar.gz or cifar-100-python.tar.gz (cs.toronto.edu/~kriz/cifar.html), unpacked",
            gigabytes=0.16,
            licence="none stated; for research",
        ),
    ),
    VtabTask(
        name="dtd",
        title="Describable Textures",
        group="natural",
        classes=47,
        test=1_880,
        native=(0, 0),
        folders=("dtd",),
        prepared=Prepared(name="dtd", major=(3,), label=number("label"), called="file_name"),
        archive=Archive(
            folders=("dtd",),
            pools={"train": 1_880, "validation": 1_880, "test": 1_880},
            parts=_slices(),
            read=sources.dtd,
            obtain="dtd-r1.0.1.tar.gz (robots.ox.ac.uk/~vgg/data/dtd), unpacked",
            gigabytes=0.6,
            licence="for research",
        ),
    ),
    VtabTask(
        name="flowers102",
        title="Oxford Flowers-102",
        group="natural",
        classes=102,
        test=6_149,
        native=(0, 0),
        folders=("oxford_flowers102", "flowers102"),
        prepared=Prepared(name="oxford_flowers102", major=(2,), label=number("label"), called="file_name"),
        archive=Archive(
            folders=("flowers-102", "flowers102"),
            pools={"train": 1_020, "validation": 1_020, "test": 6_149},
            parts=_slices(),
            read=sources.flowers102,
            obtain="102flowers.tgz unpacked (jpg/), imagelabels.mat and setid.mat (robots.ox.ac.uk/~vgg/data/flowers/102)",
            gigabytes=0.35,
            licence="none stated; for research",
        ),
    ),
    VtabTask(
        name="pets",
        title="Oxford-IIIT Pets",
        group="natural",
        classes=37,
        test=3_669,
        native=(0, 0),
        folders=("oxford_iiit_pet", "pets", "oxford_pet"),
        prepared=Prepared(name="oxford_iiit_pet", major=(3, 4), label=number("label"), called="file_name"),
        archive=Archive(
            folders=("oxford-iiit-pet", "pets"),
            pools={"train": 3_680, "test": 3_669},
            parts=_slices(2_944),
            read=sources.pets,
            obtain="images.tar.gz and annotations.tar.gz (robots.ox.ac.uk/~vgg/data/pets), unpacked",
            gigabytes=0.8,
            licence="CC BY-SA 4.0",
        ),
    ),
    VtabTask(
        name="sun397",
        title="SUN397",
        group="natural",
        classes=397,
        test=21_750,
        native=(0, 0),
        folders=("sun397",),
        prepared=Prepared(name="sun397", config="tfds", major=(4,), label=number("label"), called="file_name"),
        archive=Archive(
            folders=("SUN397", "sun397"),
            pools={"train": 76_128, "validation": 10_875, "test": 21_750},
            parts=_slices(),
            read=sources.sun397,
            obtain="SUN397.tar.gz (vision.princeton.edu/projects/2010/SUN), unpacked; its images are made smaller by OpenCV "
            "(pip install 'bigtransfer[opencv]')",
            gigabytes=37,
            licence="for research",
        ),
    ),
    VtabTask(
        name="svhn",
        title="Street View House Numbers",
        group="natural",
        classes=10,
        test=26_032,
        native=(32, 32),
        folders=("svhn",),
        prepared=Prepared(name="svhn_cropped", major=(3,), label=number("label")),
        archive=Archive(
            folders=("svhn",),
            pools={"train": 73_257, "test": 26_032},
            parts=_slices(65_931),
            read=sources.svhn,
            obtain="train_32x32.mat and test_32x32.mat (ufldl.stanford.edu/housenumbers)",
            gigabytes=0.25,
            licence="not for trade",
        ),
    ),
    VtabTask(
        name="patch_camelyon",
        title="Patch Camelyon",
        group="specialized",
        classes=2,
        test=32_768,
        native=(96, 96),
        folders=("patch_camelyon",),
        prepared=Prepared(name="patch_camelyon", major=(2,), label=number("label"), called="id"),
        archive=Archive(
            folders=("pcam", "patch_camelyon"),
            pools={"train": 262_144, "validation": 32_768, "test": 32_768},
            parts=_slices(),
            read=sources.patch_camelyon,
            obtain="the six files camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5 (github.com/basveeling/pcam), unpacked",
            gigabytes=7.5,
            licence="CC0",
        ),
    ),
    VtabTask(
        name="eurosat",
        title="EuroSAT",
        group="specialized",
        classes=10,
        test=5_400,
        native=(64, 64),
        folders=("eurosat",),
        prepared=Prepared(name="eurosat", config="rgb", major=(2,), label=number("label"), called="filename"),
        archive=Archive(
            folders=("eurosat", "EuroSAT", "2750"),
            pools={"train": 27_000},
            parts=_slices(16_200, test=("train", 21_600)),
            read=sources.class_folders("2750", "eurosat/2750", marker="AnnualCrop"),
            obtain="EuroSAT.zip, the RGB edition (github.com/phelber/EuroSAT), unpacked",
            gigabytes=0.09,
            licence="MIT",
        ),
    ),
    VtabTask(
        name="resisc45",
        title="RESISC45",
        group="specialized",
        classes=45,
        test=6_300,
        native=(256, 256),
        folders=("resisc45",),
        prepared=Prepared(name="resisc45", major=(3,), label=number("label"), called="filename"),
        archive=Archive(
            folders=("NWPU-RESISC45", "resisc45"),
            pools={"train": 31_500},
            parts=_slices(18_900, test=("train", 25_200)),
            read=sources.class_folders("NWPU-RESISC45", marker="airplane"),
            obtain="NWPU-RESISC45.rar (gcheng-nwpu.github.io), unpacked",
            gigabytes=0.4,
            licence="for research",
        ),
    ),
    VtabTask(
        name="diabetic_retinopathy",
        title="Diabetic Retinopathy",
        group="specialized",
        classes=5,
        test=42_670,
        native=(0, 0),
        folders=("diabetic_retinopathy",),
        prepared=Prepared(
            name="diabetic_retinopathy_detection",
            config="btgraham-300",
            major=(3,),
            label=number("label"),
            called="name",
        ),
        archive=Archive(
            folders=("diabetic-retinopathy-detection", "diabetic_retinopathy"),
            pools={"train": 35_126, "validation": 10_906, "test": 42_670},
            parts=_slices(),
            read=sources.retinopathy,
            obtain="train/, test/ and trainLabels.csv (kaggle.com/c/diabetic-retinopathy-detection) and retinopathy_solution.csv, the test "
            "part's levels, unpacked; its images are made by OpenCV (pip install 'bigtransfer[opencv]')",
            gigabytes=88,
            licence="Kaggle's rules of the competition",
        ),
    ),
    VtabTask(
        name="clevr_count",
        title="CLEVR, number of objects",
        group="structured",
        classes=8,
        test=15_000,
        native=(320, 480),
        folders=("clevr_count",),
        prepared=Prepared(name="clevr", major=(3,), label=prepared.clevr_count, called="file_name"),
        archive=_clevr(sources.clevr_objects),
        crop=False,
    ),
    VtabTask(
        name="clevr_distance",
        title="CLEVR, distance of the closest object",
        group="structured",
        classes=6,
        test=15_000,
        native=(320, 480),
        folders=("clevr_dist", "clevr_distance"),
        prepared=Prepared(name="clevr", major=(3,), label=prepared.clevr_distance, called="file_name"),
        archive=_clevr(sources.clevr_depth),
        crop=False,
    ),
    VtabTask(
        name="dmlab",
        title="DMLab",
        group="structured",
        classes=6,
        test=22_735,
        native=(360, 480),
        folders=("dmlab",),
        prepared=Prepared(name="dmlab", major=(2,), label=number("label"), called="filename"),
        archive=Archive(
            folders=("dmlab",),
            pools={"train": 65_550, "validation": 22_628, "test": 22_735},
            parts=_slices(),
            read=sources.dmlab,
            obtain="dmlab.tar.gz (storage.googleapis.com/dmlab-vtab/dmlab.tar.gz), unpacked: dmlab-train.tfrecord and so on",
            gigabytes=3.1,
            licence="none stated",
        ),
        crop=False,
    ),
    VtabTask(
        name="kitti_distance",
        title="KITTI, distance of the closest vehicle",
        group="structured",
        classes=4,
        test=711,
        native=(375, 1242),
        folders=("kitti", "kitti_distance"),
        prepared=Prepared(name="kitti", major=(3,), label=prepared.kitti_distance, called="image/file_name"),
        archive=Archive(
            folders=("kitti",),
            pools={"train": 6_347, "validation": 423, "test": 711},
            parts=_slices(),
            read=sources.kitti,
            obtain="data_object_image_2.zip, data_object_label_2.zip and devkit_object.zip (cvlibs.net/datasets/kitti), unpacked",
            gigabytes=12,
            licence="CC BY-NC-SA 3.0",
        ),
        crop=False,
    ),
    VtabTask(
        name="dsprites_location",
        title="dSprites, location from left to right",
        group="structured",
        classes=16,
        test=73_728,
        native=(64, 64),
        folders=("dsprites_loc", "dsprites_location"),
        prepared=Prepared(name="dsprites", major=(2,), label=number("label_x_position", lambda x: x // 2), bright=255),
        archive=_dsprites(labels.dsprites_location),
        flip=False,
        crop=False,
    ),
    VtabTask(
        name="dsprites_orientation",
        title="dSprites, orientation",
        group="structured",
        classes=16,
        test=73_728,
        native=(64, 64),
        folders=("dsprites_ori", "dsprites_orientation"),
        prepared=Prepared(
            name="dsprites", major=(2,), label=number("label_orientation", lambda turn: turn * 2 // 5), bright=255
        ),
        archive=_dsprites(labels.dsprites_orientation),
        flip=False,
    ),
    VtabTask(
        name="smallnorb_azimuth",
        title="smallNORB, azimuth",
        group="structured",
        classes=18,
        test=12_150,
        native=(96, 96),
        folders=("smallnorb_azi", "smallnorb_azimuth"),
        prepared=Prepared(name="smallnorb", major=(2,), label=number("label_azimuth")),
        archive=_smallnorb(labels.smallnorb_azimuth),
        flip=False,
    ),
    VtabTask(
        name="smallnorb_elevation",
        title="smallNORB, elevation",
        group="structured",
        classes=9,
        test=12_150,
        native=(96, 96),
        folders=("smallnorb_ele", "smallnorb_elevation"),
        prepared=Prepared(name="smallnorb", major=(2,), label=number("label_elevation")),
        archive=_smallnorb(labels.smallnorb_elevation),
    ),
)
