"""`bit serve`: what clients are answered, alone and together, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from bigtransfer import cli, limits, page, weights
from bigtransfer.backends import graph
from bigtransfer.backends.by_openvino import OpenVinoDetector
from bigtransfer.config import ServeConfig
from bigtransfer.detections import ObjectFinder
from bigtransfer.errors import ConfigError, WeightsError
from bigtransfer.jobs import serve as job
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Prediction, Predictor
from bigtransfer.serve import access, app, log, refusals, requests, server, service

from . import network_makers

NAMES = ("ant", "bee", "crane", "crane", "eel", "größe")
SIZE = 32
TOLERANCE = 3e-6
"""Of probabilities: sums of float32 come out differently in batches of other sizes."""


def tiny(seed: int = 0, **card: Any) -> ResNetV2:
    return network_makers.tiny(NAMES, size=SIZE, seed=seed, **card)


def png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(4, 5, 3), dtype=np.uint8)).resize((50, 40))
    file = io.BytesIO()
    coarse.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny(), device="cpu", precision="fp32")


class Gated:
    """A predictor that stops before it computes until it is let; the sizes of its batches are kept."""

    def __init__(self, inner: Predictor) -> None:
        self._inner, self.open, self.sizes = inner, threading.Event(), list[int]()
        self.open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def answer(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Prediction]:
        if list(names) != ["warm-up"]:
            self.sizes.append(len(images))
            assert self.open.wait(30)
        return self._inner.answer(images, names)


@contextlib.contextmanager
def serving(
    *predictors: Any, tokens: Sequence[str] = (), base: str = "http://localhost:8000", ready: bool = True, **asked: Any
) -> Iterator[TestClient]:
    names = ["tiny", "second"]
    models = [service.Model(name, lambda each=each: each) for name, each in zip(names, predictors, strict=False)]
    config = ServeConfig(models=("tiny",), **asked)
    served = service.Service(config, models)
    door = access.Access(config.host, hosts=config.hosts, origins=config.cors, tokens=tokens)
    with TestClient(app.create(served, door), base_url=base) as client:
        client.service = served  # pyright: ignore[reportAttributeAccessIssue]
        if ready:
            until(lambda: client.get("/health").status_code == 200)
        yield client


def until(true: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{i}.png", image)) for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with serving(predictor) as client:
        yield client


# --- Answers


def test_answers_are_those_of_bit_predict(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.safetensors"
    weights.save(model, tiny())
    photos = [tmp_path / f"{i}.png" for i in range(3)]
    for i, photo in enumerate(photos):
        photo.write_bytes(png(i))
    asked = ["--format", "jsonl", "--probabilities", "--device", "cpu", "--precision", "fp32", "--batch-size", "1"]
    assert cli.main(["predict", str(model), *map(str, photos), "--top-k", "4", *asked]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for photo, line in zip(photos, expected, strict=True):
        line["image"] = photo.name
        sent = client.post("/predict?top_k=4&probabilities=true", files={"x": (photo.name, photo.read_bytes())})
        assert sent.status_code == 200
        assert sent.json() == {"model": "tiny", "predictions": [line]}
        raw = client.post("/predict?top_k=4&probabilities=true", content=photo.read_bytes())
        assert raw.json()["predictions"] == [line | {"image": "image"}]
    together = client.post("/predict", files=form(*map(png, range(3)))).json()["predictions"]
    assert [answer["image"] for answer in together] == ["0.png", "1.png", "2.png"]
    for answer, line in zip(together, expected, strict=True):
        assert answer["label"] == line["label"]
        assert answer["probability"] == pytest.approx(line["probability"], abs=TOLERANCE)
        assert len(answer["top"]) == 5
    assert expected[0]["probabilities"].keys() >= {"crane #2", "crane #3"}
    everything = client.post("/predict?top_k=6", content=png(0)).json()["predictions"][0]["top"]
    cranes = [one["class"] for one in everything if one["label"] == "crane"]
    assert sorted(cranes) == ["crane #2", "crane #3"] and all(
        "class" not in one for one in everything if one["label"] != "crane"
    )
    for one in everything:  # by which it can be asked for
        assert (
            client.post("/explain", params={"label": one.get("class", one["label"])}, content=png(0)).status_code == 200
        )


def test_clients_who_come_together_are_computed_together_and_none_gets_anothers_answer(predictor: Predictor) -> None:
    gated = Gated(predictor)
    images = [png(i) for i in range(12)]
    expected = [answer.probability for answer in predictor.predict(images, batch_size=1)]
    assert len({round(each or 0, 4) for each in expected}) == 12  # so that a mix-up is seen
    with serving(gated) as client, ThreadPoolExecutor(12) as pool:

        def ask(i: int) -> Any:
            return client.post("/predict", files={"image": (f"mine {i}", images[i])}).json()["predictions"][0]

        gated.open.clear()
        first = pool.submit(ask, 0)
        until(lambda: gated.sizes == [1])
        others = [pool.submit(ask, i) for i in range(1, 12)]
        queue = next(iter(client.service.models.values()))._queue  # pyright: ignore[reportAttributeAccessIssue]
        until(lambda: len(queue) == 11)
        gated.open.set()
        answers = [each.result() for each in (first, *others)]
        assert gated.sizes == [1, 11]
        for i, answer in enumerate(answers):
            assert answer["image"] == f"mine {i}"
            assert answer["probability"] == pytest.approx(expected[i], abs=TOLERANCE)
        text = client.get("/metrics").text
    assert 'bit_batch_size_bucket{le="8.0",model="tiny"} 1.0' in text
    assert 'bit_batch_size_bucket{le="16.0",model="tiny"} 2.0' in text
    assert 'bit_batch_size_sum{model="tiny"} 12.0' in text
    assert 'bit_wait_seconds_count{model="tiny"} 12.0' in text
    assert 'bit_images_total{model="tiny",outcome="answered"} 12.0' in text


def test_several_models_by_name(predictor: Predictor) -> None:
    other = Predictor(tiny(1), device="cpu", precision="fp32")
    with serving(predictor, other) as client:
        for name, each in (("tiny", predictor), ("second", other)):
            answer = client.post(f"/predict?model={name}", content=png(3)).json()
            assert answer["model"] == name
            assert answer["predictions"][0]["probability"] == each.predict(png(3))[0].probability
        assert client.post("/predict", content=png(3)).json()["model"] == "tiny"
        refused = client.post("/predict?model=third", content=png(3))
        assert refused.status_code == 404 and "tiny, second" in refused.json()["error"]
        shown = client.get("/models").json()
        assert [model["name"] for model in shown["models"]] == ["tiny", "second"]
        assert shown["models"][0] == {
            "name": "tiny",
            "task": "classification",
            "ready": True,
            "classes": list(NAMES),
            "multi_label": False,
            "image_size": SIZE,
        }


def test_a_detector_answers_with_boxes_beside_a_classifier(predictor: Predictor) -> None:
    finder = ObjectFinder(network_makers.tiny_detector(3), device="cpu", precision="fp32")
    finder.thresholds[:] = 0.98
    images = [png(0), b"no image", png(1)]
    with serving(predictor, finder) as client:
        both = client.get("/models").json()["models"]
        assert [one["task"] for one in both] == ["classification", "detection"]
        assert (
            both[1]["classes"] == ["a", "b", "c"] and both[1]["thresholds"] == [0.98] * 3 and not both[1]["multi_label"]
        )
        answer = client.post("/predict?model=second&threshold=0.2", files=form(*images)).json()
        bad = answer["predictions"][1]
        assert bad["image"] == "1.png" and bad["error"] and "objects" not in bad
        for got, image in ((answer["predictions"][0], images[0]), (answer["predictions"][2], images[2])):
            wanted = finder.find([image])[0].record(0.2)
            assert (got["width"], got["height"]) == (50, 40) and len(got["objects"]) == len(wanted["objects"]) > 5
            assert all(one["score"] >= 0.2 and len(one["box"]) == 4 for one in got["objects"])
            np.testing.assert_allclose(
                [one["score"] for one in got["objects"]], [one["score"] for one in wanted["objects"]], atol=2e-4
            )
        few = client.post("/predict?model=second", files=form(images[0])).json()["predictions"][0]["objects"]
        assert 0 < len(few) < len(answer["predictions"][0]["objects"]) and all(one["score"] >= 0.98 for one in few)
        for asked, words in (
            ("model=second&top_k=2", "top_k has no effect: second is a detector"),
            ("model=second&probabilities=true", "probabilities has no effect"),
            ("threshold=0.5", "threshold has no effect: tiny is a classifier"),
            ("model=second&threshold=2", "threshold"),
        ):
            refused = client.post(f"/predict?{asked}", files=form(images[0]))
            assert refused.status_code == 422 and words in refused.json()["error"], asked
        refused = client.post("/explain?model=second", files=form(images[0]))
        assert (refused.status_code, refused.json()["code"]) == (422, "unexplained")


def test_bit_serve_takes_a_detector_for_what_it_is(tmp_path: Path) -> None:
    made = network_makers.tiny_detector(2)
    weights.save_detector(tmp_path / "model.safetensors", made)
    (tmp_path / "model.onnx").write_bytes(graph.onnx_detector(made))
    weights.save(tmp_path / "plain.safetensors", tiny())
    config = ServeConfig(models=("x",), device="cpu", precision="fp32")
    for name in ("model.safetensors", "model.onnx"):
        assert isinstance(job.loaded(str(tmp_path / name), config), ObjectFinder)
        found = job.loaded(str(tmp_path / name), ServeConfig(models=("x",), backend="openvino", precision="fp32"))
        assert isinstance(found, ObjectFinder) and isinstance(found._backend, OpenVinoDetector)
    assert isinstance(job.loaded(str(tmp_path / "plain.safetensors"), config), Predictor)
    with pytest.raises(ConfigError, match="is a detector"):
        job.loaded(str(tmp_path / "model.onnx"), ServeConfig(models=("x",), backend="fastest"))


def test_multi_label_models_say_which_classes_they_give() -> None:
    predictor = Predictor(
        tiny(multi_label=True, thresholds=(0.0, 1.0, 0.0, 1.0, 1.0, 1.0)), device="cpu", precision="fp32"
    )
    with serving(predictor) as client:
        answer = client.post("/predict", content=png(0)).json()["predictions"][0]
        (expected,) = predictor.predict(png(0))
        assert answer["labels"] == expected.labels
        assert set(answer["labels"]) == {"ant", "crane"}
        assert client.get("/models").json()["models"][0]["thresholds"] == [0, 1, 0, 1, 1, 1]


def test_explanations_are_those_of_the_predictor(client: TestClient, predictor: Predictor) -> None:
    for asked, label, against in (
        ("", None, None),
        ("?label=größe", "größe", None),
        ("?label=ant&against=eel", "ant", "eel"),
    ):
        sent = client.post(f"/explain{asked}", files=form(png(1)))
        assert sent.status_code == 200, sent.text
        answer, expected = sent.json(), predictor.explain(png(1), label, against)
        assert answer["label"] == expected.label and answer.get("against") == against and answer["exact"]
        assert answer["logit"] == pytest.approx(expected.logit, rel=1e-5)
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"]))))
        np.testing.assert_array_equal(drawn, expected.on(np.asarray(Image.open(io.BytesIO(png(1))))))
    large = io.BytesIO()
    Image.new("RGB", (2000, 500)).save(large, "JPEG")
    drawn = client.post("/explain?label=crane%20%233", content=large.getvalue()).json()["png"]
    assert Image.open(io.BytesIO(base64.b64decode(drawn))).size == (448, 112)
    for asked, content, said in (
        ("?label=gnu", png(0), "no class 'gnu'"),
        ("?label=crane", png(0), "several classes of that name: crane #2, crane #3"),
        ("?top_k=3", png(0), "no option 'top_k'"),
        ("", b"nothing", "not in an image format"),
    ):
        refused = client.post(f"/explain{asked}", content=content)
        assert refused.status_code == 422 and said in refused.json()["error"]
    assert client.post("/explain", files=form(png(0), png(1))).status_code == 413


# --- Images that are bad


def test_a_bad_image_costs_no_other_its_answer(client: TestClient) -> None:
    sent = client.post("/predict", files=form(png(0), b"nothing", png(1)[:60], b"", png(2)))
    assert sent.status_code == 200
    answers = sent.json()["predictions"]
    assert ["error" in answer for answer in answers] == [False, True, True, True, False]
    assert answers[1]["error"] == "it is not in an image format that is read here"
    assert "truncated" in answers[2]["error"]
    for answer, seed in ((answers[0], 0), (answers[4], 2)):
        alone = client.post("/predict", content=png(seed)).json()["predictions"][0]
        assert answer["probability"] == pytest.approx(alone["probability"], abs=TOLERANCE)
    refused = client.post("/predict", files=form(b"nothing", b"more"))
    assert refused.status_code == 422 and len(refused.json()["predictions"]) == 2
    assert refused.json()["code"] == "unreadable"
    text = client.get("/metrics").text
    assert 'bit_images_total{model="tiny",outcome="unreadable"}' in text


def test_an_image_that_breaks_the_model_costs_no_other_client_the_answer(predictor: Predictor) -> None:
    class Fragile(Gated):
        def answer(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Prediction]:
            answers = super().answer(images, names)
            if "bad" in names:
                raise WeightsError("not finite")
            return answers

    fragile = Fragile(predictor)
    with serving(fragile) as client, ThreadPoolExecutor(4) as pool:

        def ask(name: str) -> Any:
            return client.post("/predict", files={"image": (name, png(len(name)))})

        fragile.open.clear()
        first = pool.submit(ask, "first")
        until(lambda: fragile.sizes == [1])
        others = [pool.submit(ask, name) for name in ("bad", "good one", "another")]
        queue = client.service.models["tiny"]._queue  # pyright: ignore[reportAttributeAccessIssue]
        until(lambda: len(queue) == 3)
        fragile.open.set()
        bad, good, another = (each.result() for each in others)
        assert first.result().status_code == 200
        assert bad.status_code == 500 and bad.json()["code"] == "model_failed"
        assert "finite" not in bad.text  # what is wrong inside is for the log
        assert good.status_code == another.status_code == 200
        assert good.json()["predictions"][0]["probability"] == predictor.predict(png(8))[0].probability
        assert ask("bad").status_code == 500
        assert client.get("/health").status_code == 503  # the last thing it did was to fail
        assert ask("good one").status_code == 200
        assert client.get("/health").status_code == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_what_is_too_much_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, job._STRICTER)
    refused = client.post("/predict", content=bomb(30_000, 30_000))
    assert refused.status_code == 422 and "30,000 x 30,000; 100 million" in refused.json()["error"]
    monkeypatch.setenv(limits.VARIABLE, "image_bytes=300,request_bytes=5000")
    sent = client.post("/predict", files=form(png(0), bytes(301)))
    assert sent.json()["predictions"][1]["error"] == "it has more than 300 bytes"
    assert client.post("/predict", content=bytes(5001)).status_code == 413  # by what it says of itself

    received = 0

    async def endless() -> dict[str, Any]:
        nonlocal received
        received += 1
        assert received < 100, "it is read on and on"
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    request = Request({"type": "http", "headers": []}, endless)
    with pytest.raises(refusals.Refusal) as found:
        asyncio.run(requests.read(request, at_most=1, take=lambda more: None))
    assert found.value.status == 413 and received == 6
    monkeypatch.setenv(limits.VARIABLE, "requests_bytes=100")
    busy = client.post("/predict", content=bytes(101))
    assert busy.status_code == 429 and int(busy.headers["retry-after"]) >= 1
    monkeypatch.delenv(limits.VARIABLE)
    many = client.post("/predict", files=form(*[png(0)] * 65))
    assert many.status_code == 413 and "64 images" in many.json()["error"]
    assert client.service._bytes == client.service._images == 0  # pyright: ignore[reportAttributeAccessIssue]


CUT = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n' + png(0) + b"\r\n--x\r\n"


@pytest.mark.parametrize(
    ("status", "said", "body", "headers"),
    [
        (400, "empty", b"", {}),
        (415, "compressed", png(0), {"content-encoding": "gzip"}),
        (415, "not application/json", b'{"url": "http://localhost/a.png"}', {"content-type": "application/json"}),
        (415, "not text/plain", b"/etc/passwd", {"content-type": "text/plain"}),
        (422, "not in an image format", b"/etc/passwd", {}),
        (422, "not in an image format", b"file:///etc/passwd", {"content-type": "image/png"}),
        (400, "boundary", png(0), {"content-type": "multipart/form-data"}),
        (400, "cannot be read", png(0), {"content-type": "multipart/form-data; boundary=x"}),
        (400, "cut off", CUT, {"content-type": "multipart/form-data; boundary=x"}),
        (400, "no file", b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}),
        (
            400,
            "not a file",
            b'--x\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--x--\r\n',
            {"content-type": "multipart/form-data; boundary=x"},
        ),
    ],
)
def test_requests_that_are_not_images(
    client: TestClient, status: int, said: str, body: bytes, headers: dict[str, str]
) -> None:
    refused = client.post("/predict", content=body, headers=headers)
    assert refused.status_code == status
    assert said in refused.json()["error"]
    assert refused.json()["request_id"] == refused.headers["x-request-id"]


def test_options_and_addresses(client: TestClient) -> None:
    for query, said in (
        ("topk=3", "no option 'topk'"),
        ("top_k=0", "top_k"),
        ("top_k=x", "top_k"),
        ("probabilities=7", "prob"),
        ("top_k=1&top_k=2", "'top_k' is given 2 times"),
    ):
        refused = client.post(f"/predict?{query}", content=png(0))
        assert refused.status_code == 422 and said in refused.json()["error"], query
    assert len(client.post("/predict?top_k=2", content=png(0)).json()["predictions"][0]["top"]) == 2
    assert len(client.post("/predict?top_k=1000000", content=png(0)).json()["predictions"][0]["top"]) == len(NAMES)
    for path in ("/../etc/passwd", "/%2e%2e/etc/passwd", "/static/../app.py", "/predict/", "/docs", "/redoc"):
        missing = client.get(path)
        assert missing.status_code == 404 and missing.json()["code"] == "not_found", path
    wrong = client.get("/predict")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    names = ["../../etc/passwd", "<script>alert(1)</script>", "x" * 3000, "größe.png"]
    answers = client.post("/predict", files=[("i", (name, png(0))) for name in names]).json()["predictions"]
    assert [answer["image"] for answer in answers] == [name[:255] for name in names]


# --- How much at a time


def test_beyond_the_cap_clients_are_told_when_to_come_back(predictor: Predictor) -> None:
    gated = Gated(predictor)
    with serving(gated, max_waiting=3, max_images=3) as client, ThreadPoolExecutor(2) as pool:
        gated.open.clear()
        first = pool.submit(client.post, "/predict", content=png(0))
        until(lambda: gated.sizes == [1])
        second = pool.submit(client.post, "/predict", files=form(png(1), png(2)))
        until(lambda: "bit_images_under_way 3.0" in client.get("/metrics").text)
        refused = client.post("/predict", content=png(3))
        assert refused.status_code == 429 and refused.json()["code"] == "busy"
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        gated.open.set()
        assert first.result().status_code == second.result().status_code == 200
        assert client.post("/predict", content=png(3)).status_code == 200
        text = client.get("/metrics").text
        assert 'bit_refusals_total{reason="busy"} 1.0' in text
        assert "bit_images_under_way 0.0" in text


def test_answers_that_take_too_long_are_given_up(predictor: Predictor) -> None:
    gated = Gated(predictor)
    with serving(gated, timeout="0.3s") as client, ThreadPoolExecutor(2) as pool:
        gated.open.clear()
        first = pool.submit(client.post, "/predict", content=png(0))
        while not gated.sizes and not first.done():
            time.sleep(0.001)  # or both could be one batch
        second = pool.submit(client.post, "/predict", content=png(1))
        assert first.result().status_code == second.result().status_code == 503
        assert first.result().json()["code"] == "too_slow" and int(first.result().headers["retry-after"]) >= 1
        gated.open.set()
        assert client.post("/predict", content=png(0)).status_code == 200
        assert sum(gated.sizes) == 2  # the one that was being computed, and the last; nobody waited for the other


def test_who_leaves_is_not_computed(predictor: Predictor) -> None:
    gated = Gated(predictor)
    served = service.Service(ServeConfig(models=("tiny",)), [service.Model("tiny", lambda: gated)])  # pyright: ignore
    application = app.create(served, access.Access("127.0.0.1"))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }

    async def ask(left: asyncio.Event) -> None:
        body = iter([{"type": "http.request", "body": png(0), "more_body": False}])

        async def receive() -> Any:
            for message in body:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        await application({**scope, "state": {}}, receive, send)

    async def story() -> None:
        async with served.running(lambda: None):
            while not served.ready:
                await asyncio.sleep(0.01)
            gated.open.clear()
            stays, leaves = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(ask(stays))
            while gated.sizes != [1]:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(ask(leaves))
            queue = served.models["tiny"]._queue
            assert queue is not None
            while len(queue) != 1:
                await asyncio.sleep(0.01)
            leaves.set()
            await second
            assert len(queue) == 0
            gated.open.set()
            await first
        assert gated.sizes == [1]

    asyncio.run(story())


# --- Ready or not


def test_ready_is_who_has_loaded_and_answered(predictor: Predictor) -> None:
    go = threading.Event()

    class Slow(Gated):
        def answer(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Prediction]:
            assert go.wait(30)
            return super().answer(images, names)

    with serving(Slow(predictor), ready=False) as client:
        assert client.get("/live").json() == {"status": "live"}
        for _ in range(2):
            health = client.get("/health")
            assert health.status_code == 503 and health.json() == {"status": "not ready", "models": {"tiny": False}}
        refused = client.post("/predict", content=png(0))
        assert refused.status_code == 503 and refused.json()["code"] == "loading" and refused.headers["retry-after"]
        assert client.get("/models").json()["models"] == [{"name": "tiny", "ready": False}]
        assert "bit_ready 0.0" in client.get("/metrics").text
        go.set()
        until(lambda: client.get("/health").status_code == 200)
        assert "bit_ready 1.0" in client.get("/metrics").text


def test_a_model_that_cannot_be_loaded_ends_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    for model, said in (
        (tmp_path / "model.safetensors", "model.safetensors"),
        (tmp_path / "run", "has no model.safetensors yet: it has not finished"),
        (tmp_path / "nowhere", "There is no file or folder"),
    ):
        assert cli.main(["serve", str(model), "--port", "0"]) == 2
        out, err = capsys.readouterr()
        assert said in err and out == "", "no address is shown that will never answer"


def test_a_model_without_classes_is_not_served(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights.save(tmp_path / "model.safetensors", ResNetV2((1, 1, 1, 1), 1, 0))
    assert cli.main(["serve", str(tmp_path / "model.safetensors"), "--port", "0", "--device", "cpu"]) == 2
    assert "has no classes" in capsys.readouterr().err


# --- Who may ask

TOKEN = "a-token-of-some-length"


def test_with_a_token_nothing_but_the_page_and_health_is_open(predictor: Predictor) -> None:
    with serving(predictor, tokens=["another-token-for-later", TOKEN]) as client:
        for path in ("/health", "/live", "/"):
            assert client.get(path).status_code == 200
        for path in ("/models", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200, path
        for wrong in (
            "",
            TOKEN,
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer ",
            "Bearer größe",
        ):
            refused = client.post("/predict", content=png(0), headers={"Authorization": wrong.encode()})
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer", wrong
            assert refused.json()["code"] == "token"
        for token in (TOKEN, "another-token-for-later"):
            assert (
                client.post("/predict", content=png(0), headers={"Authorization": f"bearer {token}"}).status_code == 200
            )
        schema = client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
        locked = {path for path, each in schema["paths"].items() if "security" in next(iter(each.values()))}
        assert locked == {"/predict", "/explain", "/models", "/metrics"}
        assert client.service._bytes == 0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("asked", "host", "status"),
    [
        ({}, "localhost:8000", 200),
        ({}, "127.0.0.1", 200),
        ({}, "[::1]:8000", 200),
        ({}, "LOCALHOST.", 200),
        ({}, "evil.example", 421),
        ({}, "localhost.evil.example", 421),
        ({}, "", 421),
        ({}, "[", 421),
        ({"hosts": ("photos.example",)}, "photos.example:443", 200),
        ({"host": "0.0.0.0"}, "any.example", 200),
        ({"host": "0.0.0.0", "hosts": ("photos.example",)}, "any.example", 421),
    ],
)
def test_names_of_the_host(predictor: Predictor, asked: dict[str, Any], host: str, status: int) -> None:
    with serving(predictor, ready=False, **asked) as client:
        assert client.get("/live", headers={"host": host}).status_code == status


def test_pages_of_others(predictor: Predictor) -> None:
    elsewhere, own = {"origin": "https://evil.example"}, {"origin": "http://localhost:8000"}
    with serving(predictor) as client:
        assert client.post("/predict", content=png(0), headers=elsewhere).status_code == 403
        for origin in ("null", "http://[", ""):
            assert client.post("/predict", content=png(0), headers={"origin": origin}).status_code == 403
        sent = client.post("/predict", content=png(0), headers=own)
        assert sent.status_code == 200 and "access-control-allow-origin" not in sent.headers
    with serving(predictor, cors=("https://good.example",), tokens=[TOKEN]) as client:
        asks = {"origin": "https://good.example", "access-control-request-method": "POST"}
        allowed = client.options("/predict", headers=asks)  # which browsers send without the token
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://good.example"
        refused = client.post("/predict", content=png(0), headers={"origin": "https://good.example"})
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers  # its page may read why
        assert client.options("/predict", headers=asks | elsewhere).status_code == 400


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(models=("m",))
    monkeypatch.delenv(job.TOKEN, raising=False)
    assert job._tokens(config) == ()
    monkeypatch.setenv(job.TOKEN, TOKEN)
    assert job._tokens(config) == [TOKEN]
    file = tmp_path / "tokens"
    file.write_text(f"\n{TOKEN}-one \n{TOKEN}-two\n")
    asked = ServeConfig(models=("m",), token_file=str(file))
    assert job._tokens(asked) == [f"{TOKEN}-one", f"{TOKEN}-two"]
    for wrong, said in (("", "holds no token"), ("short", "too short"), ("größe" * 5, "odd characters")):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=said):
            job._tokens(asked)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        job._tokens(ServeConfig(models=("m",), token_file=str(tmp_path / "missing")))


# --- The log, the page, the schema


def test_the_log_tells_of_requests_and_not_of_images(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    with log.on_standard_error():
        client.post("/predict", files={"f": ("secret-name.png", png(0))}, headers={"x-request-id": "mine-7"})
        client.post("/predict", content=b"secret", headers={"x-request-id": 'forged"\n{', "host": "localhost"})
        client.get("/health")
    text = capsys.readouterr().err
    first, second = map(json.loads, text.splitlines())
    assert "secret" not in text and "forged" not in text
    assert first["request_id"] == "mine-7" and first["status"] == 200 and first["images"] == 1
    assert first["event"] == "request" and first["route"] == "/predict" and first["bytes"] == len(png(0))
    assert (
        second["status"] == 422
        and second["refused"] == "unreadable"
        and re.fullmatch(r"[0-9a-f]{16}", second["request_id"])
    )


def test_the_page_needs_nobody_else(client: TestClient) -> None:
    sent = client.get("/")
    assert sent.headers["content-type"] == "text/html; charset=utf-8"
    policy = sent.headers["content-security-policy"]
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", sent.text, flags=re.S)
        assert f"'{page._hash(inline)}'" in policy and "unsafe" not in policy
    assert not re.search(r"(src|href|url)\W{1,3}(https?:)?//", sent.text)
    assert sent.headers["x-content-type-options"] == "nosniff" and sent.headers["cache-control"] == "no-store"


def test_the_schema_names_every_answer(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/explain", "/models", "/metrics", "/health", "/live"}
    predict = schema["paths"]["/predict"]["post"]
    assert "security" not in predict
    assert {"multipart/form-data", "application/octet-stream"} < set(predict["requestBody"]["content"])
    assert set(predict["responses"]) == {"200", *["400", "401", "404", "408", "413", "415", "422", "429", "500", "503"]}


# --- Connections


@contextlib.contextmanager
def listening(predictor: Any, *, connections: int = 20, timeout: str = "1.2s") -> Iterator[tuple[str, int]]:
    """A server at a port of its own, in a thread."""
    served = service.Service(ServeConfig(models=("tiny",), timeout=timeout), [service.Model("tiny", lambda: predictor)])
    bound = server.listen("127.0.0.1", 0)
    running = server.Server(
        app.create(served, access.Access("127.0.0.1")),
        timeout=float(timeout[:-1]),
        connections=connections,
        metrics=served.metrics,
    )
    thread = threading.Thread(target=running.run, args=(bound,))
    thread.start()
    until(lambda: served.ready and running.started)
    try:
        yield bound.getsockname()
    finally:
        running.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_no_answer_waits_for_an_acknowledgement() -> None:
    """Nagle's algorithm and delayed acknowledgements together make every answer on a connection that stays open 40 ms later."""
    with contextlib.closing(server.listen("127.0.0.1", 0)) as bound:
        bound.setblocking(True)
        with contextlib.closing(socket.create_connection(bound.getsockname())):
            connection, _ = bound.accept()
            with contextlib.closing(connection):
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection: the head of an answer and its body may come apart."""
    pieces: list[bytes] = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def exchange(place: tuple[str, int], *pieces: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with socket.create_connection(place, timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return received(connection)


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


def whole(image: bytes, *headers: bytes) -> bytes:
    return (
        HEAD + b"Content-Length: %d\r\n" % len(image) + b"".join(each + b"\r\n" for each in headers) + b"\r\n" + image
    )


def test_slow_and_broken_clients_are_let_go_and_the_others_are_answered(predictor: Predictor) -> None:
    with listening(predictor) as place, ThreadPoolExecutor(8) as pool:
        slow = {
            "no request": pool.submit(exchange, place),
            "half a header": pool.submit(exchange, place, HEAD[:-4]),
            "half a body": pool.submit(exchange, place, whole(png(0))[:-7]),
            "a request, and then nothing": pool.submit(exchange, place, whole(png(0))),
            "garbage": pool.submit(exchange, place, b"\x16\x03\x01\x02\x00\r\n\r\n"),
            "a huge header": pool.submit(exchange, place, HEAD + b"X: " + b"y" * 200_000),
            "two lengths": pool.submit(exchange, place, HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
        }
        assert b" 200 OK" in exchange(place, whole(png(1), b"Connection: close"))
        answers = {name: each.result() for name, each in slow.items()}
    assert answers["no request"] == answers["half a header"] == b""
    assert b" 408 " in answers["half a body"] and b"slow_client" in answers["half a body"]
    assert b" 200 OK" in answers["a request, and then nothing"]
    for name in ("garbage", "a huge header", "two lengths"):
        assert b" 400 " in answers[name] or answers[name] == b"", name  # a reset may overtake the answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nno length\r\n",
    ],
    ids=["no request", "two lengths", "no chunk"],
)
def test_what_is_no_http_is_refused_as_everything_else(predictor: Predictor, sent: bytes) -> None:
    with listening(predictor) as place:
        head, _, body = exchange(place, sent).partition(b"\r\n\r\n")
        problem = json.loads(body)
        assert b" 400 " in head and b"application/json" in head and b"Content-Length: %d\r\n" % len(body) in head
        assert sorted(problem) == ["code", "error", "request_id"] and problem["code"] == "http"
        assert problem["request_id"].encode() in head
        assert b" 200 OK" in exchange(place, whole(png(1), b"Connection: close"))
        numbers = exchange(place, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").decode()
        assert 'bit_refusals_total{reason="http"} 1.0' in numbers
        assert 'bit_requests_total{route="none",status="400"} 1.0' in numbers


def test_a_body_that_breaks_off_is_answered_once(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    with listening(predictor) as place:
        for name in (b"localhost", b"elsewhere.example"):  # the second is refused before its body has come
            begun = HEAD.replace(b"localhost", name) + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
            with socket.create_connection(place, timeout=20) as connection:
                connection.sendall(begun)
                time.sleep(0.1)
                connection.sendall(b"no length\r\n")
                assert received(connection).count(b"HTTP/1.1 4") == 1
            # All at once, the application answers when the connection is closed already.
            assert exchange(place, begun + b"no length\r\n").count(b"HTTP/1.1 4") == 1
        assert b" 200 OK" in exchange(place, whole(png(1), b"Connection: close"))
    assert not [record for record in caplog.records if record.exc_info]


def test_more_connections_than_allowed_are_closed(predictor: Predictor) -> None:
    with listening(predictor, connections=2) as place:
        with socket.create_connection(place), socket.create_connection(place):
            assert exchange(place, b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        until(lambda: b"200 OK" in exchange(place, b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"))


def test_a_signal_lets_what_is_under_way_end_and_nothing_else_in(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, which SIGTERM finds in the middle of a request."""
    monkeypatch.delenv(job.TOKEN, raising=False)
    path = tmp_path / "insects" / "model.safetensors"
    path.parent.mkdir()
    weights.save(path, tiny())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        place = probe.getsockname()
    found: dict[str, Any] = {}

    def ready() -> bool:
        with contextlib.suppress(OSError):
            return b"200 OK" in exchange(place, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return False

    def visit() -> None:
        try:
            until(ready)
            with socket.create_connection(place, timeout=20) as connection:
                request = whole(png(0))
                connection.sendall(request[:-9])
                until(lambda: b"/predict" not in exchange(place, b"GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n"))
                time.sleep(0.1)  # the half of it that was sent has arrived
                os.kill(os.getpid(), signal.SIGTERM)

                def closed() -> bool:
                    try:
                        socket.create_connection(place, timeout=5).close()
                    except ConnectionRefusedError:
                        return True
                    return False

                until(closed)
                connection.sendall(request[-9:])
                found["answer"] = received(connection)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # also if something went wrong

    thread = threading.Thread(target=visit)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    status = cli.main(["serve", str(path.parent), "--port", str(place[1]), "--device", "cpu"])
    thread.join(20)
    assert status == 0
    assert b" 200 OK" in found["answer"] and b'"model":"insects"' in found["answer"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().out == f"insects at http://127.0.0.1:{place[1]}/ (Ctrl-C stops)\n"


# --- The command


def test_names_of_models(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "photos"
    run.mkdir(parents=True)
    given = [
        str(run),
        "bit-t-r26x1",
        f"{run.parent}/other/model.safetensors",
        "mine=bit-t-r26x1",
        "a/b/net.safetensors",
    ]
    assert list(service.named(given)) == ["photos", "bit-t-r26x1", "other", "mine", "net"]
    assert service.named(["mine=x=y"]) == {"mine": "x=y"}
    with pytest.raises(ConfigError, match="Two models are named photos"):
        service.named([str(run), "photos=bit-t-r26x1"])
    for wrong in ("", "x="):
        with pytest.raises(ConfigError, match="names no model"):
            service.named([wrong])


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bigtransfer.serve.app")
    monkeypatch.delattr("bigtransfer.serve.app")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ConfigError, match=r"needs the package fastapi: .*\[serve\]"):
        job.run(ServeConfig(models=("bit-t-r26x1",)))


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "bit-t-r26x1", "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_open_to_all_without_a_token_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(job.TOKEN, raising=False)
    monkeypatch.setattr(server.Server, "run", lambda self, bound: bound.close())
    monkeypatch.delenv(limits.VARIABLE, raising=False)
    assert cli.main(["serve", "bit-t-r26x1", "--port", "0"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert cli.main(["serve", "bit-t-r26x1", "--host", "0.0.0.0", "--port", "0"]) == 0
    assert "warning: everybody" in capsys.readouterr().err
    (tmp_path / "token").write_text(TOKEN)
    asked = ["--host", "0.0.0.0", "--port", "0", "--token-file", str(tmp_path / "token")]
    assert cli.main(["serve", "bit-t-r26x1", *asked]) == 0
    assert "warning" not in capsys.readouterr().err
    assert limits.VARIABLE not in os.environ
