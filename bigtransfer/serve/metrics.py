"""What Prometheus reads at /metrics. Labels are names of models, routes and reasons of ours, never anything that a client chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The numbers of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "bit_requests", "Requests, by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "bit_request_seconds",
            "From a request's first line to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.refusals = Counter("bit_refusals", "Requests refused, by reason.", ["reason"], registry=registry)
        self.images = Counter(
            "bit_images", "Images: answered, unreadable or failed.", ["model", "outcome"], registry=registry
        )
        self.decoding = Histogram(
            "bit_decode_seconds", "Decoding one image.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._sizes = Histogram("bit_batch_size", "Images of a batch.", ["model"], buckets=_IMAGES, registry=registry)
        self._computing = Histogram(
            "bit_batch_seconds", "Computing a batch.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._waits = Histogram(
            "bit_wait_seconds",
            "From decoded to the beginning of its batch.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waiting = Gauge("bit_waiting_images", "Decoded and waiting for a batch.", ["model"], registry=registry)
        self._under_way = Gauge("bit_images_under_way", "Taken and not answered yet.", registry=registry)
        self._ready = Gauge("bit_ready", "1 when every model has answered once, else 0.", registry=registry)

    def batches_of(self, model: str) -> Callable[[Sequence[float], float], None]:
        """The function that a model's queue tells of its batches."""
        sizes, computing, waits = (each.labels(model) for each in (self._sizes, self._computing, self._waits))

        def watch(waited: Sequence[float], took: float) -> None:
            sizes.observe(len(waited))
            computing.observe(took)
            for each in waited:
                waits.observe(each)

        return watch

    def follow(self, ready: Callable[[], bool], under_way: Callable[[], int]) -> None:
        """Ask these whenever the metrics are read."""
        self._ready.set_function(lambda: float(ready()))
        self._under_way.set_function(lambda: float(under_way()))

    def follow_queue(self, model: str, waiting: Callable[[], int]) -> None:
        """Ask that queue's length whenever the metrics are read."""
        self._waiting.labels(model).set_function(lambda: float(waiting()))

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
