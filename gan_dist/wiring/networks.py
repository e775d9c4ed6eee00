"""Build networks and optimizers from the config, and load a generator from a checkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_dist import models
from gan_dist.checkpoint.find import config_path, find_checkpoint, read_facts
from gan_dist.checkpoint.restore import load_network
from gan_dist.checkpoint.state import State
from gan_dist.data import DataInfo
from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels.layout import adapt
from gan_dist.parallel.distributed import Distributed
from gan_dist.rng import Purpose, torch_seed
from gan_dist.settings.config import choose, load_config
from gan_dist.settings.schema import Config, Model, Optimizer
from gan_dist.wiring.parts import check_networks


def optimizer_names() -> list[str]:
    """Return the valid values of `optim.G.name` and `optim.D.name`, sorted.

    These are the classes in torch.optim, except those that need a closure, sparse gradients or matrices.
    """
    names = [name for name, cls in vars(torch.optim).items() if inspect.isclass(cls)]
    return sorted(set(names) - {"Optimizer", "LBFGS", "SparseAdam", "Muon"})


def make_optimizer(config: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """Make the configured optimizer for the parameters of a module, except frozen ones.

    Raises:
        ValueError: there is no such optimizer; the message names the valid ones.
        Exception: torch's optimizer may raise other errors if `config.args` are wrong.
    """
    if config.name not in optimizer_names():
        raise ValueError(choose(config.name, optimizer_names()))
    on_gpu = next(module.parameters()).device.type == "cuda"
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return getattr(torch.optim, config.name)(trained, **optimizer_arguments(config, on_gpu))


def optimizer_arguments(config: Optimizer, on_gpu: bool) -> dict[str, Any]:
    """Return the arguments of the configured optimizer, with the fastest kernels that it has."""
    accepted = inspect.signature(getattr(torch.optim, config.name)).parameters
    arguments: dict[str, Any] = {"lr": config.lr, **config.args}
    if "betas" in accepted:
        arguments.setdefault("betas", tuple(config.betas))
    if config.name in ("Adam", "AdamW", "SGD") and not arguments.keys() & {"foreach", "differentiable"}:
        arguments.setdefault("fused", True)  # a fused kernel reads and writes the weights only once
    if on_gpu and "capturable" in accepted:
        arguments.setdefault("capturable", True)  # its step can be part of a CUDA graph
    return arguments


def make_generator(model: Model, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Make the configured generator.

    Args:
        model: the settings.
        image_shape: (C, H, W) of its images.
        num_classes: number of labels; 0 for an unconditional G.
    """
    G = models.GENERATORS[model.name_of_G]
    return G(image_shape, num_classes, model.z_dim, model.g_widths, **model.g_args)


def make_discriminator(model: Model, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Make the configured discriminator; the arguments are those of `make_generator`."""
    D = models.DISCRIMINATORS[model.name_of_D]
    return D(image_shape, num_classes, model.d_widths, **model.d_args)


def networks_on_meta(model: Model, image_shape: tuple[int, int, int], num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Make G and D on the meta device, where they take no memory and their weights have shapes but no values.

    The arguments are those of `make_generator`.

    Raises:
        Exception: torch and the architectures raise errors of many types for sizes that do not fit each other.
    """
    with torch.device("meta"):
        return make_generator(model, image_shape, num_classes), make_discriminator(model, image_shape, num_classes)


def make_state(config: Config, info: DataInfo, dist: Distributed) -> State:
    """Make the networks and their optimizers, for a new run.

    The weights are initialised on the CPU from `train.seed`, so they are the same on every device and in every process.

    Args:
        config: the settings.
        info: the data set; see `gan_dist.data.datasets.describe`.
        dist: the processes.
    """
    model, seed = config.model, config.train.seed
    num_classes = info.num_classes if model.conditional else 0
    with torch_seed(seed, Purpose.INIT_G):
        G = make_generator(model, info.image_shape, num_classes)
    with torch_seed(seed, Purpose.INIT_D):
        D = make_discriminator(model, info.image_shape, num_classes)
    G, D = (adapt(module.to(dist.device, dist.dtype), dist.precision) for module in (G, D))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    if config.train.sync_batch_norm:
        G, D = dist.sync_batch_norm(G), dist.sync_batch_norm(D)
    freeze(D, config)
    scalers = {name: scaler for name in ("G", "D") if (scaler := dist.make_scaler())}
    return State(G, D, G_ema, make_optimizer(config.optim.G, G), make_optimizer(config.optim.D, D), scalers)


def freeze(D: nn.Module, config: Config) -> None:
    """Freeze the first `init.freeze_D` blocks of D, counted from the image on.

    Their weights get no gradients, and they are in eval mode, so that running means stay what they are (Mo et al. 2020,
    "Freeze the discriminator").

    Raises:
        ConfigError: D has fewer blocks.
    """
    count = config.init.freeze_D
    if not count:
        return
    blocks: list[nn.Module] = D.freezable()  # type: ignore[operator]
    if count > len(blocks):
        raise ConfigError(f"init.freeze_D={count}: D of {config.model.name_of_D} has {len(blocks)} blocks")
    for block in blocks[:count]:
        block.eval().requires_grad_(False)


@dataclass(frozen=True)
class SavedGenerator:
    """G_ema of a checkpoint, with all that is needed to build it. It can be sent to other processes.

    Attributes:
        path: the checkpoint's directory.
        config: the run's settings, with the replacements that were asked for.
        model: the run's own section `model`.
        facts: what `gan_dist.checkpoint.find.read_facts` returned.
        weights: the weights as saved, on the CPU: fp32, or fp64 for a run in fp64.
    """

    path: Path
    config: Config
    model: Model
    facts: dict[str, Any]
    weights: dict[str, Tensor]

    def make(self) -> nn.Module:
        """Build the generator, in eval mode, on the CPU.

        Its attribute `class_names` is a list with the name of each class; [] if the classes have no names.
        """
        with torch.device("meta"):
            G = make_generator(self.model, tuple(self.facts["image_shape"]), self.facts["num_classes"])
        G.load_state_dict(self.weights, assign=True)
        G.class_names = self.facts["class_names"] if self.facts["num_classes"] else []  # type: ignore[assignment]
        return G.eval().requires_grad_(False)


def on_device(G: nn.Module, device: str) -> nn.Module:
    """Move a generator to a device.

    Raises:
        ConfigError: the device cannot be used here.
    """
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises errors of many types for a device that is not there
        why = str(error).partition("\n")[0][:100]
        raise ConfigError(f"--device={device} cannot be used here ({why}); choose cpu, or cuda on a GPU") from error
    return G.to(device)


def find_generator(run_dir: Path, name: str, settings: Sequence[str] = ()) -> SavedGenerator:
    """Find a checkpoint of a run and read its generator.

    A run that trains meanwhile may delete the checkpoint before it is read. Then the search starts again.

    Args:
        run_dir, name: see `gan_dist.checkpoint.find.find_checkpoint`.
        settings: see `read_generator`.

    Raises:
        UserError: see `find_checkpoint` and `read_generator`.
    """
    while True:
        path = find_checkpoint(run_dir, name)
        try:
            return read_generator(path, settings)
        except UserError:
            if path.exists():
                raise


def read_generator(checkpoint: Path, settings: Sequence[str] = ()) -> SavedGenerator:
    """Read G_ema from a checkpoint.

    Args:
        checkpoint: the checkpoint's directory.
        settings: replacements key.sub=value of the run's settings.

    Raises:
        UserError: its files are damaged or do not belong together.
    """
    facts, config, (G, _) = saved_networks(checkpoint)
    load_network(checkpoint, "G_ema", G)
    own = load_config(config_path(checkpoint), settings, of_run=True)
    return SavedGenerator(checkpoint, own, config.model, facts, G.state_dict())


def saved_networks(checkpoint: Path) -> tuple[dict[str, Any], Config, tuple[nn.Module, nn.Module]]:
    """Return the facts and the settings of a checkpoint, and G and D as they describe them, on the meta device.

    On the meta device networks take no memory; loading a file gives them the memory that the file needs.

    Raises:
        UserError: its files are damaged or do not belong together.
    """
    facts, config = read_facts(checkpoint), load_config(config_path(checkpoint), of_run=True)
    model = config.model
    try:
        check_networks(model, facts["environment"])
    except ConfigError as error:
        raise ConfigError(f"{checkpoint}: {error}") from error
    try:
        return facts, config, networks_on_meta(model, tuple(facts["image_shape"]), facts["num_classes"])
    except Exception as error:  # a checkpoint may come from a stranger, with sizes that no network can have
        raise ConfigError(f"{checkpoint}: {model.name}: {type(error).__name__}: {str(error)[:200]}") from error
