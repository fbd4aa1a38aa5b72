"""The classifiers that there were to choose from: the closed form, the fine-tuned network, their average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.candidates import Candidate, Choice, Judged, Whole
from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Candidates:
    alone: bool
    """Whether nothing was trained: neither steps nor a choice."""
    view: str
    """What the closed form sees, in words."""
    images: int
    """That it was solved on."""
    seconds: float
    top1: float | None
    """Of the closed form on its own images, each judged by the others, 0 to 1; None if that cannot be known."""
    doubt: str | None
    """Said where that is no better than chance."""
    views: Sequence[tuple[str, Judged]]
    """What else it could have seen, in words and as judged; empty without a choice."""
    chosen: str
    whole: Whole | None
    """Of the closed form solved again on the held-out images as well; None if that is not part of what is delivered."""
    solved_on: int | None
    """Images of which the fine-tuned network's classifier was solved again likewise."""
    choice: Choice | None
    compared: Sequence[Candidate]
    alike: bool
    """Whether each class counted the same in the choice."""


def compute(run: Contents) -> Candidates | None:
    closed, choice = run.closed, run.choice
    if closed is None:
        return None
    compared = choice.candidates if choice else ()
    recipe = run.config.recipe if run.config else None
    return Candidates(
        alone=choice is None and recipe is not None and not recipe.steps,
        view=str(closed.view),
        images=closed.images,
        seconds=closed.seconds,
        top1=closed.top1,
        doubt=closed.chance_note(run.evaluation.class_names if run.evaluation else None),
        views=[(str(judged.view), judged) for judged in closed.judged],
        chosen=choice.delivered if choice else "",
        whole=None if choice and choice.delivered == "fine-tuned" else closed.whole,
        solved_on=choice.solved_on if choice and choice.delivered != "closed form" else None,
        choice=choice,
        compared=compared,
        alike=bool(run.config and run.config.resolved.get("balance"))
        and all(one.mean_per_class is not None for one in compared),
    )
