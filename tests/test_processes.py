"""Whole runs on several processes by the real command line: launchers, stops, lost peers, failures, evaluation."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Train, read_until, run_here, run_there, start_ranks
from launched import free_port
from PIL import Image
from safetensors.torch import load_file

from gan_dist.errors import ConfigError
from gan_dist.parallel.world import check_gpus

LAUNCH = sorted((ROOT / "launch").glob("*.yaml"))
TRAIN = [str(ROOT / "train.py"), *TINY]
pytestmark = pytest.mark.slow
GPU = torch.cuda.is_available()


def _launch(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_there(cwd, "-m", "accelerate.commands.launch", *arguments)


def _assert_close(a: Path, b: Path) -> None:
    """Two checkpoints of the same run in single precision."""
    for name in ("G", "D", "G_ema"):
        left, right = load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
        assert all((left[k] - right[k]).norm() < 1e-3 * right[k].norm() for k in right)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, without a launcher."""
    folder = tmp_path_factory.mktemp("plain")
    assert run_here(folder, "train", *TINY, "run.dir=run", "train.kimg=1").returncode == 0
    return folder / "run"


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu.yaml")],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_run_is_the_plain_one(launcher: str, plain: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *TRAIN, "run.dir=run", "train.kimg=1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for line in (
        "2 process(es) on 1 node(s), backend gloo, cpu, precision fp32",
        "global batch 32, 16 per process",
        "G has 5,664 parameters, D 2,433; each iteration all-reduces 32,388 bytes of gradients",
    ):
        assert result.stdout.count(line) == 1, "the main process alone talks"
    assert 4 * (5664 + 2433) == 32388
    _assert_close(tmp_path / "run/checkpoints/000000001024", plain / "checkpoints/000000001024")
    lines, expected = ((p / "metrics.jsonl").read_text().splitlines() for p in (tmp_path / "run", plain))
    assert json.loads(lines[0])["loss_D"] == pytest.approx(json.loads(expected[0])["loss_D"], rel=1e-3)
    assert len(lines) == len(expected)
    name = "samples/grid-000000.000.png"
    assert Image.open(tmp_path / "run" / name).tobytes() == Image.open(plain / name).tobytes()


@pytest.mark.parametrize("path", [path for path in LAUNCH if path.stem != "cpu"], ids=lambda path: path.stem)
def test_launch_file(path: Path, tmp_path: Path) -> None:
    """Each starts the processes it says, leaving the precision to the config; the test before has the one for CPUs."""
    case = path.stem
    script = [*TRAIN, "train.kimg=0.1", "run.dir=run"]
    script.remove("train.device=cpu")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    if case == "many_nodes":  # two launchers on this machine stand for two nodes
        port = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
        launchers = [[*command, *port, "--machine_rank", str(rank), *script] for rank in range(2)]
        if torch.cuda.device_count() == 1:
            pytest.skip("NCCL refuses two processes on one GPU")
    else:
        launchers = [[*command, *script]]
    processes = [
        subprocess.Popen(launcher, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for launcher in launchers
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert not any(process.returncode for process in processes), outputs
    world = {"one_gpu": 1, "many_nodes": 2, "one_node": torch.cuda.device_count() or os.cpu_count()}[case]
    nodes = 2 if case == "many_nodes" else 1
    assert f"{world} process(es) on {nodes} node(s), backend " in outputs[0][0]
    assert f", precision {'tf32' if GPU else 'fp32'}\n" in outputs[0][0]


def test_every_case_has_its_launch_file() -> None:
    assert {path.stem for path in LAUNCH} == {"cpu", "one_gpu", "one_node", "many_nodes"}


def test_several_processes_that_would_train_apart_are_refused(tmp_path: Path) -> None:
    """Accelerate's simple launcher starts one process, whatever number it is told."""
    result = _launch(["--cpu", "--num_processes", "2", *TRAIN, "run.dir=run"], tmp_path)
    assert result.returncode
    assert "several processes were asked for, but this process found a world size of 1" in result.stderr
    assert "accelerate launch --multi_gpu" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["train.batch_size=33"], "train.batch_size=33 is the global batch and must divide by the 2 processes"),
        (["train.batch_size=36", "train.micro_batch_size=4"], "train.micro_batch_size=4 must divide the batch of a"),
    ],
)
def test_uneven_batch_gets_one_line(settings: list[str], text: str, tmp_path: Path) -> None:
    processes = start_ranks(2, [*TRAIN, *settings, "run.dir=run"], tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert text in errors[0]
    assert "".join(errors).count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_get_one_line() -> None:
    check_gpus(4, 4)
    check_gpus(1, 8)
    for processes, gpus, text in [
        (
            2,
            1,
            "2 processes were started on this node, but each sees 1 GPU, and no two .* start 1 process per node, or ",
        ),
        (
            8,
            4,
            "8 processes were started on this node, but each sees 4 GPUs, .* start 4 processes per node, or ",
        ),
    ]:
        with pytest.raises(ConfigError, match=f"^{text}compute on CPUs with train.device=cpu$"):
            check_gpus(processes, gpus)


@pytest.mark.parametrize("killed", [0, 1])
def test_peer_of_a_killed_process_ends_and_names_it(killed: int, tmp_path: Path) -> None:
    processes = start_ranks(2, [*TRAIN, "train.kimg=100000", "train.precision=fp64", "run.dir=run"], tmp_path)
    read_until(processes[0], f"{random.randint(1, 8)}.0/100000 kimg")
    processes[killed].kill()
    survivor = processes[1 - killed]
    _, error = survivor.communicate(timeout=30)
    assert survivor.returncode == 1
    assert error.count("\n") == 1, error
    lost = f"rank 1 ({socket.gethostname()}, pid {processes[1].pid})" if killed == 1 else "rank 0"
    assert f"gan-dist: rank {1 - killed}: error: lost {lost}" in error
    processes[killed].communicate()


def test_process_that_is_killed_before_a_barrier_is_named(tmp_path: Path) -> None:
    """No communication is pending that would fail, so the other process notices it by the missing heartbeats."""
    script = """if True:
        import os, signal
        from gan_dist.parallel import peers
        from gan_dist.parallel import distributed
        peers.BEAT, peers.SILENCE = 0.1, 0.5
        dist = distributed.Distributed("fp32", cpu=True)
        dist.barrier()
        assert dist.from_main(lambda: dist.world_size) == 2
        if dist.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            dist.barrier()
        except Exception as error:
            print(dist.failure(error), flush=True)
            os._exit(1)
    """
    survivor, killed = start_ranks(2, ["-c", script], tmp_path)
    out, error = survivor.communicate(timeout=30)
    killed.communicate()
    assert survivor.returncode == 1, error
    assert out.startswith(f"lost rank 1 ({socket.gethostname()}, pid {killed.pid}): no heartbeat for")


def test_node_with_other_images_is_named(tmp_path: Path) -> None:
    """Two processes that take themselves for two nodes, each with a directory of its own; on one an image is broken."""
    for node in "01":
        (tmp_path / node / "images").mkdir(parents=True)
        for i in range(64):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / node / f"images/{i:02d}.png")
    (tmp_path / "1/images/40.png").write_bytes(b"torn")
    script = """if True:
        import os, sys
        from gan_dist import cli
        from gan_dist.parallel import peers
        peers.BEAT = 0.1
        os.chdir(os.environ["RANK"])
        sys.exit(cli.main(sys.argv[1:]))
    """
    settings = ["data.name=folder", "data.root=images", "data.image_size=8", "model.conditional=false"]
    command = ["-c", script, "train", *TINY, *settings, "run.dir=run"]
    processes = start_ranks(2, command, tmp_path, LOCAL_WORLD_SIZE="1", LOCAL_RANK="0", TORCH_CPP_LOG_LEVEL="ERROR")
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    where = (
        f"data.root=images on {socket.gethostname()}: the images differ from the main process's: pixels of 64 images, "
        "pixels or labels; 1 of 64 images cannot be read here"
    )
    assert errors[0] == f"gan-dist: rank 0: error: stopped, because rank 1 failed: {where}\n"
    assert errors[1] == f"gan-dist: rank 1: error: {where}\n"


def test_signal_to_one_process_stops_all_in_the_same_iteration(tmp_path: Path) -> None:
    processes = start_ranks(2, [*TRAIN, "train.kimg=100000", "run.dir=run"], tmp_path)
    read_until(processes[0], "3.0/100000 kimg")
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    launch = "accelerate launch --multi_gpu --num_processes 2"
    assert f"go on with: {launch} train.py run.dir=run resume=latest" in outputs[0][0]
    newest = max((tmp_path / "run/checkpoints").iterdir())
    assert f"stopped at {int(newest.name) / 1000:.1f} kimg" in outputs[0][0]


def test_signal_to_the_launcher_saves_and_another_number_of_processes_goes_on(train: Train, tmp_path: Path) -> None:
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, "-m", *launch, *TRAIN, "train.kimg=100000", "run.dir=run"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        read_until(launcher, "3.0/100000 kimg")
        launcher.send_signal(signal.SIGTERM)
        rest, _ = launcher.communicate(timeout=60)
    assert "stopped at" in rest
    newest = max((tmp_path / "run/checkpoints").iterdir())
    result = train("run.dir=run", "resume=latest", f"train.kimg={int(newest.name) / 1000 + 0.1}", tiny=False)
    assert result.returncode == 0, result.stderr
    assert f"going on from run/checkpoints/{newest.name}" in result.stdout


def test_run_goes_on_with_another_number_of_processes(train: Train, tmp_path: Path) -> None:
    """Two begin it, one ends it: the same up to the order of sums."""
    assert train("run.dir=alone", "train.precision=fp64", "train.kimg=1").returncode == 0
    processes = start_ranks(2, [*TRAIN, "train.precision=fp64", "train.kimg=0.5", "run.dir=moved"], tmp_path)
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert train("run.dir=moved", "resume=auto", "train.kimg=1", tiny=False).returncode == 0
    for name in ("G", "D", "G_ema", "opt_G", "opt_D"):
        alone, moved = (
            load_file(tmp_path / run / f"checkpoints/000000001024/{name}.safetensors") for run in ("alone", "moved")
        )
        assert all((alone[k] - moved[k]).abs().max() <= 1e-9 * alone[k].abs().max() for k in alone)


def test_failure_of_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    """A broken image, which only the process whose share it falls in meets."""
    (tmp_path / "images").mkdir()
    for i in range(128):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"images/{i:03d}.png")
    (tmp_path / "images/041.png").write_bytes(b"torn")
    settings = ["data.name=folder", "data.root=images", "data.memory_gib=1e-9", "data.broken_files=error",
                "data.image_size=32", "model.conditional=false", "data.workers=1", "sample.every_kimg=0"]  # fmt: skip
    processes = start_ranks(2, [*TRAIN, *settings, "run.dir=run"], tmp_path)
    errors = [process.communicate(timeout=60)[1].strip().splitlines() for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for error in errors:
        assert len(error) == 1, error
        assert "images/041.png" in error[0]
    assert sum("stopped, because rank" in error[0] for error in errors) == 1


def test_evaluation_on_any_number_of_processes(plain: Path) -> None:
    """The same figures, which are stored with their protocol."""
    command = ["evaluate", str(plain), "--n", "1003", "metrics.batch_size=100"]
    one = run_here(plain, *command)
    assert one.returncode == 0, one.stderr
    script = "import sys; from gan_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    two = start_ranks(2, ["-c", script, *command], plain)
    outputs = [process.communicate(timeout=120) for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    first, second = (json.loads(line) for line in (plain / "evaluations.jsonl").read_text().splitlines())
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    assert first["checkpoint"] == "000000001024"
    assert first["kimg"] == 1.024
    assert first["protocol"]["num_generated"] == 1003
    assert {"fid_classifier", "kid_classifier", "is_classifier"} < first.keys()
    assert f"fid_classifier   {first['fid_classifier']:.6g}" in one.stdout
    assert "".join(out for out, _ in outputs).count("fid_classifier") == 1


def test_bad_evaluation_gets_one_line(plain: Path) -> None:
    for arguments, text in [
        (["nowhere"], "nowhere: no such run directory"),
        ([str(plain), "--checkpoint", "7"], "no checkpoint '7'; there: 000000001024"),
        ([str(plain), "metrics.extracter=inception"], "nearest: metrics.extractor"),
        ([str(plain), "--n", "0"], "metrics.num_images=0 must be greater than 0"),
        ([str(plain), "data.name=folder", "data.root=nowhere"], "nowhere"),
    ]:
        result = run_here(plain, "evaluate", *arguments)
        assert result.returncode in (1, 2)
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


def test_image_files_are_staged_once_per_node(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(64):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"images/{i:02d}.png")
    settings = [*TRAIN, "data.name=folder", "data.root=images", "data.image_size=8", "data.memory_gib=1e-9",
                "model.conditional=false", "train.kimg=1"]  # fmt: skip
    for attempt, copied in enumerate((64, 0)):
        stage = str(tmp_path / "scratch")
        processes = start_ranks(2, [*settings, f"run.dir=run{attempt}"], tmp_path, GAN_DIST_STAGE=stage)
        out = "".join(process.communicate(timeout=120)[0] for process in processes)
        assert [process.returncode for process in processes] == [0, 0]
        assert out.count(f"copied {copied} of 64 images below {stage}") == 1
    copies = sorted((tmp_path / "scratch" / (tmp_path / "images").relative_to("/")).iterdir())
    assert [path.read_bytes() for path in copies] == [p.read_bytes() for p in sorted((tmp_path / "images").iterdir())]


def test_stage_that_cannot_be_written_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/0.png")
    settings = ["data.name=folder", "data.root=images", "data.image_size=8", "data.memory_gib=1e-9",
                "model.conditional=false", "train.batch_size=1"]  # fmt: skip
    result = run_here(tmp_path, "train", *TINY, *settings, env={"GAN_DIST_STAGE": "/proc/nowhere"})
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "GAN_DIST_STAGE=/proc/nowhere: cannot copy images there" in result.stderr


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Fashion-MNIST: apt install dataset-fashion-mnist")
def test_two_processes_train_dcgan_on_fashion_mnist_in_shared_memory(tmp_path: Path) -> None:
    settings = [str(ROOT / "configs/dcgan_fashion_mnist.yaml"), f"data.root={FASHION_MNIST}", "train.kimg=100",
                "model.g_widths=[32,16]", "model.d_widths=[16,32]", "metrics.every_kimg=0", "sample.every_kimg=0",
                "tracking.wandb=disabled", "log.every_kimg=0.1", "run.dir=run"]  # fmt: skip
    ranks = start_ranks(2, [str(ROOT / "train.py"), *settings], tmp_path)
    read_until(ranks[0], "0.4/100 kimg")
    for rank in ranks:
        mapped = [line for line in Path(f"/proc/{rank.pid}/maps").read_text().splitlines() if "gan_dist-" in line]
        start, end = (int(part, 16) for part in mapped[0].split()[0].split("-"))
        assert end - start > 60_000 * 28 * 28, "the decoded images"
        assert "(deleted)" in mapped[0], "nothing is left in the temporary directory"
    ranks[0].send_signal(signal.SIGTERM)
    outputs = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], outputs
    losses = [json.loads(line)["loss_D"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0], "D learns from real images"
