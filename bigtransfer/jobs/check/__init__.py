"""`bit check`: what is wrong with a data set, before anything is trained on it.

`check` reads as the whole story: open the images, look at each once, find, write.
"""

from __future__ import annotations

import sys
import time

from bigtransfer import weights
from bigtransfer.config import CheckConfig
from bigtransfer.data import Splits, open_dataset, splits
from bigtransfer.jobs.check import looking, summary, writing
from bigtransfer.jobs.check.findings import Checked, find
from bigtransfer.jobs.check.looking import Parts
from bigtransfer.jobs.evaluate import choose_part, refuse_run
from bigtransfer.jobs.plan import run_folder
from bigtransfer.outputs import refuse_replacing
from bigtransfer.terminal import line


def run(config: CheckConfig) -> int:
    """`bit check`. Exit status 1 if images could not be read and that was not expected."""
    checked = check(config, progress=True)
    print(summary.of(config, checked))
    return 1 if checked.unreadable and not config.skip_bad_images else 0


def check(config: CheckConfig, *, progress: bool = False) -> Checked:
    """Look at the images that `config` names and write the files it asks for. Images that cannot be read are left out and listed."""
    folder = run_folder(config.out, config.data, "check")
    refuse_run(folder, "check")
    # Before anything is looked at: the files of the check, what is read, and the corrected split are different ones.
    own = [("--out", folder / name) for name in ("config.json", "findings.csv", "duplicates.csv", "check.html")]
    refuse_replacing([*own, ("--split", config.split)], (config.data, config.test))
    network = weights.load(config.model) if config.features else None
    channels = 3 if network is None else network.architecture.in_chans
    data = _opened(config, config.data, channels)
    if config.test is None:
        parts = data.parts()
        seen = Parts({part: parts[part] for part in ("test", "val", "train") if part in parts})
    else:
        seen = Parts({"test": choose_part(_opened(config, config.test, channels), "auto")[1], "train": data.train})
    writing.refuse_split(config, seen)
    began = time.perf_counter()
    eye = None if network is None else looking.open_eye(config, network, len(seen))
    looked = looking.look(seen, eye, config, progress)
    checked = find(seen, looked, within=config.test is None, folder=folder, began=began, progress=progress)
    writing.write(config, checked, None if eye is None else eye.predictor.device)
    return checked


def _opened(config: CheckConfig, spec: str, channels: int) -> Splits:
    """The data set as it lies there; lists of labels that all hold one are labels."""
    found = open_dataset(
        spec,
        multi_label=True,
        image_column=config.image_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        channels=channels,
        min_classes=1,
    )
    for note in found.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    return found if config.label_separator is not None else splits.single(found)
