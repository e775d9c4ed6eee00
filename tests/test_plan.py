"""What a run is expected to cost: counts against formulas, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_EACH_ARCHITECTURE, RECIPES, ROOT, load_recipe

from gan_dist.cli import main
from gan_dist.data.datasets import describe
from gan_dist.planning.count import Counter, Iteration, Operation, count_iteration
from gan_dist.planning.counts import counter_of
from gan_dist.planning.memory import estimate, memory_limit, moments
from gan_dist.planning.plan import GPUS, Expected, expect, pays_up_to
from gan_dist.settings.config import load_config
from gan_dist.settings.schema import Optimizer
from gan_dist.wiring.data import source_of

MLP = ["model.conditional=false", "model.z_dim=8", "model.g_widths=[32]", "model.d_widths=[16]", "data.hflip=true"]


@pytest.mark.parametrize("n_critic", [1, 3])
def test_operations_of_an_mlp_by_hand(n_critic: int) -> None:
    config = load_config(None, [*MLP, "loss.r1_gamma=0", "train.batch_size=40", f"train.n_critic={n_critic}"])
    found = count_iteration(config, describe(source_of(config.data)), share=10)
    # Products of (10, a) and (a, b), twice as many operations as factors; layers of G and D, the first one first.
    g, d = [8 * 32, 32 * 64], [64 * 16, 16 * 1]
    d_step = sum(g) + 2 * (sum(d) + sum(d) + d[1])  # G; D on both; gradients of weights, and of the inner activations
    g_step = sum(g) + sum(d) + sum(d) + sum(g) + g[1]  # G; D; back through D without its weights, and through G
    assert sum(operation.flops for operation in found.operations) == 2 * 10 * (n_critic * d_step + g_step)
    sizes = {"G": 4 * (sum(g) + 32 + 64), "D": 4 * (sum(d) + 16 + 1)}
    assert found.gradients == sizes
    assert found.persistent == 4 * sizes["G"] + 3 * sizes["D"] + 1797 * 64
    assert found.steps == {"G": 1, "D": n_critic}
    assert found.norms == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_counted(recipe: str) -> None:
    config = load_recipe(recipe, "train.batch_size=8")
    found = count_iteration(config, describe(source_of(config.data)), share=8)
    assert found.gradients["G"] > 0
    assert found.gradients["D"] > 0
    assert {operation.backward_of for operation in found.operations if operation.flops} == {"", "D", "G"}


@pytest.mark.parametrize("settings", [["model.name=mlp"], ["model.name=dcgan", "data.image_size=16"]])
def test_counts_between_two_that_were_counted(settings: list[str]) -> None:
    config = load_config(None, [*settings, "loss.r1_gamma=1"])
    info = describe(source_of(config.data))
    count = counter_of(config, info)
    between, counted = [count(share) for share in (64, 32, 8)][-1], count_iteration(config, info, 8)
    assert between.operations == counted.operations
    assert between.persistent == counted.persistent
    assert between.peak == pytest.approx(counted.peak, rel=0.2)


def test_batch_normalizations_are_counted_forward_and_backward() -> None:
    config = load_config(None, ["model.name=dcgan", "data.image_size=28", "loss.r1_gamma=0"])
    # Two in G, one in D. D step: G, D twice, and D's two backward passes; G step: G, D, and back through both.
    assert count_iteration(config, describe(source_of(config.data)), share=4).norms == (2 + 2 + 2) + (3 + 3)


def test_largest_sum_of_what_is_alive() -> None:
    with Counter() as counter:
        a = torch.empty(250, device="meta") + 1  # 1,000 bytes each, and two at once
        b = a * 2
        view = b.view(5, 50)
        del a, b
        c = view + 1
        assert counter.live == 2000
    assert counter.peak == 2000
    assert [operation.nbytes for operation in counter.operations[-2:]] == [2000, 2000], "a view moves nothing"
    del c


def test_seconds_by_hand() -> None:
    rates = replace(GPUS["h100"], matmul=1e9, traffic=1e6, start=1e-3, bandwidth=1e6, latency=0.0)
    operations = [
        Operation(2_000_000_000, 10, False, False, ""),
        Operation(0, 3_000_000, False, True, "D"),
        Operation(0, 0, False, False, ""),
    ]
    iteration = Iteration(operations, {"D": 1, "G": 1}, {"D": 1_000_000, "G": 0}, norms=0, persistent=5, peak=10)
    assert expect(iteration, 1, 8, rates) == Expected(1, 8, pytest.approx(2 + 3 + 0.001), 0.0, 15)
    assert expect(iteration, 4, 2, rates).wait == pytest.approx(1.5), "3/4 of it twice, in one bucket"
    halved = replace(iteration, operations=[replace(operation, half=True) for operation in operations])
    assert expect(halved, 4, 2, rates).compute == pytest.approx(2e9 / 989e12 + 3 + 2e-3, abs=2e-3)


def test_more_gpus_take_less_time_until_they_do_not_pay() -> None:
    config = load_config(None, [*MLP, "train.batch_size=64"])
    info = describe(source_of(config.data))
    slow = replace(GPUS["h100"], matmul=1e8, traffic=1e8, bandwidth=1e12, latency=0.0)
    count = counter_of(config, info)
    assert pays_up_to(config, info, slow, count) >= 16
    assert pays_up_to(config, info, replace(slow, latency=1.0), count) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "kept"),
    [
        ("Adam", {}, 2),
        ("AdamW", {"amsgrad": True}, 3),
        ("SGD", {}, 0),
        ("SGD", {"momentum": 0.9}, 1),
        ("RMSprop", {}, 1),
        ("Adafactor", {}, 0),
    ],
)
def test_moments_of_an_optimizer(name: str, arguments: dict[str, Any], kept: float) -> None:
    assert moments(Optimizer(name=name, args=arguments)) == kept


def test_limit_of_the_control_group_or_of_one_that_contains_it(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    for folder in (proc / "self", groups / "a/b", groups / "memory/c/d"):
        folder.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    assert memory_limit(groups, proc) == 8_192_000, "no control groups"
    (proc / "self/cgroup").write_text("4:cpu,memory:/c/d\n0::/a/b\n")
    (groups / "a/b/memory.max").write_text("max\n")
    (groups / "memory/c/d/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(groups, proc) == 8_192_000, "no limits"
    (groups / "a/memory.max").write_text("7000\n")
    assert memory_limit(groups, proc) == 7000
    (groups / "memory/c/memory.limit_in_bytes").write_text("6000\n")
    assert memory_limit(groups, proc) == 6000


@pytest.mark.parametrize("recipe", OF_EACH_ARCHITECTURE.values())
def test_coarse_memory_is_near_what_is_counted(recipe: str) -> None:
    config = load_recipe(recipe, "train.batch_size=64", "growth.batch_sizes=[]", "train.precision=fp32")
    info = describe(source_of(config.data))
    needs, counted = estimate(config, info, world_size=1), count_iteration(config, info, share=64)
    networks = sum(counted.gradients.values())
    assert needs.networks == pytest.approx(counted.persistent - needs.data + networks)
    assert 0.3 * counted.peak < needs.activations + networks < 3 * counted.peak


def test_command_prints_a_row_for_each_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpus", "1,8,64", "--gpu", "h100", *MLP]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[3:6]] == [["1", "64"], ["8", "8"], ["64", "1"]]
    assert any("do not pay" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--gpus", "3"], "train.batch_size=64 is the global batch and must divide by the 3 processes"),
        (["--gpus", "many"], "--gpus many: numbers of GPUs"),
        (["--gpu", "h1000"], "nearest: h100"),
        (["--bandwidth", "-1"], "--bandwidth -1.0: gigabytes per second, above 0"),
        (["train.kimgs=3"], "unknown setting train.kimgs"),
    ],
)
def test_bad_arguments_get_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "h100", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_half_precision_reaches_penalised_steps_but_in_fp16() -> None:
    """Those of fp16 stay in fp32, as second derivatives leave its range."""
    plain = [*MLP, "train.batch_size=40"]
    penalised = [*plain, "loss.r1_gamma=1", "loss.r2_gamma=1"]
    info = describe(source_of(load_config(None, plain).data))

    def flops(*settings: str) -> dict[bool, int]:
        operations = count_iteration(load_config(None, [*settings]), info, share=10).operations
        return {half: sum(o.flops for o in operations if o.half == half) for half in (True, False)}

    full = flops(*penalised)
    assert flops(*penalised, "train.precision=bf16") == {True: full[False], False: 0}
    fp16 = flops(*penalised, "train.precision=fp16")
    d = 2 * 20 * (64 * 16 + 16)  # D's pass on real and generated images
    assert fp16[False] > 4 * d, "that pass, its gradient, and both differentiated again"
    assert fp16[True] > 0


CIFAR10 = load_config(ROOT / "configs/r3gan_cifar10.yaml")


class Calls(Counter):
    """Keeps the names of all operations, and the sizes of convolutions' kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.kernels: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        self.names.append(name)
        if "convolution" in name:
            self.kernels.update(args[2 if name == "convolution_backward" else 1].shape[2:])
        return super().__torch_dispatch__(func, types, args, kwargs)


def _calls(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> Calls:
    calls = Calls()
    monkeypatch.setattr("gan_dist.planning.count.Counter", lambda: calls)
    count_iteration(
        replace(CIFAR10, model=replace(CIFAR10.model, **settings)), describe(source_of(CIFAR10.data)), share=64
    )
    return calls


@pytest.mark.slow
def test_calls_of_a_penalised_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """R3GAN for CIFAR-10, R1 and R2 included. torch's own second derivatives made 12,621 calls of it.

    Neither groups nor channels add a call, and no convolution has a kernel larger than its layer's.
    """
    _calls(monkeypatch, {})  # keys of random numbers are computed by the first iteration of a process only
    calls = _calls(monkeypatch, {})
    assert sum("convolution" in name for name in calls.names) < 400
    assert len(calls.names) < 2000
    assert calls.kernels == {1, 3}
    fewer_groups = {"g_args": {"group_size": 64}, "d_args": {"group_size": 64}}
    for settings in (fewer_groups, {"g_widths": [64] * 4, "d_widths": [64] * 4}):
        assert _calls(monkeypatch, settings).names == calls.names
