"""The training step, checkpoints and validation that all models of this package share."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from quantface_arch.models.checkpoints import (
    check_resumed,
    options_record,
    remove_old_checkpoints,
    saved_network,
    write_checkpoint,
)
from quantface_arch.models.ema import EMA
from quantface_arch.models.loss_terms import LossTerm, check_finite, refuse_basicsr_losses
from quantface_arch.models.options import LoggerOptions, TrainOptions, ValidationOptions
from quantface_arch.models.processes import broadcast_state
from quantface_arch.models.schedule import check_schedule, make_optimizer
from quantface_arch.models.testing import color_fixed, run_padded
from quantface_arch.pretrained.zoo import load_into
from quantface_arch.quant.checkpoint.save_load import save_checkpoint
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.option_fields import parse_options, split_options
from quantface_arch.utils.state_dict import fill, read_state

__all__ = ["RestorerModel"]


class RestorerModel(SRModel):
    """BasicSR's SRModel with losses on images in [-1, 1] and with files written atomically.

    ``lq`` is in the network's ``input_range``, by default (0, 1); ``gt`` and ``output`` are in
    [-1, 1].

    ``path: pretrain_network_g`` may name a checkpoint of this project (``.safetensors``), one of
    its shipped models, or a ``.pth`` file of BasicSR.

    ``ValidationOptions`` lists its options under ``val`` besides BasicSR's.
    """

    option_class: type[TrainOptions] = TrainOptions
    options: Any
    terms: list[LossTerm]

    def read_train_options(self) -> None:
        """Check the training options in the options file and keep them as ``options``.

        Raises:
            QuantFaceError: an option is unknown, a value is not allowed, the optimizer or the
                schedule cannot be made, or the schedule ends before the training does.
        """
        train, logger = self.opt["train"], self.opt.get("logger") or {}
        refuse_basicsr_losses(train)
        self.options = parse_options(self.option_class, "train", train)
        own, _ = split_options(LoggerOptions, logger)
        self.keep_checkpoints = parse_options(LoggerOptions, "logger", own).keep_checkpoints
        self.record = options_record(self.opt["network_g"], self.options)
        if self.takes_steps:
            check_schedule(self.options)

    @property
    def takes_steps(self) -> bool:
        """Return whether the training has any step, and so needs an optimizer and losses."""
        return True

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a training step's forward passes."""
        enabled = self.options.autocast is not None
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device; every process takes the first one's weights."""
        net = net.to(self.device)
        broadcast_state(net)
        return net

    def parallel(self, net: nn.Module, skips_parameters: bool = False) -> nn.Module:
        """Wrap a network for training by several processes, or on several GPUs of one process.

        Args:
            net: a network of which exactly the trained parameters require gradients.
            skips_parameters: whether a step may leave trained parameters without gradients.
        """
        if self.opt["dist"]:
            unused = skips_parameters or self.opt.get("find_unused_parameters", False)
            devices = None if self.device.type == "cpu" else [torch.cuda.current_device()]
            return DistributedDataParallel(net, device_ids=devices, find_unused_parameters=unused)
        return DataParallel(net) if self.opt["num_gpu"] > 1 else net

    @property
    def input_range(self) -> tuple[float, float]:
        """Return the smallest and the largest value of the network's images."""
        return traits_of(self.get_bare_model(self.net_g)).input_range

    def to_signed(self, image: Tensor) -> Tensor:
        """Map an image from the network's range to [-1, 1]."""
        low, high = self.input_range
        scale = 2 / (high - low)
        return image * scale - (1 + low * scale)

    def feed_data(self, data: Mapping[str, Tensor]) -> None:
        """Take a batch of images in [0, 1]."""
        low, high = self.input_range
        self.lq = data["lq"].to(self.device) * (high - low) + low
        # A clean image that is left from another data set must not be used.
        self.__dict__.pop("gt", None)
        if "gt" in data:
            self.gt = data["gt"].to(self.device) * 2 - 1

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        """Return images in [0, 1] for BasicSR's metrics and files."""
        images = {"lq": self.to_signed(self.lq), "result": self.output}
        if hasattr(self, "gt"):
            images["gt"] = self.gt
        return OrderedDict((name, (x.detach().cpu() + 1) / 2) for name, x in images.items())

    def test(self) -> None:
        """Restore ``lq`` in evaluation mode, in float32."""
        net, training = self.get_bare_model(self.net_g), self.net_g.training
        net.eval()
        with torch.no_grad():
            output = self.to_signed(run_padded(net, self.lq))
        own, _ = split_options(ValidationOptions, self.opt.get("val") or {})
        fix = parse_options(ValidationOptions, "val", own).color_fix
        self.output = color_fixed(output, self.to_signed(self.lq), fix)
        net.train(training)

    def validation(self, *args: Any, **kwargs: Any) -> None:
        """Validate with the EMA of the weights, if there is one."""
        with self.averaged():
            super().validation(*args, **kwargs)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the values of the EMA, if there is one."""
        return self.ema.applied() if self.is_train else nullcontext()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer changes, by name."""
        net = self.get_bare_model(self.net_g)
        return {name: value for name, value in net.named_parameters() if value.requires_grad}

    def setup_training(self) -> None:
        """Make the optimizer, the schedules and the EMA of the trained parameters."""
        self.setup_optimizers()
        self.setup_schedulers()
        decay = getattr(self.options, "ema_decay", 0)
        self.ema = EMA(self.trained_parameters(), decay)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of trained parameters, which may differ in options of the optimizer."""
        return [{"params": list(self.trained_parameters().values())}]

    def setup_optimizers(self) -> None:
        """Make the optimizer that the options name."""
        self.optimizer_g = make_optimizer(self.options.optim_g, self.parameter_groups())
        self.optimizers.append(self.optimizer_g)

    @abstractmethod
    def losses(self, lq: Tensor, gt: Tensor | None, current_iter: int) -> dict[str, Tensor]:
        """Return the losses of one piece of a batch that count at an iteration, by log name."""

    def optimize_parameters(self, current_iter: int) -> None:
        """Take one training step: gradients of every piece of the batch, update, EMA."""
        self.optimizer_g.zero_grad()
        log: dict[str, Tensor] = {}
        pieces = self.lq.chunk(getattr(self.options, "accumulate", 1))
        clean = self.gt.chunk(len(pieces)) if hasattr(self, "gt") else [None] * len(pieces)
        for place, (lq, gt) in enumerate(zip(pieces, clean, strict=True), start=1):
            with self.synchronized(place == len(pieces)):
                losses = self.losses(lq, gt, current_iter)
                check_finite(current_iter, losses)
                share = len(lq) / len(self.lq)
                (cast("Tensor", sum(losses.values())) * share).backward()
            for name, value in losses.items():
                log[name] = log.get(name, 0) + value.detach() * share
        nn.utils.clip_grad_norm_(self.trained_parameters().values(), self.options.clip_grad)
        self.optimizer_g.step()
        log.update(self.train_others(current_iter))
        self.ema.update()
        self.log_dict = self.reduce_loss_dict(log)

    def train_others(self, current_iter: int) -> dict[str, Tensor]:
        """Train other networks, such as a discriminator, and return their losses."""
        return {}

    def synchronized(self, wanted: bool) -> AbstractContextManager[None]:
        """Return a context whose backward passes average gradients over processes if ``wanted``."""
        if wanted or not isinstance(self.net_g, DistributedDataParallel):
            return nullcontext()
        return self.net_g.no_sync()

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params"
    ) -> None:
        """Load a ``.pth`` of BasicSR, or a checkpoint or shipped model of this project.

        Raises:
            QuantFaceError: the file does not exist, or is of another network; the message names the
                keys.
        """
        get_root_logger().info(f"Loading {load_path} into {type(net).__name__}.")
        bare = self.get_bare_model(net)
        if not str(load_path).endswith(".pth"):
            load_into(bare, load_path)
            # Quantized layers of the checkpoint are new modules, which are still on the CPU.
            net.to(self.device)
            return
        state = read_state(load_path, (param_key, "params"))
        state = {name.removeprefix("module."): value for name, value in state.items()}
        if strict:
            fill(bare, load_path, state)
        else:
            bare.load_state_dict(state, strict=False)

    def states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return what ``save`` writes: label of a file → BasicSR's parameter key → state dict."""
        net = self.get_bare_model(self.net_g)
        states = {"params": {name: value.cpu() for name, value in net.state_dict().items()}}
        if self.ema.decay:
            with self.ema.applied():
                trained = {name: p.detach().cpu() for name, p in self.trained_parameters().items()}
            # Tensors that are not trained are stored once, for both state dicts.
            states["params_ema"] = {**states["params"], **trained}
        return {"net_g": states}

    def load_states(self, step: int) -> None:
        """Load the networks that ``save`` wrote at iteration ``step``."""
        path = saved_network(Path(self.opt["path"]["models"]), "net_g", step)
        fill(self.get_bare_model(self.net_g), path, read_state(path, ("params",)))
        if self.ema.decay:
            self.ema.load(read_state(path, ("params_ema",)))

    def final_network(self) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return the network to write at the end, and the options of its architecture.

        ``save`` calls this while the network has the values of the EMA.
        """
        return self.get_bare_model(self.net_g), self.opt["network_g"]

    def save(self, epoch: int, current_iter: int) -> None:
        """Save the networks and the training state, or this project's checkpoint at the end.

        A run that is killed meanwhile leaves only complete files. Old states are removed once the
        new one is complete.

        Raises:
            WriteError: a file cannot be written, for example because the disk is full. The
                incomplete checkpoint is removed, and older ones are kept.
        """
        if self.opt["rank"] != 0:
            return
        models, folder = (Path(self.opt["path"][key]) for key in ("models", "training_states"))
        if current_iter == -1:
            write_checkpoint(models, self.states(), "latest")
            with self.averaged():
                net, arch = self.final_network()
                save_checkpoint(net, models / "net_g_latest.safetensors", arch)
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "options": self.record,
        }
        write_checkpoint(
            models, self.states(), current_iter, folder / f"{current_iter}.state", state
        )
        remove_old_checkpoints(models, folder, self.keep_checkpoints)

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Load the networks that belong to the state, then optimizers and schedulers.

        Raises:
            QuantFaceError: the state is of another network, or only one of the two trainings has a
                discriminator or an EMA.
        """
        check_resumed(resume_state, self.record, len(self.optimizers))
        self.load_states(resume_state["iter"])
        super().resume_training(resume_state)
