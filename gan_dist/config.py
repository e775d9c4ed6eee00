"""The one schema of all settings: types, defaults and comments, and how files and overrides are merged and checked."""

from __future__ import annotations

import difflib
import inspect
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from gan_dist.errors import ConfigError

# The comment after a field is its documentation: `--help` prints it.


@dataclass
class Data:
    name: Literal[
        "digits",
        "folder",
        "ring",
        "grid",
        "MNIST",
        "FashionMNIST",
        "KMNIST",
        "CIFAR10",
        "CIFAR100",
        "SVHN",
        "STL10",
        "CelebA",
    ] = "digits"  # digits ships with scikit-learn; folder: images; ring, grid: points; the others are torchvision's
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
    name: Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"] = (
        "non_saturating"  # of the game between G and D: see gan_dist/losses.py
    )
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


@dataclass
class Train:
    kimg: float = 400.0  # length: thousands of real images shown to D
    batch_size: int = 64  # global batch, summed over all processes
    micro_batch_size: int = 0  # largest batch that a process runs at once; 0: its whole share
    seed: int = 0  # every random draw of the run follows from it
    n_critic: int = 1  # D steps per G step
    augment: list[str] = field(default_factory=list)  # of all that D sees, for small data: color, translation, cutout
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = (
        "auto"  # of the networks; auto: the launcher's, or fp32
    )
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
    extractor: Literal["classifier", "inception"] = (
        "classifier"  # classifier: small network trained on the data's labels
    )
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
# Loading


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Merge defaults, the YAML file at `path` and `key.sub=value` overrides, in this order, and check every value.

    Raises:
        ConfigError: one line that names the key, the value and the nearest valid one.
    """
    config = OmegaConf.structured(Config)
    for source, values in _sources(path, overrides):
        _refuse_unknown_keys(source, values)
        try:
            config = OmegaConf.merge(config, values)
            result = OmegaConf.to_object(config)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigError(f"{source}: {_explain(error, values)}") from None
    assert isinstance(result, Config)
    check(result)
    return result


def as_yaml(config: Config) -> str:
    """The resolved config: `load_config` of a file with it gives it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def for_file(config: Config) -> Config:
    """The config without what belongs to one start of the run."""
    return replace(config, run=Run(name=config.run.name), resume="never")


def as_dict(config: Config) -> dict[str, Any]:
    """The config as plain nested mappings."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def _sources(path: Path | None, overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    yield "defaults", OmegaConf.create({})
    if path is not None:
        yield str(path), _read_file(path)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r}: an override is written key.sub=value, for example train.kimg=500")
        try:
            yield "command line", OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{override!r}: cannot read this value: {' '.join(str(error).split())}") from None


MAX_FILE = 2**20  # bytes of a config file; ours have a few thousand


def _read_file(path: Path) -> Any:
    """A config file's content, which may be a stranger's: it can neither grow in memory nor say where to write."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path}: a config of more than {MAX_FILE} bytes is none")
        text = path.read_text()
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{path}: aliases (*name) are not for configs: write the value out")
        values = OmegaConf.load(io.StringIO(text))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot read this config: {' '.join(str(error).split())[:300]}") from None
    if not OmegaConf.is_dict(values):
        raise ConfigError(f"{path}: a config is a mapping of settings, `section: {{key: value}}`")
    content: Any = OmegaConf.to_container(values)
    run = content.get("run")
    run_dir = Path(str(run.get("dir", ""))) if isinstance(run, dict) else Path()
    if run_dir.is_absolute() or ".." in run_dir.parts or "$" in str(run_dir):
        raise ConfigError(f"{path}: run.dir={run_dir} leads elsewhere: say so on the command line")
    return values


def _refuse_unknown_keys(source: str, values: Any) -> None:
    """Every key must be a setting, or a section that holds a mapping."""
    settings = {name: default for name, default, _, _ in walk_settings()}
    sections = {name.rsplit(".", depth)[0] for name in settings for depth in range(1, name.count(".") + 1)}

    def visit(prefix: str, node: Any) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in sections:
                if not isinstance(value, dict):
                    raise ConfigError(f"{source}: {name}={value} is a section; set one of {_members(name, settings)}")
                visit(f"{name}.", value)
            elif isinstance(value, dict) and value and not isinstance(settings.get(name), dict):
                visit(f"{name}.", value)
            elif name not in settings:
                raise ConfigError(f"{source}: unknown setting {name}; nearest: {_nearest(name, settings)}")

    visit("", OmegaConf.to_container(values))


def _members(section: str, settings: dict[str, Any]) -> str:
    return ", ".join(name for name in settings if name.startswith(f"{section}."))


def _nearest(name: str, settings: dict[str, Any]) -> str:
    """The most similar setting, where a right last part counts more than a right section."""
    last = name.rsplit(".", 1)[-1]

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, last, candidate.rsplit(".", 1)[-1]).ratio()

    return max(settings, key=likeness)


def _explain(error: Exception, values: Any) -> str:
    key = getattr(error, "full_key", None) or ""
    name = key.partition("[")[0]
    given = OmegaConf.to_container(values, resolve=False)
    for part in name.split("."):
        given = given.get(part) if isinstance(given, dict) else given
    if isinstance(error, InterpolationResolutionError | InterpolationKeyError):
        return f"{name}={given}: {str(error).splitlines()[0]}"
    for setting, default, kind, _ in walk_settings():
        if setting == name:
            if get_origin(kind) is Literal:
                return f"{name}={given}: {choose(given, get_args(kind))}"
            return f"{name}={given} must be {describe_type(kind)}, for example {_show(default)}"
    return " ".join(str(error).split())


def choose(given: Any, choices: Sequence[Any]) -> str:
    """What to say of a value that is none of the choices."""
    close = difflib.get_close_matches(str(given).lower(), [str(c).lower() for c in choices], n=1, cutoff=0.0)
    nearest = next(c for c in choices if str(c).lower() == close[0])
    return f"choose one of {', '.join(str(c) for c in choices)} (nearest: {nearest})"


# ---------------------------------------------------------------------------------------------------------------------
# Documentation from the schema


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


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def settings_help() -> str:
    """Every setting with its default and comment, a line each."""
    lines = []
    for name, default, kind, comment in walk_settings():
        choices = f"; {describe_type(kind)}" if get_origin(kind) is Literal else ""
        lines.append(f"  {f'{name}={_show(default)}':<34}  {comment}{choices}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Checks of values (those that need data or an architecture are in `gan_dist.checks`)

_POSITIVE = {
    "train.kimg",
    "train.batch_size",
    "train.n_critic",
    "model.z_dim",
    "model.g_widths",
    "model.d_widths",
    "growth.batch_sizes",
    "loss.penalty_interval",
    "sample.rows",
    "metrics.num_images",
    "metrics.batch_size",
    "data.memory_gib",
    "optim.G.lr",
    "optim.D.lr",
}

# What sizes something: a run with more would be a slip of the hand, or a stranger's.
_MOST = {
    "model.z_dim": 2**20,
    "model.g_widths": 2**20,
    "model.d_widths": 2**20,
    "train.batch_size": 2**20,
    "train.n_critic": 2**20,
    "growth.batch_sizes": 2**20,
    "metrics.batch_size": 2**20,
    "data.workers": 2**10,
    "sample.rows": 2**10,
    "train.seed": 2**63 - 1,
    "metrics.seed": 2**63 - 1,
}
_MOST_KIMG, _MOST_COUNTED, _LONGEST = 1e12, 2**40, 2**10  # of kimg, any whole number, and entries of a list


def check(config: Config) -> None:
    """Refuse values that no run can have.

    Raises:
        ConfigError: one line that names the key and the value.
    """
    for name, _, kind, _ in walk_settings():
        value = attrgetter(name)(config)
        if isinstance(value, list) and len(value) > _LONGEST:
            raise ConfigError(f"{name} has {len(value)} entries; at most {_LONGEST}")
        numbers = value if kind in (list[int], list[float]) else [value] if kind in (int, float) else []
        for number in numbers:
            if not math.isfinite(number) or number < 0:
                raise ConfigError(f"{name}={number} must not be negative, infinite or nan")
            if number == 0 and name in _POSITIVE:
                raise ConfigError(f"{name}={number} must be greater than 0")
            most = _MOST_KIMG if name.endswith("kimg") else _MOST_COUNTED if type(number) is int else math.inf
            if number > _MOST.get(name, most):
                raise ConfigError(f"{name}={number} must be at most {_MOST.get(name, most):,}")
    if config.data.image_size:
        parse_image_size(config.data.image_size)
    if config.loss.label_smoothing >= 1:
        raise ConfigError(f"loss.label_smoothing={config.loss.label_smoothing} must be below 1, for example 0.1")
    if config.loss.label_smoothing and config.loss.name in ("hinge", "wasserstein", "relativistic"):
        raise ConfigError(f"loss.label_smoothing: loss.name={config.loss.name} has no target to smooth; set it to 0")
    for side in ("G", "D"):
        betas = getattr(config.optim, side).betas
        if len(betas) != 2 or max(betas) >= 1:
            raise ConfigError(
                f"optim.{side}.betas={betas} must be two numbers from 0 to below 1, for example [0.5, 0.999]"
            )
        if getattr(config.optim, side).beta2_final >= 1:
            raise ConfigError(f"optim.{side}.beta2_final must be below 1, for example 0.99")
        settings = getattr(config.optim, side)
        for name in ("lr_final", "beta2_final"):
            if getattr(settings, name) and settings.schedule == "constant":
                raise ConfigError(f"optim.{side}.{name} needs optim.{side}.schedule=cosine or linear")
    if config.loss.gamma_decay != 1 and config.optim.D.schedule == "constant":
        raise ConfigError("loss.gamma_decay goes along optim.D.schedule: set that to cosine or linear")
    if config.growth.fade_kimg and not config.growth.stable_kimg:
        raise ConfigError("growth.fade_kimg needs growth.stable_kimg, the time that each size is trained for")
    if config.tracking.artifact and not config.checkpoint.every_kimg:
        raise ConfigError("tracking.artifact=true uploads the last checkpoint, but checkpoint.every_kimg=0 writes none")
    if config.run.name != Path(config.run.name).name or config.run.name == "..":
        raise ConfigError(f"run.name={config.run.name} is part of a directory's name: letters, digits, - and _")
    if config.resume != "never" and not config.run.dir:
        raise ConfigError(f"resume={config.resume} needs run.dir=DIR, the run to go on with")


# What a run can't change when it goes on: the networks, what they learn from, and in which order.
_FIXED = ("model.", "growth.", "data.name", "data.image_size", "data.channels", "data.class_folders", "data.stacked",
          "train.seed", "train.batch_size", "optim.G.name", "optim.D.name")  # fmt: skip


def changes_that_matter(saved: Config, now: Config) -> list[str]:
    """`key: old -> new` of every setting that differs and must not when a run goes on."""
    names = [name for name, *_ in walk_settings() if name.startswith(_FIXED)]
    pairs = [(name, attrgetter(name)(saved), attrgetter(name)(now)) for name in names]
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def parse_image_size(text: str) -> tuple[int, int]:
    """`"64"` -> (64, 64), `"64x96"` -> (64, 96): height and width in pixels."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match or not int(match[1]) or (match[2] and not int(match[2])):
        raise ConfigError(f"data.image_size={text} must be H or HxW in pixels, for example 64 or 64x96")
    return int(match[1]), int(match[2] or match[1])
