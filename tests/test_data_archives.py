"""The directory of a tar file, and archives that are unpacked."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from bigtransfer.config import FinetuneConfig
from bigtransfer.data import archives, open_dataset
from bigtransfer.errors import DataError
from bigtransfer.jobs.finetune import finetune

from .data_makers import encoded, pattern

BLOCK = 512


def contents(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    found, _ = archives.members(path, "x.tar")
    return {member.name: content[member.offset : member.offset + member.size] for member in found}


def notes(path: Path) -> str:
    return " ".join(archives.members(path, "x.tar")[1])


def header(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "", form: int = tarfile.GNU_FORMAT
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, max(size, 0)
    block = bytearray(info.tobuf(form, "utf-8", "surrogateescape"))
    if size < 0:  # in base 256, as GNU tar writes what octal cannot say
        block[124:136] = (size % (1 << 96)).to_bytes(12, "big")
        checksum = sum(block[:148]) + sum(block[156:512]) + 8 * 32
        block[148:156] = b"%06o\0 " % checksum
    return bytes(block)


def file(name: str, content: bytes, **options) -> bytes:
    return header(name, len(content), **options) + content + bytes(-len(content) % BLOCK)


END = bytes(2 * BLOCK)


def write(path: Path, *pieces: bytes) -> Path:
    path.write_bytes(b"".join(pieces))
    return path


# --- What tar files hold


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_same_as_tarfile_reads(tmp_path: Path, form: int) -> None:
    draw = random.Random(form)
    path = tmp_path / "x.tar"
    expected = {}
    with tarfile.open(path, "w", format=form) as tar:
        for i in range(30):
            name = f"{'deep/' * draw.randrange(19 if form == tarfile.USTAR_FORMAT else 60)}{i}é{'x' * draw.randrange(40)}.png"
            content = draw.randbytes(draw.choice([0, 1, 511, 512, 513, 5000]))
            info = tarfile.TarInfo(f"./{name}" if draw.random() < 0.5 else name)
            info.size, info.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(content))
            expected[name] = content
    assert contents(path) == expected and notes(path) == ""
    with tarfile.open(path) as tar:
        read = {member.name.removeprefix("./"): (member.offset_data, member.size) for member in tar}
    assert {member.name: (member.offset, member.size) for member in archives.members(path, "")[0]} == read


def test_a_pax_header_says_the_size(tmp_path: Path) -> None:
    size, name = b"12 size=700\n", "17 path=gün.png\n".encode()
    content = b"a" * 700
    path = write(
        tmp_path / "x.tar",
        *(
            header("pax", len(size), tarfile.XHDTYPE),
            size.ljust(BLOCK, b"\0"),
            header("big.png"),
            content.ljust(1024, b"\0"),
        ),
        *(header("pax", len(name), tarfile.XGLTYPE), name.ljust(BLOCK, b"\0"), header("?"), END),
    )
    assert contents(path) == {"big.png": content, "gün.png": b""}
    own = b"14 path=own.p\n"
    path = write(
        tmp_path / "y.tar",
        *(header("pax", len(name), tarfile.XGLTYPE), name.ljust(BLOCK, b"\0")),
        *(header("pax", len(own), tarfile.XHDTYPE), own.ljust(BLOCK, b"\0"), header("?"), END),
    )
    assert list(contents(path)) == ["own.p"]  # what is said of one goes before what is said of all


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9/1.png")
    assert list(contents(write(tmp_path / "x.tar", file(name, b"1"), END))) == [name]


def test_links_are_followed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.tar",
        file("all/1.png", b"one"),
        file("./all/2.png", b"two"),
        header("cat/a.png", 0, tarfile.LNKTYPE, "all/1.png"),
        header("cat/b.png", 0, tarfile.SYMTYPE, "../all/2.png"),
        header("cat/c.png", 0, tarfile.SYMTYPE, "b.png"),
        header("dog", 0, tarfile.SYMTYPE, "./all"),
        header("emu", 0, tarfile.SYMTYPE, "dog/"),
        header("fox/x.png", 0, tarfile.SYMTYPE, "../emu/2.png"),
        END,
    )
    assert contents(path) == {
        "all/1.png": b"one",
        "all/2.png": b"two",
        "cat/a.png": b"one",
        "cat/b.png": b"two",
        "cat/c.png": b"two",
        "dog/1.png": b"one",
        "dog/2.png": b"two",
        "emu/1.png": b"one",
        "emu/2.png": b"two",
        "fox/x.png": b"two",
    }
    assert notes(path) == ""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        far = f"{'far/' * 60}1.png"
        with tarfile.open(tmp_path / "long.tar", "w", format=form) as tar:
            tar.addfile(tarfile.TarInfo(far), io.BytesIO())
            for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = kind, far
                tar.addfile(link)
        assert set(contents(tmp_path / "long.tar")) == {far, "soft.png", "hard.png"}


def test_a_link_to_a_folder_finds_its_files_in_any_order(tmp_path: Path) -> None:
    """And none of folders whose names only begin like its own."""
    names = ["b/3.png", "b0/1.png", "c/1.png", "a/1.png", "b/1.png", "b-/1.png", "b/deep/2.png", "0.png"]
    path = write(
        tmp_path / "x.tar",
        header("link", 0, tarfile.SYMTYPE, "b"),
        *(file(name, name.encode()) for name in names),
        END,
    )
    linked = {name.replace("b/", "link/"): name.encode() for name in names if name.startswith("b/")}
    assert len(linked) == 3 and contents(path) == {name: name.encode() for name in names} | linked


def test_links_that_lead_nowhere_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.tar",
        file("a/1.png", b"one"),
        *(header(f"b/{i}.png", 0, kind, link) for i, (kind, link) in enumerate([
            *((tarfile.SYMTYPE, "gone.png"), (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.SYMTYPE, "../../../etc/passwd")),
            *((tarfile.SYMTYPE, "5.png"), (tarfile.LNKTYPE, "b/gone.png"), (tarfile.SYMTYPE, "3.png")),
            *((tarfile.SYMTYPE, "6.png"), (tarfile.SYMTYPE, "/a/1.png")),
        ])),
        header("a/up", 0, tarfile.SYMTYPE, ".."),
        header("a/here", 0, tarfile.SYMTYPE, "."),
        header("p.png", 0, tarfile.FIFOTYPE),
        END,
    )  # fmt: skip
    assert list(contents(path)) == ["a/1.png"]
    assert "x.tar: 8 links lead to nothing in it" in notes(path) and "2 links lead back to a folder above" in notes(
        path
    )
    assert "1 entries are neither files nor links" in notes(path)


def test_links_to_folders_in_folders_do_not_explode(tmp_path: Path) -> None:
    """Two to the fortieth files, if each link stood for all that the one before it stands for."""
    pieces = [file(f"d0/{i}.png", b"") for i in range(1000)]
    pieces += [header(f"l{i}", 0, tarfile.SYMTYPE, "d0") for i in range(100)]
    path = write(tmp_path / "x.tar", *pieces, END)
    found = contents(path)
    assert 10_000 < len(found) <= 1000 + 10 * 1000 + 10_000 and "stand for too many files" in notes(path)


def test_the_last_of_one_name_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", file("a.png", b"old"), file("./a.png", b"new"), END)
    assert contents(path) == {"a.png": b"new"} and "1 entries are replaced by later ones" in notes(path)
    path = write(
        tmp_path / "y.tar",
        file("b.png", b"other"),
        file("a.png", b"old"),
        header("a.png", 0, tarfile.SYMTYPE, "b.png"),
        END,
    )
    assert contents(path) == {"b.png": b"other", "a.png": b"other"}


def test_archives_one_behind_the_other(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", file("a.png", b"1"), END, bytes(9 * BLOCK), file("b.png", b"2"), END)
    assert contents(path) == {"a.png": b"1", "b.png": b"2"} and notes(path) == ""
    path = write(tmp_path / "y.tar", file("a.png", b"1"), END, b"rubbish" * 100)
    assert contents(path) == {"a.png": b"1"} and "700 bytes behind its end are not read" in notes(path)


def test_files_with_holes_are_counted(tmp_path: Path) -> None:
    sparse = bytearray(header("holes.png", 512, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1  # a block more of the map follows
    checksum = sum(sparse[:148]) + sum(sparse[156:512]) + 8 * 32
    sparse[148:156] = b"%06o\0 " % checksum
    more = bytes(504) + b"\1" + bytes(7)
    path = write(tmp_path / "x.tar", bytes(sparse), more, bytes(BLOCK), b"y" * BLOCK, file("a.png", b"1"), END)
    assert contents(path) == {"a.png": b"1"} and "1 files are stored with holes" in notes(path)


# --- Damage and malice


@pytest.mark.parametrize("size", [-512, -513, -1, 1 << 62, 1 << 86, 1025])
def test_sizes_that_the_file_does_not_hold(tmp_path: Path, size: int) -> None:
    block = header("x.png", min(size, 1)) if size > 0 else header("x.png", size)
    if size > 0:
        block = bytearray(block)
        block[124:136] = b"\x80" + size.to_bytes(11, "big")
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    path = write(tmp_path / "x.tar", file("a.png", b"1"), bytes(block), END)
    with pytest.raises(DataError, match=r"x\.tar .*(do not hold|damaged)"):
        archives.members(path, "x.tar")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [-512, 1 << 40])
def test_headers_of_any_size(tmp_path: Path, kind: bytes, size: int) -> None:
    block = bytearray(header("x", -1 if size < 0 else 0, kind))
    block[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    with pytest.raises(DataError, match=r"x\.tar cannot be read as a tar file"):
        archives.members(write(tmp_path / "x.tar", bytes(block), END), "x.tar")


@pytest.mark.parametrize(
    "record", [b"0 a=b\n", b"99 a=b\n", b"x a=b\n", b"6 abc\n", b"-6 a=b\n", b"14 size=12345\n", b"12 size=-99\n"]
)
def test_pax_records_that_are_none(tmp_path: Path, record: bytes) -> None:
    pieces = (
        header("p", len(record), tarfile.XHDTYPE),
        record.ljust(BLOCK, b"\0"),
        header("a.png", 1),
        b"1".ljust(BLOCK, b"\0"),
        END,
    )
    with pytest.raises(DataError, match=r"x\.tar"):
        archives.members(write(tmp_path / "x.tar", *pieces), "x.tar")


def test_a_damaged_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", file("a.png", b"1"), b"\1" * BLOCK, file("b.png", b"2"), END)
    with pytest.raises(DataError, match="damaged at byte 1,024"):
        archives.members(path, "x.tar")


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    whole = file("a.png", b"x" * 2000) + file("b.png", b"y" * 2000)
    with pytest.raises(DataError, match=r"do not hold b\.png of 2,000 bytes"):
        archives.members(write(tmp_path / "x.tar", whole[:-1000]), "x.tar")
    assert "100 bytes are at its end" in notes(write(tmp_path / "y.tar", whole[: 2560 + 100]))


def test_random_damage_ends_in_an_answer(tmp_path: Path) -> None:
    draw = random.Random(5)
    whole = (
        b"".join(file(f"{'long' * 40}{i}.png", b"x" * 300) for i in range(4))
        + header("l", 0, tarfile.SYMTYPE, "x")
        + END
    )
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        with contextlib.suppress(DataError):
            archives.members(write(tmp_path / "x.tar", bytes(content)), "x.tar")


def test_entries_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.tar", *(file(f"{i}.png", b"") for i in range(6)), END)
    monkeypatch.setenv("BIT_LIMITS", "archive_members=6")
    assert len(contents(path)) == 6
    monkeypatch.setenv("BIT_LIMITS", "archive_members=5")
    with pytest.raises(DataError, match=r"more than 5 entries.*--limits archive_members"):
        archives.members(path, "x.tar")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for i in range(6):
            packed.writestr(f"{i}.png", b"")
    with pytest.raises(DataError, match=r"more than 5 entries.*--limits archive_members"):
        archives.plain(tmp_path / "x.zip", tmp_path / "cache")


# --- Compressed archives


PACK = {"gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("kind", [*PACK, "zstd"])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x", "x.zip"])
def test_content_decides_not_the_name(tmp_path: Path, kind: str, name: str) -> None:
    members = [file(f"{label}/{i}.png", encoded(pattern(4, 5, i))) for label in "ab" for i in range(2)]
    pack = PACK.get(kind) or pytest.importorskip("backports.zstd").compress
    (tmp_path / name).write_bytes(pack(b"".join(members) + END))
    data = open_dataset(tmp_path / name, cache=tmp_path / "cache")
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.train.read(3).tolist() == pattern(4, 5, 1).tolist()


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_what_is_cut_off_or_damaged(tmp_path: Path, name: str) -> None:
    content = gzip.compress(os.urandom(3000))
    if name == "x.zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as packed:
            packed.writestr("a/1.png", os.urandom(3000))
        content = buffer.getvalue().replace(b"PK\1\2", b"PK\1\3")
    (tmp_path / name).write_bytes(content if name == "x.zip" else content[:-100])
    with pytest.raises(DataError, match=rf"{name} cannot be unpacked: "):
        archives.plain(tmp_path / name, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tar").iterdir())


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.tar.gz").write_bytes(gzip.compress(bytes(1_000_000)))  # a thousandfold, but of nothing
    assert archives.plain(tmp_path / "small.tar.gz", tmp_path / "cache").stat().st_size == 1_000_000
    monkeypatch.setattr(archives, "_FREE", 100_000)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(bytes(3_000_000)))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/1.png", bytes(3_000_000))
    for name in ("x.tar.gz", "x.zip"):
        with pytest.raises(DataError, match=r"more than 200 times its size.*--limits archive_ratio"):
            archives.plain(tmp_path / name, tmp_path / "cache")
    monkeypatch.setenv("BIT_LIMITS", "archive_ratio=5000,archive_bytes=2M")
    for name in ("x.tar.gz", "x.zip"):
        with pytest.raises(DataError, match=r"more than 2,000,000 bytes.*--limits archive_bytes"):
            archives.plain(tmp_path / name, tmp_path / "cache")
    monkeypatch.setenv("BIT_LIMITS", "archive_ratio=5000")
    assert archives.plain(tmp_path / "x.zip", tmp_path / "cache").stat().st_size > 3_000_000


def test_zip_names_links_and_passwords(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("../../etc/a/1.png", b"one")
        link = zipfile.ZipInfo("b/2.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "../../../etc/a/1.png")
        link = zipfile.ZipInfo("c/3.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "../c/4.png")
        packed.writestr("c/4.png", b"four")
        packed.writestr("d/", b"")
        packed.writestr("\u251c\u2310.png", b"marked as UTF-8, so it is meant")
    path = archives.plain(tmp_path / "x.zip", tmp_path / "cache")
    assert {name: content for name, content in contents(path).items() if name[0] != "."} == {
        "c/4.png": b"four",
        "c/3.png": b"four",
        "\u251c\u2310.png": b"marked as UTF-8, so it is meant",
    }
    assert not (tmp_path.parent.parent / "etc").exists() and not (tmp_path / "etc").exists()

    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as packed:
        for name in ("caf\u00e9\\1.png", "b\\2.png"):
            packed.writestr(name, name.encode())
    raw = (tmp_path / "windows.zip").read_bytes()
    flags = raw.replace(b"\0\x08\0\0", b"\0\0\0\0")  # without the mark that says UTF-8
    (tmp_path / "windows.zip").write_bytes(flags)
    assert sorted(contents(archives.plain(tmp_path / "windows.zip", tmp_path / "cache"))) == [
        "b/2.png",
        "caf\u00e9/1.png",
    ]

    locked = bytearray((tmp_path / "x.zip").read_bytes())
    at = locked.index(b"PK\1\2")
    locked[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match=r"is encrypted\. Unpack it, and give the folder"):
        archives.plain(tmp_path / "locked.zip", tmp_path / "cache")


# --- Unpacked into a folder


def everything(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder's parent, files with their content."""
    top = folder.parent
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in top.rglob("*")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "outer" / "folder"
    folder.mkdir(parents=True)
    (folder.parent / "precious").write_bytes(b"precious")
    return folder


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return path


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_unpack(tmp_path: Path, folder: Path, kind: str) -> None:
    contents = {"./a/b.txt": b"one" * 10_000, "tar/c": b"", "d": b"two"}
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(path, contents)
    else:
        plain = b"".join(file(name, content) for name, content in contents.items()) + END
        path.write_bytes(plain if kind == "tar" else gzip.compress(plain))
    archives.unpack(path, folder)
    assert everything(folder) == {
        "precious": b"precious",
        "folder": None,
        "folder/a": None,
        "folder/a/b.txt": b"one" * 10_000,
        "folder/tar": None,
        "folder/tar/c": b"",
        "folder/d": b"two",
    }


@pytest.mark.parametrize("name", ["../precious", "a/../../precious", "..", "a/.."])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_lead_out(tmp_path: Path, folder: Path, name: str, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(path, {"good": b"1", name: b"2"})
    else:
        write(path, file("good", b"1"), file(name, b"2"), END)
    with pytest.raises(DataError, match=rf"x\.{kind} holds .* which would lie outside of"):
        archives.unpack(path, folder)
    assert everything(folder) == {"precious": b"precious", "folder": None}


def test_absolute_paths_are_below(tmp_path: Path, folder: Path) -> None:
    """As for `tar -x`."""
    archives.unpack(write(tmp_path / "x.tar", file(f"{folder.parent}/precious", b"2"), END), folder)
    assert (folder.parent / "precious").read_bytes() == b"precious"
    assert (folder / str(folder.parent)[1:] / "precious").read_bytes() == b"2"


def test_links_are_never_made(tmp_path: Path, folder: Path) -> None:
    """Through a link a plain name would lead out."""
    path = write(
        tmp_path / "x.tar",
        header("up", kind=tarfile.SYMTYPE, link=".."),
        file("up/precious", b"1"),
        header("out", kind=tarfile.SYMTYPE, link="../precious"),
        header("hard", kind=tarfile.LNKTYPE, link="../precious"),
        header("pipe", kind=tarfile.FIFOTYPE),
        header("device", kind=tarfile.CHRTYPE),
        file("good", b"2"),
        header("copy", kind=tarfile.SYMTYPE, link="good"),
        END,
    )
    archives.unpack(path, folder)
    assert everything(folder) == {
        "precious": b"precious",
        "folder": None,
        "folder/up": None,
        "folder/up/precious": b"1",
        "folder/good": b"2",
        "folder/copy": b"2",
    }
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_unpacking_is_limited(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is written, which with links is more than the archive holds."""
    links = (header(f"{i}", kind=tarfile.LNKTYPE, link="good") for i in range(9))
    path = write(tmp_path / "x.tar", file("good", bytes(1000)), *links, END)
    monkeypatch.setenv("BIT_LIMITS", "archive_bytes=10000")
    archives.unpack(path, folder)
    for free, most in ((10**9, 9_999), (9_999, 10_000)):
        monkeypatch.setenv("BIT_LIMITS", f"archive_bytes={most}")
        monkeypatch.setattr(archives.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        with pytest.raises(DataError, match=r"x\.tar unpacks to 10,000 bytes, more than fit"):
            archives.unpack(path, folder)


def test_what_cannot_be_written(tmp_path: Path, folder: Path) -> None:
    for name in ("n" * 300, "a\0b"):
        record = f" path={name}\n"
        record = f"{len(record) + 3}{record}" if len(record) >= 97 else f"{len(record) + 2}{record}"
        path = write(tmp_path / "x.tar", file("h", record.encode(), kind=tarfile.XHDTYPE), file("x", b"1"), END)
        with pytest.raises(DataError, match=r"x\.tar cannot be unpacked: "):
            archives.unpack(path, folder)
    path = write(tmp_path / "x.tar", file("a", b"1"), file("a/b", b"2"), END)
    with pytest.raises(DataError, match=r"x\.tar cannot be unpacked: "):
        archives.unpack(path, folder)
    assert not (folder / ".unpacking").exists()


def test_zeros_behind_an_archive_are_not_read_for_ever(tmp_path: Path) -> None:
    read = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(size)
            return bytes(size or 0)

    assert archives._beyond(Counted(), 0, 1 << 30) is None
    assert sum(read) <= 65 << 20


def test_a_table_in_an_archive_is_named_where_its_images_have_no_folders(tmp_path: Path) -> None:
    image = encoded(pattern(8, 8))
    for name, members in {
        "one": {"images/0.png": image, "images/1.png": image, "labels.csv": b"file,label"},
        "none": {"0.png": image, "1.png": image, "labels.csv": b"file,label"},
    }.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    with pytest.raises(DataError, match=r"table labels\.csv: unpack it"):
        open_dataset(tmp_path / "one.zip")
    assert "table labels.csv: unpack it" in open_dataset(tmp_path / "none.zip").notes[-1]
    with pytest.raises(DataError, match=r"has no classes.*table labels\.csv: unpack it"):
        finetune(FinetuneConfig(data=str(tmp_path / "none.zip"), out=str(tmp_path / "run")))
    with zipfile.ZipFile(tmp_path / "folders.zip", "w") as archive:
        for member in ("a/0.png", "b/1.png"):
            archive.writestr(member, image)
        archive.writestr("list.csv", "x")
    folders = open_dataset(tmp_path / "folders.zip")
    assert folders.train.class_names == ("a", "b") and not any("unpack" in note for note in folders.notes)
