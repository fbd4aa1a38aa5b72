"""A walk over every published model: its record, its network, its names in every form."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest
import torch

from bigtransfer import catalog, model, weights
from bigtransfer.catalog import ARCHITECTURES, Architecture, InputSpec, ModelCard, Readout
from bigtransfer.errors import UnknownModel, WeightsError
from bigtransfer.weights import names

PUBLISHED = catalog.published()

COUNTS = {
    # architecture -> parameters with 1,000 and with 21,843 classes; tensors in the authors' files
    "r50x1": (25_549_352, 68_256_659, 153),
    "r50x3": (217_319_080, 345_399_315, 153),
    "r101x1": (44_541_480, 87_248_787, 306),
    "r101x3": (387_934_888, 516_015_123, 306),
    "r152x2": (236_335_208, 321_728_979, 459),
    "r152x4": (936_533_224, 1_107_299_923, 459),
}


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_published_sizes(name: str) -> None:
    small, large, tensors = COUNTS[name]
    network = model.build(name, 1000, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == small
    assert len(network.state_dict()) == tensors
    assert (PUBLISHED[f"bit-s-{name}"].card.num_parameters, PUBLISHED[f"bit-m-{name}"].card.num_parameters) == (
        small,
        large,
    )


@pytest.mark.parametrize("layout_name", names.LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_translate_there_and_back(name: str, layout_name: names.LayoutName) -> None:
    layout = names.LAYOUTS[layout_name]
    for classes in (0, 10):
        shapes = names.shapes(ARCHITECTURES[name], classes)
        theirs = names.export(ARCHITECTURES[name], classes, layout_name)
        assert list(theirs) == list(shapes)
        assert len(set(theirs.values())) == len(theirs)
        stored = {
            theirs[ours]: tuple(layout.their_value(ours, torch.empty(shape, device="meta")).shape)
            for ours, shape in shapes.items()
        }
        found = names.translate(stored, "file")
        assert (found.layout.name, found.architecture, found.num_classes) == (layout_name, ARCHITECTURES[name], classes)
        assert found.names == {ours: (their,) for ours, their in theirs.items()}


def test_values_translate_there_and_back() -> None:
    generator = torch.Generator().manual_seed(0)
    for layout in names.LAYOUTS.values():
        for ours, shape in names.shapes(Architecture(units=(1, 1, 1, 1)), 3).items():
            tensor = torch.randn(shape, generator=generator)
            assert torch.equal(layout.our_value(ours, layout.their_value(ours, tensor)), tensor)


def test_every_entry() -> None:
    backbones = {
        arch: sum(parameter.numel() for parameter in model.build(arch, 0, device="meta").parameters())
        for arch in ARCHITECTURES.values()
    }
    for name, record in PUBLISHED.items():
        card = record.card
        assert name == card.name and re.fullmatch(r"(bit|efficientnet)-[a-z0-9_-]+", name)
        head = (card.architecture.num_features + 1) * card.num_classes
        own = card.architecture.backbone  # counted in tests/test_libraries.py
        assert card.num_parameters == (backbones[card.architecture] if own is None else own.parameters) + head
        assert ModelCard.from_json(card.to_json()) == card
        assert card.licence == "apache-2.0" and card.upstream and card.source
        assert sum(map(bool, (record.addresses, record.bundled, record.package))) == 1
        assert all(re.fullmatch(r"https://[\w./-]+\.(npz|safetensors)", address) for address in record.addresses)
        classes = catalog.class_names(record.labels)
        assert classes is None or len(classes) == card.num_classes
        for alias in record.aliases:
            assert catalog.get(alias) is record


def test_the_list_says_of_the_bundled_network_what_its_file_says() -> None:
    listed, found = PUBLISHED["bit-t-r26x1"].card, weights.load("bit-t-r26x1").card
    assert (listed.input, listed.num_classes) == (found.input, found.num_classes)
    assert (listed.architecture, listed.licence) == (found.architecture, found.licence)


def test_the_whole_list_is_there() -> None:
    archs = ("r50x1", "r50x3", "r101x1", "r101x3", "r152x2", "r152x4")
    expected = {"bit-t-r26x1", "bit-m-r50x1-cifar10", *(f"efficientnet-lite{number}" for number in range(5))}
    expected |= {f"bit-{upstream}-{arch}" for upstream in "sm" for arch in archs}
    expected |= {f"bit-m-{arch}-ilsvrc2012" for arch in archs}
    expected |= {
        "bit-distilled-r50x1-224",
        "bit-distilled-r50x1-160",
        "bit-teacher-r152x2-224",
        "bit-teacher-r152x2-384",
    }
    assert expected == {name for name in PUBLISHED if "vtab" not in name}
    vtab = {name for name in PUBLISHED if "vtab" in name}
    assert len(vtab) == 5 * 19 * 3
    assert "bit-m-r152x4-vtab-smallnorb-elevation-run2" in vtab


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bit-s-r101x3", "BiT-S-R101x3.npz"),
        ("bit-m-r152x4-ilsvrc2012", "BiT-M-R152x4-ILSVRC2012.npz"),
        ("bit-m-r50x3-vtab-dsprites-xpos-run1", "vtab/BiT-M-R50x3-run1-dsprites-xpos.npz"),
        ("bit-distilled-r50x1-160", "distill/R50x1_160.npz"),
        ("bit-teacher-r152x2-384", "distill/R152x2_T_384.npz"),
        ("bit-m-r50x1-cifar10", "BiT-M-R50x1-CIFAR10.npz"),
    ],
)
def test_addresses(name: str, file: str) -> None:
    assert PUBLISHED[name].addresses[0] == f"https://storage.googleapis.com/bit_models/{file}"


def test_names_agree_with_timm() -> None:
    """Every BiT model of timm, and each of its old names, is a name here, with timm's size, classes and interpolation."""
    timm = pytest.importorskip("timm")
    known = [name for name in timm.list_models("resnetv2*_bit*", pretrained=True) if ".goog" in name]
    assert len(known) == 15
    for name in known:
        card, cfg = catalog.get(name).card, timm.get_pretrained_cfg(name)
        assert (card.num_classes, card.input.size) == (cfg.num_classes, cfg.input_size[1]), name
        assert (card.input.crop_pct, card.input.interpolation, card.input.mode) == (
            cfg.crop_pct,
            cfg.interpolation,
            "aspect",
        )
        assert (
            catalog.get(name).addresses[1] == f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors"
        )
    old = timm.models._registry._deprecated_models
    renamed = {was: now for was, now in old.items() if "_bit" in was and was.startswith("resnetv2")}
    assert len(renamed) == 15
    for was, now in renamed.items():
        assert catalog.get(was) is catalog.get(now)


def test_aliases() -> None:
    for alias, name in {
        "resnetv2_50x1_bitm": "bit-m-r50x1-ilsvrc2012",
        "resnetv2_152x4_bitm_in21k": "bit-m-r152x4",
        "timm/resnetv2_50x1_bit.goog_in21k": "bit-m-r50x1",
        "resnetv2_50x1_bit_distilled": "bit-distilled-r50x1-224",
        "resnetv2_152x2_bit_teacher_384": "bit-teacher-r152x2-384",
        "google/bit-50": "bit-m-r50x1-ilsvrc2012",
        "BiT-M-R50x1": "bit-m-r50x1",
    }.items():
        assert catalog.get(alias).card.name == name


def test_class_names() -> None:
    imagenet = catalog.class_names("imagenet-1k")
    assert imagenet is not None and imagenet[0] == "tench" and imagenet[-1] == "toilet tissue"
    full = catalog.class_names("imagenet-21k")
    assert full is not None and full[0] == "organism, being" and len(full) == 21843
    assert catalog.class_names("cifar10")[3] == "cat"  # pyright: ignore
    assert catalog.class_names("dmlab") is None
    timm_data = pytest.importorskip("timm.data")
    assert list(full) == timm_data.ImageNetInfo("imagenet-21k-goog").label_descriptions()


def test_find() -> None:
    assert catalog.list_models() == list(PUBLISHED)
    assert catalog.list_models("distilled") == ["bit-distilled-r50x1-224", "bit-distilled-r50x1-160"]
    assert catalog.list_models("bit-s-*x3") == ["bit-s-r50x3", "bit-s-r101x3"]
    assert catalog.list_models("nothing") == []
    assert catalog.find("nothing") is None
    with pytest.raises(UnknownModel, match=r"Did you mean bit-m-r101x3.*lists all 314"):
        catalog.get("bit-m-101x3")


def test_inputs_are_those_of_the_scores() -> None:
    assert PUBLISHED["bit-m-r50x1-ilsvrc2012"].card.input == InputSpec(size=448, mode="aspect")
    assert PUBLISHED["bit-m-r152x4-vtab-dtd-run0"].card.input.size == 480
    assert PUBLISHED["bit-m-r50x1-vtab-dtd-run0"].card.input == InputSpec(size=384, antialias=False)
    assert PUBLISHED["bit-m-r152x4-vtab-svhn-run0"].card.input.size == 128
    assert PUBLISHED["bit-distilled-r50x1-224"].card.metrics["imagenet top-1"] == pytest.approx(0.8282)
    assert PUBLISHED["bit-distilled-r50x1-160"].card.metrics["imagenet top-1"] == pytest.approx(0.805)


def test_card_of_the_future() -> None:
    text = PUBLISHED["bit-s-r50x1"].card.to_json()
    with pytest.raises(WeightsError, match="newer bigtransfer"):
        ModelCard.from_json(text.replace('"format": 1', '"format": 2'))
    for broken in ("", "[]", "{}", text.replace('"num_classes"', '"classes"')):
        with pytest.raises(WeightsError):
            ModelCard.from_json(broken)


def test_the_catalogue_needs_no_torch() -> None:
    code = (
        "import sys; from bigtransfer import catalog; assert len(catalog.list_models()) == 314; "
        "assert len(catalog.class_names('imagenet-21k')) == 21843; assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Cards that somebody else wrote


def changed(*place: str, to: object) -> str:
    """The JSON of a good card with one value changed (`...`: left out)."""
    card = json.loads(
        dataclasses.replace(PUBLISHED["bit-t-r26x1"].card, recipe={"steps": 3}, metrics={"top1": 0.5}).to_json()
    )
    inner = card
    for key in place[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = to
    return json.dumps(card)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(
            (("input", "size"), value)
            for value in (0, -5, "48", 3.7, 10**9, 10**5, 2049, True, None, [48], {}, 10**30, ...)
        ),
        *((("input", "crop_pct"), value) for value in (0, -1, 1.1, 1e-9, 1e-320, math.nan, math.inf, "1", None)),
        *((("input", "mode"), value) for value in ("round", 3, None)),
        *((("input", "interpolation"), value) for value in ("lanczos", 2)),
        (("input", "antialias"), 1),
        *(
            (("class_names",), value)
            for value in (["a"] * 199, ["a"] * 201, [1] * 200, [None] * 200, [["a"]] * 200, {}, "a" * 200)
        ),
        *((("num_classes",), value) for value in (-1, "200", 200.5, 2**40, None, ...)),
        *(
            (("architecture", "units"), value)
            for value in ([], [0, 1, 1, 1], [-1], [2.5], ["2"], [[2]], 2, [1] * 9, [10**9], None)
        ),
        *((("architecture", "width"), value) for value in (0, -1, 10**6, "1", [1], 1.5)),
        *((("architecture", "in_chans"), value) for value in (0, -3, 10**9, "3", None)),
        (("architecture", "norm"), "ln"),
        (("architecture", "weight_standardization"), "yes"),
        *(
            (("metrics",), value)
            for value in ({"top1": "high"}, {"top1": None}, {"top1": math.nan}, {"top1": math.inf}, [1], 3, "x")
        ),
        *((("recipe",), value) for value in ([], "x", 3, {"steps": {}}, {"decays": [[1]]}, {"notes": [{}]})),
        *(((name,), value) for name in ("name", "upstream", "licence", "source") for value in (3, None, ["x"], {})),
        *((("format",), value) for value in ("1", None, 1.5, ...)),
        *(((name,), ...) for name in ("name", "architecture", "input")),
        (("input",), [48]),
        (("architecture",), "r26x1"),
    ],
)
def test_a_card_of_another_form_is_refused_with_its_field(place: tuple[str, ...], value: object) -> None:
    with pytest.raises(WeightsError) as caught:
        ModelCard.from_json(changed(*place, to=value), "file.safetensors: its card")
    said = str(caught.value)
    assert said.startswith("file.safetensors: its card") and len(said) < 300
    assert place[-1] in said


@pytest.mark.parametrize("beside", [False, True])
def test_a_readout_of_more_pixels_than_there_are_is_refused(beside: bool) -> None:
    """Of an image of 64 px it would look at what had been made of these, and answer like any other."""
    own = PUBLISHED["bit-t-r26x1"].card
    seen = [own.architecture.seen(Readout(blocks=(0, 3), sizes=(32, side))) for side in (64, 128)]
    for arch, fits in zip(seen, (True, False), strict=True):
        arch = dataclasses.replace(seen[0], beside=arch) if beside else arch
        card = dataclasses.replace(own, architecture=arch, input=dataclasses.replace(own.input, size=64))
        if fits:
            assert ModelCard.from_json(card.to_json()) == card
        else:
            with pytest.raises(WeightsError, match="looks at 128 px, and its input has 64 only"):
                ModelCard.from_json(card.to_json())


def test_what_a_card_may_hold() -> None:
    for place, value in (
        (("input", "size"), 2048),
        (("input", "crop_pct"), 1),
        (("class_names",), None),
        (("class_names",), ["crane"] * 200),
        (("metrics",), {"top1": 1}),
        (("recipe",), None),
        (("recipe",), {"steps": 3, "decays": [1, 2], "rate": 0.1, "size_class": "", "x": None, "y": True}),
        (("unknown",), [1]),
    ):
        card = ModelCard.from_json(changed(*place, to=value))
        assert ModelCard.from_json(card.to_json()) == card
    (surrogate,) = {"\udcff"}
    card = dataclasses.replace(
        PUBLISHED["bit-t-r26x1"].card, class_names=(surrogate,) * 200, metrics={"a": math.nan, "b": 1.0}
    )
    read = ModelCard.from_json(card.to_json().encode("utf-8").decode("utf-8"))
    assert read.class_names == card.class_names and read.metrics == {"b": 1.0}


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "{", "[" * 100_000, '{"format": 1', '{"format": ' + "9" * 5000 + "}", "\ud800"]
)
def test_what_is_no_card(text: str) -> None:
    with pytest.raises(WeightsError, match=r"^The model's card"):
        ModelCard.from_json(text)


def test_the_limit_of_an_inputs_side_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    large = changed("input", to={"size": 1800, "mode": "aspect", "crop_pct": 0.5})
    with pytest.raises(WeightsError, match=r"3,600 px.*--limits input_side=N"):
        ModelCard.from_json(large)
    monkeypatch.setenv("BIT_LIMITS", "input_side=3600")
    assert ModelCard.from_json(large).input.resized == 3600


def test_what_is_too_long_for_a_file_is_no_model() -> None:
    assert catalog.meant("x" * 5000) is None and catalog.meant("a\0b") is None


@pytest.mark.parametrize(
    ("name", "size", "giga"),
    [
        ("r50x1", 448, 16.6),
        ("r101x1", 448, 31.7),
        ("r50x3", 448, 145.7),
        ("r152x2", 448, 185.0),
        ("r101x3", 448, 280.3),
        ("r152x4", 480, 844.8),
    ],
)
def test_operations_are_about_those_that_timm_publishes(name: str, size: int, giga: float) -> None:
    """GMACs of the table of results in huggingface/pytorch-image-models, which count norms as well."""
    assert 0.975 * giga < ARCHITECTURES[name].forward_flops(size, 1000) / 2e9 < giga


def test_operations_at_an_odd_size_are_counted_by_the_layers() -> None:
    """33 px: 17 after the root's convolution, 9 after its pooling, then 9, 5, 3, 2."""
    assert Architecture(units=(1, 1, 1, 1), width=1).forward_flops(33, 10) == 2 * (
        3 * 49 * 64 * 17**2
        + (64 * 256 + 64 * 64 + 64 * 64 * 9 + 64 * 256) * 9**2
        + (256 * 512 + 128 * 128 * 9 + 128 * 512) * 5**2 + 256 * 128 * 9**2
        + (512 * 1024 + 256 * 256 * 9 + 256 * 1024) * 3**2 + 512 * 256 * 5**2
        + (1024 * 2048 + 512 * 512 * 9 + 512 * 2048) * 2**2 + 1024 * 512 * 3**2
        + 2048 * 10
    )  # fmt: skip
