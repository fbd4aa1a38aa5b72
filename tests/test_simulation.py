"""The models of `simulation` against our network, collected figures and closed forms; and the order of images under restarts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from bigtransfer.catalog import ARCHITECTURES, Architecture
from bigtransfer.feed.order import LaneOrder
from bigtransfer.model import build
from simulation.assumptions import CLASSES, Disk, Failures, Links, Store
from simulation.checkpoints import best_interval, checkpoint, daly
from simulation.compute import all_reduce, compute, convolutions, forward_flops, step_time
from simulation.decoding import Decoding, simulate_decoding
from simulation.order import readers_per_run, replay
from simulation.own import measure_index
from simulation.reading import Input, simulate_input
from simulation.report.tables import crossing
from simulation.restarts import Job, simulate_job

R152X4 = ARCHITECTURES["r152x4"]

STEADY = Store(
    latency=0.0,
    latency_sigma=0.0,
    stream=1e6,
    stream_sigma=0.0,
    errors=0.0,
    straggle=0.0,
    requests=1e9,
    bandwidth=1e15,
    node_bandwidth=1e15,
    streams=1000,
)
"""A shard of 1 MB takes 1 s, always."""

PLAN = Input(nodes=2, lanes=4, batch=40, step=0.1, shard_images=100, image_bytes=1e4, aligned=True)
"""A lane uses up its shard of 1 MB in 1 s."""


def test_flops_and_parameters_are_those_of_the_network() -> None:
    arch = Architecture(units=(1, 2, 1, 1))
    network = build(arch, 0)
    counted = 0

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        counted += 2 * output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 45, 45))  # odd sides are halved upwards
    assert forward_flops(arch, 45) == counted
    kernels = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Conv2d))
    assert sum(conv.weights for conv in convolutions(arch, 45)) == kernels


@pytest.mark.parametrize(
    ("name", "px", "images", "classes", "gflop", "rate"),
    [
        ("r50x1", 224, 512, 1000, 8.18, 11_099),
        ("r101x3", 224, 256, 21_843, 139, 1_108),
        ("r152x4", 224, 256, 21_843, 366, 448),
        ("r152x4", 480, 256, 21_843, 1_679, 98),
    ],
)
def test_collected_floors(name: str, px: int, images: int, classes: int, gflop: float, rate: float) -> None:
    """FLOPs counted by torch, and training speeds of an independent model of the same GPU."""
    arch = ARCHITECTURES[name]
    assert forward_flops(arch, px) / 1e9 == pytest.approx(gflop, rel=0.005)
    assert images / compute(arch, px, images, classes).total == pytest.approx(rate, rel=0.04)


def test_all_reduce_is_bound_by_the_slower_wire() -> None:
    links = Links(between=1e9, inside=10e9, share=1.0, latency=0.0, gpus=8)
    assert all_reduce(8e9, 1, links) == pytest.approx(2 * 7 / 8 * 0.8)
    assert all_reduce(8e9, 1000, links) == pytest.approx(2.0, rel=0.01)


def test_step_hides_the_network_behind_the_backward_pass() -> None:
    fast = step_time(R152X4, 4096, 8, Links(between=1e15, inside=1e15, latency=0.0))
    assert fast.exposed == pytest.approx(0.0, abs=1e-6)
    slow = step_time(R152X4, 4096, 8, Links(between=1e6))
    assert slow.exposed == pytest.approx(slow.network, rel=0.01)
    work = compute(R152X4, 224, 64)
    assert slow.seconds > slow.network + work.forward + work.update


@pytest.mark.parametrize(("step", "prefetch"), [(0.1, 0), (0.3, 0), (0.11, 1), (0.05, 1), (0.05, 2), (0.01, 4)])
def test_input_without_chance(step: float, prefetch: int) -> None:
    """A shard is asked for when its place in the cache is free, `prefetch` shards before it is used: if it comes too late, every
    prefetch + 1 shards take one reading and one shard's training."""
    read, used = 1.0, 10 * step
    share = 0.0 if read <= prefetch * used else 1 - (prefetch + 1) * used / (read + used)
    plan = dataclasses.replace(PLAN, step=step, prefetch=prefetch)
    result = simulate_input(plan, STEADY, blocks=200)
    assert result.waited == pytest.approx(share, abs=0.01)
    assert result.first_batch == pytest.approx(1.0)


def test_input_is_asked_for_when_the_first_image_ahead_is_decoded() -> None:
    plan = dataclasses.replace(PLAN, prefetch=0, ahead=40)  # 0.4 s of training before it is used
    assert simulate_input(plan, STEADY, blocks=200).waited == pytest.approx(0.6 / 1.6, abs=0.01)


def test_input_of_spread_lanes_waits_for_each_in_turn() -> None:
    plan = dataclasses.replace(PLAN, aligned=False, prefetch=0)
    assert simulate_input(plan, STEADY, blocks=200).waited == pytest.approx(4 / 5, abs=0.01)


@pytest.mark.parametrize("field", ["bandwidth", "node_bandwidth"])
def test_input_is_bound_by_bandwidth(field: str) -> None:
    plan = dataclasses.replace(PLAN, prefetch=3)
    assert plan.demand == pytest.approx(4e6)
    most = 1e6 if field == "bandwidth" else 0.5e6  # each of the two nodes
    store = dataclasses.replace(STEADY, stream=1e12, **{field: most})  # type: ignore[arg-type]
    result = simulate_input(plan, store, blocks=100)
    assert result.waited == pytest.approx(3 / 4, abs=0.02)
    assert result.first_batch == pytest.approx(4.0)


def test_input_of_several_caches_for_a_lane_is_fetched_by_each() -> None:
    shared = dataclasses.replace(PLAN, nodes=16)
    assert shared.readers == 16 and shared.demand == pytest.approx(4 * PLAN.demand)
    assert dataclasses.replace(shared, caches=8).demand == pytest.approx(8 * shared.demand)
    assert simulate_input(shared, STEADY, blocks=10).requests == 16 * 11  # blocks and what is prefetched


def test_failed_and_refused_requests_are_sent_again() -> None:
    store = dataclasses.replace(STEADY, errors=0.5, backoff=0.01)
    result = simulate_input(PLAN, store, blocks=300)
    assert result.requests == pytest.approx(2 * 4 * 301, rel=0.1)
    assert result.refused == 0
    many = dataclasses.replace(PLAN, lanes=400, batch=4000)
    crowded = simulate_input(many, dataclasses.replace(STEADY, requests=50.0), blocks=3)
    assert crowded.refused > 0 and crowded.first_batch > 400 / 50


def test_a_second_request_cuts_the_tail() -> None:
    store = dataclasses.replace(STEADY, straggle=0.01, slowness=50.0)
    plan = dataclasses.replace(PLAN, aligned=False, step=0.2)
    waits = [
        simulate_input(plan, dataclasses.replace(store, hedge=hedge), blocks=200).waited for hedge in (math.inf, 1.0)
    ]
    assert waits[0] > 0.2 and waits[1] < 0.01


@pytest.mark.parametrize(("workers", "share"), [(1, 0.9), (5, 0.5), (11, 0.0)])
def test_decoding_without_chance(workers: int, share: float) -> None:
    plan = Decoding(ranks=3, workers=workers, seconds=1.0, spread=0.0, step=0.1)
    assert simulate_decoding(plan) == pytest.approx(share, abs=0.01)


def test_decoding_waits_for_the_slowest_of_all_ranks() -> None:
    """Exponential times without a buffer: the step is the greatest of n, on average 1 + 1/2 + ... + 1/n."""
    step, ranks = 0.05, 100
    plan = Decoding(ranks=ranks, workers=1, ahead=1, seconds=1.0, spread=1.0, step=step)
    cycle = step / (1 - simulate_decoding(plan))
    assert cycle == pytest.approx(sum(1 / k for k in range(1, ranks + 1)), rel=0.02)


def test_best_interval_is_youngs_for_short_saves() -> None:
    assert best_interval(1.0, 1e6) == pytest.approx(math.sqrt(2 * 1e6), rel=0.01)
    best = best_interval(60.0, 3600.0)
    costs = [daly(best * factor, 60.0, 100.0, 3600.0) for factor in (0.9, 1.0, 1.1)]
    assert min(costs) == costs[1]


CALM = Failures(node=0.0, rack=0.0, slow=0.0)


@pytest.mark.parametrize("interval", [150.0, 600.0, 2400.0])
def test_restarts_take_as_long_as_daly_says(interval: float) -> None:
    """With spares for every failure; restarts and saves fail as well."""
    between, save, restart, work = 1800.0, 60.0, 300.0, 1e6
    job = Job(nodes=10, work=work, interval=interval, save=save, restart=lambda _: restart, spares=10**6)
    failures = dataclasses.replace(CALM, node=3600 / between / 10)
    seconds = np.mean([simulate_job(job, failures, seed=seed).seconds for seed in range(4)])
    assert seconds / work == pytest.approx(daly(interval, save, restart, between), rel=0.06)


def test_no_failures_cost_only_the_saves() -> None:
    job = Job(nodes=4, work=1000.0, interval=100.0, save=5.0, restart=lambda _: 1.0)
    result = simulate_job(job, CALM)
    assert result.seconds == pytest.approx(1000 + 10 * 5)  # one at the end, as the real job
    assert result.restarts == 0 and result.lost == 0 and result.down == 0


def test_no_job_ends_before_its_work_is_done() -> None:
    job = Job(nodes=128, work=1e5, interval=408.7766, save=4.7625, restart=lambda _: 400.0)
    failures = Failures(node=1.6e-3, slow=0.0)
    assert all(simulate_job(job, failures, seed=seed).goodput < 1 for seed in range(30))


def test_slow_nodes_slow_all() -> None:
    """Episodes begin at a constant rate and last equally long: none is under way for a share exp(-rate x length) of the time."""
    failures = dataclasses.replace(CALM, slow=0.1, slow_factor=2.0, slow_for=1800.0)
    job = Job(nodes=10, work=3e6, interval=1e5, save=0.0, restart=lambda _: 0.0)
    slow = -math.expm1(-0.5)
    assert simulate_job(job, failures).goodput == pytest.approx(1 - slow / 2, rel=0.03)


def test_fewer_nodes_or_waiting_for_a_repair() -> None:
    """One failure in the middle: three of four nodes go on, or all wait."""
    failures = dataclasses.replace(CALM, rack=1e-3, rack_nodes=1, repair=1e9)
    job = Job(nodes=4, work=1e6, interval=1e3, save=0.0, restart=lambda _: 10.0)
    fewer = simulate_job(job, failures)
    assert fewer.restarts >= 1 and 0.25 < fewer.goodput < 1
    repaired = dataclasses.replace(failures, repair=5000.0)
    waiting = simulate_job(dataclasses.replace(job, shrink=False), repaired)
    assert waiting.restarts >= 1
    assert waiting.down * waiting.seconds >= waiting.restarts * 5000.0
    assert waiting.seconds == pytest.approx(job.work + (waiting.down + waiting.lost) * waiting.seconds)


def test_checkpoint_counts_what_the_ranks_do() -> None:
    disk = Disk(node=1e9, whole=1e12, operations=1e3, sync=0.0)
    whole, sharded = (checkpoint(R152X4, 4, disk, sharded=sharded) for sharded in (False, True))
    size = 8 * R152X4.num_parameters(CLASSES)
    assert whole.bytes == size and whole.files == sharded.files == 32
    assert whole.save == pytest.approx(size / 4e9)
    assert sharded.load == pytest.approx(32 * 32 / 1e3 + size / 4e9)
    assert whole.load == pytest.approx(32 * 32 / 1e3 + 32 * size / 4e9)


class _Stateful:
    """What an order must not be: it goes on from its own last batch instead of from the step."""

    def __init__(self) -> None:
        self.next = 0

    def indices(self, step: int) -> np.ndarray:
        self.next += 1
        return np.arange((self.next - 1) * 64, self.next * 64) % 640


def test_every_image_once_an_epoch_whatever_fails() -> None:
    runs = np.arange(0, 64 * 40 + 1, 20)
    result = replay(lambda: LaneOrder(runs, 64, 7), 64 * 40, 64, epochs=3, mean_steps=2, keep=3, ranks=64, seed=1)
    assert result.restarts > 10 and result.repeated_steps > 0 and result.worlds[0] < 10 < 50 < result.worlds[1]
    assert result.wrong == 0
    broken = replay(_Stateful, 640, 64, epochs=3, mean_steps=2, keep=3, ranks=64, seed=1)
    assert broken.wrong > 0


def test_runs_are_read_by_one_part_where_there_are_fewer_parts_than_lanes() -> None:
    runs = np.arange(0, 512 * 200 + 1, 50)
    order = LaneOrder(runs, 512, 0)
    readers = [readers_per_run(order, runs, 512, parts) for parts in (1, 8, 512)]
    assert readers[0] == 1.0
    assert readers[1] < 1.05 < 4 < readers[2]


def test_crossing_is_found_in_either_direction() -> None:
    assert crossing(lambda x: x, 1.0, 100.0, (5.0, 200.0))[0] == pytest.approx(5.0, rel=0.05)
    assert crossing(lambda x: 1 / x, 1.0, 100.0, (0.1,))[0] == pytest.approx(10.0, rel=0.05)
    assert math.isnan(crossing(lambda x: x, 1.0, 100.0, (200.0,))[0])


def test_index_cost_is_measured() -> None:
    """The index of `bit shard` is mapped into memory; reading tar headers makes Python objects."""
    plain, indexed = (measure_index(200, indexed=indexed) for indexed in (False, True))
    assert 8 < plain.kept <= plain.peak
    assert indexed.peak < plain.peak / 5 and indexed.seconds < plain.seconds
