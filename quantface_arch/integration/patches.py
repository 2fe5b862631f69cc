"""Patch how BasicSR reads options files and names in LMDBs, and how it resumes a training."""

from __future__ import annotations

import ast
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.integration.loop_options import check_loop, force
from quantface_arch.utils.files import read_bytes

__all__ = ["patch_lmdb", "patch_options", "patch_resume"]

# A module of BasicSR has this attribute once it is patched.
PATCHED = "quantface_patched"


def patch_resume() -> None:
    """Make BasicSR's loop resume without a GPU and in the middle of an epoch. Idempotent.

    BasicSR 1.4.2 needs a CUDA device to resume, unpickles any object in the state file, and repeats
    the saved epoch from its first batch. In a checkout of BasicSR the loop belongs to the running
    program, which defines it after it has imported this package; it is patched when it starts.
    """
    import basicsr.train as train
    from basicsr.utils import options

    _patch_loop(train)
    parse_options = options.parse_options
    if hasattr(parse_options, "__wrapped__"):
        return

    @functools.wraps(parse_options)
    def patch_and_parse(*args: Any, **kwargs: Any) -> Any:
        program = sys.modules["__main__"]
        if hasattr(program, "load_resume_state"):
            _patch_loop(program)
        return parse_options(*args, **kwargs)

    options.parse_options = patch_and_parse


def _patch_loop(train: Any) -> None:
    """Patch a module that holds BasicSR's training loop. Idempotent."""
    from quantface_arch.data.sampler import ResumableSampler
    from quantface_arch.utils.state_dict import unpickle

    if hasattr(train, PATCHED):
        return
    original_loaders = train.create_train_val_dataloader

    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        path = _find_state(opt)
        if path is None:
            return None
        opt["path"]["resume_state"] = str(path)
        state = unpickle(path)
        try:
            opt["resumed_at"] = (int(state["epoch"]), int(state["iter"]))
        except (KeyError, TypeError, ValueError) as error:
            raise QuantFaceError(f"{path}: not a training state of BasicSR") from error
        return state

    def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple[Any, ...]:
        loaders = original_loaders(opt, logger)
        sampler = cast("ResumableSampler", loaders[1])
        options = opt["datasets"]["train"]
        devices = 1 if opt["dist"] else max(1, opt["num_gpu"])
        sampler.batch_size = options["batch_size_per_gpu"] * devices
        epoch, iteration = opt.get("resumed_at", (0, 0))
        sampler.resume_at = (epoch, iteration - epoch * sampler.batches_per_epoch())
        return loaders

    train.EnlargedSampler = ResumableSampler
    train.load_resume_state = load_resume_state
    train.create_train_val_dataloader = create_train_val_dataloader
    setattr(train, PATCHED, True)


def patch_lmdb() -> None:
    """Make BasicSR read names with dots in LMDBs. Idempotent.

    BasicSR 1.4.2 cuts names at their first dot, so that some are not found and others become equal.
    """
    from basicsr.data import data_util, paired_image_dataset, single_image_dataset

    data_util.paths_from_lmdb = _keys_of_lmdb
    single_image_dataset.paths_from_lmdb = _keys_of_lmdb
    data_util.paired_paths_from_lmdb = _pairs_of_lmdbs
    paired_image_dataset.paired_paths_from_lmdb = _pairs_of_lmdbs


def _keys_of_lmdb(folder: str) -> list[str]:
    """Return the keys of an LMDB, in the order of its list of names.

    Raises:
        QuantFaceError: see ``read_sides``; or the folder's name does not end in .lmdb.
    """
    from quantface_arch.data.lmdb_keys import read_sides

    if not str(folder).endswith(".lmdb"):
        raise QuantFaceError(f"{folder}: the name of an LMDB must end in .lmdb")
    return list(read_sides(Path(folder)))


def _pairs_of_lmdbs(folders: list[str], names: list[str]) -> list[dict[str, str]]:
    """Return the keys that two LMDBs share, sorted, as ``NAME_path`` of both names.

    Raises:
        QuantFaceError: see ``_keys_of_lmdb``; or a key is in one of them alone.
    """
    first, second = (set(_keys_of_lmdb(folder)) for folder in folders)
    if first != second:
        raise QuantFaceError(
            f"{' and '.join(map(str, folders))}: found key {min(first ^ second)!r} in one of them "
            "alone, expected the same keys in both"
        )
    return [{f"{name}_path": key for name in names} for key in sorted(first)]


def patch_options() -> None:
    """Make BasicSR read options files as plain data, and check what it uses. Idempotent.

    The YAML loader of BasicSR 1.4.2 builds any object and calls any function that a tag names. It
    also evaluates the lists in ``--force_yml``.
    """
    import yaml

    from basicsr.utils import options
    from quantface_arch.utils.safe_yaml_json import MAX_YAML_BYTES, check_yaml

    if hasattr(options, PATCHED):
        return
    original_value = options._postprocess_yml_value
    base = cast("type[yaml.SafeLoader]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    class PlainLoader(base):
        def __init__(self, stream: Any) -> None:
            self.where = f"options file {stream.name}"
            data = read_bytes(stream.name, MAX_YAML_BYTES)
            check_yaml(self.where, data)
            super().__init__(data)

        def get_single_data(self) -> Any:
            try:
                data = super().get_single_data()
            except (yaml.YAMLError, ValueError, TypeError) as error:
                raise QuantFaceError(f"{self.where}: not YAML: {one_line(error)}") from error
            # BasicSR forces the same values later, after it has used some.
            data = force(data, sys.argv[1:], options._postprocess_yml_value)
            check_loop(data)
            return data

    PlainLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _ordered_mapping)
    options.ordered_yaml = lambda: (PlainLoader, yaml.SafeDumper)
    options._postprocess_yml_value = lambda text: _forced_value(text, original_value)
    setattr(options, PATCHED, True)


def _ordered_mapping(loader: Any, node: Any) -> OrderedDict[Any, Any]:
    """Build a mapping of YAML in the order of its keys."""
    loader.flatten_mapping(node)
    return OrderedDict(loader.construct_pairs(node))


def _forced_value(text: str, original_value: Callable[[str], Any]) -> Any:
    """Return a value of ``--force_yml``; lists are read as literals instead of evaluated.

    A whole number such as 2.0 becomes 2, since BasicSR counts with what is meant to be whole.
    """
    if not text.startswith("["):
        value = original_value(text)
        return int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise QuantFaceError(f"--force_yml: found {text!r}, not a list of plain values") from error


def _find_state(opt: dict[str, Any]) -> Path | None:
    """Return the newest saved state with ``--auto_resume``, else the one in the options, if any."""
    if not opt["auto_resume"]:
        path = opt["path"].get("resume_state")
        return Path(path) if path else None
    # BasicSR searches below the working folder instead of the folder in which it saved.
    states = Path(opt["path"]["training_states"]).glob("*.state")
    return max(states, key=lambda path: float(path.stem), default=None)
