"""`bit serve` under load: clients that ask again as soon as they are answered, beside LitServe with the same model; then a soak.

    python -m benchmarks.serving IMAGES --litserve-python OTHER/bin/python --out benchmarks/results/serving_cpu_DATE.md

IMAGES: a folder of JPEG files. OTHER: an environment with litserve that can import this package, too. Both servers run all the time
and take turns: rounds of --seconds for each number of clients, their order reversed in every other round. Every client has one connection,
which stays open, and sends one image after the other; what that costs is small beside the servers. LitServe gets its images as its examples
do, in JSON as Base64: its processes cannot hand on the files of a form. An answer counts only if it names a class; the first answers of
both are shown, to be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import datetime
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.parity import hardware

LITSERVE = """
import base64
import sys

import litserve
import numpy as np
from bigtransfer.predictor import Predictor


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.predictor = Predictor.load(sys.argv[1], device="cpu")

    def decode_request(self, request):
        return self.predictor.prepare(base64.b64decode(request["image"]))

    def predict(self, images):
        return self.predictor.answer(list(images), [""] * len(images))

    def batch(self, images):
        return images

    def unbatch(self, answers):
        return answers

    def encode_response(self, answer):
        return answer.record(5)


if __name__ == "__main__":
    api = Classifier(max_batch_size=int(sys.argv[3]), batch_timeout=float(sys.argv[4]))
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120).run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error"
    )
"""


@dataclass
class Load:
    """What the clients of one round, or of several, saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def add(self, other: Load) -> None:
        self.seconds += other.seconds
        self.latencies += other.latencies
        for status, number in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + number

    def at(self, share: float) -> float:
        """The latency in ms that this share of the answers is within."""
        return 1000 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


def form(image: bytes) -> bytes:
    """A whole request with the image as a form's file."""
    head = '--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return _post(head.encode() + image + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")


def base64_json(image: bytes) -> bytes:
    """A whole request with the image in JSON."""
    return _post(json.dumps({"image": base64.b64encode(image).decode()}).encode(), "application/json")


def _post(body: bytes, kind: str) -> bytes:
    lines = [
        "POST /predict HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and body of the next answer of a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None, head
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))


async def load(port: int, requests: list[bytes], clients: int, seconds: float) -> Load:
    """So many clients in closed loop for so long."""
    found = Load()
    end = time.monotonic() + seconds

    async def client(i: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        draw = random.Random(i)
        while (began := time.monotonic()) < end:
            writer.write(draw.choice(requests))
            status, body = await answer(reader)
            found.statuses[status] = found.statuses.get(status, 0) + 1
            if status == 200:
                assert b'"label":' in body
                found.latencies.append(time.monotonic() - began)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*map(client, range(clients)))
    found.seconds = time.monotonic() - began
    return found


@contextlib.contextmanager
def server(command: list[str], port: int, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at `path`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[:4]} ended with status {process.returncode}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def resident(pid: int) -> float:
    """MiB of memory that the process has."""
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(kilobytes) / 1024


async def soak(pid: int, port: int, requests: list[bytes], seconds: float) -> tuple[Load, list[float], dict[str, int]]:
    """16 clients in closed loop; beside them others who send what is no image, leave in the middle, or never finish."""
    memory, others = [], {"no image": 0, "left in the middle": 0, "left before the answer": 0, "silent": 0}
    end = time.monotonic() + seconds

    async def bad() -> None:
        while time.monotonic() < end:
            kind = random.choice(list(others))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if kind == "no image":
                writer.write(form(os.urandom(20_000)))
                status, _ = await answer(reader)
                assert status == 422, status
            elif kind == "left in the middle":
                writer.write(random.choice(requests)[:-2000])
                await writer.drain()
            elif kind == "left before the answer":
                writer.write(random.choice(requests))
                await writer.drain()
            else:
                writer.write(b"POST /predict HTTP/1.1\r\nHost:")
            others[kind] += 1
            await asyncio.sleep(0.2)
            writer.close()

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident(pid))
            await asyncio.sleep(5)

    found, *_ = await asyncio.gather(load(port, requests, 16, seconds), bad(), bad(), watch())
    return found, memory, others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="bit-t-r26x1")
    parser.add_argument("--litserve-python", help="without it, bit serve alone")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--soak", type=float, default=180)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--wait", type=float, default=0.005, help="LitServe's batch_timeout, seconds")
    parser.add_argument("--port", type=int, default=8470)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    files = sorted(asked.images.rglob("*.jpg"))[:200]
    photos = [file.read_bytes() for file in files]
    images = [form(photo) for photo in photos]
    sent = {"bit serve": images, "LitServe": [base64_json(photo) for photo in photos]}
    ours = [sys.executable, "-m", "bigtransfer", "serve", asked.model, "--device", "cpu", "--port", str(asked.port)]
    ours += ["--batch-size", str(asked.batch_size)]
    lines = [
        "# `bit serve` under load",
        "",
        f"{datetime.date.today()}, {hardware()}. `python -m benchmarks.serving {' '.join(sys.argv[1:])}`",
        "",
        f"{len(files)} JPEG files of {statistics.mean(map(len, photos)) / 1000:.0f} kB on average, model {asked.model}, "
        f"batches of {asked.batch_size} at most.",
    ]
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(server(ours, asked.port, "/health"))
        places = {"bit serve": asked.port}
        if asked.litserve_python:
            script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "classifier.py"
            script.write_text(LITSERVE)
            theirs = [
                asked.litserve_python,
                str(script),
                asked.model,
                str(asked.port + 1),
                str(asked.batch_size),
                str(asked.wait),
            ]
            stack.enter_context(server(theirs, asked.port + 1, "/health"))
            places["LitServe"] = asked.port + 1
            print(json.dumps({name: asyncio.run(first(port, sent[name][0])) for name, port in places.items()}))
        found = {(name, clients): Load() for name in places for clients in asked.clients}
        for name, port in places.items():
            asyncio.run(load(port, sent[name], 8, 2))
        for turn in range(asked.rounds):
            for clients in asked.clients:
                for name in list(places)[:: 1 if turn % 2 == 0 else -1]:
                    found[name, clients].add(asyncio.run(load(places[name], sent[name], clients, asked.seconds)))
        lines += ["", f"{asked.rounds} rounds of {asked.seconds:g} s each, in turns.", ""]
        heads = [f"{name}: {what}" for name in places for what in ("images/s", "p50, ms", "p99, ms")]
        ratio = ["images/s: ratio"] if len(places) > 1 else []
        lines += ["| " + " | ".join(["clients", *heads, *ratio]) + " |", "|" + "---|" * (1 + len(heads) + len(ratio))]
        for clients in asked.clients:
            loads = [found[name, clients] for name in places]
            row = [cell for one in loads for cell in (f"{one.rate:.1f}", f"{one.at(0.5):.0f}", f"{one.at(0.99):.0f}")]
            row += [f"{loads[0].rate / loads[1].rate:.2f}"] if ratio else []
            lines.append("| " + " | ".join([str(clients), *row]) + " |")
        refused = {
            f"{name}, {clients}": one.statuses for (name, clients), one in found.items() if set(one.statuses) != {200}
        }
        lines += ["", f"Answers other than 200: {refused or 'none'}."]
        if asked.soak:
            one, memory, others = asyncio.run(soak(process.pid, asked.port, images, asked.soak))
            lines += [
                "",
                f"## Soak of {asked.soak:g} s",
                "",
                f"16 clients in closed loop: {len(one.latencies)} answers, statuses {one.statuses}, p50 {one.at(0.5):.0f} ms, "
                f"p99 {one.at(0.99):.0f} ms. "
                f"Beside them, by two others: {others}.",
                "",
                f"Resident memory every 5 s, MiB: {', '.join(f'{each:.0f}' for each in memory)}.",
            ]
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")


async def first(port: int, image: bytes) -> dict[str, float]:
    """The classes of the first image, as a server answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(image)
    status, body = await answer(reader)
    writer.close()
    assert status == 200, body
    found = json.loads(body)
    return {one["label"]: one["probability"] for one in found.get("predictions", [found])[0]["top"]}


if __name__ == "__main__":
    main()
