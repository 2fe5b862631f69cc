"""What the pages in docs/ and the README show works as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from docs_blocks import blocks, check_shell, commands, run_python, run_shell, written

import quantface_arch.register  # noqa: F401
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)
from quantface_arch import runtime
from quantface_arch.quant import Recipe

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted((REPO / "docs").glob("*.md"))
NAMED = [page.stem for page in PAGES]
REGISTRIES = (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder like a checkout's, in which a page is followed; what it registers is forgotten."""
    for path in REPO.iterdir():
        if not path.name.startswith(".") and path.name not in (
            "results",
            "experiments",
            "datasets",
        ):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = [*(registry._obj_map for registry in REGISTRIES), runtime.RUNTIMES]
    kept = [dict(table) for table in tables]
    modules = set(sys.modules)
    yield tmp_path
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


@pytest.mark.parametrize("page", [REPO / "README.md", *PAGES], ids=["README", *NAMED])
def test_every_command_is_known_with_its_options(page, reader):
    for kind, text in blocks(page):
        if kind in ("bash", "sh"):
            check_shell(text)
        elif kind == "python":
            written(text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_a_reader_can_follow_the_page(page, reader, monkeypatch):
    namespace = {"__name__": "page"}
    for kind, text in blocks(page):
        if kind in ("bash", "sh"):
            run_shell(text, monkeypatch)
        elif kind == "python":
            run_python(text, namespace, page.name)


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_options_and_links_are_real(page):
    for kind, text in blocks(page):
        options = yaml.safe_load(text) if kind in ("yaml", "yml") else None
        if isinstance(options, dict) and "quant" in options:
            quant = {
                k: v for k, v in options["quant"].items() if k not in ("bit_map", "calibration")
            }
            if "file" not in (quant.get("balance") or ()):
                Recipe.from_dict(quant)
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    for name in re.findall(
        r"`((?:options|scripts|benchmarks|inference|tests)/[\w./]+\.\w+)`", text
    ):
        assert (REPO / name).is_file(), name


def test_marks_and_shell_syntax_are_understood():
    block = "# needs a GPU\npython a.py -o b  # note\nX=1 python c.py \\\n  --d && ls\n"
    found = commands(block)
    assert [command.words for command in found] == [
        ("python", "a.py", "-o", "b"),
        ("python", "c.py", "--d"),
        ("ls",),
    ]
    assert all(command.told for command in found)
    mixed = commands("python a.py\npython b.py  # takes hours on a laptop\n")
    assert [command.told for command in mixed] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        "python scripts/quantise.py --help",
        "python scripts/quantize.py --modell mini -i a -o b.safetensors",
        "python scripts/quantize.py --model mini --range best -i a -o b.safetensors",
        "python basicsr/train.py -opt options/none.yml",
        "python basicsr/train.py -opt options/train_mini.yml --force_yml train:steps=3",
        "make coffee",
        "rm -rf /",
        "git clone x",
        "torchrun --nproc-per-node 2 scripts/quantize.py --recipe w4a8",
        "# needs cores\ntorchrun --nproc-per-node 2 scripts/quantize.py --colour red",
    ],
)
def test_a_wrong_command_is_found(wrong, reader):
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_shell(wrong)
