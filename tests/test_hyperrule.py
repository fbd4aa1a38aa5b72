"""The HyperRule, exact at every boundary; the numbers are those of the released code's `bit_hyperrule.py` and of the paper's text."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bigtransfer import hyperrule
from bigtransfer.errors import ConfigError
from bigtransfer.hyperrule import Recipe, recipe


def released_learning_rate(step: int, dataset_size: int, base: float = 0.003) -> float | None:
    """`get_lr` of the released code, restated from its description: the supports, strict comparison, None at the end."""
    if dataset_size < 20_000:
        supports = [100, 200, 300, 400, 500]
    elif dataset_size < 500_000:
        supports = [500, 3000, 6000, 9000, 10_000]
    else:
        supports = [500, 6000, 12_000, 18_000, 20_000]
    if step < supports[0]:
        return base * step / supports[0]
    if step >= supports[-1]:
        return None
    for support in supports[1:]:
        if support < step:
            base /= 10
    return base


@pytest.mark.parametrize(
    ("examples", "steps", "mixup", "size"),
    [
        (1, 500, 0.0, "small"),
        (19_999, 500, 0.0, "small"),
        (20_000, 10_000, 0.1, "medium"),
        (499_999, 10_000, 0.1, "medium"),
        (500_000, 20_000, 0.1, "large"),
        (1_281_167, 20_000, 0.1, "large"),
    ],
)
def test_size_classes(examples: int, steps: int, mixup: float, size: str) -> None:
    rule = recipe(examples, 300, 400)
    assert (rule.steps, rule.mixup_alpha, rule.size_class) == (steps, mixup, size)
    assert (rule.batch_size, rule.base_learning_rate, rule.momentum, rule.weight_decay) == (512, 0.003, 0.9, 0.0)


@pytest.mark.parametrize("examples", [1_000, 50_000, 1_000_000])
def test_every_learning_rate_is_the_released_codes(examples: int) -> None:
    rule = recipe(examples, 300, 400, "code")
    for step in range(rule.steps):
        assert rule.learning_rate(step) == pytest.approx(released_learning_rate(step, examples), rel=1e-12)
    assert released_learning_rate(rule.steps, examples) is None
    with pytest.raises(ValueError, match="outside"):
        rule.learning_rate(rule.steps)


def test_the_boundary_step_still_has_the_higher_rate() -> None:
    rule = recipe(50_000, 32, 32)
    assert rule.learning_rate(0) == 0.0
    assert rule.learning_rate(499) == pytest.approx(0.003 * 499 / 500)
    assert rule.learning_rate(3_000) == pytest.approx(0.003)
    assert rule.learning_rate(3_001) == pytest.approx(0.0003)


def test_the_paper_has_no_warm_up_and_decays_at_30_60_90_percent() -> None:
    rule = recipe(1_000, 300, 400, "paper")
    assert rule.learning_rate(0) == pytest.approx(0.003)
    changes = [s for s in range(1, rule.steps) if rule.learning_rate(s) != rule.learning_rate(s - 1)]
    assert changes == [151, 301, 451]


@pytest.mark.parametrize(
    ("height", "width", "variant", "architecture", "expected"),
    [
        (96, 96, "code", "", (512, 480)),
        (96, 95, "code", "", (160, 128)),
        (9_215, 1, "code", "", (160, 128)),
        (9_216, 1, "code", "", (512, 480)),
        (32, 32, "paper", "", (160, 128)),
        (96, 96, "paper", "r50x1", (448, 384)),
        (96, 96, "paper", "r152x4", (512, 480)),
        (32, 32, "paper", "r152x4", (160, 128)),
    ],
)
def test_resolution(
    height: int, width: int, variant: hyperrule.Variant, architecture: str, expected: tuple[int, int]
) -> None:
    rule = recipe(1_000, height, width, variant, architecture=architecture)
    assert (rule.resize, rule.crop) == expected


def test_wrong_facts_are_errors() -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        recipe(0, 32, 32)
    with pytest.raises(ConfigError, match="variant"):
        recipe(10, 32, 32, "colab")  # type: ignore[arg-type]


def test_a_recipe_survives_json() -> None:
    rule = recipe(50_000, 32, 32)
    assert Recipe.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_the_record_of_a_training_tells_the_steps_taken() -> None:
    planned = Recipe(steps=100, batch_size=8, resize=40, crop=32, warmup=10, decays=(50, 80), notes=("As told.",))
    assert hyperrule.as_taken(planned, 100) == planned == hyperrule.as_taken(planned, 100, 100)
    fewer = hyperrule.as_taken(planned, 40, 24)
    assert (fewer.steps, fewer.warmup, fewer.decays, fewer.batch_size) == (40, 4, (20, 32), 8)
    assert fewer.notes == (
        "As told.",
        "Planned were 100 steps; 40 were taken in the time there was.",
        "The weights are those after step 24 of 40, the best by the validation images.",
    )


def test_upstream_is_the_papers() -> None:
    rule = hyperrule.upstream(1_281_167, 90)
    assert rule.base_learning_rate == pytest.approx(0.48)
    assert rule.steps == round(90 * 1_281_167 / 4096)
    assert rule.learning_rate(2_500) == pytest.approx(0.24)
    thirty = round(30 * 1_281_167 / 4096)
    assert rule.learning_rate(thirty) == pytest.approx(0.48)
    assert rule.learning_rate(thirty + 1) == pytest.approx(0.048)
    assert rule.learning_rate(rule.steps - 1) == pytest.approx(0.00048)


def test_upstream_is_the_callers_where_he_says_so() -> None:
    asked = {"batch_size": 100, "crop": 96, "warmup": 7, "weight_decay": 3e-5, "mixup_alpha": 0.2}
    rule = hyperrule.upstream(1_000, 10, **asked, learning_rate=0.5, schedule="cosine")
    assert {name: getattr(rule, name) for name in asked} == asked
    assert (rule.steps, rule.resize, rule.base_learning_rate, rule.schedule) == (100, 96, 0.5, "cosine")
    assert hyperrule.upstream(1_000, 90, batch_size=100, decay_epochs=(5.0, 8.0)).decays == (50, 80)


def test_cosine_falls_to_nothing() -> None:
    rule = hyperrule.upstream(1_000, 10, batch_size=100, schedule="cosine", warmup=10, learning_rate=1.0)
    rates = [rule.learning_rate(step) for step in range(rule.steps)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.5) and rates[-1] < 0.001


def test_stretching_keeps_the_proportions() -> None:
    half = hyperrule.with_steps(recipe(1_000, 300, 400), 250)
    assert (half.steps, half.warmup, half.decays) == (250, 50, (100, 150, 200))


def test_the_learning_rate_follows_the_batch() -> None:
    assert hyperrule.with_batch_size(recipe(1_000, 300, 400), 128).base_learning_rate == pytest.approx(0.00075)


def test_a_recipe_without_steps_says_only_what_is_obeyed() -> None:
    closed = hyperrule.without_steps(224)
    assert Recipe.from_dict(json.loads(json.dumps(closed.to_dict()))) == closed
    assert hyperrule.in_effect(closed.to_dict()) == {"resize": 224, "crop": 224}
    assert not any(
        closed.to_dict()[name] for name in ("steps", "batch_size", "warmup", "decays", "base_learning_rate", "momentum")
    )
    assert closed.notes == ("No steps: the classifier is solved exactly.",)
    shown = hyperrule.in_effect(
        {"steps": 7, "resize": 9, "decays": (), "mixup_alpha": 0.0, "variant": "", "x": None, "notes": ["n"]}
    )
    assert shown == {"steps": 7, "resize": 9, "mixup_alpha": 0.0}


def machine(speed_at_64: float) -> hyperrule.Speed:
    """A machine whose speed goes with the image's area and does not care about the batch."""
    return lambda crop, _batch: speed_at_64 * (64 / crop) ** 2


def test_a_large_budget_changes_nothing_but_the_notes() -> None:
    rule = recipe(1_000, 32, 32)
    fitted = hyperrule.within_budget(rule, 3600, machine(1_000.0))
    assert fitted.to_dict() | {"notes": ()} == rule.to_dict() | {"notes": ()}
    assert "full rule" in fitted.notes[-1]


@pytest.mark.parametrize("seconds", [10, 60, 600])
@pytest.mark.parametrize("size", [32, 300])
@pytest.mark.parametrize("examples", [100, 50_000])
@pytest.mark.parametrize("speed", [20.0, 200.0, 20_000.0])
def test_a_budget_is_kept_and_the_shape_too(seconds: float, size: int, examples: int, speed: float) -> None:
    rule = recipe(examples, size, size)
    fitted = hyperrule.within_budget(rule, seconds, machine(speed))
    images = seconds * machine(speed)(fitted.crop, fitted.batch_size)
    floor = hyperrule.FEWEST_STEPS * hyperrule.SMALLEST_BATCH
    assert fitted.steps * fitted.batch_size <= max(images, floor)
    assert fitted.steps * fitted.batch_size >= 0.7 * min(images, rule.steps * rule.batch_size)
    assert fitted.crop <= rule.crop and fitted.crop <= fitted.resize <= rule.resize
    assert fitted.warmup / fitted.steps == pytest.approx(rule.warmup / rule.steps, abs=0.05)
    assert [d / fitted.steps for d in fitted.decays] == pytest.approx([d / rule.steps for d in rule.decays], abs=0.05)
    assert fitted.mixup_alpha == rule.mixup_alpha
    assert f"{seconds:g} s" in fitted.notes[-1] or "min" in fitted.notes[-1]


def test_what_the_user_fixed_stays() -> None:
    rule = hyperrule.with_steps(recipe(100, 32, 32), 50)
    fitted = hyperrule.within_budget(rule, 10, machine(50.0), fixed=("steps", "crop"))
    assert (fitted.steps, fitted.crop) == (50, 128)


def test_the_resolution_stays_at_what_the_network_knows() -> None:
    fitted = hyperrule.within_budget(recipe(100, 300, 300), 10, machine(50.0), trained_at=224)
    assert fitted.crop == 224


def test_a_budget_by_hand() -> None:
    """100 images of 32 px: 500 steps of 512, 160 -> 128 px, 0.003. The machine takes 200 images/s at 64 px, 355.6 at 48."""
    rule = recipe(100, 32, 32)
    fitted = hyperrule.within_budget(rule, 60, machine(200.0))
    # At 64 px 12,000 images fit, fewer than 500 steps of 32; at 48 px 21,333: 42.7 a step, in eights.
    assert (fitted.resize, fitted.crop, fitted.batch_size, fitted.steps) == (60, 48, 40, 500)
    assert fitted.base_learning_rate == pytest.approx(0.003), "0.003 x 40 / 512, times 512 / 40 for the images not seen"
    fitted = hyperrule.within_budget(rule, 5, machine(200.0))
    # 1,777 images: 55 steps of 32. The rate would be 145 times 0.0001875; it ends at 0.01.
    assert (fitted.crop, fitted.batch_size, fitted.steps) == (48, 32, 55)
    assert fitted.base_learning_rate == pytest.approx(0.01)
    assert (fitted.warmup, fitted.decays) == (11, (22, 33, 44))
    fitted = hyperrule.within_budget(rule, 90, machine(200.0), trained_at=60)
    # At 60 px 20,480 images fit, at 64 px 18,000, at 96 px 8,000: 36 a step at 64 px, in eights.
    assert (fitted.resize, fitted.crop, fitted.batch_size, fitted.steps) == (80, 64, 32, 500)
    large = hyperrule.within_budget(recipe(100, 300, 300), 30, machine(1000.0), fixed=("batch_size",))
    # 53,333 images at 48 px; 500 steps of 512 never fit.
    assert (large.crop, large.batch_size, large.steps) == (48, 512, 104)


def test_one_image_of_one_pixel_is_enough_and_nothing_less() -> None:
    assert recipe(1, 1, 1).steps == 500
    for facts in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ConfigError, match="at least one image of at least 1 x 1 px"):
            recipe(*facts)


# --- A training for the closed form, within a budget


def tuned(seconds: float = 100, images: int = 1000, speed: float = 100.0, crop: int = 64, **more: Any) -> Recipe:
    return hyperrule.tuning(images, seconds, lambda side, batch: speed * (64 / side) ** 2, crop, **more)


def test_a_training_for_the_closed_form_fits_into_its_budget() -> None:
    recipe = tuned(100, left=80)
    # 80 s hold 8,000 images, 83 batches of 96.
    assert (recipe.crop, recipe.resize, recipe.batch_size, recipe.steps) == (64, 85, 96, 83)
    assert (recipe.base_learning_rate, recipe.warmup, recipe.schedule, recipe.mixup_alpha) == (0.3, 4, "cosine", 0.0)
    assert tuned(100).steps == 104 and tuned(100, crop=128).steps == 26 and tuned(100, crop=128).resize == 171
    assert tuned(100, left=20).steps == 20 and tuned(100, left=-1).steps == hyperrule.FEWEST_STEPS
    assert tuned(100, images=50, left=20).batch_size == 50 and tuned(100, images=50, left=20).steps == 30
    assert recipe.notes[0].startswith("8 passes over the 1,000 images, to fit into 100 s at the 100 images/s")


def test_steps_before_larger_images() -> None:
    assert hyperrule.enough_tuning_steps(300, 96) == 40 and hyperrule.enough_tuning_steps(2000, 96) == 84
    assert hyperrule.enough_tuning_steps(100, 96) == 32, "all that there are"


def test_a_budget_of_hours_is_given_back() -> None:
    assert tuned(36_000).steps == math.ceil(30 * 1000 / 96)
    assert tuned(36_000, images=20).steps == 30, "of all images each"
    assert tuned(36_000_000, images=100_000).steps == math.ceil(30 * 100_000 / 96)


def test_what_the_user_fixed_stays_in_a_training_for_the_closed_form() -> None:
    recipe = tuned(100, fixed={"steps": 5, "batch_size": 64})
    assert (recipe.steps, recipe.batch_size, recipe.base_learning_rate) == (5, 64, 0.3)
    assert (
        recipe.notes[0] == "0.32 passes over the 1,000 images, as many steps as were asked for, however long they take."
    )


# --- A number of steps that changes on the way


def rates(schedule: hyperrule.Schedule) -> list[float]:
    return [schedule.learning_rate(step) for step in range(schedule.steps)]


@pytest.mark.parametrize("rule", [recipe(1_000, 300, 400), recipe(1_000, 300, 400, "paper")])
def test_without_a_change_a_schedule_is_the_recipe(rule: Recipe) -> None:
    assert rates(hyperrule.Schedule(rule)) == [rule.learning_rate(step) for step in range(rule.steps)]


def test_what_is_left_of_a_staircase_is_spread_over_the_steps_that_are_left() -> None:
    # Warm-up to 4, a tenth after 8, 12, 16. After 6 steps, 14 are left of the recipe and have to be done in 7: two at a time.
    rule = Recipe(
        steps=20, batch_size=8, resize=9, crop=8, base_learning_rate=1.0, warmup=4, decays=(8, 12, 16), variant=""
    )
    fewer = hyperrule.Schedule(rule).changed(6, 13)
    assert [fewer.position(step) for step in range(14)] == [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20]
    assert rates(fewer) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])
    # From step 8 of these, at position 10, the other 10 are done in 20.
    more = fewer.changed(8, 28)
    assert more.steps == 28 and more.position(28) == 20
    assert rates(more)[:9] == rates(fewer)[:9]
    assert rates(more)[8:] == pytest.approx([0.1] * 5 + [0.01] * 8 + [0.001] * 7)


def test_a_warm_up_and_a_cosine_go_on_from_where_they_are() -> None:
    rule = hyperrule.upstream(1_000, 2, batch_size=100, schedule="cosine", warmup=10, learning_rate=1.0)
    assert rule.steps == 20
    slower = hyperrule.Schedule(rule).changed(4, 36)  # half a step of the recipe at a time
    assert rates(slower)[:16] == pytest.approx([0, 0.1, 0.2, 0.3, *(0.4 + 0.05 * k for k in range(12))])
    assert rates(slower)[26] == pytest.approx(0.5), "position 15, half of the cosine"
    assert rates(slower)[16:] == sorted(rates(slower)[16:], reverse=True)
    ended = slower.changed(30, 30)
    assert ended.steps == 30 and rates(ended) == rates(slower)[:30]
    with pytest.raises(ValueError, match=r"outside 0\.\.29"):
        ended.learning_rate(30)


@pytest.mark.parametrize("change", [(0, 10), (4, 10), (3, 2), (20, 30), (21, 30)])
def test_changes_come_one_after_the_other_and_before_the_end(change: tuple[int, int]) -> None:
    rule = Recipe(steps=20, batch_size=8, resize=9, crop=8)
    schedule = hyperrule.Schedule(rule)
    if change[0] == 4:
        schedule = schedule.changed(4, 20)
    with pytest.raises(ValueError, match="cannot follow"):
        schedule.changed(*change)


@pytest.mark.parametrize(
    ("trained_at", "native", "size"),
    [
        (96, (128, 128), 96),
        (96, (127, 128), 64),
        (96, (300, 60), 96),
        (96, (32, 32), 64),
        (224, (299, 299), 224),
        (224, (298, 298), 144),
        (64, (32, 32), 48),
        (16, (8, 8), 16),
    ],
)
def test_small_images_are_looked_at_at_less_than_the_network_was_trained_at(
    trained_at: int, native: tuple[int, int], size: int
) -> None:
    assert hyperrule.looking_size(trained_at, *native) == size


@pytest.mark.parametrize(
    ("trained_at", "native", "sizes"),
    [
        (96, (300, 200), ((64, 128, 256), (96, 192), (64, 128), (96,))),
        (96, (84, 112), ((64, 128, 256), (64, 128), (64,))),  # 256 x 256 is less than eight times as many pixels
        (96, (90, 91), ((64, 128), (64,))),
        (96, (32, 32), ((64, 128), (64,))),
        (
            224,
            (1000, 1000),
            ((224, 448), (144, 288), (224,)),
        ),  # 144, 288 and 576: the last is more than any network was trained at
        (256, (1000, 1000), ((176, 352), (256,))),
    ],
)
def test_the_sizes_of_a_look(trained_at: int, native: tuple[int, int], sizes: tuple[tuple[int, ...], ...]) -> None:
    assert hyperrule.looking_sizes(trained_at, *native) == sizes


@pytest.mark.parametrize(
    ("native", "flip", "together"),
    [
        (
            (300, 400),  # photographs
            True,
            [
                ((64, 128, 256), (224, 448), True),
                ((64, 128), (224, 448), True),
                ((64, 128), (224, 448), False),
                ((64,), (224, 448), False),
                ((64, 128), (224,), False),
                ((64,), (224,), False),
            ],
        ),
        (
            (300, 400),
            False,
            [
                ((64, 128, 256), (224, 448), False),
                ((64, 128), (224, 448), False),
                ((64,), (224, 448), False),
                ((64, 128), (224,), False),
                ((64,), (224,), False),
            ],
        ),
        (
            (32, 32),  # which show nothing at a third size
            True,
            [
                ((64, 128), (144, 288), True),
                ((64, 128), (144, 288), False),
                ((64,), (144, 288), False),
                ((64, 128), (144,), False),
                ((64,), (144,), False),
            ],
        ),
    ],
)
def test_the_sizes_of_a_look_with_two_networks(
    native: tuple[int, int], flip: bool, together: list[tuple[tuple[int, ...], tuple[int, ...], bool]]
) -> None:
    """Of one trained at 96 px, as the bundled one is, and one at 224."""
    looks = [hyperrule.looking_sizes(trained_at, *native) for trained_at in (96, 224)]
    assert [tuple(one) for one in hyperrule.looking_together(*looks, flip=flip)] == together


def test_two_networks_that_look_at_one_size_each() -> None:
    assert [tuple(one) for one in hyperrule.looking_together([(32,)], [(48,)])] == [
        ((32,), (48,), True),
        ((32,), (48,), False),
    ]
