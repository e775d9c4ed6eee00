"""The processes of a run and their devices. Other files use the class `Distributed` and do not import Accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from gan_dist.parallel import accelerate_adapter, agreement, rendezvous, sync_batch_norm, world

T = TypeVar("T")

_PRECISION = {"fp64": "no", "fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


class Distributed:
    """This process, its rank and device, and the communication with the other processes of the run.

    Args:
        precision: "fp64", "fp32", "tf32", "bf16" or "fp16"; see `gan_dist.settings.precision.resolve`.
        cpu: compute on the CPU even if there is a GPU.
        compress: send gradients as bf16.

    Attributes:
        device: the device of this process.
        rank: number of this process, 0 … world_size - 1.
        world_size: number of processes.
        several: the processes communicate. True if world_size is larger than 1, and in a test with a group of one.
        local_world_size: number of processes on this node.
        first_local_rank: the smallest rank on this node.
        is_main: True in the process with rank 0, which writes files and uses trackers.
        is_local_main: True in one process of each node.
        precision: as in `Args`.
        cuda_was_first: CUDA had started before cuBLAS could be made deterministic.

    Raises:
        ConfigError: there is no GPU for fp16, or not one for each process; or see `gan_dist.parallel.world`.
        UserError: the processes cannot find each other; see `gan_dist.parallel.rendezvous.join`.
    """

    def __init__(self, precision: str = "fp32", cpu: bool = False, compress: bool = False) -> None:
        self.cuda_was_first = not switches.reserve_workspace()
        accelerate_adapter.skip_lookups()
        cpu = cpu or not torch.cuda.is_available()
        if precision == "fp16" and cpu:
            raise ConfigError("train.precision=fp16 needs a GPU; bf16 and fp32 run everywhere")
        # Only tests set these two environment variables; docs/distributed.md explains them.
        shared_gpu, group_of_one = (
            os.environ.get(f"GAN_DIST_TEST_{name}") == "1" for name in ("SHARED_GPU", "GROUP_OF_ONE")
        )
        if shared_gpu:
            accelerate_adapter.allow_shared_gpu()
        elif not cpu and not accelerate_adapter.shares_gpu():
            world.check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE") or "1"), torch.cuda.device_count())
        world.check_accelerate(cpu)
        backend = "gloo" if cpu or shared_gpu else "nccl"  # NCCL does not let two processes use one GPU
        peers = rendezvous.join()
        if peers:
            rendezvous.make_group(peers, backend)
        elif group_of_one:
            raise ConfigError("GAN_DIST_TEST_GROUP_OF_ONE=1 needs a process group: start with torchrun, or unset it")
        hook = DDPCommunicationHookType.BF16 if compress else DDPCommunicationHookType.NO
        # Buffers are not broadcast: they start equal and are updated equally in all processes.
        self._ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True, comm_hook=hook)
        # Without a group, the name of a backend would make Accelerate try to join one.
        group = InitProcessGroupKwargs(backend=backend if peers else None, timeout=rendezvous.TIMEOUT)
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=_PRECISION[precision],
            # The DataLoader yields global batches. Accelerate cuts each into equal slices, and rank r gets slice r.
            dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True),
            rng_types=[],  # Accelerate need not synchronise global random generators, because training uses none
            kwargs_handlers=[self._ddp, group],
        )
        self.precision = precision
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.is_local_main: bool = self._accelerator.is_local_main_process
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE") or self.world_size)
        self.first_local_rank: int = self.rank - self._accelerator.local_process_index
        self.several: bool = self.world_size > 1 or group_of_one
        if self.several and peers:
            self._peers = peers
            agreement.say_processors(peers, self.environment["device"])
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def launcher_is_lost(self) -> bool:
        """Tell if the launcher that kept the store of this run has ended."""
        return self.several and self._peers.store_lost

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, images and latents."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def backend(self) -> str:
        """The backend of torch.distributed, "nccl" or "gloo"; "none" if the processes do not communicate."""
        return torch.distributed.get_backend() if self.several else "none"

    @property
    def environment(self) -> dict[str, str]:
        """The versions, the processor and the precision. Two runs can only be bit-identical if these are the same."""
        return {**world.processor(self.device), "precision": self.precision}

    # --- networks, optimizers and DataLoaders -------------------------------------------------------------------------

    def prepare_model(self, module: nn.Module) -> nn.Module:
        """Prepare a network for training: its forward runs in the run's precision, and gradients are averaged.

        Args:
            module: the network, already on the device.

        Returns:
            The module, in DistributedDataParallel if there are several processes.
        """
        prepared = self._accelerator.prepare_model(module, device_placement=False)
        trained = any(parameter.requires_grad for parameter in module.parameters())
        # In a test with a group of one process on a GPU, Accelerate does not wrap the network, so it is done here.
        alone = self.several and self.world_size == 1
        if alone and trained and not isinstance(prepared, DistributedDataParallel):
            ids = [self.device.index] if self.device.type == "cuda" else None
            prepared = DistributedDataParallel(prepared, device_ids=ids, **self._ddp.to_kwargs())
            self._ddp.register_comm_hook(prepared)
        return prepared

    def release(self, model: nn.Module) -> None:
        """Undo `prepare_model`, so that the module can be prepared again."""
        accelerate_adapter.forget_model(self._accelerator, model)

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """Make the GradScaler of one optimizer, which keeps its loss scale, in fp16; None in other precisions.

        Accelerate has only one for all optimizers, so an overflow in D would halve G's loss scale too.
        """
        return torch.amp.GradScaler(self.device.type) if self.precision == "fp16" else None

    def prepare_optimizer(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None
    ) -> AcceleratedOptimizer:
        """Prepare an optimizer; with a scaler, its steps use the scaler's loss scale and are skipped at an overflow."""
        return AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)

    def prepare_loader(self, loader: DataLoader) -> DataLoader:
        """Turn a DataLoader of global batches into one that yields this process's slice of each, on the device."""
        prepared = self._accelerator.prepare_data_loader(loader)
        accelerate_adapter.forget_loaders(self._accelerator)
        return prepared

    def sync_batch_norm(self, module: nn.Module) -> nn.Module:
        """Let every batch normalization in a module use the statistics of the global batch; returns the module."""
        return sync_batch_norm.convert(module, _all_sum, self.world_size) if self.several else module

    def micro_batch(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """A context for forward and backward of one micro-batch. Only the last micro-batch makes the all-reduce."""
        return nullcontext() if last else getattr(model, "no_sync", nullcontext)()

    def backward(self, loss: Tensor, optimizer: AcceleratedOptimizer) -> None:
        """Compute the gradients of a scalar loss, which in fp16 is first multiplied by the optimizer's loss scale."""
        self.scaled(loss, optimizer).backward()

    def scaled(self, loss: Tensor, optimizer: AcceleratedOptimizer) -> Tensor:
        """Multiply a scalar by the optimizer's loss scale, in fp16."""
        return optimizer.scaler.scale(loss) if optimizer.scaler else loss

    def unscale(self, optimizer: AcceleratedOptimizer) -> None:
        """Divide the gradients by the loss scale, in fp16. Call this once per step, before the gradients are used."""
        if optimizer.scaler:
            optimizer.scaler.unscale_(optimizer.optimizer)

    @contextmanager
    def twice_differentiable(self, model: nn.Module, needed: bool = True) -> Iterator[None]:
        """A context in which a prepared network runs so that its gradient can be differentiated again, if `needed`.

        Its convolutions are the ones with fast second derivatives. In fp16 it runs in fp32, because second derivatives
        leave the range of fp16.
        """
        if not needed:
            yield
            return
        fp32 = self._in_fp32(model) if self.precision == "fp16" else nullcontext()
        with convolution.twice_differentiable(), fp32:
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

    # --- communication between processes ------------------------------------------------------------------------------

    def share(self, count: int) -> range:
        """Return the part of `count` items that this process handles. The parts differ in size by at most 1."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def gather(self, tensor: Tensor) -> Tensor:
        """Join the tensors (N, …) of all processes in the order of the ranks; returns the result in all of them.

        N may differ between processes. The result has the device of `tensor`.
        """
        if not self.several:
            return tensor
        lengths = self._accelerator.gather(torch.tensor([len(tensor)], device=self.device))
        sizes: list[int] = lengths.tolist()
        padded = torch.cat([tensor, tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])])
        parts = self._accelerator.gather(padded.to(self.device)).to(tensor.device).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, by an all-reduce."""
        return self._accelerator.reduce(tensor, "mean") if self.several else tensor

    def all_agree(self, mine: bool) -> bool:
        """Tell if `mine` is True in all processes. All call this function together, and wait as long as it takes."""
        self.barrier()
        return bool(self.mean(torch.tensor(float(mine), device=self.device)) == 1)

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process, and return its result in all processes. All call this function together.

        The other processes wait as long as it takes, for example hours for a download. They do not wait in a
        collective, so no time-out can end the wait.

        Raises:
            UserError: `make` has raised it; all processes raise the same error.
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
        """Wait until all processes have called this function, as long as it takes."""
        if self.several:
            self._peers.wait_for_all()  # it takes as long as it takes, but needs the store
            self._meet()

    def _meet(self) -> None:
        _all_sum(torch.zeros(1, device=self.device)).item()  # Accelerate's own barrier may use a GPU that is not there

    def first(self, key: str) -> bool:
        """Tell if this process is the first that calls this function with `key`. No process waits for another."""
        return not self.several or self._peers.first(key)

    def end(self) -> None:
        """Wait for all processes at the end of a run without failure. Call this last.

        A stopped run ends with status 75. If one process exited with it before the others are done, the launcher would
        kill them.
        """
        if self.several:
            self._meet()
            self._peers.part()
        self._accelerator.end_training()

    def failure(self, error: Exception) -> Exception:
        """Return the error to raise in place of `error`.

        This is `error` itself, or a UserError about another process whose failure has caused it.
        """
        if not self.several or (isinstance(error, UserError) and error.everywhere):
            return error
        return self._peers.failure(error)


def _all_sum(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total
