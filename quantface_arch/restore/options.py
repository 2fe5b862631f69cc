"""Typed options for restoring faces, built once from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from quantface_arch.faces.choices import AUTO_STRENGTH
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.names import DEFAULT_MODEL

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Blending",
    "FaceOptions",
    "InputOptions",
    "OutputOptions",
    "RestoreOptions",
    "RuntimeOptions",
    "build",
]

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class RuntimeOptions:
    """Which model restores the faces, and how it is executed.

    Attributes:
        model: name of a shipped model, path of a checkpoint or of an exported .xml file, or what
            the hub has by name, see ``obtain``.
        runtime: ``auto``, ``reference``, ``openvino`` or ``cuda``.
        device: ``auto`` or a torch device.
        batch_size: faces that go through the model at once; None chooses by device.
        fidelity: CodeFormer's fidelity, 0 to 1; None keeps the checkpoint's.
        offline: never download anything.
        fetching: how a model that the cache lacks is fetched.
    """

    model: str = DEFAULT_MODEL
    runtime: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    fidelity: float | None = None
    offline: bool = False
    fetching: FetchOptions = field(default_factory=FetchOptions)

    @property
    def plain_runtime(self) -> str:
        """The runtime of a network that is no restorer, which the CUDA runtime does not take."""
        return "reference" if self.runtime == "cuda" else self.runtime


class Blending(TypedDict):
    """The options of :meth:`FaceRestorer.assemble` about how strongly faces are restored."""

    strength: float | str
    identity: float | None


@dataclass(frozen=True)
class FaceOptions:
    """How faces are found and restored.

    Attributes:
        detector: one of :data:`quantface_arch.faces.choices.DETECTORS` or its ``ALIASES``.
        weights_dir: folder that holds RetinaFace's ``.pth`` file; None is facexlib's cache.
        color_fix: one of :data:`quantface_arch.faces.choices.COLOR_FIXES`; None is the model's own.
        strength: weight of the restored face, 0 to 1, or ``auto``: what each face needs.
        identity: least cosine between the embeddings of a face before and after; None is no limit.
        identity_weights: MobileFaceNet's file or its folder; None is the cache.
        sample: sample the latent instead of taking its mean.
        seed: seed of that sample.
    """

    detector: str = "auto"
    weights_dir: Path | None = None
    color_fix: str | None = None
    strength: float | str = AUTO_STRENGTH
    identity: float | None = None
    identity_weights: Path | None = None
    sample: bool = False
    seed: int = 0

    @property
    def blending(self) -> Blending:
        """How strongly faces are restored."""
        return {"strength": self.strength, "identity": self.identity}


@dataclass(frozen=True)
class InputOptions:
    """Which files are restored.

    Attributes:
        input: files, folders and glob patterns.
        recursive: also search subfolders.
        aligned: every input is one aligned face.
        whole: the model maps whole images; no faces are looked for.
        skip_existing: leave out inputs whose result exists.
        resume: leave out inputs that the manifest lists as done with the same settings.
    """

    input: tuple[str, ...] = ()
    recursive: bool = False
    aligned: bool = False
    whole: bool = False
    skip_existing: bool = False
    resume: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where.

    Attributes:
        output: the output folder.
        compare: also write the input and the result side by side.
        keep_unrestored: write inputs without a face unchanged; otherwise they are errors.
        upscale: factor by which the image is enlarged; None is the scale of a model for whole
            images, otherwise 1.
        keep_metadata: copy EXIF, XMP, texts and resolution of an image to its result.
        bg_upsampler: path or published name of the network that enlarges the background; None is
            interpolation.
    """

    output: Path = Path("results")
    compare: bool = False
    keep_unrestored: bool = False
    upscale: float | None = None
    keep_metadata: bool = True
    bg_upsampler: str | None = None

    @property
    def factor(self) -> float:
        """The factor by which images are enlarged."""
        return 1.0 if self.upscale is None else self.upscale


@dataclass(frozen=True)
class RestoreOptions:
    """All options of one restore command.

    Attributes:
        inputs, outputs, faces, runtime: the options by subject.
        debug: show the traceback of each failure.
    """

    inputs: InputOptions = field(default_factory=InputOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    faces: FaceOptions = field(default_factory=FaceOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    debug: bool = False

    @property
    def takes_faceless(self) -> bool:
        """Whether an input without a face is written, and no error."""
        return self.outputs.keep_unrestored or self.inputs.whole


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from the values named like its fields; ignore all other values."""
    names = [item.name for item in fields(kind)]
    return kind(**{name: values[name] for name in names if name in values})
