"""Tar and ZIP files: headers by hand, links, sizes without end, keys and labels of shards, bombs, one archive in another."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path
from random import Random

from .. import jsons
from ..cases import Case
from ..mutate import blind, cut
from ..zips import Entry, archive, lie
from .bases import CLASSES, png, unreadable

_SIZES = (
    b"00000000000\0", b"77777777777\0", b"-0000001000\0", b"99999999999\0", b"zzzzzzzzzzz\0", b"           \0",
    b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\x05", b"\x80" + b"\xff" * 11, b"\xff" * 10 + b"\xfe\x00",
    b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\0" * 12, b"0x100\0\0\0\0\0\0\0", b"1e3\0\0\0\0\0\0\0\0\0",
)  # fmt: skip


def member(
    name: bytes,
    content: bytes,
    *,
    kind: bytes = b"0",
    size: bytes | None = None,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    wrong_sum: bool = False,
) -> bytes:
    """A header block and its contents."""
    head = name[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    head += (b"%011o\0" % len(content) if size is None else size)[:12].ljust(12, b"\0") + b"00000000000\0" + b" " * 8
    head += (
        kind
        + link[:100].ljust(100, b"\0")
        + magic.ljust(8, b"\0")
        + bytes(64)
        + bytes(16)
        + prefix[:155].ljust(155, b"\0")
    )
    head = head.ljust(512, b"\0")
    total = sum(head) + (7 if wrong_sum else 0)
    head = head[:148] + b"%06o\0 " % (total & 0o777777) + head[156:]
    return head + content + bytes(-len(content) % 512)


def pax(rng: Random) -> bytes:
    """An extended header: sizes, paths and sparse maps that are not so."""
    records = rng.choice(
        (
            b"14 size=-512\n",
            b"30 size=99999999999999999999\n",
            b"12 size=10\n",
            b"14 size=junk\n",
            b"17 path=../../x\n",
            b"x path=a\n",
            b"0 a=b\n",
            b"99999 path=a\n",
            b"12 path\0=a\n",
            b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
            b"31 GNU.sparse.map=0,9999999999\n",
            b"25 GNU.sparse.size=-1000\n",
            b"13 mtime=nan\n",
            b"30 path=" + b"\xff" * 21 + b"\n",
            b"25 GNU.sparse.map=1,x,2\n",
            b"22 hdrcharset=BINARY\n",
            b"\n" * 50,
            b"12 uid=1e5\n",
            b"-5 a=b\n",
        ),
    )
    return member(b"pax", records, kind=rng.choice((b"x", b"x", b"g", b"X")))


def _odd(rng: Random) -> bytes:
    """Something between the members."""
    return rng.choice(
        (
            lambda: member(
                b"ant/link.png",
                b"",
                kind=b"1",
                link=rng.choice((b"ant/000.png", b"nothing", b"ant/link.png", b"/etc/passwd")),
            ),
            lambda: member(
                b"ant/soft.png",
                b"",
                kind=b"2",
                link=rng.choice(
                    (b"000.png", b"../bee/000.png", b"/dev/zero", b"soft.png", b"../../../etc/passwd", b"")
                ),
            ),
            lambda: member(
                b"ant/dev.png", b"", kind=rng.choice((b"3", b"4", b"6", b"5", b"7", b"\0", b"V", b"M", b"D"))
            ),
            lambda: member(b"ant/x.png", png(1), kind=rng.choice((b"S", b"N", b"Z", b"\xff", b"7"))),
            lambda: member(b"ant/big.png", b"", size=rng.choice(_SIZES)),
            lambda: (
                member(
                    b"././@LongLink",
                    rng.choice((b"ant/" + b"y" * 300 + b".png\0", b"x" * 100_000, b"\xff", b"")),
                    kind=rng.choice((b"L", b"K")),
                    size=rng.choice((None, *_SIZES)),
                )
                + member(b"short", png(2))
            ),
            lambda: pax(rng) + member(b"ant/p.png", png(3)),
            lambda: member(b"ant/sum.png", png(4), wrong_sum=True),
            lambda: bytes(512),
            lambda: rng.randbytes(512),
            lambda: member(
                rng.choice(
                    (
                        b"../../x.png",
                        b"/abs/x.png",
                        b"ant/\xff.png",
                        b"ant/\x1b[31m.png",
                        b"ant\\x.png",
                        b"",
                        b"ant/a\nb.png",
                        b".png",
                        b"ant/.png",
                        b"./ant/d.png",
                        b"ant//e.png",
                        b"ant/../bee/f.png",
                    )
                ),
                png(5),
            ),
            lambda: member(b"inner.tar", member(b"ant/1.png", png(1)) + bytes(1024)),
            lambda: member(b"ant/bad.png", unreadable(rng)),
            lambda: b"".join(member(b"note%d.txt" % k, b"") for k in range(rng.choice((10, 3000)))),
        )
    )()


def classes(rng: Random, folder: Path) -> Case:
    """Class folders in a tar file, with odd members between them."""
    parts = [member(f"{name}/{i:03d}.png".encode(), png(3 * k + i)) for k, name in enumerate(CLASSES) for i in range(3)]
    for _ in range(rng.randint(1, 4)):
        parts.insert(rng.randint(0, len(parts)), _odd(rng))
    return _saved(rng, folder, b"".join(parts) + bytes(rng.choice((0, 512, 1024, 10_240))), "set")


def shards(rng: Random, folder: Path) -> Case:
    """WebDataset: keys with dots, labels that are missing, odd or huge, of another type in every sample."""
    parts = []
    several = rng.choice((1, 1, 2))
    for k in range(8):
        key = (
            rng.choice(
                (
                    "{:06d}",
                    "{:06d}",
                    "a.b.{}",
                    "dir/{}",
                    "../{}",
                    "{}\x1b[31m",
                    "{}.v2.4",
                    ".{}",
                    "é{}",
                    "{} x",
                    "red {}.5x",
                )
            )
            .format(k)
            .encode()
        )
        label = rng.choice(
            (
                b"0",
                b"1",
                b"2",
                b"ant",
                b"",
                b"-1",
                b"007",
                b" 1\n",
                b"\xff\xfe",
                b"1.5",
                b"x" * 70_000,
                b"[1, 2]",
                b"nan",
                jsons.ESCAPES.encode(),
            )
        )
        ending = rng.choice((b"cls", b"cls", b"json", b"txt", b"CLS", b"label", b"cls.gz"))
        if ending == b"json":
            label = jsons.text(
                rng,
                rng.choice(
                    (
                        {"label": k % 3},
                        {"cls": "ant"},
                        {"label": [0, 1]},
                        jsons.spoiled(rng, {"label": k % 3, "x": 1}),
                        jsons.value(rng),
                    )
                ),
            )
        pair = [
            member(
                key + b"." + rng.choice((b"png", b"png", b"jpg", b"PNG", b"seg.png", b"bin")),
                png(k) if rng.random() < 0.9 else unreadable(rng),
            ),
            member(key + b"." + ending, label, size=rng.choice(_SIZES) if rng.random() < 0.03 else None),
        ]
        rng.shuffle(pair)
        parts += pair[: rng.choice((2, 2, 2, 2, 1))]
    if rng.random() < 0.3:
        parts.insert(rng.randint(0, len(parts)), _odd(rng))
    options = (
        {"label_column": rng.choice(("label", "x", ""))}
        if rng.random() < 0.15
        else {"multi_label": True}
        if rng.random() < 0.15
        else {}
    )
    if several == 1:
        return Case(_saved(rng, folder, b"".join(parts) + bytes(1024), "train-000000").path, options)
    root = folder / "shards"
    root.mkdir()
    for k in range(2):
        (root / f"train-{k:06d}.tar").write_bytes(b"".join(parts[8 * k : 8 * k + 8]) + bytes(1024))
    return Case(
        rng.choice(
            (root, f"{root}/train-{{000000..000001}}.tar", f"{root}/*.tar", f"{root}/train-{{000000..000009}}.tar")
        ),
        options,
    )


def spoiled(rng: Random, folder: Path) -> Case:
    """A good tar file of any flavour, spoiled or cut at a block's edge."""
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as tar:
        for k in range(6):
            info = tarfile.TarInfo(f"{CLASSES[k % 3]}/{'é' * rng.choice((0, 40))}{k}.png")
            info.size = len(png(k))
            tar.addfile(info, io.BytesIO(png(k)))
    data = file.getvalue()
    match rng.randrange(3):
        case 0:
            data = cut(rng, data, list(range(0, 6000, 512)))
        case 1:  # in a header
            at = 512 * rng.randrange(8)
            data = data[:at] + blind(rng, data[at : at + 512]).ljust(512, b"\0")[:512] + data[at + 512 :]
        case _:
            data = blind(rng, data)
    return _saved(rng, folder, data, "set")


def _saved(rng: Random, folder: Path, data: bytes, stem: str) -> Case:
    """The tar file, plain or compressed, under the right or another name."""
    ending, pack = rng.choice(
        ((".tar", None),) * 5
        + (
            (".tar.gz", gzip.compress),
            (".tgz", gzip.compress),
            (".tar.xz", lzma.compress),
            (".tar.bz2", bz2.compress),
            (".tar.zst", None),
            (".tar", gzip.compress),
            (".tar.gz", None),
        )
    )
    if pack is not None:
        data = pack(data)
        if rng.random() < 0.3:
            data = rng.choice((blind, cut))(rng, data)
    path = folder / f"{stem}{ending}"
    path.write_bytes(data)
    return Case(path)


def bombs(rng: Random, folder: Path) -> Case:
    """Compressed archives that unpack to gigabytes of nothing, and archives in archives."""
    from ..images.png import zeros

    size = rng.choice((10_000_000, 300_000_000))
    head = member(b"ant/x.png", b"", size=b"%011o\0" % size)[:512]
    if rng.random() < 0.5:
        data = (
            gzip.compress(head)
            + b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
            + zeros(size)[2:-4]
            + bytes(4)
            + size.to_bytes(4, "little")
        )
        path = folder / "set.tar.gz"
    else:
        entries = [
            Entry(f"{name}/{k}.png".encode(), bytes(rng.choice((100, 50_000_000))), 8) for k, name in enumerate(CLASSES)
        ]
        data = archive(entries)
        path = folder / "set.zip"
    path.write_bytes(data)
    return Case(path)


def zips(rng: Random, folder: Path) -> Case:
    """Class folders in a ZIP file: every trick of its headers; names that climb; other archives inside; locked entries."""
    entries = [
        Entry(f"{name}/{i:03d}.png".encode(), png(3 * k + i), rng.choice((0, 8)))
        for k, name in enumerate(CLASSES)
        for i in range(2)
    ]
    if rng.random() < 0.3:
        entries.append(Entry(b"ant/", b""))
    if rng.random() < 0.3:
        entries.append(
            Entry(
                rng.choice(
                    (b"x.csv", b"metadata.jsonl", b"set.tar", b"index.json", b"__MACOSX/ant/._x.png", b"ant/bad.png")
                ),
                rng.choice((b"", b"image,label\n", json.dumps({}).encode(), unreadable(rng))),
            )
        )
    for _ in range(rng.choice((0, 1, 1, 2))):
        lie(rng, rng.choice(entries))
    if rng.random() < 0.1:  # a symbolic link
        entries.append(
            Entry(
                b"ant/link.png",
                rng.choice((b"000.png", b"/dev/zero", b"link.png")),
                0,
                lies={"attributes": 0o120777 << 16},
            )
        )
    if rng.random() < 0.05:
        entries += [Entry(f"ant/{k}.txt".encode(), b"") for k in range(20_000)]
    data = archive(
        entries,
        count=rng.choice((None, None, None, 0, 65535)),
        comment=rng.choice((b"", b"PK\x05\x06" * 5)),
        prefix=rng.choice((b"", b"", b"MZ" + bytes(100))),
    )
    if rng.random() < 0.2:
        data = rng.choice((blind, cut))(rng, data)
    path = folder / f"set{rng.choice(('.zip', '.zip', '.zip', '.tar', '.ZIP'))}"
    path.write_bytes(data)
    return Case(path)


GENERATORS = {f"archive.{one.__name__}": one for one in (classes, shards, spoiled, bombs, zips)}
