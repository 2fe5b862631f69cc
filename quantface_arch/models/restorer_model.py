"""What this plugin's models in BasicSR's loop have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.models import lr_scheduler
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from quantface_arch.errors import QuantFaceError, check_choice, check_keys
from quantface_arch.faces.color import COLOR_FIXES, fix_color
from quantface_arch.pretrained.zoo import load_into
from quantface_arch.quant.checkpoint.save_load import save_checkpoint
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.state_dict import fill, read_state

__all__ = ["RestorerModel"]

# Those that BasicSR's loop knows.
SCHEDULERS = {
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}


class RestorerModel(SRModel):
    """BasicSR's SRModel whose losses see pictures in [-1, 1], and whose files are whole or absent.

    ``lq`` is kept in the network's range, its attribute ``input_range`` ((0, 1) where it has none);
    ``gt`` and ``output`` are in [-1, 1].

    ``path: pretrain_network_g`` may name a checkpoint of this project (``.safetensors``) or one of
    its shipped models as well as BasicSR's ``.pth``.

    Options under ``train`` that every training has:
        total_iter (int): steps of the training.
        warmup_iter (int): steps in which the learning rate rises to its full height. Default -1:
            none.
        optim_g (dict): ``type``, a class of ``torch.optim``, and its options.
        scheduler (dict): ``type`` (``MultiStepLR``, ``MultiStepRestartLR`` or
            ``CosineAnnealingRestartLR``) and its options; it may not end before ``total_iter``.

    Options under ``val`` beside BasicSR's:
        color_fix (str): what the tested image takes over from its input, ``none``, ``lowres``,
            ``wavelet`` or ``adain``, see ``fix_color``; with ``none``, figures are those of the
            network alone. Default none.
    """

    train_options: frozenset[str]

    def check_train_options(self) -> None:
        """Refuse options under ``train`` that would fail later.

        Raises:
            QuantFaceError: an unknown key, an optimizer or a schedule that cannot be made, a
                schedule that ends before the training does, or a type for autocast other than
                bfloat16.
        """
        options = self.opt["train"]
        check_keys("train options", options, self.train_options)
        for name in ("optim_g", "scheduler"):
            if "type" not in (options.get(name) or ()):
                raise QuantFaceError(f"train option {name}: no type is given")
        self._rehearse(options["optim_g"], options["scheduler"])
        periods = options["scheduler"].get("periods")
        if periods and sum(periods) < options["total_iter"]:
            raise QuantFaceError(
                f"train option scheduler: periods {periods} end before total_iter "
                f"{options['total_iter']}"
            )
        if options.get("autocast") not in (None, "bfloat16"):
            raise QuantFaceError(
                f"train option autocast: found {options['autocast']!r}, allowed are bfloat16 and ~"
            )

    def _rehearse(self, optimizer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        """Make both for a parameter of no use."""
        rest = dict(optimizer)
        made = self.get_optimizer(rest.pop("type"), [nn.Parameter(torch.zeros(1))], **rest)
        rest = dict(scheduler)
        kind = SCHEDULERS.get(rest.pop("type"))
        if kind is None:
            raise QuantFaceError(
                f"train option scheduler type: found {scheduler['type']!r}, "
                f"allowed are {', '.join(SCHEDULERS)}"
            )
        try:
            kind(made, **rest)
        except (TypeError, ValueError, AssertionError) as error:
            raise QuantFaceError(f"train option scheduler: {error}") from error

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a training step's forward passes."""
        enabled = self.opt["train"].get("autocast") is not None
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BasicSR's, which wraps for distributed training on GPUs only."""
        if self.opt["dist"] and self.device.type == "cpu":
            unused = self.opt.get("find_unused_parameters", False)
            return DistributedDataParallel(net, find_unused_parameters=unused)
        return super().model_to_device(net)

    @property
    def input_range(self) -> tuple[float, float]:
        """Smallest and largest value of the network's pictures."""
        return traits_of(self.get_bare_model(self.net_g)).input_range

    def to_signed(self, picture: Tensor) -> Tensor:
        """A picture in the network's range brought to [-1, 1]."""
        low, high = self.input_range
        scale = 2 / (high - low)
        return picture * scale - (1 + low * scale)

    def feed_data(self, data: Mapping[str, Tensor]) -> None:
        """Take a batch of pictures in [0, 1]."""
        low, high = self.input_range
        self.lq = data["lq"].to(self.device) * (high - low) + low
        # That of another data set must not be compared with.
        self.__dict__.pop("gt", None)
        if "gt" in data:
            self.gt = data["gt"].to(self.device) * 2 - 1

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        """Pictures in [0, 1] for BasicSR's metrics and files."""
        pictures = {"lq": self.to_signed(self.lq), "result": self.output}
        if hasattr(self, "gt"):
            pictures["gt"] = self.gt
        return OrderedDict((name, (x.detach().cpu() + 1) / 2) for name, x in pictures.items())

    @abstractmethod
    def tested_network(self) -> nn.Module:
        """The network that validation and testing run."""

    def test(self) -> None:
        """Restore ``lq`` in evaluation mode, in float32."""
        net = self.tested_network()
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = self._color_fixed(self.to_signed(_run_padded(net, self.lq)))
        net.train(training)

    def _color_fixed(self, output: Tensor) -> Tensor:
        name = (self.opt.get("val") or {}).get("color_fix", "none")
        check_choice("val option color_fix", name, COLOR_FIXES)
        if name == "none":
            return output
        if output.shape != self.lq.shape:
            raise QuantFaceError(
                f"val option color_fix {name}: found input {tuple(self.lq.shape)} and output "
                f"{tuple(output.shape)}; both must be of one size"
            )
        faces = (
            ((image.permute(0, 2, 3, 1) + 1) / 2).clamp(0, 1).float().cpu().numpy()
            for image in (output, self.to_signed(self.lq))
        )
        fixed = [fix_color(new, old, name) for new, old in zip(*faces, strict=True)]
        return torch.from_numpy(np.stack(fixed)).permute(0, 3, 1, 2).to(output) * 2 - 1

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name."""
        net = self.get_bare_model(self.net_g)
        return {name: value for name, value in net.named_parameters() if value.requires_grad}

    def setup_optimizers(self) -> None:
        options = dict(self.opt["train"]["optim_g"])
        parameters = list(self.trained_parameters().values())
        self.optimizer_g = self.get_optimizer(options.pop("type"), parameters, **options)
        self.optimizers.append(self.optimizer_g)

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **kwargs: Any) -> Any:
        """Any optimizer of torch.optim by name; BasicSR knows Adam alone."""
        if not hasattr(torch.optim, optim_type):
            raise QuantFaceError(f"train option optim_g type: torch.optim has no {optim_type!r}")
        try:
            return getattr(torch.optim, optim_type)(params, lr, **kwargs)
        except (TypeError, ValueError) as error:
            raise QuantFaceError(f"train option optim_g: {error}") from error

    def check_finite(self, current_iter: int, losses: Mapping[str, Tensor]) -> None:
        """Raise QuantFaceError if a loss is NaN or infinite, naming it."""
        for name, value in losses.items():
            if not torch.isfinite(value):
                raise QuantFaceError(
                    f"training step {current_iter}: loss {name} is {value.item()}; "
                    "a lower learning rate may help"
                )

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = "params"
    ) -> None:
        """Load a ``.pth`` of BasicSR, or a checkpoint or shipped model of this project.

        Raises:
            QuantFaceError: no such file, or one of another network; the message names the keys.
        """
        get_root_logger().info(f"Loading {load_path} into {type(net).__name__}.")
        bare = self.get_bare_model(net)
        if not str(load_path).endswith(".pth"):
            load_into(bare, load_path)
            # Layers that the checkpoint quantizes were made anew.
            net.to(self.device)
            return
        state = read_state(load_path, (param_key, "params"))
        state = {name.removeprefix("module."): value for name, value in state.items()}
        if strict:
            fill(bare, load_path, state)
        else:
            bare.load_state_dict(state, strict=False)

    @abstractmethod
    def states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """What ``save`` writes: label of a file → BasicSR's parameter key → state dict."""

    @abstractmethod
    def load_states(self, step: int) -> None:
        """Take over what ``save`` wrote at iteration ``step``."""

    @abstractmethod
    def final_network(self) -> tuple[nn.Module, Mapping[str, Any]]:
        """The network that the training was for, and its architecture's options."""

    def save(self, epoch: int, current_iter: int) -> None:
        """Save networks, this project's checkpoint at the end, and the training state last.

        A run that is killed meanwhile leaves whole files only, and no state without its networks.
        """
        if self.opt["rank"] != 0:
            return
        models = Path(self.opt["path"]["models"])
        is_last = current_iter == -1
        step = "latest" if is_last else current_iter
        for label, state in self.states().items():
            _write(models / f"{label}_{step}.pth", state)
        if is_last:
            net, arch = self.final_network()
            save_checkpoint(net, models / "net_g_latest.safetensors", arch)
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }
        _write(Path(self.opt["path"]["training_states"]) / f"{current_iter}.state", state)

    def saved(self, label: str, step: int) -> Path:
        """File of a network that belongs to a training state.

        Raises:
            QuantFaceError: it is missing.
        """
        path = Path(self.opt["path"]["models"]) / f"{label}_{step}.pth"
        if not path.is_file():
            raise QuantFaceError(f"resume from iteration {step}: {path} is missing")
        return path

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Load the networks that belong to the state, then optimizers and schedulers."""
        self.load_states(resume_state["iter"])
        super().resume_training(resume_state)


def _run_padded(net: nn.Module, lq: Tensor) -> Tensor:
    """Run a network that works on windows, such as SwinIR, on pictures of any size."""
    window = traits_of(net).arch_options.get("window_size", 1)
    height, width = lq.shape[-2:]
    output = net(F.pad(lq, (0, -width % window, 0, -height % window), mode="reflect"))
    scale = output.shape[-1] // (width + -width % window)
    return output[..., : height * scale, : width * scale]


def _write(path: Path, state: Mapping[str, Any]) -> None:
    # A path's errors torch would replace by one that does not say why.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
