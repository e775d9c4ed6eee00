"""The schema of all settings: their names, types and default values.

A setting's name is the path to its field in `Config`, for example `train.batch_size`. The comment at the end of a
field's declaration documents the setting, and `--help` prints it.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass
class Data:
    name: str = (
        "digits"  # digits, folder, python, ring/grid, MNIST/FashionMNIST/KMNIST, CIFAR10/CIFAR100, SVHN, STL10, CelebA
    )
    root: str = "data"  # directory that holds the data set, or to which it is downloaded; folder: the images' directory
    download: bool = True  # download what is not in root; a config file can't ask for it outside the current directory
    image_size: str = ""  # H or HxW in pixels: images are cropped and resized; empty: the data set's own (folder: 64)
    channels: Literal[0, 1, 3, 4] = 0  # 1: grayscale, 3: RGB, 4: RGBA, 0: the data set's own (folder: 3)
    stacked: bool = False  # stack three grayscale images as the channels of one image; 10 classes give 1,000 modes
    class_folders: bool = False  # folder: each subfolder of root is a class
    broken_files: Literal["skip", "error"] = "skip"  # if an image cannot be read: others stand in for it, or stop
    hflip: bool = False  # mirror each image with probability 1/2
    args: dict[str, Any] = field(default_factory=dict)  # the arguments of a data set that a user has registered
    memory_gib: float = 4.0  # a data set of up to this many GiB is decoded once and kept in memory as uint8
    workers: int = 2  # DataLoader workers of each process, for a data set that is larger than data.memory_gib


@dataclass
class Model:
    name: str = "mlp"  # the architecture: dcgan, mlp, pggan, r3gan or sngan, which are files in gan_dist/models
    g_name: str = ""  # the architecture of G, if it is another one than model.name
    d_name: str = ""  # the architecture of D, if it is another one than model.name
    conditional: bool = True  # give the label y to G and D
    z_dim: int = 100  # size of the latent z
    g_widths: list[int] = field(default_factory=list)  # layer widths of G, from z to image; []: the defaults
    d_widths: list[int] = field(default_factory=list)  # layer widths of D, from image to logit; []: the defaults
    g_args: dict[str, Any] = field(default_factory=dict)  # the Generator's arguments, such as {tanh: false}; {}: none
    d_args: dict[str, Any] = field(default_factory=dict)  # the Discriminator's, such as {batch_norm: false}; {}: none

    @property
    def name_of_G(self) -> str:
        """The architecture of G."""
        return self.g_name or self.name

    @property
    def name_of_D(self) -> str:
        """The architecture of D."""
        return self.d_name or self.name


@dataclass
class Init:
    run: str = ""  # start a new run from the weights of another: RUN, or RUN:CHECKPOINT; only on the command line
    networks: list[str] = field(default_factory=lambda: ["G", "D", "G_ema"])  # which networks get weights of init.run
    freeze_D: int = 0  # freeze so many blocks of D, counted from the image on, at the weights of init.run; 0: none


@dataclass
class Loss:
    name: str = (
        "non_saturating"  # losses of D and G: non_saturating, minimax, least_squares, hinge, wasserstein, relativistic
    )
    label_smoothing: float = 0.0  # D's target for real images is 1 minus this
    d_half: bool = False  # multiply D's loss by 1/2: the mean of its real and its fake part instead of the sum
    drift: float = 0.0  # weight of the penalty D(x)^2 on real images, which keeps a critic's logits near 0; 0: off
    r1_gamma: float = 0.0  # gamma of the R1 penalty, gamma/2 * |grad D(x)|^2 on real images; 0: off
    r2_gamma: float = 0.0  # gamma of the R2 penalty, gamma/2 * |grad D(x)|^2 on generated images; 0: off
    gamma_decay: float = 1.0  # multiply both gammas by a factor that goes from 1 to this value along optim.D.schedule
    gradient_penalty: float = 0.0  # weight of WGAN-GP's gradient penalty, (|grad D(x)| - 1)^2; 0: off
    penalty_interval: int = 1  # lazy regularization interval n: R1, R2, WGAN-GP's penalty in every n-th D step, times n
    args: dict[str, Any] = field(default_factory=dict)  # the arguments of a loss that a user has registered
    penalties: dict[str, Any] = field(
        default_factory=dict
    )  # users' penalties on D, each with its arguments: {name: {argument: value}}
    clip_weights: float = 0.0  # clamp D's weights to [-c, c] after each D step, as the first WGAN did; 0: off


@dataclass
class Optimizer:
    name: str = "Adam"  # a class of torch.optim
    lr: float = 2e-4  # learning rate
    betas: list[float] = field(default_factory=lambda: [0.5, 0.999])  # for optimizers that have betas
    args: dict[str, Any] = field(default_factory=dict)  # its other arguments, such as {weight_decay: 0.01}; {}: none
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # how lr goes to lr_final, and beta2 to beta2_final
    schedule_kimg: float = 0.0  # length of the schedule in kimg; 0: the whole training
    lr_final: float = 0.0  # learning rate at the end of the schedule
    beta2_final: float = 0.0  # second value of betas at the end of the schedule; 0: it does not change
    warmup_kimg: float = 0.0  # raise the learning rate linearly from 0 over this many kimg; 0: no warm-up


@dataclass
class Optim:
    G: Optimizer = field(default_factory=Optimizer)
    D: Optimizer = field(default_factory=Optimizer)


Precision = Literal["auto", "fp64", "fp32", "tf32", "bf16", "fp16"]


@dataclass
class Train:
    kimg: float = 400.0  # length of the training: thousands of real images shown to D
    batch_size: int = 64  # global batch: images per D step of all processes; 0: chosen at the start, micro-batch too
    micro_batch_size: int = 0  # micro-batch: most images that a process computes at once; 0: all of its batch
    seed: int = 0  # all random numbers of the run follow from it
    n_critic: int = 1  # D steps per G step
    augment: list[str] = field(default_factory=list)  # augment what D sees, for small data: color, translation, cutout
    augment_args: dict[str, Any] = field(default_factory=dict)  # arguments of users' augmentations: {name: {…}}
    precision: Precision = (
        "auto"  # precision of G and D; auto: train.gpu_precision on a GPU, fp32 on a CPU; the checkpoints record it
    )
    gpu_precision: Literal["fp32", "tf32", "bf16", "fp16"] = (
        "tf32"  # precision on a GPU if train.precision=auto; tf32: fp32, rounded to 11 bits before multiplications
    )
    exact: bool = True  # on a GPU: use only deterministic algorithms (the same bits in every repetition); may be slower
    cuda_graphs: Literal["auto", "always", "never"] = (
        "auto"  # on a GPU: record each step once and replay it; auto: if the run allows it; the bits are the same
    )
    compile: bool = False  # compile the losses of G and D with all their derivatives; needs a C++ compiler
    sync_batch_norm: bool = True  # batch normalization over the global batch; false: over each per-process batch
    compress_gradients: bool = False  # send gradients between processes as bf16
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU if there is one, else the CPU
    meet_minutes: float = 10.0  # give the start up if some of several processes have not come after so many minutes
    profile: bool = False  # write a torch profiler trace of a few iterations into the run directory
    on_nonfinite: Literal["rollback", "skip", "stop"] = (
        "rollback"  # at non-finite gradients: go back to the last checkpoint with other data, skip the step, or stop
    )
    max_rollbacks: int = 3  # after this many rollbacks, stop the run instead of going back once more


@dataclass
class Growth:
    stable_kimg: float = 0.0  # progressive growing: train each image size this long after its fade-in; 0: no growing
    fade_kimg: float = 0.0  # kimg over which each image size, except the first, is faded in
    batch_sizes: list[int] = field(default_factory=list)  # global batch per size, smallest first; []: train.batch_size


@dataclass
class Ema:
    half_life_kimg: float = 10.0  # half-life of G_ema, the moving average of G that samples and is evaluated
    rampup: float = 0.05  # early in training the half-life is shortened to this share of the images seen so far; 0: off
    growth_kimg: float = 0.0  # raise the half-life from 0 along half a cosine over this many kimg; 0: off


@dataclass
class Log:
    every_kimg: float = 10.0  # write losses, gradient norms and speed to terminal, file and W&B; 0: never


@dataclass
class Sample:
    every_kimg: float = 100.0  # save a grid of images of G_ema from fixed latents; 0: never
    rows: int = 8  # rows of the grid; it has about as many columns, each of one class if there are classes


@dataclass
class Metrics:
    every_kimg: float = 100.0  # evaluate FID, KID and Inception Score of G_ema, also at the start and end; 0: never
    extractor: str = (
        "classifier"  # feature extractor: inception, or classifier: a small network trained on the data set's labels
    )
    args: dict[str, Any] = field(default_factory=dict)  # the arguments of an extractor that a user has registered
    extra: dict[str, Any] = field(default_factory=dict)  # users' metrics, each with its arguments: {name: {…}}
    num_images: int = 10000  # number of generated images per evaluation
    batch_size: int = 250  # images per forward pass of G_ema and of the feature extractor
    seed: int = 0  # seed of latents, KID's subsets and the classifier; use the same seed in runs that you compare
    inception_weights: str = ""  # file of the Inception weights; empty: torch-fidelity's, from the cache or downloaded
    optional: bool = False  # if Inception's weights are not in the cache, measure nothing instead of downloading them


@dataclass
class Checkpoint:
    every_kimg: float = 100.0  # write a checkpoint, also at the end; 0: never
    keep: int = 3  # number of newest checkpoints to keep; 0: all
    keep_every_kimg: float = 0.0  # also keep one checkpoint of every so many kimg; 0: none
    keep_best: bool = True  # also keep the checkpoint with the lowest FID; one is written when FID is lower than before


@dataclass
class Tracking:
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with an API key, else offline
    project: str = "gan_dist"  # W&B project
    entity: str = ""  # W&B team or user; empty: your default at W&B
    artifact: bool = False  # upload the final G_ema to W&B
    extra: dict[str, Any] = field(default_factory=dict)  # users' trackers, each with its arguments: {name: {…}}


@dataclass
class Run:
    name: str = ""  # name of the run; empty: the name of the config file
    dir: str = ""  # run directory; empty: runs/<time>-<name>


@dataclass
class Config:
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
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
    callbacks: dict[str, Any] = field(default_factory=dict)  # users' callbacks, each with its arguments: {name: {…}}
    plugins: list[str] = field(
        default_factory=list
    )  # modules to import, in which users' parts are registered; only on the command line
    resume: str = "never"  # never; auto: continue if run.dir holds a run; latest: it must hold a run; or a checkpoint
    allow_changes: list[str] = field(
        default_factory=list
    )  # going on with a run: settings that may change its meaning, such as [loss.name]; only on the command line


# Settings that name a file or a directory: `~` at their beginning is the home directory.
PATHS = ("data.root", "init.run", "metrics.inception_weights", "run.dir", "resume")


# ---------------------------------------------------------------------------------------------------------------------
# Documentation


@cache  # typing reads the annotations every time
def walk_settings(cls: type = Config, prefix: str = "") -> tuple[tuple[str, Any, Any, str], ...]:
    """Return (dotted name, default, type, comment) of every setting, in the order of the schema.

    Args:
        cls: a dataclass of this file.
        prefix: text in front of each name; for a section its name and a dot.
    """
    comments, kinds, default = _comments(cls), get_type_hints(cls), cls()
    found: list[tuple[str, Any, Any, str]] = []
    for item in fields(cls):
        name, value = f"{prefix}{item.name}", getattr(default, item.name)
        if is_dataclass(value):
            found += walk_settings(type(value), f"{name}.")  # type: ignore[arg-type]
        else:
            found.append((name, value, kinds[item.name], comments[item.name]))
    return tuple(found)


def _comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's declaration, by the field's name."""
    source = inspect.getsource(cls)
    names = [item.name for item in fields(cls)]
    starts = [re.search(rf"^    {name}: ", source, re.M) for name in names]
    bounds = [match.start() for match in starts if match] + [len(source)]
    declarations = [source[a:b] for a, b in pairwise(bounds)]
    return {name: (re.findall(r"  # (.*)", text) or [""])[-1] for name, text in zip(names, declarations)}


def describe_type(kind: Any) -> str:
    """Return a setting's type in words, for messages: for example `a whole number` or `one of a, b`."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is list:
        return {int: "a list of whole numbers", float: "a list of numbers", str: "a list of names"}[get_args(kind)[0]]
    if get_origin(kind) is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def show(value: Any) -> str:
    """Return a setting's value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def must_agree(config: Config) -> dict[str, str]:
    """Return the settings that all processes of a run must have in common, by name and with their values as text.

    These are all settings except `data.root`: each node may have the data in a directory of its own.
    """
    return {name: show(attrgetter(name)(config)) for name, *_ in walk_settings() if name != "data.root"}


def settings_help() -> str:
    """Return the text of `--help` about settings: a line for every setting, with its default value and comment."""
    lines = []
    for name, default, kind, comment in walk_settings():
        choices = f"; {describe_type(kind)}" if get_origin(kind) is Literal else ""
        lines.append(f"  {f'{name}={show(default)}':<34}  {comment}{choices}")
    return "\n".join(lines)
