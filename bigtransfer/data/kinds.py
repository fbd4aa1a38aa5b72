"""What files are whose names do not end as images do: images without an ending, photos that need another program, and all the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

HEAD = 32
"""Bytes that `is_image` wants to see."""
LOOKED_AT = 20
"""Files of each unknown ending of which the beginning is read."""

_SYSTEM = frozenset(
    (
        *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # of Synology's and QNAP's stores
    )
)
"""Folders, in lower case, that operating systems and network stores put among their users' own; what lies in them is copies and waste."""

_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"qoif")
_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")

INSIDE = " (images inside)"
"""Behind an ending that says nothing of it, in the counts of `remarks`."""
_HOW: Mapping[str, tuple[str, ...]] = {
    "to read them: pip install pillow-heif": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "to read them: pip install --upgrade pillow, or convert them to JPEG": (".avif", ".avifs", ".webp", ".jp2", ".j2k"),
    "raw photos: develop them to JPEG or PNG first": (
        *(
            ".cr2",
            ".cr3",
            ".crw",
            ".nef",
            ".nrw",
            ".arw",
            ".srf",
            ".sr2",
            ".dng",
            ".orf",
            ".raf",
            ".rw2",
            ".pef",
            ".x3f",
            ".raw",
        ),
    ),
    "convert them to JPEG or PNG first": (
        ".svg",
        ".svgz",
        ".eps",
        ".ai",
        ".pdf",
        ".jxl",
        ".exr",
        ".hdr",
        ".bpg",
        ".xcf",
        ".dcm",
        ".npy",
    ),
    "videos: take single frames out of them first": (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"),
    "archives: unpack them first": (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over: one that its owner does not see, or did not make."""
    return name.startswith(".") or name.lower() in _SYSTEM


_ADVICE = {ending: advice for advice, endings in _HOW.items() for ending in endings}


def is_image(head: bytes) -> bool:
    """Whether a file that begins so is an image of a usual kind."""
    if head[4:8] == b"ftyp":
        return head[8:12] in _BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":
        return head[6:10] == b"\0\0\0\0" and len(head) >= 18
    return head.startswith(_STARTS)


class Passed:
    """Files that are passed over, counted by kind."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()

    def hidden(self) -> None:
        self.count["hidden"] += 1

    def add(self, ending: str, head: Callable[[], bytes]) -> bool:
        """Count a file that does not end as images do, unless it has no ending and is one by its first bytes, which `head` reads: then
        True. ending: in lower case, with its dot."""
        kind = ending or "without ending"
        self._seen[kind] += 1
        looks = not ending or (ending not in _ADVICE and self._seen[kind] <= LOOKED_AT)
        inside = looks and is_image(head())
        if inside and not ending:
            return True
        self.count[kind + INSIDE if inside else kind] += 1
        return False

    def remarks(self, where: str) -> tuple[str, ...]:
        """What was passed over, in sentences, and what would have it read."""
        found = []
        for advice, endings in _HOW.items():
            some = {ending: self.count[ending] for ending in endings if self.count[ending]}
            if some:
                found.append(f"Left out of {where}: {_listed(some)}; {advice}.")
        inside = {kind.removesuffix(INSIDE): count for kind, count in self.count.items() if kind.endswith(INSIDE)}
        if inside:
            kinds = " or ".join(inside)
            found.append(
                f"Left out of {where}: files that end with {kinds} but hold images. Rename them (.jpg, .png) to have them read."
            )
        rest = {kind: count for kind, count in self.count.items() if kind not in _ADVICE and not kind.endswith(INSIDE)}
        if rest:
            found.append(f"Passed over what is not an image in {where}: {_listed(rest)}.")
        return tuple(found)


def _listed(counts: Mapping[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda pair: -pair[1])
    more = f" and {sum(count for _, count in shown[6:])} more" if len(shown) > 6 else ""
    return ", ".join(f"{count} {re.sub(r'[^ -~]', '?', kind)[:20]}" for kind, count in shown[:6]) + more
