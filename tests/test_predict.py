from __future__ import annotations

import csv
import dataclasses
import http.server
import io
import json
import os
import socket
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import cli, weights
from bigtransfer.errors import ImageError
from bigtransfer.jobs import predict
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Prediction, Predictor

from . import network_makers
from .file_server import limited

NAMES = ("ant", "bee", "crane", "crane", "eel", "fox", "größe")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return network_makers.saved(tmp_path_factory.mktemp("model") / "model.safetensors", NAMES)


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    path = tmp_path_factory.mktemp("headless") / "features.safetensors"
    weights.save(path, ResNetV2((1, 1, 1, 1), 1, 0))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (root / "deep").mkdir()
    for name in ("a.png", "b.png", "deep/c.png"):
        Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture(scope="module")
def expected(model, photos):
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    names = [str(photos / name) for name in ("a.png", "b.png", "deep/c.png")]
    return dict(zip(names, predictor.predict(names), strict=True))


def bit(*arguments):
    return cli.main(["predict", *map(str, arguments), "--device", "cpu", "--precision", "fp32"])


@pytest.fixture
def server(photos):
    """Serves a.png as /a.png; the other paths misbehave."""
    good = (photos / "a.png").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/a.png")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path == "/missing":
                self.send_error(404)
                return
            if self.path == "/silent":
                silence.wait(5)
                return
            if self.path == "/nonsense":
                self.wfile.write(b"nonsense\r\n\r\n")
                return
            body = {
                "/a.png": good,
                "/%C3%A9%20(1).png?x=%20": good,
                "/page": b"<html>hello</html>",
                "/cut": good[:-50],
                "/huge": b"x" * 5000,
            }[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(good) if self.path == "/cut" else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    silence = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        silence.set()
        running.shutdown()
        thread.join()


def test_table(model, photos, expected, capsys):
    assert bit(model, photos, "--top-k", 2) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "class", "probability"]
    assert len(lines) == 3
    for line, (name, prediction) in zip(lines, expected.items(), strict=True):
        assert line.startswith(("..." if len(name) > 60 else "") + name[-57 if len(name) > 60 else 0 :])
        (first, p), (second, q) = prediction.top(2)
        assert line.split()[1:3] == [first, f"{p:.1%}"]
        assert line.endswith(f"{second} {q:.1%}")


def test_csv_with_probabilities(model, photos, expected, capsys):
    assert bit(model, photos / "*.png", photos / "deep", "--format", "csv", "--top-k", 3, "--probabilities") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["image"] for row in rows] == list(expected)
    for row in rows:
        prediction = expected[row["image"]]
        third = prediction.top(3)[2]
        assert row["label"] == prediction.label and row["error"] == ""
        assert row["label_3"] == third[0] and float(row["probability_3"]) == pytest.approx(third[1], rel=1e-4)
        found = [float(row[key]) for key in ("ant", "bee", "crane #2", "crane #3", "eel", "fox", "größe")]
        np.testing.assert_allclose(found, prediction.probabilities, rtol=1e-4)


def test_jsonl_to_a_file(model, photos, expected, tmp_path, capsys):
    out = tmp_path / "new" / "labels.jsonl"
    assert bit(model, photos, "--format", "jsonl", "--out", out, "--probabilities", "--batch-size", 1) == 0
    assert capsys.readouterr().out == ""
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for record in records:
        prediction = expected[record["image"]]
        assert record["label"] == prediction.label
        assert record["probability"] == pytest.approx(prediction.probability, rel=1e-4)
        assert [entry["label"] for entry in record["top"]] == [label for label, _ in prediction.top(5)]
        np.testing.assert_allclose(list(record["probabilities"].values()), prediction.probabilities, rtol=1e-4)
    assert len(records) == 3
    assert [path.name for path in out.parent.iterdir()] == ["labels.jsonl"]


@pytest.mark.parametrize(
    "arguments", [(), ("--format", "csv"), ("--format", "jsonl"), ("--suggest", "2"), ("--out", "parts/")], ids=str
)
def test_a_network_without_classes_has_nothing_to_say(headless, photos, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert bit(headless, photos, *arguments) == 2
    shown = capsys.readouterr()
    assert "has no classes" in shown.err and "--features" in shown.err and not shown.out


def test_the_features_of_a_network_without_classes(headless, photos, tmp_path, capsys):
    file = tmp_path / "f.npz"
    assert bit(headless, photos / "a.png", "--features", file) == 0
    assert capsys.readouterr().out.splitlines()[1] == str(photos / "a.png")
    assert np.load(file)["features"].shape == (1, 2048)
    assert bit(headless, photos / "a.png", "--features", file, "--format", "csv") == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == [
        {"image": str(photos / "a.png"), "label": "", "probability": "", "error": ""}
    ]
    assert bit(headless, photos / "a.png", "--features", file, "--format", "jsonl", "--probabilities") == 0
    assert json.loads(capsys.readouterr().out)["top"] == []
    assert (
        bit(headless, photos / "a.png", "--out", f"{tmp_path}/parts/", "--vectors", "features", "--format", "csv") == 0
    )
    (rows,) = (tmp_path / "parts").glob("*.npy")
    assert np.load(rows).shape == (1, 2048)
    assert "label=None" in repr(Predictor.load(headless, device="cpu").predict([photos / "a.png"])[0])


def test_features_file_needs_no_pickle(model, photos, expected, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    path = tmp_path / "features.npz"
    assert bit(model, photos, tmp_path / "bad.png", "--features", path) == 1
    with np.load(path, allow_pickle=False) as stored:
        assert stored["names"].tolist() == list(expected)
        features = Predictor.load(model, device="cpu", precision="fp32").features(list(expected))
        np.testing.assert_allclose(stored["features"], features, rtol=1e-3, atol=1e-5)


def test_of_several_labels_a_table_in_a_file_has_every_image(model, photos, tmp_path, capsys):
    network = weights.load(model)
    network.card = dataclasses.replace(network.card, multi_label=True, thresholds=(0.0,) + (1.0,) * (len(NAMES) - 1))
    weights.save(tmp_path / "several.safetensors", network)
    (tmp_path / "bad.png").write_bytes(b"")
    command = [tmp_path / "several.safetensors", tmp_path / "bad.png", photos / "a.png", "--out", tmp_path / "x.txt"]
    assert bit(*command, "--format", "table") == 1
    assert "bad.png" not in capsys.readouterr().out
    title, bad, good = (tmp_path / "x.txt").read_text().splitlines()
    assert title.split() == ["image", "classes", "probabilities"]
    assert "bad.png" in bad and "the file is empty" in bad and f"  {NAMES[0]}  " in good


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_an_unreadable_image_is_reported_and_the_others_go_on(model, photos, tmp_path, capsys, form):
    (tmp_path / "bad.png").write_bytes(b"")
    assert bit(model, tmp_path / "bad.png", photos / "a.png", "--format", form) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()[0 if form == "jsonl" else 1 :]
    assert len(lines) == 2 and "the file is empty" in lines[0] and str(photos) in lines[1]
    assert "1 of 2 images cannot be read" in captured.err
    if form == "csv":
        assert len({line.count(",") for line in captured.out.splitlines()}) == 1


def test_addresses_and_a_list_on_standard_input(model, photos, expected, server, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{server}/a.png\n\n{server}/moved\n{photos}/b.png\n"))
    assert bit(model, "-", "--format", "jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == [f"{server}/a.png", f"{server}/moved", f"{photos}/b.png"]
    a, b, _ = expected.values()
    for record, prediction in zip(records, (a, a, b), strict=True):
        assert record["probability"] == pytest.approx(prediction.probability, rel=1e-4)


def test_what_goes_wrong_with_addresses_is_told(model, server, monkeypatch, capsys):
    limited(monkeypatch, stall_seconds=0.3, image_download_bytes=4999)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    reasons = {
        f"{server}/missing": "the server answered 404 Not Found",
        f"{server}/silent": "no answer within 0.3 seconds",
        f"{server}/nonsense": "the answer is not one of HTTP",
        f"{server}/cut": "broke off after",
        f"{server}/huge": "it is larger than",
        f"{server}/page": "it is a web page, not an image",
        f"http://127.0.0.1:{port}/a.png": "the connection failed (Connection refused)",
        "http://[": "this is not an address",
        "HTTP://.../a.png": "this is not an address",
    }
    assert bit(model, *reasons, "--format", "jsonl") == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == list(reasons)
    for record in records:
        assert reasons[record["image"]] in record["error"], record


def test_fetch_gives_the_bytes(server, photos):
    assert predict.fetch(f"{server}/a.png") == (photos / "a.png").read_bytes()
    for typed in ("é (1).png?x=%20", "%C3%A9%20(1).png?x= "):
        assert predict.fetch(f"{server}/{typed}") == (photos / "a.png").read_bytes()
    with pytest.raises(ImageError, match="404"):
        predict.fetch(f"{server}/missing")


def test_file_addresses(model, photos, expected, tmp_path, capsys):
    odd = tmp_path / "my model #1.safetensors"
    odd.write_bytes(model.read_bytes())
    assert bit(odd.as_uri(), (photos / "a.png").as_uri(), "--format", "jsonl") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["image"] == str(photos / "a.png")
    assert record["probability"] == pytest.approx(expected[str(photos / "a.png")].probability, rel=1e-4)
    assert weights.describe(odd.as_uri()) == weights.describe(odd)
    assert bit("file://server/model.safetensors", photos) == 2
    assert "file://server/model.safetensors is not the address of a file on this machine" in capsys.readouterr().err
    assert bit("file:///nowhere/model.npz", photos) == 2
    assert "There is no file or folder /nowhere/model.npz" in capsys.readouterr().err


def test_offline_is_for_images_too(server, monkeypatch):
    monkeypatch.setenv("BIT_OFFLINE", "1")
    with pytest.raises(ImageError, match="BIT_OFFLINE forbids"):
        predict.fetch(f"{server}/a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "nowhere.png"),
        (["nothing/*.png"], "nothing"),
        (["x.png", "--probabilities"], "--format csv or jsonl"),
        (["x.png", "--features", "f.npy"], ".npz"),
        (["x.png", "--device", "toaster"], "toaster"),
    ],
)
def test_mistakes_end_with_advice(model, arguments, message, capsys):
    assert cli.main(["predict", str(model), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_name_that_is_not_utf8(model, photos, tmp_path, capsys):
    odd = tmp_path / "\udcff.png"
    try:
        odd.write_bytes((photos / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    for form in ("table", "csv", "jsonl"):
        assert bit(model, odd, "--format", form, "--out", tmp_path / "out") == 0
        written = (tmp_path / "out").read_text(encoding="utf-8")
        assert f"{tmp_path}/\\udcff.png" in written
    assert json.loads(written)["image"] == str(odd), "JSON gives the name back exactly"


HOSTILE = ("=1+1", "-3.5", "@x\x1b[31m", "+cmd|' /C calc'!A0", "\ta\nb", "\u202egnp", "-x")


@pytest.fixture
def hostile(model, photos, tmp_path):
    """A model and an image whose names do harm wherever they are shown raw."""
    network = weights.load(str(model), num_classes=len(HOSTILE))
    card = dataclasses.replace(
        network.card, class_names=HOSTILE, upstream="\x1b]0;title\x07 \n  licence    none", name="\x9b2J"
    )
    network.card = card
    path = tmp_path / "hostile.safetensors"
    weights.save(path, network)
    image = tmp_path / "=\x1b[2J\nb.png"
    image.write_bytes((photos / "a.png").read_bytes())
    return path, image


def test_names_do_no_harm_in_tables_and_spreadsheets(hostile, tmp_path, monkeypatch, capsys):
    path, image = hostile
    monkeypatch.chdir(tmp_path)
    assert bit(path, image.name, "gone.png", "--top-k", 7) == 2
    (tmp_path / "bad\n.png").write_bytes(b"")
    shown = r"=\x1b[2J\nb.png"
    assert bit(path, image.name, "bad\n.png", "--top-k", 7) == 1
    out = capsys.readouterr().out
    assert out.isprintable() is False and out.replace("\n", "").isprintable() and len(out.splitlines()) == 3
    assert out.splitlines()[1].startswith(shown) and "bad\\n.png" in out and r"@x\x1b[31m" in out and r"\ta\nb" in out
    for where in ([], ["--out", "out.csv"]):
        assert bit(path, image.name, "--top-k", 7, "--format", "csv", "--probabilities", *where) == 0
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == capsys.readouterr().out
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        header, row = csv.reader(file)
    safe = ["'=1+1", "-3.5", r"'@x\x1b[31m", "'+cmd|' /C calc'!A0", r"'\ta\nb", r"\u202egnp", "'-x"]
    assert header[-8:-1] == safe and sorted(row[1:15:2]) == sorted(safe) and row[0] == "'" + shown
    assert all(0 <= float(number) <= 1 for number in (*row[2:15:2], *row[15:22]))
    assert bit(path, image.name, "--top-k", 7, "--format", "jsonl") == 0
    out = capsys.readouterr().out
    record = json.loads(out)
    assert out.replace("\n", "").isprintable() and record["image"] == image.name
    assert {entry["label"] for entry in record["top"]} == set(HOSTILE)


def test_info_shows_a_card_without_harm(hostile, capsys):
    assert cli.main(["info", str(hostile[0])]) == 0
    out = capsys.readouterr().out
    assert (
        out.replace("\n", "").isprintable()
        and out.startswith(r"\x9b2J")
        and r"\x1b]0;title\x07 \n  lic" in " ".join(out.split(" "))
    )
    assert cli.main(["info", str(hostile[0]), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable() and tuple(json.loads(out)["class_names"]) == HOSTILE


def test_a_table_is_shortened_for_a_terminal_only(model, photos, tmp_path, monkeypatch, capsys):
    long = tmp_path / ("x" * 100 + ".png")
    long.write_bytes((photos / "a.png").read_bytes())
    assert bit(model, long) == 0
    assert str(long) in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert bit(model, long) == 0
    assert "...xxx" in capsys.readouterr().out


def test_names_on_standard_input_are_those_of_files(model, photos, tmp_path, monkeypatch, capsys):
    """Whatever encoding they have, and whatever the terminal's is."""
    odd = os.fsencode(tmp_path) + b"/gr\xfc\xdf.png"
    with open(odd, "wb") as file:
        file.write((photos / "a.png").read_bytes())
    for encoding in ("utf-8", "ascii", "cp1252"):
        stdin = io.TextIOWrapper(io.BytesIO(odd + b"\n\n-\n"), encoding=encoding)
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        assert bit(model, "-", "--format", "jsonl", "--probabilities") == 0
        record = json.loads(stdout.buffer.getvalue().decode(encoding))
        assert os.fsencode(record["image"]) == odd and "größe" in record["probabilities"]
        assert bit(model, os.fsdecode(odd), "--top-k", 7) == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000"])
def test_an_image_on_standard_input_is_classified(model, photos, monkeypatch, capsys, kind):
    """`cat a.jpg | bit predict MODEL -`"""
    file = io.BytesIO()
    with Image.open(photos / "a.png") as image:
        image.convert("RGB").save(file, kind)
    (photos / "same").write_bytes(file.getvalue())
    assert bit(model, photos / "same", "--format", "jsonl", "--probabilities") == 0
    expected = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.getvalue())))
    assert bit(model, "-", "--format", "jsonl", "--probabilities") == 0
    assert json.loads(capsys.readouterr().out) == {**expected, "image": "-"}
    (photos / "same").unlink()
    monkeypatch.setenv("BIT_LIMITS", f"image_bytes={len(file.getvalue()) - 1}")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.getvalue())))
    assert bit(model, "-") == 2
    assert "image_bytes=N" in capsys.readouterr().err
    monkeypatch.setenv("BIT_LIMITS", "")
    cut = file.getvalue()[: len(file.getvalue()) // 2]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(cut)))
    assert bit(model, "-") == 1 and "cannot be read" in capsys.readouterr().out


def test_names_that_begin_as_images_do_are_names(model, photos, monkeypatch, capsys):
    for name in ("BM.png", "P5 1.png", "GIF89a.png", "II*.png"):
        (photos / name).write_bytes((photos / "a.png").read_bytes())
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(photos / name) + b"\n")))
        monkeypatch.chdir(photos)
        assert bit(model, "-") == 0
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(name.encode() + b"\na.png\n")))
        assert bit(model, "-") == 0 and capsys.readouterr().out.count("a.png") >= 1
        (photos / name).unlink()


@pytest.mark.parametrize("content", [b"\x89PNX\r\n\x1a\n\0\0\0\rIHDR", b"x" * (1 << 17), None])
def test_what_is_no_list_of_names(model, monkeypatch, capsys, content):
    monkeypatch.setattr("sys.stdin", None if content is None else io.TextIOWrapper(io.BytesIO(content)))
    assert bit(model, "-") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Standard input ") and err.replace("\n", "").isprintable() and len(err) < 200


def test_long_names_keep_the_columns_of_the_table():
    stream = io.StringIO()
    names = ("monarch, monarch butterfly, milkweed butterfly, Danaus plexippus", "bee")
    for share in (0.9, 0.1):
        prediction = Prediction("a.png", names, np.array([share, 1 - share], np.float32))
        predict._write_line(stream, 5, 40, 1, prediction)
    first, second = stream.getvalue().splitlines()
    assert first.index("90.0%") == second.index("90.0%") and "milkweed ... " in first


def test_a_name_on_standard_input_that_is_not_there_costs_the_others_nothing(model, photos, monkeypatch, capsys):
    lines = f"nowhere.png\n{photos / 'a.png'}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert bit(model, "-", "--format", "csv") == 1
    output = capsys.readouterr().out.splitlines()
    assert "nowhere.png" in output[1] and "There is no image" in output[1]
    assert output[2].startswith(f"{photos / 'a.png'},") and len(output) == 3


def test_an_output_never_replaces_what_is_read(model, photos, tmp_path, capsys):
    own, photo = tmp_path / "m.safetensors", tmp_path / "me.png"
    own.write_bytes(model.read_bytes())
    photo.write_bytes((photos / "a.png").read_bytes())
    (tmp_path / "link.csv").symlink_to(photo)
    before = own.read_bytes(), photo.read_bytes()
    for more in (("--out", own), ("--out", photo), ("--out", tmp_path / "link.csv")):
        assert bit(own, photo, *more) == 2
        assert f"{more[0]} {more[1]} would replace" in capsys.readouterr().err
    assert (own.read_bytes(), photo.read_bytes()) == before
    assert bit(own, photo, "--out", tmp_path / "new.csv") == 0
    assert bit(own, photo, "--out", tmp_path / "new.csv") == 0, "an earlier answer may be replaced"


def test_a_model_whose_numbers_are_not_finite_gives_no_answers(model, photos, tmp_path, capsys):
    network = weights.load(model)
    with torch.no_grad():
        network.get_parameter("head.weight").fill_(3e38)
    weights.save(tmp_path / "large.safetensors", network)
    assert bit(tmp_path / "large.safetensors", photos / "a.png") == 2
    captured = capsys.readouterr()
    assert "not finite numbers: its weights are damaged" in captured.err and "nan" not in captured.out
    with torch.no_grad():
        network.get_parameter("head.weight")[2, 3] = torch.nan
    weights.save(damaged := tmp_path / "m.safetensors", network)
    for command in (
        ["predict", str(damaged), str(photos / "a.png")],
        ["convert", str(damaged), str(tmp_path / "d.safetensors")],
    ):
        assert cli.main(command) == 2
        captured = capsys.readouterr()
        assert f"{damaged} holds numbers that are not finite, in head.weight" in captured.err and not captured.out
    assert not (tmp_path / "d.safetensors").exists()
