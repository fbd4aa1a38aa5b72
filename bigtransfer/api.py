"""The Python side of the commands: the functions behind `bigtransfer.create_model`, `load_model`, `finetune` and `evaluate`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bigtransfer import weights
from bigtransfer.config import Config, EvaluateConfig, FinetuneConfig, PretrainConfig, fields_of
from bigtransfer.errors import RunError, UnreadableImages
from bigtransfer.evals import Classification
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.jobs import evaluate as evaluate_job
from bigtransfer.jobs import finetune as finetune_job
from bigtransfer.jobs import pretrain as pretrain_job
from bigtransfer.jobs.working import Finetuned
from bigtransfer.model import Network
from bigtransfer.train.teacher import Teacher

F = TypeVar("F", bound=Callable[..., Any])


def create_model(
    name: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    pretrained: bool = True,
    in_chans: int | None = None,
) -> Network:
    """A network to build on: a torch module from float images `(n, in_chans, h, w)` in [-1, 1] to logits `(n, num_classes)`.

    name: one of `list_models()`, a model file, a run folder or, with pretrained=False, an architecture such as "r50x1".
    num_classes: None keeps the published head; another number than the published one gives a new head, zero-initialised as
    BiT does it; 0 leaves the head out: the result is the pooled features. pretrained=False: random weights, no download.
    in_chans: None keeps the published 3; another number adapts the first convolution.

    Raises UnknownModel, DownloadError, WeightsError.
    """
    return weights.load(name, num_classes=num_classes, in_chans=in_chans, pretrained=pretrained)


def load_model(name_or_file: str | os.PathLike[str]) -> Network:
    """A network exactly as it was saved or published, in evaluation mode. Its `card` says what else is known: class names, input size,
    where it comes from.

    name_or_file: one of `list_models()`, a model file of any published form, or a run folder. For predictions use
    `Predictor`, which prepares images as the card says. Raises UnknownModel, DownloadError, WeightsError.
    """
    return weights.load(name_or_file)


def _keywords_of(config_class: type[Config]) -> Callable[[F], F]:
    """Show `help()` and notebooks the fields of the configuration where the source says `**options`."""

    def show(function: F) -> F:
        fixed = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {parameter.name for parameter in fixed}
        keywords = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
            for field in fields_of(config_class)
            if field.name not in names
        ]
        function.__signature__ = inspect.Signature([*fixed, *keywords])  # type: ignore[attr-defined]
        lines = [f"    {field.name}: {' '.join(field.help.split())}" for field in fields_of(config_class)]
        function.__doc__ = f"{function.__doc__}\n" + "\n".join(lines)
        return function

    return show


@_keywords_of(FinetuneConfig)
def finetune(data: str | os.PathLike[str], **options: Any) -> Finetuned:
    """`bit finetune`: adapt a pre-trained network to your images. The keywords are the command's flags.

    Returns the run: its `folder`, its `model` file, its `recipe` and the `metrics`. Resumes an interrupted run, and gives the
    result of a finished one. Raises BitError for everything that the caller can mend.
    """
    return finetune_job.finetune(FinetuneConfig(data=data, **options))  # pyright: ignore[reportArgumentType] (takes paths)


@_keywords_of(PretrainConfig)
def pretrain(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    teacher: str | Teacher | None = None,
    **options: Any,
) -> Network:
    """`bit pretrain`, and with label_weight=0 `bit distill`: train a network on large sets. The keywords are the command's flags.

    teacher: also a `Teacher`: any torch module that turns images into logits, and how it wants them.
    Returns the network with its card, which is also in the run's folder. Resumes an interrupted run; RunError if a signal stopped this
    one. Raises BitError for everything that the caller can mend.
    """
    given = None if isinstance(teacher, str) else teacher
    name = teacher if given is None else given.name
    config = PretrainConfig(data=data, teacher=name, **options)  # pyright: ignore[reportArgumentType] (takes paths)
    if pretrain_job.run(config, given) != 0:
        raise RunError(
            f"Stopped by a signal; the same call goes on from the last checkpoint in {pretrain_job.folder(config)}."
        )
    return weights.load(pretrain_job.folder(config))


@_keywords_of(EvaluateConfig)
def evaluate(
    model: str | os.PathLike[str], data: str | os.PathLike[str], **options: Any
) -> Classification | MultiLabel:
    """`bit evaluate`: measure a model on labelled images. The keywords are the command's flags.

    Returns the numbers: `top1`, `top1_interval`, `top5`, `per_class()`, `confusion()`, `ece`, ...; of a multi-label model
    `mean_average_precision`, `average_precision()`, `at(thresholds)`, ... Raises BitError for
    everything that the caller can mend, UnreadableImages among them unless skip_bad_images=True.
    """
    config = EvaluateConfig(model=model, data=data, **options)  # pyright: ignore[reportArgumentType] (takes paths)
    done = evaluate_job.evaluate(config)
    if done.unreadable and not config.skip_bad_images:
        raise UnreadableImages(done.unreadable, len(done.images))
    return done.result
