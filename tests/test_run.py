"""Whole runs by the command line: what they leave, how they stop, go on and are sampled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPES, ROOT, TINY, Result, Train, run_here, run_there
from forks import Forked
from PIL import Image
from safetensors.torch import load_file

import gan_dist
from gan_dist.cli import main
from gan_dist.settings.config import load_config

NETWORKS = ["G.safetensors", "D.safetensors", "G_ema.safetensors", "opt_G.safetensors", "opt_D.safetensors"]


def _lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _assert_same_checkpoint(a: Path, b: Path) -> None:
    for name in NETWORKS:
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name


@pytest.mark.slow
def test_run_leaves_what_it_promises(train_process: Train, tmp_path: Path) -> None:
    result = train_process("run.dir=run", "metrics.every_kimg=4", "metrics.num_images=100")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    (classifier,) = run.glob("classifier-*.safetensors")
    assert {path.name for path in run.iterdir()} == {
        "checkpoints", "config.yaml", "log.txt", "metrics.jsonl", "plot.png", "samples", "starts.jsonl",
        ".lock", ".owner", classifier.name,
    }  # fmt: skip
    lines = _lines(run)
    assert all("kimg" in line for line in lines)
    training = [line for line in lines if "loss_D" in line]
    assert len(training) == 4
    names = {"loss_D", "loss_G", "D_real", "D_fake", "grad_norm_D", "grad_norm_G", "images_per_sec"}
    names.add("memory_gib")
    assert all(names <= line.keys() for line in training)
    evaluations = [line for line in lines if "fid_classifier" in line]
    assert [line["kimg"] for line in evaluations] == [0, 4]
    assert evaluations[0]["protocol"]["num_generated"] == 100
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "grid-000000.000.png", "grid-000002.016.png", "grid-000004.000.png", "real-000000.000.png"
    ]  # fmt: skip
    grid = np.asarray(Image.open(run / "samples" / "grid-000004.000.png"))
    assert grid.shape == (6 + 8 * 54, 6 + 10 * 54), "8 rows of 10 classes, 8 pixels enlarged six times, gaps of one"
    for text in ("samples/grid-000004.000.png", "metrics.jsonl", "checkpoints/000000004000", "gan-dist sample run"):
        assert text in result.stdout
    assert "4.0/4 kimg" in result.stdout, "plain lines where there is no terminal"


@pytest.mark.slow
def test_real_grid_has_one_class_a_column(train: Train, tmp_path: Path) -> None:
    train("run.dir=run", "train.kimg=0.1")
    from sklearn.datasets import load_digits

    digits = load_digits()
    picture = np.asarray(Image.open(tmp_path / "run/samples/real-000000.000.png"))[6::6, 6::6]
    for column in range(10):
        shown = picture[:8, 9 * column : 9 * column + 8]
        of_class = np.rint(digits.images[digits.target == column] * 255 / 16)
        assert (shown == of_class).all((1, 2)).any()


@pytest.mark.slow
def test_second_run_never_overwrites_the_first(train: Train, tmp_path: Path) -> None:
    assert train("train.kimg=0.1").returncode == 0
    assert train("train.kimg=0.1").returncode == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert train("train.kimg=0.1", "run.dir=mine").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")}
    result = train("train.kimg=0.1", "run.dir=mine")
    assert result.returncode == 2
    assert "run.dir=mine already holds a run" in result.stderr
    assert "resume=latest" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine").rglob("*")} == before


@pytest.mark.slow
def test_resumed_run_ends_like_one_never_stopped(train: Train, tmp_path: Path) -> None:
    settings = ["loss.penalty_interval=4", "optim.G.schedule=cosine", "data.hflip=true", "checkpoint.every_kimg=1"]
    assert train("run.dir=whole", *settings, "checkpoint.keep=0").returncode == 0
    assert train("run.dir=parts", *settings, "checkpoint.keep=0").returncode == 0
    for later in ("000000003008", "000000004000"):
        for file in (tmp_path / "parts/checkpoints" / later).iterdir():
            file.unlink()
        (tmp_path / "parts/checkpoints" / later).rmdir()
    result = train("run.dir=parts", "resume=latest", tiny=False)
    assert result.returncode == 0, result.stderr
    assert "going on from parts/checkpoints/000000002016" in result.stdout
    _assert_same_checkpoint(tmp_path / "whole/checkpoints/000000004000", tmp_path / "parts/checkpoints/000000004000")
    assert train("run.dir=parts", "resume=parts/checkpoints/000000001024", tiny=False).returncode == 0
    _assert_same_checkpoint(tmp_path / "whole/checkpoints/000000004000", tmp_path / "parts/checkpoints/000000004000")
    kimg = [line["kimg"] for line in _lines(tmp_path / "parts")]
    assert kimg == sorted(set(kimg)), "no line twice"


@pytest.mark.slow
def test_resume_latest_goes_on_longer_and_never_starts(train: Train, tmp_path: Path) -> None:
    assert train("run.dir=run").returncode == 0
    result = train("run.dir=run", "resume=latest", "train.kimg=6")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/checkpoints/000000006016").is_dir()
    result = train("run.dir=none", "resume=latest")
    assert result.returncode == 1
    assert result.stderr == "gan-dist: error: none: no such run directory\n"
    assert train("run.dir=fresh", "resume=auto").returncode == 0, "auto starts where there is nothing"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_says_how_to_go_on(number: signal.Signals, train: Train, tmp_path: Path) -> None:
    command = [str(ROOT / "train.py"), *TINY, "train.kimg=100000", "run.dir=run"]
    with Forked(command, tmp_path, {**os.environ}) as process:
        assert process.stdout
        assert process.stderr
        for line in process.stdout:
            if "3.0/100000 kimg" in line:
                break
        process.send_signal(number)
        rest, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert error == ""
    assert "go on with: python train.py run.dir=run resume=latest" in rest
    newest = max((tmp_path / "run/checkpoints").iterdir())
    again = train("run.dir=run", "resume=latest", f"train.kimg={int(newest.name) / 1000 + 0.1}", tiny=False)
    assert again.returncode == 0, again.stderr
    assert f"going on from run/checkpoints/{newest.name}" in again.stdout


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished conditional run."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_here(folder, "train", *TINY, "run.dir=run").returncode == 0
    return folder / "run"


def test_load_generator_in_two_lines(run_dir: Path) -> None:
    G = gan_dist.load_generator(run_dir)
    x = G(torch.randn(5, G.z_dim), torch.arange(5))
    assert (G.z_dim, G.num_classes, G.image_shape) == (100, 10, (1, 8, 8))
    assert not G.training
    assert x.shape == (5, 1, 8, 8)
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1
    averaged, last = (load_file(run_dir / f"checkpoints/000000004000/{name}.safetensors") for name in ("G_ema", "G"))
    assert all(torch.equal(value, averaged[name]) for name, value in G.state_dict().items())
    assert not any(torch.equal(value, last[name]) for name, value in G.state_dict().items())
    older = gan_dist.load_generator(run_dir, "000000002016")
    assert not torch.equal(older(torch.ones(1, 100), torch.tensor([0])), G(torch.ones(1, 100), torch.tensor([0])))


def test_sample_needs_only_the_run_directory(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sample(*arguments: str) -> dict[str, np.ndarray]:
        out = tmp_path / "-".join(arguments)
        assert main(["sample", str(run_dir), "--out", str(out), *arguments]) == 0
        return {path.name: np.asarray(Image.open(path)) for path in sorted(out.iterdir())}

    images = sample("--n", "70")
    assert list(images) == [f"{i:06d}.png" for i in range(70)]
    assert images["000000.png"].shape == (8, 8)
    fewer = sample("--n", "3")
    assert all(np.array_equal(images[name], fewer[name]) for name in fewer), "image i depends on seed and i alone"
    other = sample("--n", "3", "--seed", "1")
    assert not any(np.array_equal(other[name], fewer[name]) for name in fewer)
    G = gan_dist.load_generator(run_dir)
    from gan_dist.sampling import generate

    direct = list(generate(G, 2, 0, [3, 7]))
    chosen = sample("--n", "2", "--classes", "3,7")
    assert all(np.array_equal(a.squeeze(0).numpy(), b) for a, b in zip(direct, chosen.values()))
    assert sample("--n", "15", "--grid")["grid.png"].shape == (6 + 2 * 54, 6 + 10 * 54)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--classes", "12"], 2, "--classes=12: 12 is none of the labels 0 to 9"),
        (["--classes", "9,10"], 2, "--classes=9,10: 10 is none of the labels 0 to 9"),
        (["--classes", "cat"], 2, "--classes=cat"),
        (["--n", "0"], 2, "--n=0"),
        (["--checkpoint", "7"], 1, "no checkpoint '7'; there: "),
    ],
)
def test_bad_sampling_gets_one_line(
    arguments: list[str], status: int, text: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(run_dir), *arguments]) == status
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_sampling_nothing_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path / "gone")]) == 1
    assert "gone: no such run directory" in capsys.readouterr().err


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Fashion-MNIST: apt install dataset-fashion-mnist")
@pytest.mark.parametrize("recipe", ["mlp", "cgan", "dcgan"])
def test_recipe_trains_on_fashion_mnist(recipe: str, train: Train, tmp_path: Path) -> None:
    config = str(ROOT / f"configs/{recipe}_fashion_mnist.yaml")
    widths = ["model.g_widths=[]", "model.d_widths=[]"]
    result = train(config, f"data.root={FASHION_MNIST}", "train.kimg=0.3", "run.dir=run", *widths)
    assert result.returncode == 0, result.stderr
    assert "60000 images of 1x28x28" in result.stdout
    assert gan_dist.load_generator(tmp_path / "run").num_classes == (10 if recipe == "cgan" else 0)


def test_absent_data_set_names_the_files_to_place(train: Train) -> None:
    no_network = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    result = train("data.name=MNIST", "data.root=nothing", "run.dir=run", env=no_network)
    assert result.returncode == 1
    assert train("run.dir=run", "train.kimg=0.1").returncode == 0, "nothing was begun, so the directory is free"
    assert "put MNIST/raw/train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz into nothing" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_directory_that_cannot_be_made_gets_one_line(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = train("run.dir=file/run")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "run.dir=file/run" in result.stderr


@pytest.mark.slow
def test_accelerate_launch_runs_the_same(train: Train, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", str(ROOT / "train.py")]
    launched = run_there(tmp_path, *launch, *TINY, "run.dir=launched")
    assert launched.returncode == 0, launched.stderr
    assert train("run.dir=plain").returncode == 0
    name = "checkpoints/000000004000"
    _assert_same_checkpoint(tmp_path / "launched" / name, tmp_path / "plain" / name)
    recorded = [load_config(tmp_path / run / "config.yaml") for run in ("launched", "plain")]
    assert recorded[0] == recorded[1]
    assert recorded[0].train.precision == "fp32", "what auto meant"


@pytest.mark.slow
def test_launcher_that_was_told_another_precision_is_refused(tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--mixed_precision", "bf16"]
    result = run_there(tmp_path, *launch, str(ROOT / "train.py"), *TINY, "run.dir=run")
    assert result.returncode
    assert "mixed_precision=bf16, but train.precision=auto means fp32 here" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_that_goes_on_keeps_its_precision_and_says_where_it_changes(train: Train, tmp_path: Path) -> None:
    config = str(ROOT / "configs/digits.yaml")
    assert train("run.dir=run", "train.precision=bf16", "train.kimg=1").returncode == 0
    again = train(config, "run.dir=run", "resume=auto", "train.kimg=2")
    assert "precision bf16" in again.stdout
    assert "not promised" not in again.stdout
    assert load_config(tmp_path / "run/config.yaml").train.precision == "bf16"
    other = train(config, "run.dir=run", "resume=auto", "train.kimg=3", "train.precision=tf32")
    assert other.returncode == 2
    assert "train.precision: bf16 -> tf32" in other.stderr
    allowed = "allow_changes=[train.precision]"
    other = train(config, "run.dir=run", "resume=auto", "train.kimg=3", "train.precision=tf32", allowed)
    assert other.returncode == 0
    assert "precision was bf16 and is tf32: the same bits as in one go are not promised" in other.stdout
    assert "precision tf32, which is fp32 on a CPU" in other.stdout


def test_bf16_trains(train: Train, tmp_path: Path) -> None:
    assert train("run.dir=run", "train.precision=bf16").returncode == 0
    weights = load_file(tmp_path / "run/checkpoints/000000004000/G.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert all(line["loss_D"] is None or line["loss_D"] > 0 for line in _lines(tmp_path / "run") if "loss_D" in line)


@pytest.mark.slow
def test_any_optimizer_of_torch(train: Train) -> None:
    settings = ["optim.G.name=RMSprop", "optim.G.args={alpha: 0.9}", "optim.D.name=SGD", "optim.D.args={momentum: 0.9}"]
    assert train("run.dir=run", *settings).returncode == 0
    assert train("run.dir=run", "resume=latest", "train.kimg=5", tiny=False).returncode == 0


@pytest.mark.slow
def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from gan_dist.cli import main; main([{}]); sys.exit('torch' in sys.modules)"
    for arguments in ("'--help'", "'train', '--help'"):
        result = run_there(tmp_path, "-c", code.format(arguments))
        assert result.returncode == 0, "torch takes seconds to import"
        assert "train" in result.stdout


@pytest.mark.slow
def test_installed_program_and_module_are_the_same(tmp_path: Path) -> None:
    arguments = ["recipes", str(ROOT / "configs")]
    module = run_there(tmp_path, "-m", "gan_dist", *arguments)
    program = subprocess.run([Path(sys.executable).with_name("gan-dist"), *arguments], capture_output=True, text=True)
    assert program.returncode == module.returncode == 0
    assert program.stdout == module.stdout != ""


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes", str(ROOT / "configs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).stem for line in lines] == RECIPES
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines), "each says what it is"
    assert main(["recipes", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}: no *.yaml there" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_points_are_no_images(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = ["data.name=ring", "model.conditional=false", "model.g_args={tanh: false}"]
    assert train("run.dir=run", *points).returncode == 0
    assert main(["sample", str(tmp_path / "run")]) == 2
    assert "its generator makes points, not images" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--n", "100"]) == 0
    assert '"high_quality"' in (tmp_path / "run/evaluations.jsonl").read_text()


def _prefetch(*arguments: str, cwd: Path) -> Result:
    return run_here(cwd, "prefetch", *arguments)


@pytest.mark.slow
def test_prefetch_says_what_is_there_and_is_enough(train_process: Train, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/good.png")
    (tmp_path / "images/torn.png").write_bytes(b"\x89PNG")
    folder = ["data.name=folder", "data.root=images", "train.batch_size=1", "model.conditional=false"]
    for arguments, line in [
        ([], "data     digits: 1797 of 1797 images can be read, 1x8x8, inside scikit-learn"),
        ([*folder, "metrics.every_kimg=0"], f"1 of 2 images can be read, 3x64x64, in {tmp_path / 'images'}"),
        ([*folder, "metrics.every_kimg=0", "data.memory_gib=1e-9"], "1 of 2 images can be read"),
    ]:
        result = _prefetch(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert line in result.stdout
        assert ("torn.png" in result.stdout) == bool(arguments)
        assert result.stdout.endswith("nothing more is needed from the network\n")
    assert list(Path(os.environ["GAN_DIST_CACHE"]).glob("classifier-*"))
    names = [f"{protocol}_proxy" for protocol in ("http", "https", "all")]
    unreachable = dict.fromkeys([*names, *map(str.upper, names)], "http://127.0.0.1:9")
    measured = ["run.dir=run", "metrics.every_kimg=4", "metrics.num_images=100", "tracking.wandb=auto"]
    result = train_process(*measured, env={**unreachable, "no_proxy": "", "NO_PROXY": "", "WANDB_MODE": "offline"})
    assert result.returncode == 0, result.stderr
    assert "fid_classifier" in result.stdout


def test_prefetch_of_what_cannot_be_had_gets_one_line(tmp_path: Path) -> None:
    for arguments, text, status in [
        (["data.name=folder", "data.root=nowhere", "model.conditional=false"], "nowhere: no such directory", 1),
        (["data.name=digit"], "nearest: digits", 2),
        (
            ["metrics.extractor=inception", "metrics.inception_weights=nowhere.pth"],
            "no usable weights at nowhere.pth",
            1,
        ),
    ]:
        result = _prefetch(*arguments, cwd=tmp_path)
        assert result.returncode == status
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_profile_is_a_trace_of_some_iterations(train: Train, tmp_path: Path) -> None:
    result = train("run.dir=run", "train.kimg=1.2", "train.profile=true")
    assert result.returncode == 0, result.stderr
    assert "traced 5 iterations into run/trace.json" in result.stdout
    names = [event.get("name", "") for event in json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]]
    assert sum(name.startswith("Optimizer.step") for name in names) == 2 * 5, "D's step and G's"
