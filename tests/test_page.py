"""The page that has its network inside (`bit convert --to web`): what is in it, and what it answers in a real browser."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer import cli, page, weights
from bigtransfer.backends import graph
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.errors import ConfigError, DownloadError
from bigtransfer.page import onnxruntime_web
from bigtransfer.predictor import Predictor
from tests.test_backends import READOUT, network

PACKAGE = Path(sys.prefix) / f"onnxruntime-web-{page.VERSION}.tgz"
"""Where `make setup` puts it, if npm is there."""


def package(**files: bytes) -> bytes:
    """A package of npm with those in its dist/."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name.replace('__', '-').replace('_', '.')}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime of a few bytes in the place of the real one."""
    content = package(ort_wasm_bundle_min_mjs=b"export {};</script>", ort__wasm__simd__threaded_wasm=b"\0asm")
    (tmp_path / "small.tgz").write_bytes(content)
    monkeypatch.setattr(onnxruntime_web, "SHA256", hashlib.sha256(content).hexdigest())
    return tmp_path / "small.tgz"


def blocks(text: str) -> dict[str, str]:
    return dict(re.findall(r'<script type="text/plain" id="(\w+)">(.*?)</script>', text, flags=re.S))


def test_the_file_has_all_that_it_needs(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.save(tmp_path / "model.safetensors", network(upstream="</script><b>"))
    there = tmp_path / "page.html"
    command = ["convert", str(tmp_path / "model.safetensors"), str(there), "--to", "web", "--runtime", str(small)]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "a page with the network and onnxruntime-web" in told and f"  open {there} in a browser" in told
    text = there.read_text(encoding="utf-8")
    found = blocks(text)
    assert gzip.decompress(b64decode(found["library"])) == b"export {};</script>"
    assert gzip.decompress(b64decode(found["binary"])) == b"\0asm"
    assert gzip.decompress(b64decode(found["network"])) == graph.onnx_model(
        weights.load(tmp_path / "model.safetensors"), input="uint8"
    )
    told = json.loads(found["card"])
    assert told["classes"] == ["ant", "bee", "größe \U0001f41c"] and told["thresholds"] is None
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy.startswith("default-src 'none'") and "connect-src" not in policy and "http" not in policy
    (script,), (style,) = (re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.S) for tag in ("script", "style"))
    assert f"'{page._hash(script)}'" in policy and f"'{page._hash(style)}'" in policy and "unsafe-inline" not in policy
    assert not re.search(r"(src|href|url)\W{1,3}(https?:)?//", text) and "openapi.json" not in text
    # Half the bytes for the weights, within the bound for that.
    before = there.stat().st_size
    assert cli.main([*command, "--dtype", "float16", "--overwrite"]) == 0
    assert there.stat().st_size < 0.6 * before
    assert "(allowed: 0.01)" in capsys.readouterr().out


def test_names_of_classes_cannot_end_the_script() -> None:
    card = ModelCard(
        name="m",
        architecture=Architecture(units=(1, 1)),
        num_classes=2,
        input=InputSpec(size=8),
        class_names=("</script><script>alert(1)</script>", "<!--"),
        multi_label=True,
    )
    text = page.alone(b"", card, page.Runtime(b"", b""))
    assert text.count("</script>") == text.count("<script") == 6 and "<!--" not in text.partition("<body>")[2]
    assert json.loads(blocks(text)["card"])["classes"][0] == "</script><script>alert(1)</script>"
    assert json.loads(blocks(text)["card"])["thresholds"] == [0.5, 0.5]


def test_models_that_no_page_can_answer_for(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    five = network(Architecture(units=(1, 1), in_chans=5))
    weights.save(tmp_path / "five.safetensors", five)
    command = ["convert", str(tmp_path / "five.safetensors"), str(tmp_path / "x.html"), "--to", "web"]
    assert cli.main([*command, "--runtime", str(small)]) == 2
    assert "5 channels, and browsers decode 1 or 3" in capsys.readouterr().err
    assert cli.main([*command, "--input", "uint8"]) == 2
    assert "--input is for --to onnx" in capsys.readouterr().err
    assert cli.main([*command, "--dtype", "bfloat16"]) == 2
    assert "stores float32, float16 or int8" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(ConfigError, match="has no classes"):
        page.check(ModelCard(name="m", architecture=Architecture(units=(1,)), num_classes=0, input=InputSpec(size=8)))


def test_no_other_runtime_is_taken(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    assert page.runtime(small).binary == b"\0asm"
    with pytest.raises(DownloadError, match=r"switched off.*npm pack onnxruntime-web@"):
        page.runtime(no_network=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        page.runtime(tmp_path / "nowhere.tgz")
    other = package(ort_wasm_bundle_min_mjs=b"evil()", ort__wasm__simd__threaded_wasm=b"\0asm")
    (tmp_path / "other.tgz").write_bytes(other)
    with pytest.raises(ConfigError, match="is not the package onnxruntime-web"):
        page.runtime(tmp_path / "other.tgz")
    cached = onnxruntime_web.cached()  # put there by hand, or by somebody
    cached.parent.mkdir(parents=True)
    cached.write_bytes(other)
    with pytest.raises(ConfigError, match="is not the package onnxruntime-web"):
        page.runtime()
    cached.write_bytes(small.read_bytes())
    assert page.runtime(no_network=True).library == b"export {};</script>"


def test_npm_brings_the_runtime_once(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for npm copies what it is told to where it is asked to; another package, and none, leave nothing in the cache."""
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(DownloadError, match=r"there is no npm here.*npm pack onnxruntime-web@"):
        page.runtime(no_network=False)
    (tmp_path / "bin").mkdir()
    npm, brought = tmp_path / "bin" / "npm", tmp_path / "brought.tgz"
    npm.write_text(
        f'#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\n/bin/cp {brought} "$1/{onnxruntime_web._PACKAGE}"\n'
    )
    npm.chmod(0o755)
    with pytest.raises(DownloadError, match=r"npm did not bring onnxruntime-web .*brought\.tgz"):
        page.runtime(no_network=False)
    brought.write_bytes(b"another")
    with pytest.raises(ConfigError, match="is not the package onnxruntime-web"):
        page.runtime(no_network=False)
    assert not any(onnxruntime_web.cached().parent.iterdir())
    brought.write_bytes(small.read_bytes())
    assert page.runtime(no_network=False).binary == b"\0asm"
    npm.unlink()
    assert page.runtime(no_network=False).binary == b"\0asm"


@pytest.mark.parametrize(("brings", "ends"), [(True, 1), (False, 0)])
def test_npm_that_fails_or_brings_nothing_is_a_message(
    brings: bool, ends: int, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is enough: npm may have written a file before it failed, and end well without one."""
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    copy = f'/bin/cp {small} "$1/{onnxruntime_web._PACKAGE}"' if brings else ":"
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\n{copy}\necho said by npm >&2\nexit {ends}\n")
    npm.chmod(0o755)
    with pytest.raises(DownloadError, match=r"npm did not bring onnxruntime-web .*: said by npm\. .*By hand: npm pack"):
        page.runtime(no_network=False)
    assert not onnxruntime_web.cached().exists()


def test_onnxruntime_does_not_take_our_padding_for_its_own() -> None:
    """Versions up to 1.31, and onnxruntime-web 1.30, make one operator of Pad and MaxPool where the padding is zeros, and pad by minus
    infinity: features were wrong by a fifth."""
    import onnx

    made = onnx.load_from_string(graph.onnx_model(network()))
    (pad,) = [node for node in made.graph.node if node.op_type == "Pad"]
    values = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
    assert 0 < values[pad.input[2]] < 1e-30


# --- In a browser


FORMS: dict[str, dict[str, Any]] = {
    "fast": {},
    "aspect, bicubic, exact": {
        "input": InputSpec(size=40, mode="aspect", crop_pct=0.8, interpolation="bicubic", decoder="exact")
    },
    "not antialiased": {"input": InputSpec(size=40, antialias=False)},
    "several labels, grey": {"multi_label": True, "thresholds": (0.4, 0.5, 0.6)},
}


def pictures(folder: Path) -> list[Path]:
    """Of what browsers and we decode in ways of their own: turned by EXIF, transparent, grey, of 16 bits, with a palette, huge."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(256, size=(7, 9, 3), dtype=np.uint8)).resize(
        (131, 97), Image.Resampling.BICUBIC
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / "turned.jpg", quality=90, exif=turned)
    glass = colour.copy()
    glass.putalpha(Image.fromarray(rng.integers(256, size=(97, 131), dtype=np.uint8)))
    glass.save(folder / "glass.png")
    colour.convert("L").save(folder / "grey.png")
    colour.convert("P").save(folder / "palette.gif")
    colour.save(folder / "web.webp", lossless=True)
    colour.resize((1210, 907), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=95)
    return sorted(folder.iterdir())


@pytest.mark.skipif(not PACKAGE.is_file(), reason="needs onnxruntime-web's package")
@pytest.mark.parametrize("form", ["fast", *(pytest.param(form, marks=pytest.mark.slow) for form in [*FORMS][1:])])
def test_it_answers_as_bit_predict_does(browser: Any, form: str, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    arch = Architecture(units=(1, 1), readout=READOUT, in_chans=1 if "grey" in form else 3)
    made = network(arch)
    made.card = dataclasses.replace(made.card, **FORMS[form])
    weights.save(tmp_path / "model.safetensors", made)
    command = ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "page.html"), "--to", "web"]
    assert cli.main([*command, "--runtime", str(PACKAGE)]) == 0
    files = pictures(tmp_path / "pictures")
    (tmp_path / "no-image.jpg").write_bytes(b"no image")
    browser.get((tmp_path / "page.html").as_uri())
    browser.find_element("id", "files").send_keys("\n".join(map(str, [*files, tmp_path / "no-image.jpg"])))
    WebDriverWait(browser, 120, 0.05).until(
        lambda _: browser.execute_script("return rows.length && rows.every(row => row.answer)")
    )
    assert browser.get_log("browser") == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(one.startswith(("data:", "blob:")) for one in asked)
    *answers, refused = browser.execute_script("return rows.map(row => row.answer)")
    assert refused == {"error": "this browser cannot decode it"}
    wanted = Predictor.load(tmp_path / "model.safetensors", device="cpu", precision="fp32").predict(files)
    for answer, one in zip(answers, wanted, strict=True):
        told = one.record()
        # What is blended over white or decoded at half scale is a hair's difference away.
        near = 0.02 if one.name.endswith(("glass.png", "large.jpg", "turned.jpg", "palette.gif")) else 1e-3
        assert answer["label"] == told["label"], one.name
        assert {row["label"]: row["probability"] for row in answer["top"]} == pytest.approx(
            {row["label"]: row["probability"] for row in told["top"]}, abs=near
        ), one.name
        assert answer.get("labels") == told.get("labels")
    shown = browser.find_elements("css selector", "#list .top li")
    assert len(shown) == 3 * len(files) and shown[0].text.splitlines()[0] == answers[0]["top"][0]["label"]
    assert browser.find_elements("css selector", "#list button") == []  # there is no map to ask for
    lines = browser.execute_script("return table()").splitlines()
    assert len(lines) == len(files) + 2 and lines[-1].startswith("no-image.jpg,") and lines[0].startswith("image,")
    # And it can ask nobody, whatever a bug may do.
    heard = "document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective), {once: true});"
    assert (
        browser.execute_async_script(
            "const done = arguments[0];" + heard + "fetch('https://localhost:1/').catch(() => {})"
        )
        == "connect-src"
    )
    browser.get_log("browser")
    for width in (360, 1200):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
