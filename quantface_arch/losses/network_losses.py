"""Losses through networks whose weights are published elsewhere, in BasicSR's LOSS_REGISTRY."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import LOSS_REGISTRY
from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.faces.identity import CROP, SIDE
from quantface_arch.faces.weights import EMBEDDER
from quantface_arch.losses.features import FrozenLoss
from quantface_arch.losses.mobilefacenet import load_mobilefacenet
from quantface_arch.losses.weights import ALTERNATIVE, ARCFACE, find_weights
from quantface_arch.utils.state_dict import fill, read_state

__all__ = ["QuantFaceIdentityLoss", "QuantFaceLPIPSLoss"]

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
EMBEDDERS = {"arcface": ARCFACE, "mobileface": EMBEDDER.url}


@LOSS_REGISTRY.register()
class QuantFaceLPIPSLoss(FrozenLoss):
    """Learned perceptual distance (LPIPS; Zhang et al., CVPR 2018), by the ``lpips`` package.

    Args:
        loss_weight: factor of the result.
        net: ``alex``, ``vgg`` or ``squeeze``.
        weights: torchvision's file of that network's weights, or the folder that holds it; None
            takes torch's own cache.
        download: download the file into torch's cache if it is missing.
        shrink: [least, most] factor by which both images are shrunk first, drawn anew for every
            batch; None compares them at their own size. The backbones' first convolutions have a
            stride, which training exploits by patterns of single pixels. At random sizes, no such
            pattern works.

    Raises:
        QuantFaceError: the network is unknown, a factor is outside (0, 1], ``lpips`` is not
            installed, or the weights are missing, damaged or cannot be downloaded. The message
            names a loss that needs no downloaded weights.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        net: str = "alex",
        weights: str | os.PathLike[str] | None = None,
        download: bool = False,
        shrink: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(loss_weight)
        check_choice("net", net, BACKBONES)
        if shrink is not None and not 0 < shrink[0] <= shrink[1] <= 1:
            raise QuantFaceError(f"shrink: found {shrink!r}, expected two numbers in (0, 1]")
        self.shrink = shrink
        try:
            import lpips
        except ImportError as error:
            raise QuantFaceError(f"QuantFaceLPIPSLoss: pip install lpips; {ALTERNATIVE}") from error
        from torchvision.models import get_model_weights

        url = get_model_weights(BACKBONES[net])["IMAGENET1K_V1"].url
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        path = find_weights("QuantFaceLPIPSLoss", url, cache, weights, download)
        # ``pnet_rand`` keeps lpips from downloading. The backbone is filled right below.
        self.lpips = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        _fill_slices(self.lpips.net, path)
        self.eval().requires_grad_(False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of images (N, 3, H, W) in [-1, 1]; return a scalar."""
        if self.shrink is not None:
            # The factor depends only on the data, so that a resumed training draws it again.
            draw = float(target.double().sum().abs() * 1000) % 1
            factor = self.shrink[0] + (self.shrink[1] - self.shrink[0]) * draw
            size = [round(side * factor) for side in pred.shape[-2:]]
            pred, target = (_shrunk(image, size) for image in (pred, target))
        return self.loss_weight * self.lpips(pred, target).mean()


def _shrunk(image: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def _fill_slices(net: nn.Module, path: Path) -> None:
    """Fill lpips's backbone, slices of torchvision's ``features``, from torchvision's file."""
    state = read_state(path)
    names = {key: f"features.{key.split('.', 1)[1]}" for key in net.state_dict()}
    missing = [name for name in names.values() if name not in state]
    if missing:
        raise QuantFaceError(f"{path}: no key {missing[0]}; torchvision's own file is wanted")
    fill(net, path, {key: state[name] for key, name in names.items()})


def _load_arcface(path: Path) -> nn.Module:
    # facexlib's ``init_recognition_model`` needs a GPU and downloads unasked, so we avoid it.
    from facexlib.recognition.arcface_arch import Backbone

    net = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    fill(net, path, read_state(path))
    return net


@LOSS_REGISTRY.register()
class QuantFaceIdentityLoss(FrozenLoss):
    """1 - cosine similarity of two faces' embeddings (ArcFace; Deng et al., CVPR 2019).

    The network is facexlib's IR-SE-50 or the small MobileFaceNet. Both take a tight 112×112 crop,
    which is cut from an aligned face (FFHQ's alignment) as in pixel2style2pixel (Richardson et al.,
    CVPR 2021).

    Args:
        loss_weight: factor of the result, 0 to 2.
        net: ``arcface`` (IR-SE-50, 174 MB) or ``mobileface`` (4 MB).
        weights: the file ``recognition_arcface_ir_se50.pth`` or ``MobileFaceNet.onnx``, or the
            folder that holds it; None takes facexlib's own folder.
        download: download the file into facexlib's folder if it is missing.

    Raises:
        QuantFaceError: the weights are missing, damaged or cannot be downloaded. The message names
            a loss that needs no downloaded weights.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        weights: str | os.PathLike[str] | None = None,
        download: bool = False,
        net: str = "arcface",
    ) -> None:
        super().__init__(loss_weight)
        check_choice("net", net, EMBEDDERS)
        import facexlib

        cache = Path(facexlib.__file__).parent / "weights"
        path = find_weights("QuantFaceIdentityLoss", EMBEDDERS[net], cache, weights, download)
        self.net = load_mobilefacenet(path) if net == "mobileface" else _load_arcface(path)
        self.eval().requires_grad_(False)

    def embed(self, faces: Tensor) -> Tensor:
        """Return embeddings (N, 512 or 128) of length 1 of aligned RGB faces (N, 3, H, W)."""
        height, width = faces.shape[-2:]
        top, bottom, left, right = CROP
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        return self.net(F.adaptive_avg_pool2d(faces[..., rows, columns], (SIDE, SIDE)))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of aligned RGB faces (N, 3, H, W) in [-1, 1]; return a scalar."""
        with torch.no_grad():
            wanted = self.embed(target)
        return self.loss_weight * (1 - (self.embed(pred) * wanted).sum(dim=1)).mean()
