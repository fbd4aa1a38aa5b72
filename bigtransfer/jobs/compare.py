"""`bit compare`: networks taken to the same images in the same time, or finished runs, beside each other.

Nothing is trained here: each run is what `bit finetune` makes of the command that is shown before it, in a folder of its own, so that
the same command finds what is finished, goes on with what is not, and leaves runs like any others.
"""

from __future__ import annotations

import dataclasses
import os
import re
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from bigtransfer import catalog, data, outputs, runs, weights
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.config import CompareConfig, EvaluateConfig, FinetuneConfig, command_line
from bigtransfer.data import Splits, splits
from bigtransfer.errors import BitError, ConfigError, DataError, RunError
from bigtransfer.evals import Classification
from bigtransfer.jobs import benchmark, evaluate, finetune
from bigtransfer.jobs.plan import run_folder
from bigtransfer.jobs.report import OF_DETECTORS, checked, images, model_of
from bigtransfer.jobs.working import Finetuned
from bigtransfer.predictor import Predictor
from bigtransfer.report import contents
from bigtransfer.report import runs as pages
from bigtransfer.report.runs import Cost
from bigtransfer.terminal import line
from bigtransfer.weights import formats

BATCH = 16
"""Images that are computed at a time where networks are timed."""
ROUNDS, SECONDS = 5, 0.3
"""In so many rounds all take their turn, each for so long at least."""
PAGE = "comparison.html"


def run(config: CompareConfig) -> int:
    """Take the networks to the images if that is asked for, and compare; 0 when done, 1 where a network had to be left out, 128 + signal
    when stopped by one."""
    if config.models is None:
        folders, left_out = [_classifying(checked(one)) for one in config.what], []
        pictures = images(folders[0], config.data)
        place = folders[0]
        _refuse_replacing(config, folders, config.out or place / PAGE)
    else:
        place = run_folder(config.out, config.what[0], "compare")
        asked = planned(config, place)
        _refuse_replacing(config, [Path(one.out or "") for one in asked], place / PAGE)
        done = _take(asked)
        if isinstance(done, int):
            print("\nStopped; what is finished stays. The same command goes on from here.")
            return 128 + done
        folders, left_out = done
        if len(folders) < 2:
            raise RunError("Fewer than two runs were finished; there is nothing to compare.")
        pictures = images(folders[0], None)
    _compare(config, folders, pictures, place)
    for note in left_out:
        print(f"not compared: {note}", file=sys.stderr)
    return 1 if left_out else 0


def _classifying(folder: Path) -> Path:
    """The folder; RunError for one of a detector."""
    found = contents.read_config(folder)
    if found is not None and found.command in OF_DETECTORS:
        raise RunError(
            f"{folder} holds what `bit {found.command}` made of a detector; classifiers are compared here. `bit report {folder}` shows how "
            "good it is, `bit detect evaluate MODEL DATA` measures others on the same images."
        )
    return folder


# --- The runs


def planned(config: CompareConfig, place: Path) -> list[FinetuneConfig]:
    """What `bit finetune` is asked for, in order: the closed form of each network, then each within the budget. BitError for data or a
    network that cannot be used, before anything is done."""
    if (place / "config.json").is_file() or (place.exists() and not place.is_dir()):
        raise RunError(f"{place} is not a folder for several runs. Choose another with --out.")
    if config.device is not None:
        choose_device(config.device)
    there = _opened(config)
    names = _told_apart(config.networks)
    for model in config.networks:
        weights.describe(model).of_classifier(model)
    held_out = None if there.test is not None and there.test.labels is not None else config.test_fraction
    ways: list[tuple[Literal["closed", "none"], str, str | None]] = [("closed", "closed", None)]
    if config.budget is not None:
        ways.append(("none", config.budget.strip(), config.budget))
    return [
        FinetuneConfig(
            data=config.what[0],
            model=model,
            out=str(place / f"{name}-{way}"),
            linear=linear,
            budget=budget,
            test_fraction=held_out,
            image_column=config.image_column,
            label_column=config.label_column,
            examples_per_class=config.examples_per_class,
            balance=config.balance,
            exclude=config.exclude,
            skip_bad_images=config.skip_bad_images,
            crop=config.crop,
            seed=config.seed,
            device=config.device,
            precision=config.precision,
            workers=config.workers,
            checkpoint_every=config.checkpoint_every,
        )
        for linear, way, budget in ways
        for model, name in zip(config.networks, names, strict=True)
    ]


def _opened(config: CompareConfig) -> Splits:
    """The data set, of which every image has one class."""
    there = splits.single(
        data.open_dataset(
            config.what[0], multi_label=True, image_column=config.image_column, label_column=config.label_column
        )
    )
    if there.train.labels is None:
        raise DataError(f"{config.what[0]} has no classes. Put the images into one folder per class.")
    if there.train.several:
        raise DataError(
            f"Images of {config.what[0]} have several labels; only networks for one label for each image are compared."
        )
    return there


def _told_apart(networks: Sequence[str]) -> list[str]:
    """For each a name that a folder may have; ConfigError where two are the same network, or would have the same name."""
    found: dict[str, str] = {}
    meant: dict[str, str] = {}
    for model in networks:
        record = catalog.meant(model)
        which = os.path.realpath(model) if record is None else record.card.name
        if which in meant:
            raise ConfigError(f"{meant[which]} and {model} are the same network. --models needs different ones.")
        meant[which] = model
        given, _, file = model.partition("@") if re.match(r"(timm|torchvision):", model) else ("", "", model)
        path = Path(file)
        if path.name == "model.safetensors":  # of a run, which its folder names
            path = path.resolve().parent
        ending = path.suffix in formats.SUFFIXES
        whole = "-".join(filter(None, (given, (path.stem if ending else path.name) if file else "")))
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in whole)[:100]
        if name in found:
            raise ConfigError(f"{model} and {found[name]} would both be called {name}. Give one file another name.")
        found[name] = model
    return list(found)


def _take(asked: Sequence[FinetuneConfig]) -> tuple[list[Path], list[str]] | int:
    """Make the runs. The folders of those that are finished, and why others are not; or the signal that stopped one."""
    folders, left_out = [], []
    for number, one in enumerate(asked, start=1):
        print(f"--- {number} of {len(asked)}\n$ {command_line('finetune', dataclasses.asdict(one))}\n", flush=True)
        try:
            with finetune.saying_what_is_kept(one):
                done = finetune.finetune(one)
                if done.stopped_by is None:
                    _measure_whole(one, done)
        except DataError:  # as bad for the others
            raise
        except BitError as error:
            print(f"error: {error}", file=sys.stderr)
            left_out.append(f"{one.out}: {error}")
            continue
        finally:
            print(flush=True)
        if done.stopped_by is not None:
            return done.stopped_by
        folders.append(done.folder)
    return folders, left_out


def _measure_whole(asked: FinetuneConfig, done: Finetuned) -> None:
    """Measure on all test images a run whose budget had no time for that: networks are compared on the same images."""
    file = done.folder / pages.WHOLE
    if "test_images" not in done.metrics or file.is_file():
        return
    print("measured on all test images, beyond the budget, to be compared by:", flush=True)
    config = EvaluateConfig(
        model=str(done.folder),
        data=asked.data,
        split="test",
        split_file=str(done.folder / "split.json"),
        image_column=asked.image_column,
        label_column=asked.label_column,
        json=str(file),
        device=asked.device,
        precision=asked.precision,
    )
    result = evaluate.evaluate(config).result
    assert isinstance(result, Classification)
    print(f"test:   top-1 {result.top1:.1%} of {len(result):,} images")


# --- What they are worth


def _compare(config: CompareConfig, folders: Sequence[Path], pictures: Sequence[data.ImageSet], place: Path) -> None:
    compared = pages.compare(folders, pictures, lambda: measured(folders, config))
    for note in compared.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    print("\n".join(map(line, pages.table(compared))))
    print(f"\non the {compared.images:,} images that all were measured on:")
    for one in compared.against:
        print(
            f"{line(one.verdict)}; {one.paired.first_only:,} only the first gets right, {one.paired.second_only:,} only the second "
            f"(p = {one.paired.p:.2g})"
        )
    for sentence in compared.summary:
        print(line(sentence))
    if config.models is None and config.out is not None:
        out = Path(config.out)
    else:
        out = pages.place(place / PAGE, compared)
    _refuse_replacing(config, folders, out)
    pages.write(out, compared)
    if config.json is not None:
        runs.write_json(config.json, pages.record(compared))
    print(f"\ncomparison: {out}")


def _refuse_replacing(config: CompareConfig, folders: Sequence[Path], page: str | os.PathLike[str]) -> None:
    """ConfigError or RunError if what is to be written would replace what is read, or has no place."""
    read = [folder / name for folder in folders for name in ("config.json", pages.WHOLE, *runs.RESULTS)]
    asked = *config.what, *(network.rpartition("@")[2] for network in config.networks), config.exclude
    outputs.refuse_replacing([("--json", config.json), ("--out", page)], [*read, *asked])
    for path in filter(None, (config.json, page)):
        if not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path):  # no pipe, no device
            outputs.refuse_unwritable(path)


def measured(folders: Sequence[Path], config: CompareConfig) -> tuple[list[Cost | None], list[str]]:
    """What each run's model costs, None where it is not there any more, and what there is to say of the measurement."""
    predictors: list[Predictor | None] = []
    for folder in folders:
        model = model_of(folder)
        try:
            predictors.append(
                None if model is None else Predictor.load(model, device=config.device, precision=config.precision)
            )
        except BitError as error:
            print(f"note: {folder} is not timed, for its model cannot be read. ({error})", file=sys.stderr)
            predictors.append(None)
    rates: list[list[float]] = [[] for _ in folders]
    asks = [None if one is None else partial(_ask, one, _noise(one)) for one in predictors]
    for ask in filter(None, asks):
        ask()  # what is done only once, such as choosing kernels
    with benchmark.Others() as others:
        for _ in range(ROUNDS):
            for found, ask in zip(rates, asks, strict=True):
                if ask is not None:
                    found.append(benchmark.rate(ask, SECONDS))
    costs = [
        None if predictor is None else _cost(folder, predictor, statistics.median(found))
        for folder, predictor, found in zip(folders, predictors, rates, strict=True)
    ]
    timed = next((one for one in predictors if one is not None), None)
    if timed is None:
        return costs, []
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    how = f"Timed on {timed.device}, {threads}, {timed.precision}, {BATCH} images at a time, without decoding"
    if others.share is not None:
        how += f"; other processes had {others.share:.0%} of the machine's cores meanwhile"
    return costs, [f"{how}."]


def _noise(predictor: Predictor) -> torch.Tensor:
    """Images as its network takes them."""
    side, channels = predictor.card.input.size, predictor.card.architecture.in_chans
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (BATCH, channels, side, side), dtype=torch.uint8, generator=generator)


def _ask(predictor: Predictor, pixels: torch.Tensor) -> int:
    predictor.logits(pixels)
    return len(pixels)


def _cost(folder: Path, predictor: Predictor, rate: float) -> Cost:
    card, file = predictor.card, folder / "model.safetensors"
    readout = card.architecture.readout
    return Cost(
        per_image=1 / rate,
        sizes=(readout.sizes if readout is not None and readout.sizes else (card.input.size,)),
        parameters=card.num_parameters,
        bytes=file.stat().st_size if file.is_file() else None,
        licence=card.licence,
        network=card.architecture.name,
    )
