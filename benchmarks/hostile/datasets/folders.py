"""Folders: of classes, of splits, of both in a muddle; names that are no text; what lies between the images."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from random import Random

from .. import jsons
from ..cases import Case
from .bases import CLASSES, flat, folders, png, unreadable

_SPLITS = (
    "train",
    "val",
    "test",
    "training_set",
    "test_set",
    "validation",
    "images_train",
    "seg_test",
    "Train",
    "TRAIN",
    "train ",
    "trainval",
    "dev",
    "eval",
    "holdout",
    "split_0",
    "fold1",
)
_NAMES = (
    b"caf\xe9", b"\xff\xfe", "é".encode(), unicodedata.normalize("NFD", "é").encode(), b" ", b"  ant", b"ant ",
    b"-rf", b"--out", b"=1+1", b"@x", b"a\x1b[31mb", b"a\nb", b"a\tb", b"\xc2\x9b31m", b"\xe2\x80\xaegnp",
    b"x" * 255, b".hidden", b"__MACOSX", b"0", b"1", b"01", b"10", b"-1", b"1.0", b"nan", b"None", b"[ ]",
    b"{a,b}", b"*", b"%s", b"~", b"$HOME", b"CON", b"a,b", b"a|b", b"a'b\"c",
)  # fmt: skip


def names(rng: Random, folder: Path) -> Case:
    """Classes and files whose names are no text, differ by a blank, look like flags, formulas, patterns."""
    root = folders(folder / "set", CLASSES[: rng.randint(0, 3)])
    for _ in range(rng.randint(1, 4)):
        place = os.path.join(os.fsencode(root), rng.choice(_NAMES))
        os.makedirs(place, exist_ok=True)
        for i in range(rng.choice((0, 1, 2, 3))):
            name = rng.choice((b"%d.png" % i, rng.choice(_NAMES)[:200] + b".png"))
            Path(os.fsdecode(os.path.join(place, name))).write_bytes(png(rng.randrange(30)))
    return Case(root)


def splits(rng: Random, folder: Path) -> Case:
    """Splits within classes within splits; some only of one split; twice the same split under two names."""
    root = folder / "set"
    for name in rng.sample(_SPLITS, rng.randint(1, 4)):
        inner = root / name / rng.choice(("", "", rng.choice(_SPLITS), "images"))
        folders(
            inner,
            tuple(rng.sample((*CLASSES, "dog", "Ant", "ant "), rng.randint(0, 4))),
            rng.choice((0, 1, 2, 3)),
            rng.randrange(5),
        )
    if rng.random() < 0.3:
        folders(root, CLASSES)
    if rng.random() < 0.3:
        flat(root)
    return Case(root)


def between(rng: Random, folder: Path) -> Case:
    """Unreadable images, other files, links, pipes and loops among good ones."""
    root = folders(folder / "set")
    for k in range(rng.randint(1, 4)):
        place = (
            root
            / rng.choice(("", *CLASSES))
            / f"x{k}{rng.choice(('.png', '.jpg', '.txt', '', '.csv', '.tar', '.json', '.heic', '.svg', '.gif'))}"
        )
        match rng.randrange(12):
            case 0 | 1 | 2:
                place.write_bytes(unreadable(rng))
            case 3:
                os.mkfifo(place)
            case 4:
                place.symlink_to(
                    rng.choice(
                        (
                            "/dev/zero",
                            "/dev/null",
                            place,
                            folder / "nothing",
                            root,
                            root / "ant",
                            "..",
                            "/proc/self/fd/0",
                        )
                    )
                )
            case 5:
                place.mkdir()
            case 6:
                (root / "loop").mkdir(exist_ok=True)
                if not (root / "loop" / "again").is_symlink():
                    (root / "loop" / "again").symlink_to(root)
            case 7:
                place.write_bytes(png(0) * 1000)
            case 8:
                with open(place, "wb") as file:
                    file.write(rng.choice((png(0), b"")))
                    file.truncate(3 << 30)
            case 9:
                place.hardlink_to(root / "ant" / "000.png")
            case 10:
                place.write_bytes(png(0))
                place.chmod(0)
            case _:
                deep = root
                for _ in range(rng.choice((5, 60))):
                    deep /= "d" * 20
                deep.mkdir(parents=True, exist_ok=True)
                (deep / "y.png").write_bytes(png(1))
    return Case(root)


def decoys(rng: Random, folder: Path) -> Case:
    """Files that speak of another form of data set beside class folders: an index, a saved set, metadata, a plan."""
    root = folders(folder / "set", each=rng.choice((0, 2)))
    for name in rng.sample(
        (
            "index.json",
            ".plan.json",
            "dataset_dict.json",
            "dataset_info.json",
            "state.json",
            "metadata.csv",
            "metadata.jsonl",
            "train.csv",
            "labels.csv",
            "split.json",
            "data.parquet",
            "x.tar",
            "classes.txt",
        ),
        rng.randint(1, 3),
    ):
        place = root / name
        match rng.randrange(6):
            case 0:
                place.write_bytes(jsons.text(rng, jsons.value(rng)))
            case 1:
                place.mkdir()
            case 2:
                os.mkfifo(place)
            case 3:
                place.symlink_to(rng.choice((place, "/dev/zero")))
            case 4:
                place.write_bytes(
                    jsons.text(
                        rng,
                        {
                            "format": "bigtransfer shards",
                            "version": 1,
                            "splits": jsons.value(rng),
                            "class_names": jsons.value(rng),
                            "made": {},
                        },
                    )
                )
            case _:
                place.write_bytes(rng.choice((b"", b"\0" * 100, b"file_name,label\n", b"PAR1", b"{}\n{}\n")))
    return Case(root)


def specs(rng: Random, folder: Path) -> Case:
    """What is typed instead of a folder: patterns, flags, addresses of nothing, roots, control characters."""
    root = folders(folder / "s[1]et", each=2)
    asked = rng.choice(
        (
            "",
            " ",
            ".",
            "nothing",
            "\x00",
            "a\x00b",
            "x" * 5000,
            "hf:",
            "hf:a:b@",
            "file://",
            "file:///nothing",
            "file://host/x",
            "http://",
            "s3://",
            "mem://x",
            "{0..99999999}.tar",
            "{a,b}{c,d}.tar",
            "{" * 50,
            "[",
            "**",
            "*.tar",
            "~nobody/x",
            "cifar10\n",
            "/dev/null",
            "/dev/zero",
            "\x1b[31m",
            f"{root}/*",
            f"{root}/",
            f"{root}/ant/000.png",
            f"{root}/./../{root.name}",
            f"{root}/{{ant,bee}}",
            f"file://{root}",
            "zip://x",
            "github://a:b@c/d",
        ),
    )
    return Case(asked)


def metadata(rng: Random, folder: Path) -> Case:
    """metadata.csv and metadata.jsonl beside images, as Hugging Face reads them, with other fields and types."""
    root = folder / "set"
    inner = root / rng.choice(("", "train"))
    paths = flat(inner)
    rows = [{"file_name": name, "label": CLASSES[i % 3]} for i, name in enumerate(paths)]
    for row in rng.sample(rows, rng.randint(0, 3)):
        row[rng.choice(("file_name", "label", "split", "extra"))] = jsons.value(rng)
    if rng.random() < 0.5:
        lines = [jsons.text(rng, row) if rng.random() < 0.2 else jsons.json.dumps(row).encode() for row in rows]
        (inner / "metadata.jsonl").write_bytes(rng.choice((b"\n", b"\r\n", b"\n\n")).join(lines))
    if rng.random() < 0.6:
        text = "file_name,label\n" + "".join(f"{row['file_name']},{row.get('label')}\n" for row in rows)
        (inner / "metadata.csv").write_text(text, encoding="utf-8", errors="replace")
    return Case(root)


GENERATORS = {f"folder.{one.__name__}": one for one in (names, splits, between, decoys, specs, metadata)}
