"""The visual representation embedder, which turns a face into prompt tokens (OSDFace, CVPR 2025).

Module names follow the VQGAN encoder from which OSDFace's weights come, so its checkpoint loads key
by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VRE", "EmbeddingChange", "select_codes"]


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two rounds of GroupNorm, SiLU and 3×3 convolution, and a 1×1 shortcut if channels change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """A 3×3 convolution of stride 2, padded on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Stage(nn.Module):
    """The layers of one resolution of the encoder, which creates and runs them.

    ``attn`` is empty at a resolution without attention, and ``downsample`` is None at the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()
        self.downsample: Downsample | None = None


class Middle(nn.Module):
    """The layers between the encoder's last stage and its output, which the encoder runs."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups)
        self.attn_1 = AttnBlock(width, groups)
        self.block_2 = ResnetBlock(width, width, groups)


class Encoder(nn.Module):
    """A VQGAN-style encoder: ``len(channel_mult) - 1`` halvings, residual blocks and attention.

    Attention follows every residual block at a resolution in ``attn_resolutions``, and the middle
    layers contain it too.
    """

    def __init__(
        self,
        resolution: int,
        channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        z_channels: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = channels
        for level, mult in enumerate(channel_mult):
            stage = Stage()
            for _ in range(num_res_blocks):
                stage.block.append(ResnetBlock(width, channels * mult, groups))
                width = channels * mult
                if resolution >> level in attn_resolutions:
                    stage.attn.append(AttnBlock(width, groups))
            if level < len(channel_mult) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(width, groups)
        self.norm_out = _norm(width, groups)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in cast("Iterable[Stage]", self.down):
            for index, block in enumerate(stage.block):
                h = block(h)
                if len(stage.attn):
                    h = stage.attn[index](h)
            if stage.downsample is not None:
                h = stage.downsample(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        return self.conv_out(F.silu(self.norm_out(h)))


def select_codes(z: Tensor, codebook: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose at most ``num_tokens`` distinct codes, those nearest to any position first.

    Every position has a nearest code. Positions are sorted by the distance to it, ascending, and
    codes are taken in that order, each once.

    Args:
        z: features, float (N, P, C), for P positions.
        codebook: float (K, C).
        num_tokens: the number of codes to choose.

    Returns:
        ``codes`` and ``positions``, int64 (N, T) with T = min(num_tokens, K): the chosen codes and
        the position at which each was found. ``valid``, bool (N, T), is False where fewer than T
        distinct codes were found.
    """
    distances = z.square().sum(-1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(-1)
    nearest, code = distances.min(dim=-1)
    order = nearest.argsort(dim=-1, stable=True)
    code_in_order = code.gather(1, order)
    batch, positions = code.shape
    rank = torch.arange(positions, device=z.device).expand(batch, -1)
    first = rank.new_full((batch, codebook.shape[0]), positions)
    first = first.scatter_reduce(1, code_in_order, rank, reduce="amin")
    first, codes = first.sort(dim=-1, stable=True)
    first, codes = first[:, :num_tokens], codes[:, :num_tokens]
    valid = first < positions
    return codes, order.gather(1, first.clamp(max=positions - 1)), valid


class Codebook(nn.Module):
    """The learned codes, one row each."""

    def __init__(self, num_codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, channels)


class VRE(nn.Module):
    """The encoder, quant_conv and codebook; the codes that an image selects are its prompt.

    Args:
        resolution: the side in pixels to which images are resized.
        channels, channel_mult, num_res_blocks, attn_resolutions, z_channels: the encoder's sizes.
        num_codes: the size of the codebook.
        num_tokens: the number of rows of the prompt.
        prompt_dim: the width to which ``EmbeddingChange`` brings the codes. It is kept for the
            caller.
        norm_num_groups: the groups of every GroupNorm.
    """

    def __init__(
        self,
        resolution: int = 512,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2, 2, 4, 8),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        z_channels: int = 512,
        num_codes: int = 1024,
        num_tokens: int = 77,
        prompt_dim: int = 1024,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.num_tokens = num_tokens
        self.prompt_dim = prompt_dim
        self.encoder = Encoder(
            resolution,
            channels,
            channel_mult,
            num_res_blocks,
            attn_resolutions,
            z_channels,
            norm_num_groups,
        )
        self.quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.quantize = Codebook(num_codes, z_channels)

    def features(self, lq: Tensor) -> Tensor:
        """Return encoder features of an image, float (N, z_channels, h, w), before the codebook.

        Args:
            lq: float (N, 3, H, W) in [-1, 1].
        """
        size = (self.resolution, self.resolution)
        x = F.interpolate(lq, size=size, mode="bilinear", align_corners=False)
        # The input is in [-1, 1] already. OSDFace's weights were trained with this second
        # normalization, so it stays.
        return self.quant_conv(self.encoder((x - 0.5) / 0.5))

    def forward(self, lq: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompt codes and the codebook loss.

        Args:
            lq: float (N, 3, H, W) in [-1, 1].

        Returns:
            codes (N, num_tokens, z_channels), with zeros in rows without a code. Gradients reach
            the encoder by the straight-through estimator. The second value is the scalar
            codebook-and-commitment loss of VQ-VAE (van den Oord et al., 2017, eq. 3), for training
            only.
        """
        features = self.features(lq)
        z = features.flatten(2).transpose(1, 2).float()
        codebook = self.quantize.embedding.weight.float()
        codes, positions, valid = select_codes(z.detach(), codebook.detach(), self.num_tokens)
        rows = codebook[codes]
        found = z.gather(1, positions.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
        keep = valid.unsqueeze(-1)
        commitment = ((rows.detach() - found) * keep).square().mean()
        codebook_loss = ((rows - found.detach()) * keep).square().mean()
        prompt = (rows + found - found.detach()) * keep
        missing = self.num_tokens - prompt.shape[1]
        prompt = F.pad(prompt, (0, 0, 0, missing)).to(features.dtype)
        return prompt, codebook_loss + 0.25 * commitment


class EmbeddingChange(nn.Module):
    """Two 1×1 convolutions with SiLU that bring codes to the UNet's prompt width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, in_channels // 2, 1)
        self.conv2 = nn.Conv1d(in_channels // 2, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, in_channels) to (N, T, out_channels)."""
        h = F.silu(self.conv1(x.transpose(1, 2)))
        return F.silu(self.conv2(h)).transpose(1, 2)
