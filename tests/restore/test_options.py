"""Options reach the parts of a command as typed objects."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from quantface_arch.errors import UsageError
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.restore import options
from quantface_arch.restore.cli import main, make_parser, parse_options
from quantface_arch.web import cli as web_cli
from quantface_arch.web.address import Address
from quantface_arch.web.limits import Limits

WORDS = """-i a b -o out --recursive --resume --keep-unrestored --compare --upscale 2 --strength 0.5
--model m --runtime openvino --device cpu --batch-size 3 --sample --seed 7 --detector haar
--color-fix adain --weights-dir w --offline --no-metadata --yes --base b --revision r
--endpoint http://e --identity 0.5 --identity-weights n"""


def test_every_argument_becomes_an_option():
    assert parse_options(make_parser().parse_args(WORDS.split())) == options.RestoreOptions(
        options.InputOptions(("a", "b"), recursive=True, resume=True),
        options.OutputOptions(
            Path("out"), compare=True, keep_unrestored=True, upscale=2.0, keep_metadata=False
        ),
        options.FaceOptions("haar", Path("w"), "adain", 0.5, 0.5, Path("n"), sample=True, seed=7),
        options.RuntimeOptions(
            "m",
            "openvino",
            "cpu",
            batch_size=3,
            offline=True,
            fetching=FetchOptions(True, True, "b", "r", "http://e"),
        ),
    )


def test_defaults_of_the_command_line_are_those_of_the_options():
    inputs = options.InputOptions(("a",))
    assert parse_options(make_parser().parse_args(["-i", "a"])) == options.RestoreOptions(inputs)
    page = web_cli.parse_options(web_cli.make_parser().parse_args([]))
    assert page == web_cli.PageOptions(
        Address(), Limits(), options.FaceOptions(), options.RuntimeOptions()
    )


def test_debug_is_passed_on():
    values = make_parser().parse_args(["-i", "a"])
    values.debug = True
    assert parse_options(values).debug


@pytest.mark.parametrize("words", ["--aligned --upscale 2", "--resume --skip-existing"])
def test_options_that_contradict_each_other_are_wrong_usage(words):
    with pytest.raises(UsageError, match=words.split()[0]):
        main(make_parser().parse_args(["-i", "a", *words.split()]))


@pytest.mark.parametrize("strength", ["auto", "1"])
def test_strengths_that_whole_images_have_anyway_are_accepted(strength):
    words = ["-i", "a", "--whole", "--model", "nonsense", "--strength", strength]
    with pytest.raises(UsageError, match="--whole --model nonsense"):
        main(make_parser().parse_args(words))


def test_build_ignores_values_of_other_options():
    assert options.build(
        options.InputOptions, {"recursive": True, "seed": 3}
    ) == options.InputOptions(recursive=True)


def test_the_namespace_stays_in_the_command_lines(repo):
    """Only the modules that parse arguments may import argparse."""
    users = set()
    for room in ("restore", "web", "video", "background", "faces"):
        for path in (repo / "quantface_arch" / room).glob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
            if "argparse" in names:
                users.add(f"{room}/{path.name}")
    assert users == {"restore/arguments.py", "restore/cli.py", "web/cli.py"}
