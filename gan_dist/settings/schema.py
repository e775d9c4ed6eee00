"""The one schema of all settings: types, defaults and comments. They are the documentation, and `--help` prints it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass
class Data:
    name: str = (
        "digits"  # digits, folder, ring, grid, MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100, SVHN, STL10 or CelebA
    )
    root: str = "data"  # where the data set lies, or is downloaded to; for folder, the directory of images
    image_size: str = ""  # H or HxW: crop to this shape and resize; empty: the set's own size (folder: 64)
    channels: Literal[0, 1, 3, 4] = 0  # 1 grayscale, 3 RGB, 4 RGBA, 0 the set's own (folder: 3)
    stacked: bool = False  # three grayscale images of a labelled set as the channels of one: 1,000 modes
    class_folders: bool = False  # folder: the subfolders of root are the classes
    broken_files: Literal["skip", "error"] = "skip"  # unreadable images: skip and count them, or stop
    hflip: bool = False  # mirror every other image at random
    memory_gib: float = 4.0  # a set up to this size is decoded once and kept in memory as uint8
    workers: int = 2  # loader processes for a set that is larger than that


@dataclass
class Model:
    name: str = "mlp"  # an architecture: the name of a file in gan_dist/models
    conditional: bool = True  # generate for a class label
    z_dim: int = 100  # size of the latent z
    g_widths: list[int] = field(default_factory=list)  # layers of G from z to the image; []: the architecture's own
    d_widths: list[int] = field(default_factory=list)  # layers of D from the image to the logit; []: likewise
    g_args: dict[str, Any] = field(default_factory=dict)  # further arguments of the architecture's Generator
    d_args: dict[str, Any] = field(default_factory=dict)  # and of its Discriminator, for example {batch_norm: false}


@dataclass
class Loss:
    name: str = "non_saturating"  # non_saturating, minimax, least_squares, hinge, wasserstein or relativistic
    label_smoothing: float = 0.0  # D's target for real images is 1 minus this
    d_half: bool = False  # halve D's loss, as in the mean of its real and its fake part
    drift: float = 0.0  # weight of D(x)^2 on real images, which keeps a critic near 0
    r1_gamma: float = 1.0  # weight of the R1 penalty: gamma/2 * |grad D(x)|^2 on real images; 0: off
    r2_gamma: float = 0.0  # the same on generated images
    gamma_decay: float = 1.0  # both gammas end at this share of themselves, on the schedule of optim.D
    gradient_penalty: float = 0.0  # weight of WGAN-GP's penalty: (|grad D(x)| - 1)^2 between real and generated images
    penalty_interval: int = 1  # apply these in every so many D steps, scaled up by as much
    clip_weights: float = 0.0  # clamp D's weights to this size after each of its steps, as the first WGAN; 0: off


@dataclass
class Optimizer:
    name: str = "Adam"  # a class of torch.optim
    lr: float = 2e-4  # learning rate
    betas: list[float] = field(default_factory=lambda: [0.5, 0.999])  # for optimizers that have betas
    args: dict[str, Any] = field(default_factory=dict)  # its other arguments, for example {weight_decay: 0.01}
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of lr to lr_final, and of beta2
    schedule_kimg: float = 0.0  # length of the schedule; 0: of training
    lr_final: float = 0.0  # learning rate at the end of the schedule
    beta2_final: float = 0.0  # the second of betas at the end of the schedule; 0: it stays
    warmup_kimg: float = 0.0  # raise the learning rate from 0 over this many kimg


@dataclass
class Optim:
    G: Optimizer = field(default_factory=Optimizer)
    D: Optimizer = field(default_factory=Optimizer)


Precision = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]


@dataclass
class Train:
    kimg: float = 400.0  # length: thousands of real images shown to D
    batch_size: int = 64  # global batch, summed over all processes
    micro_batch_size: int = 0  # largest batch that a process runs at once; 0: its whole share
    seed: int = 0  # every random draw of the run follows from it
    n_critic: int = 1  # D steps per G step
    augment: list[str] = field(default_factory=list)  # of all that D sees, for small data: color, translation, cutout
    precision: Precision = (
        "auto"  # of the networks' layers; auto: gpu_precision on a GPU, fp32 on a CPU; what was taken is recorded
    )
    gpu_precision: Literal["fp32", "tf32", "bf16", "fp16"] = (
        "tf32"  # what auto means on a GPU; tf32: fp32 numbers, rounded to 11 bits where they are multiplied
    )
    exact: bool = True  # on a GPU the same bits in each repetition; false: faster where cuDNN has other algorithms
    compile: bool = False  # run the networks through torch.compile, which takes a C++ compiler; penalties stay without
    sync_batch_norm: bool = True  # batch normalization over the batches of all processes, as one process would
    compress_gradients: bool = False  # send gradients between processes as bf16
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU if there is one
    profile: bool = False  # write a torch profiler trace of a few iterations into the run directory
    on_nonfinite: Literal["rollback", "skip", "stop"] = (
        "rollback"  # at non-finite gradients: go back to the last checkpoint with other data, skip the step, or stop
    )
    max_rollbacks: int = 3  # stop after so many


@dataclass
class Growth:
    stable_kimg: float = 0.0  # progressive growing: train each size for so long once it is faded in; 0: no growth
    fade_kimg: float = 0.0  # before that, fade it in over so many kimg
    batch_sizes: list[int] = field(default_factory=list)  # global batch at each size, smallest first; []: batch_size


@dataclass
class Ema:
    half_life_kimg: float = 10.0  # half-life of the moving average of G, which samples and is evaluated
    rampup: float = 0.05  # half-life is at most this share of the images seen so far; 0: no ramp
    growth_kimg: float = 0.0  # half-life grows from 0 on half a cosine over so many kimg; 0: it does not


@dataclass
class Log:
    every_kimg: float = 10.0  # losses, norms and speed to terminal, file and tracker; 0: never


@dataclass
class Sample:
    every_kimg: float = 100.0  # grid from fixed latents; 0: never
    rows: int = 8  # rows of the grid; its columns are the classes, or as many


@dataclass
class Metrics:
    every_kimg: float = 100.0  # FID, KID and Inception Score of G_ema, also at the start and end; 0: never
    extractor: str = "classifier"  # of features: classifier (a small network trained on the data's labels) or inception
    num_images: int = 10000  # generated images per evaluation
    batch_size: int = 250  # images per forward pass of generator and extractor
    seed: int = 0  # of latents, subsets and the classifier; keep it to compare runs
    inception_weights: str = ""  # file of Inception weights; empty: torch-fidelity's cache or download


@dataclass
class Checkpoint:
    every_kimg: float = 100.0  # also at the end; 0: never
    keep: int = 3  # newest checkpoints kept; 0: all
    keep_every_kimg: float = 0.0  # keep one of every so many kimg too; 0: none
    keep_best: bool = True  # keep the one with the lowest FID too; it is written when that is measured


@dataclass
class Tracking:
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with an API key, else offline
    project: str = "gan_dist"  # W&B project
    entity: str = ""  # W&B team or user; empty: your default
    artifact: bool = False  # upload the final G_ema to W&B


@dataclass
class Run:
    name: str = ""  # empty: the name of the config file
    dir: str = ""  # empty: runs/<time>-<name>


@dataclass
class Config:
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    growth: Growth = field(default_factory=Growth)
    ema: Ema = field(default_factory=Ema)
    log: Log = field(default_factory=Log)
    sample: Sample = field(default_factory=Sample)
    metrics: Metrics = field(default_factory=Metrics)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tracking: Tracking = field(default_factory=Tracking)
    run: Run = field(default_factory=Run)
    resume: str = "never"  # never, auto (go on if run.dir holds a run), latest (it must), or a checkpoint's path


# ---------------------------------------------------------------------------------------------------------------------
# Documentation


def walk_settings(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (dotted name, default, type, comment) of every setting, in the order of the schema."""
    comments = _comments(cls)
    kinds = get_type_hints(cls)
    default = cls()
    for item in fields(cls):
        name, value = f"{prefix}{item.name}", getattr(default, item.name)
        if is_dataclass(value):
            yield from walk_settings(type(value), f"{name}.")
        else:
            yield name, value, kinds[item.name], comments[item.name]


@cache  # inspect parses the whole file every time
def _comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's declaration."""
    source = inspect.getsource(cls)
    names = [item.name for item in fields(cls)]
    starts = [re.search(rf"^    {name}: ", source, re.M) for name in names]
    bounds = [match.start() for match in starts if match] + [len(source)]
    declarations = [source[a:b] for a, b in pairwise(bounds)]
    return {name: (re.findall(r"  # (.*)", text) or [""])[-1] for name, text in zip(names, declarations)}


def describe_type(kind: Any) -> str:
    """A type in words: `a whole number`, `one of a, b`."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is list:
        return {int: "a list of whole numbers", float: "a list of numbers", str: "a list of names"}[get_args(kind)[0]]
    if get_origin(kind) is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def settings_help() -> str:
    """Every setting with its default and comment, a line each."""
    lines = []
    for name, default, kind, comment in walk_settings():
        choices = f"; {describe_type(kind)}" if get_origin(kind) is Literal else ""
        lines.append(f"  {f'{name}={show(default)}':<34}  {comment}{choices}")
    return "\n".join(lines)
