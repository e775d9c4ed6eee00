"""Processes and devices: the one file that knows Accelerate; others get a `Distributed`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DDPCommunicationHookType, broadcast_object_list
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from gan_dist.errors import ConfigError, UserError
from gan_dist.kernels import convolution, switches
from gan_dist.kernels.memory import keep_freed_memory
from gan_dist.parallel import accelerate_adapter, peers, sync_batch_norm, world

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # how long a collective waits for a process that is stopped but not dead
_PRECISION = {"fp64": "no", "fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


class Distributed:
    """This process's place among all, and what they do together.

    Attributes:
        device: where this process computes.
        rank, world_size: this process's number, and how many there are.
        several: this run does what several processes do together; always if there are several.
        local_world_size, first_local_rank: how many there are on this node, and the number of the first of them.
        is_main: True in the one process that writes files and talks to trackers; is_local_main: in one on each node.
        precision: fp64, fp32, tf32, bf16 or fp16.

    Args:
        precision: see there; a run's is chosen by `gan_dist.settings.precision.resolve`.
        cpu: don't use a GPU.
        compress: send gradients as bf16.
        compile: run prepared networks through torch.compile.

    Raises:
        ConfigError: fp16 without a GPU, more processes on this node than GPUs, or fewer processes came together than
            the launcher started.
    """

    def __init__(
        self, precision: str = "fp32", cpu: bool = False, compress: bool = False, compile: bool = False
    ) -> None:
        switches.reserve_workspace()
        accelerate_adapter.skip_lookups()
        cpu = cpu or not torch.cuda.is_available()
        if precision == "fp16" and cpu:
            raise ConfigError("train.precision=fp16 needs a GPU; bf16 and fp32 run everywhere")
        # Both are for tests only: docs/distributed.md says what they show.
        shared_gpu, group_of_one = (
            os.environ.get(f"GAN_DIST_TEST_{name}") == "1" for name in ("SHARED_GPU", "GROUP_OF_ONE")
        )
        if shared_gpu:
            accelerate_adapter.allow_shared_gpu()
        elif not cpu and not accelerate_adapter.shares_gpu():
            world.check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Grad strides do not match")  # of 1x1 convolutions: costs nothing
        hook = DDPCommunicationHookType.BF16 if compress else DDPCommunicationHookType.NO
        # All processes start from the same weights and buffers and treat them alike: none need be sent.
        self._ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True, comm_hook=hook)
        # NCCL refuses two processes on one GPU. Without a launcher a backend would make Accelerate look for a group.
        backend = {"backend": "gloo"} if shared_gpu and "LOCAL_RANK" in os.environ else {}
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=_PRECISION[precision],
            # Global batches, cut into equal slices: process r of p gets the r-th.
            dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True),
            rng_types=[],  # nothing draws from global generators
            kwargs_handlers=[self._ddp, InitProcessGroupKwargs(timeout=TIMEOUT, **backend)],
        )
        self.precision = precision
        self._compile = compile
        if compile:  # all networks, sizes and modes count as one function
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.is_local_main: bool = self._accelerator.is_local_main_process
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        self.first_local_rank: int = self.rank - self._accelerator.local_process_index
        world.check_world(self.world_size)
        self.several: bool = self.world_size > 1 or group_of_one
        if self.several and not torch.distributed.is_initialized():
            raise ConfigError("GAN_DIST_TEST_GROUP_OF_ONE=1 needs a process group: start with torchrun, or unset it")
        if self.several:
            self._peers = peers.meet(self.rank, self.world_size)
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of images and latents."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def backend(self) -> str:
        return torch.distributed.get_backend() if self.several else "none"

    @property
    def environment(self) -> dict[str, str]:
        """What the last bits of a run depend on beside its config: versions, the processor and the precision."""
        if self.device.type == "cuda":
            name, cudnn = torch.cuda.get_device_name(self.device), str(torch.backends.cudnn.version())
        else:
            name, cudnn = f"CPU, {torch.backends.cpu.get_cpu_capability()}", "none"
        return {"torch": torch.__version__, "cudnn": cudnn, "device": name, "precision": self.precision}

    # --- what is trained ----------------------------------------------------------------------------------------------

    def prepare_model(self, module: nn.Module) -> nn.Module:
        """Run a module's forward, which is on the device, in the run's precision, and wrap it for several processes."""
        if self._compile:
            module.compile(dynamic=False)  # in place: neither the wrapper nor the names of weights change
        prepared = self._accelerator.prepare_model(module, device_placement=False)
        trained = any(parameter.requires_grad for parameter in module.parameters())
        alone = self.several and self.world_size == 1  # for tests: Accelerate wraps nothing then on a GPU
        if alone and trained and not isinstance(prepared, DistributedDataParallel):
            ids = [self.device.index] if self.device.type == "cuda" else None
            prepared = DistributedDataParallel(prepared, device_ids=ids, **self._ddp.to_kwargs())
            self._ddp.register_comm_hook(prepared)
        return prepared

    def release(self, model: nn.Module) -> None:
        """Undo `prepare_model`, so that the module can be prepared again."""
        accelerate_adapter.forget_model(self._accelerator, model)

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """A loss scale, for fp16. Accelerate has one for all: an overflow in D's step would halve G's too."""
        return torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None

    def prepare_optimizer(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None
    ) -> AcceleratedOptimizer:
        """An optimizer that steps in the run's precision, with its own loss scale if there is one."""
        return AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)

    def prepare_loader(self, loader: DataLoader) -> DataLoader:
        """A loader of global batches to one of this process's slices, on the device."""
        prepared = self._accelerator.prepare_data_loader(loader)
        accelerate_adapter.forget_loaders(self._accelerator)
        return prepared

    def sync_batch_norm(self, module: nn.Module) -> nn.Module:
        """Let every batch normalization in a module see the batches of all processes; changes nothing for one."""
        return sync_batch_norm.convert(module, _all_sum, self.world_size) if self.several else module

    def micro_batch(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch: only the last one averages gradients over processes."""
        return nullcontext() if last else getattr(model, "no_sync", nullcontext)()

    def backward(self, loss: Tensor, optimizer: AcceleratedOptimizer) -> None:
        """Backward pass of a scalar loss, scaled as its optimizer needs it."""
        (optimizer.scaler.scale(loss) if optimizer.scaler else loss).backward()

    def unscale(self, optimizer: AcceleratedOptimizer) -> None:
        """Take the loss scale out of the gradients, once, before they are looked at or stepped with."""
        if optimizer.scaler:
            optimizer.scaler.unscale_(optimizer.optimizer)

    @contextmanager
    def twice_differentiable(self, model: nn.Module, needed: bool = True) -> Iterator[None]:
        """A context in which a prepared model runs, if `needed`, so that its gradient can be differentiated again.

        Its convolutions are the ones whose second derivatives are fast. It is not compiled, as compiled code can be
        differentiated once only. In fp16 it runs in fp32, as second derivatives leave the range of fp16.
        """
        if not needed:
            yield
            return
        eager = torch.compiler.set_stance("force_eager") if self._compile else nullcontext()
        fp32 = self._in_fp32(model) if self.precision == "fp16" else nullcontext()
        with convolution.twice_differentiable(), eager, fp32:
            yield

    @contextmanager
    def _in_fp32(self, model: nn.Module) -> Iterator[None]:
        module = self._accelerator.unwrap_model(model)
        prepared = module.forward
        module.forward = accelerate_adapter.forward_without_autocast(module)
        try:
            yield
        finally:
            module.forward = prepared

    # --- what processes do together -----------------------------------------------------------------------------------

    def share(self, count: int) -> range:
        """This process's slice of `count` things, as even as it goes."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def gather(self, tensor: Tensor) -> Tensor:
        """Join tensors (N, …) of all processes, whose N may differ, in the order of the ranks."""
        if not self.several:
            return tensor
        lengths = self._accelerator.gather(torch.tensor([len(tensor)], device=self.device))
        sizes: list[int] = lengths.tolist()
        padded = torch.cat([tensor, tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])])
        parts = self._accelerator.gather(padded.to(self.device)).to(tensor.device).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self._accelerator.reduce(tensor, "mean") if self.several else tensor

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, in all of them; its UserError is raised in all of them too.

        The others wait as long as it takes, a download of hours too: no collective, and so no time-out, is pending.
        """
        if not self.several:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except UserError as error:
                box[1] = error
        self._peers.wait_for_main()
        broadcast_object_list(box)
        if box[1] is not None:
            box[1].everywhere = True
            raise box[1]
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes, as long as it takes."""
        if self.several:
            self._peers.wait_for_all()

    def end(self) -> None:
        """The last thing that is called, after a run that went well: all leave together.

        A launcher that sees one process gone with a status other than 0 ends the others.
        """
        if self.several:
            # Accelerate's own barrier takes the GPU with the process's number, even if there is none.
            _all_sum(torch.zeros(1, device=self.device)).item()
            self._peers.part()
        self._accelerator.end_training()

    def failure(self, error: Exception) -> Exception:
        """What to raise for an exception: itself, or, where another process's end caused it, what happened there."""
        if not self.several or (isinstance(error, UserError) and error.everywhere):
            return error
        return self._peers.failure(error)


def _all_sum(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total
