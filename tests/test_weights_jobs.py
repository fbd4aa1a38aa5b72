"""`bit convert`, `bit models`, `bit info` as typed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bigtransfer import catalog, cli, hyperrule, weights
from bigtransfer.config import ConvertConfig
from bigtransfer.jobs import convert
from bigtransfer.weights import configs
from tests.test_weights import CLASSES, assert_same_logits, assert_same_weights, card_of, ours

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    weights.save(tmp_path / "run" / "model.safetensors", ours())
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("bit", "out.safetensors"),
        ("npz", "out.npz"),
        ("torch", "bit.pth.tar"),
        ("timm", "timm-folder"),
        ("timm", "timm.safetensors"),
        ("timm", "timm.pth"),
        ("transformers", "folder"),
    ],
)
def test_convert_there_and_back(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, name: str
) -> None:
    there, back = tmp_path / name, tmp_path / "back.safetensors"
    assert cli.main(["convert", str(run), str(there), "--to", form]) == 0
    out = capsys.readouterr().out
    assert "all 45 tensors read back and identical" in out
    assert cli.main(["convert", str(there), str(back)]) == 0
    if name == "timm-folder":  # which holds the kernels standardized
        assert_same_logits(weights.load(back), ours())
    else:
        assert_same_weights(weights.load(back), ours())
    card = weights.describe(back)
    assert (card.num_classes, card.architecture) == (CLASSES, card_of().architecture)
    kept = name not in ("out.npz", "bit.pth.tar", "timm.pth")
    assert kept == ((card.class_names, card.input) == (card_of().class_names, card_of().input))
    assert kept != ("no place for the class names" in out)
    use = {
        "out.safetensors": f"bit predict {there} IMAGES",
        "folder": f'transformers.AutoModelForImageClassification.from_pretrained("{there}")',
        "timm-folder": f'timm.create_model("local-dir:{there}", pretrained=True)',
    }
    told = out.partition("Use it:\n  ")[2]
    if name.endswith("folder"):
        told, share = told.split("Share it, ")
        assert share.endswith(f"{there / 'README.md'} says of it:\n  hf upload USER/{name} {there}\n")
    assert told == (f"{use[name]}\n" if name in use else "")


def test_convert_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert cli.main(["convert", *arguments]) == 2
        return capsys.readouterr().err

    there = tmp_path / "there.npz"
    assert "should end in .safetensors with --to bit" in refused(str(run), str(there))
    assert "If that is meant: --to npz" in refused(str(run), str(there))
    assert "If that is meant" not in refused(str(run), str(tmp_path / "there.pth")), "of several forms"
    assert "should be a folder with --to transformers" in refused(str(run), str(there), "--to", "transformers")
    assert "--dtype has no effect with --to npz" in refused(str(run), str(there), "--to", "npz", "--dtype", "float16")
    assert "downloads are switched off" in refused("bit-m-r50x1", str(there), "--to", "npz")
    there.write_text("something dear")
    assert "exists already" in refused(str(run), str(there), "--to", "npz")
    assert there.read_text() == "something dear"
    assert cli.main(["convert", str(run), str(there), "--to", "npz", "--overwrite"]) == 0
    (tmp_path / "folder").write_text("")
    assert "is a file already" in refused(str(run), str(tmp_path / "folder"), "--to", "transformers", "--overwrite")


def test_a_published_network_has_a_name_in_timm(tmp_path: Path) -> None:
    config = ConvertConfig(source="x", destination=str(tmp_path / "x.pth"), to="timm")
    created = f'timm.create_model("resnetv2_50x1_bit", checkpoint_path="{tmp_path}/x.pth", num_classes=2)'
    name = configs.timm_name(catalog.ARCHITECTURES["r50x1"])
    assert convert._use(config, 2, name) == created
    assert convert._use(dataclasses.replace(config, destination=str(tmp_path / "x.npz"), to="npz"), 2, name) == ""


def test_convert_in_half_the_size(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "half.safetensors"
    assert cli.main(["convert", str(run), str(there), "--dtype", "bfloat16"]) == 0
    assert there.stat().st_size < 0.51 * (run / "model.safetensors").stat().st_size


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["name", "parameters", "classes", "input", "trained", "on", "weights"]
    assert max(map(len, lines)) < 130
    assert sum("vtab-TASK" in line for line in lines) == 5
    assert f"\n314 models, licence apache-2.0. Downloads go to {os.environ['BIT_CACHE']}.\n" in out
    assert "`bit info NAME` tells more about one; `bit finetune IMAGES --model NAME` starts from it.\n" in out
    assert out.endswith("`bit models vtab` lists those fine-tuned on the 19 tasks of VTAB-1k one by one.\n")
    vtab = next(line for line in lines if line.startswith("bit-m-r50x1-vtab-TASK-runN "))
    assert re.split(r" {2,}", vtab)[1:4] == ["23.7 M", "2-397", "128-384 px"]
    row = next(line for line in lines if line.startswith("bit-m-r152x4-ilsvrc2012 "))
    assert row.split() == [
        "bit-m-r152x4-ilsvrc2012",
        "936.5",
        "M",
        "1,000",
        "480",
        "px",
        "ImageNet-21k,",
        "then",
        "ImageNet-1k",
        "download",
    ]

    assert cli.main(["models", "r50x1-vtab-caltech"]) == 0
    out = capsys.readouterr().out
    assert "3 models" in out and "bit models vtab" not in out
    assert cli.main(["models", "bit-[sm]-r*x3"]) == 0
    out = capsys.readouterr().out
    assert "4 models" in out and "ilsvrc" not in out, "a pattern is all of the name"
    assert cli.main(["models", "bit-m-r50x9"]) == 2
    assert "Did you mean" in capsys.readouterr().err

    assert cli.main(["models", "distilled", "--json"]) == 0
    (first, _) = json.loads(capsys.readouterr().out)
    assert first["name"] == "bit-distilled-r50x1-224"
    assert first["num_parameters"] == 25_549_352
    assert first["weights"] == "download"
    assert first["input"]["size"] == 224
    assert len(first["addresses"]) == 2


@pytest.mark.parametrize("arguments", [["models"], ["info", "bit-m-r50x1"]], ids=" ".join)
def test_what_the_catalogue_answers_needs_no_torch(arguments: list[str]) -> None:
    code = f"import sys; from bigtransfer import cli; cli.main({arguments}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_info(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        assert cli.main(["info", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    text = shown("resnetv2_50x1_bitm")
    assert text.startswith("bit-m-r50x1-ilsvrc2012 ")
    for part in (
        "25,549,352",
        "1,000: tench; goldfish",
        "448 x 448 px, RGB in [-1, 1]",
        "80.39%",
        "apache-2.0",
        "google/bit-50",
        "on first use",
    ):
        assert part in text

    assert "224 x 224 px, RGB; shorter side" in shown("efficientnet-lite0")  # whose pixels are its own affair

    text = shown(str(run))
    for part in (
        "tiny",
        "5: class 0; class 1",
        "shorter side resized to 64",
        "val top1 50.00%",
        "steps 500",
        "cc0-1.0",
    ):
        assert part in text
    solved = ours()
    solved.card = dataclasses.replace(
        solved.card, recipe=hyperrule.without_steps(48).to_dict(), metrics={"test_top5": 1.0, "test_top-4": 0.75}
    )
    weights.save(tmp_path / "solved.safetensors", solved)
    text = shown(str(tmp_path / "solved.safetensors"))
    assert "recipe resize 48, crop 48 licence" in text
    assert "test top-4 75.00%" in text and "top5" not in text  # five guesses of five classes are always right
    weights.export(tmp_path / "x.npz", ours(), "npz")
    assert "224 px assumed" in shown(str(tmp_path / "x.npz"))

    assert cli.main(["info", "bit-m-r50x1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["num_parameters"], len(record["class_names"])) == (68_256_659, 21843)
    assert cli.main(["info", "bit-q"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    model = tmp_path / "tiny.safetensors"
    weights.save(model, ours())
    code = f"""\
import resource, sys
from bigtransfer import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for form, name in (("bit", "a.safetensors"), ("npz", "a.npz"), ("timm", "a.pth")):
    assert cli.main(["convert", {str(model)!r}, {str(tmp_path / "out")!r} + "/" + name, "--to", form]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(re.findall("cannot be written|Cannot write", done.stderr)) == 3 and "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def stored(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a model file."""
    with safetensors.safe_open(file, "pt") as opened:
        return opened.metadata(), safetensors.torch.load_file(file)


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        (
            "blocks.1.0.conv2.weight",
            lambda tensor: tensor / 0,
            "numbers that are not finite, in blocks.1.0.conv2.weight",
        ),
        ("head.bias", lambda tensor: (tensor * float("nan")).to(torch.float8_e4m3fn), "not finite, in head.bias"),
        ("norm.weight", lambda tensor: tensor.to(torch.int8), "norm.weight holds torch.int8"),
    ],
)
def test_info_says_what_is_wrong_with_the_numbers(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damaged: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    """Not only what the header says of them."""
    file = run / "model.safetensors"
    header, tensors = stored(file)
    safetensors.torch.save_file(tensors | {name: damaged(tensors[name])}, file, header)
    assert cli.main(["info", str(run)]) == 2
    assert message in capsys.readouterr().err


def test_a_head_on_its_side_is_told_by_the_shape_it_should_have(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "model.safetensors"
    header, tensors = stored(file)
    safetensors.torch.save_file(tensors | {"head.weight": tensors["head.weight"].T.contiguous()}, file, header)
    wide = tensors["head.weight"].shape[1]
    assert cli.main(["info", str(run)]) == 2
    assert (
        f"1 tensor of another shape than the network's: head.weight is ({wide}, 5) and should be (5, {wide})"
        in capsys.readouterr().err
    )


def test_numbers_of_eight_bits_are_read(run: Path) -> None:
    file = run / "model.safetensors"
    header, tensors = stored(file)
    small = tensors["head.weight"].to(torch.float8_e5m2)
    safetensors.torch.save_file(tensors | {"head.weight": small}, file, header)
    assert torch.equal(weights.load(run).state_dict()["head.weight"], small.float())
