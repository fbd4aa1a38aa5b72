"""`bit serve`: answers over HTTP."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

from bigtransfer import backends, files, limits
from bigtransfer.config import ServeConfig, seconds
from bigtransfer.detections import ObjectFinder
from bigtransfer.errors import ConfigError, DownloadError
from bigtransfer.predictor import Predictor

TOKEN = "BIT_TOKEN"

_STRICTER = "image_bytes=32M,image_pixels=100M,image_seconds=5"
"""Limits for images of strangers, unless `--limits` or `$BIT_LIMITS` say otherwise."""


def run(config: ServeConfig) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    try:
        from bigtransfer.serve import access, app, log, server, service
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bigtransfer"):
            raise
        raise ConfigError(
            f"`bit serve` needs the package {error.name}: pip install 'bigtransfer[serve]', or pip install '.[serve]' in a clone."
        ) from error
    given = os.environ.get(limits.VARIABLE)
    os.environ[limits.VARIABLE] = ",".join(filter(None, (_STRICTER, given)))
    try:
        named = service.named(config.models)
        for model in named.values():
            _look(model)
        models = [service.Model(name, functools.partial(loaded, model, config)) for name, model in named.items()]
        tokens = _tokens(config)
        bound = server.listen(config.host, config.port)
        serving = service.Service(config, models)
        door = access.Access(config.host, hosts=config.hosts, origins=config.cors, tokens=tokens)
        application = app.create(serving, door, failed=lambda: running.stop())
        running = server.Server(
            application,
            timeout=seconds(config.timeout),
            connections=config.max_connections,
            metrics=serving.metrics,
        )
        if not tokens and not access.is_local(config.host):
            print(
                "warning: everybody who reaches this machine can use it; --token-file keeps strangers out.",
                file=sys.stderr,
            )
        print(f"{', '.join(serving.models)} at {server.address(bound)} (Ctrl-C stops)", flush=True)
        with log.on_standard_error():
            running.run(bound)
            log.event("stopped")
        if serving.failure is not None:
            raise serving.failure
        return 0
    finally:
        if given is None:
            del os.environ[limits.VARIABLE]
        else:
            os.environ[limits.VARIABLE] = given


def loaded(model: str, config: ServeConfig) -> Predictor | ObjectFinder:
    """What answers for a model: a classifier's `Predictor`, or of a detector an `ObjectFinder`."""
    if not backends.is_detector(model):
        how: dict[str, Any] = {"device": config.device, "precision": config.precision, "backend": config.backend}
        how["batch"] = config.batch_size
        return Predictor.load(model, **how).with_classes()
    return ObjectFinder.load(model, device=config.device, precision=config.precision, backend=config.backend)


def _look(model: str) -> None:
    """Raise what loading the model would, as far as that can be known before anything is computed or downloaded: nobody is shown an address
    that will never answer."""
    if backends.is_exported(model):
        if os.path.exists(os.path.expanduser(model)):
            backends.describe(model)
        return
    from bigtransfer import weights  # loads torch

    with contextlib.suppress(DownloadError):  # it is not here yet
        weights.describe(model)


def _tokens(config: ServeConfig) -> Sequence[str]:
    """The tokens of which a client must have one; none: it needs none. ConfigError for what is too easily guessed."""
    if config.token_file is not None:
        where, text = config.token_file, _read(config.token_file)
    else:
        where, text = f"${TOKEN}", os.environ.get(TOKEN, "")
        if not text:
            return ()
    tokens = [line.strip() for line in text.splitlines() if line.strip()]
    if not tokens:
        raise ConfigError(f"{where} holds no token.")
    for token in tokens:
        if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"A token in {where} is too short or has odd characters: 16 or more letters and digits, such as "
                'python -c "import secrets; print(secrets.token_urlsafe())" prints.'
            )
    return tokens


def _read(path: str) -> str:
    try:
        return files.read(path, "record_bytes").decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"--token-file {path} cannot be read: {reason}.") from error
