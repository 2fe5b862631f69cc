"""Somebody's checkpoint on the hub, by the id of its repository."""

from __future__ import annotations

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.listing import list_names
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.requests import HubError
from quantface_arch.pretrained.hub.sources import Mirror, Part, Source, hub_folder

__all__ = ["checkpoint_source"]

_SUFFIX = ".safetensors"


def checkpoint_source(name: str, options: FetchOptions) -> Source:
    """Return the source of a repository that holds one checkpoint.

    Args:
        name: the id of the repository, ``USER/REPOSITORY``.
        options: its revision and the hub's address.

    Raises:
        QuantFaceError: nothing may be fetched.
        HubError: the repository cannot be listed, or holds no or several ``.safetensors`` files.
    """
    mirror = Mirror(name, options.revision or "main")
    if options.offline:
        raise QuantFaceError(
            f"model {name!r}: no such file or folder, and it cannot be fetched offline"
        )
    paths = [path for path in list_names(mirror, options.hub) if path.endswith(_SUFFIX)]
    if len(paths) != 1:
        have = ", ".join(paths) or "none"
        raise HubError(f"{mirror}: expected one {_SUFFIX} file, found {have}")
    files = tuple((path.rpartition("/")[2],) for path in paths)
    terms = f"those that its page states (https://huggingface.co/{name})"
    return Source(hub_folder(name).name, terms, (Part(".", (mirror,), files),))
