"""The recipes are commands that exist: each is run with stand-ins for `bit` and `torchrun` that only note how they are called."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from bigtransfer import cli
from bigtransfer.config import ConvertConfig, PretrainConfig
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.sh"))


def calls(recipe: Path, tmp_path: Path, *arguments: str) -> list[list[str]]:
    """The commands that a recipe gives, without running them."""
    for name in ("bit", "torchrun"):
        stand_in = tmp_path / name
        stand_in.write_text(
            '#!/bin/sh\nfor word in "$(basename "$0")" "$@"; do printf "%s\\0" "$word"; done\nprintf "\\n"\n'
        )
        stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("TORCHRUN", None)
    done = subprocess.run(
        ["sh", str(recipe), *arguments], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return [line.rstrip("\0").split("\0") for line in done.stdout.splitlines()]


def parsed(call: list[str]) -> object:
    words = call[call.index("bigtransfer") + 1 :] if call[0] == "torchrun" else call[1:]
    return cli.parse(words[0], words[1:])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe(recipe: Path, tmp_path: Path) -> None:
    configs = [parsed(call) for call in calls(recipe, tmp_path, "some/data", "runs/mine", "--seed", "7")]
    assert configs
    for config in configs:
        assert isinstance(config, PretrainConfig | ConvertConfig), shlex.quote(str(config))
        if isinstance(config, PretrainConfig):
            assert all(one == "some/data" or one.startswith("some/data/") for one in config.data)
            assert config.seed == 7
    assert any(isinstance(config, PretrainConfig) and config.out == "runs/mine" for config in configs)


def test_paper_schedules(tmp_path: Path) -> None:
    """BiT-S and BiT-M: 90 epochs, a tenth at 30, 60, 80; BiT-L: 40 epochs, a tenth at 10, 23, 30, 37 (arXiv 1912.11370, section 3.3)."""
    expected = {"bit-s": (90, (30, 60, 80)), "bit-m": (90, (30, 60, 80)), "bit-l": (40, (10, 23, 30, 37))}
    for name, (epochs, decays) in expected.items():
        (call,) = calls(REPOSITORY / "recipes" / f"{name}.sh", tmp_path, "data")
        config = parsed(call)
        assert isinstance(config, PretrainConfig)
        assert (config.epochs, config.decay_epochs) == (epochs, decays)
        assert (config.batch_size, config.weight_decay, config.warmup, config.crop) == (4096, 1e-4, 5000, 224)
        assert (config.crop_style, config.min_area) == ("tensorflow", 0.05), "the authors draw TensorFlow's boxes"
        assert config.learning_rate is None  # 0.03 x batch / 256
