"""Execution by OpenVINO: integer products, and the reference's images."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from statistics import median

import pytest
import torch
from quant_helpers import TinyNet, pictures, sqnr
from saved_networks import saved
from small_networks import RRDB, TINY

from quantface_arch import runtime
from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import load_checkpoint, quant_layers, save_checkpoint
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime import lowering, processor
from quantface_arch.runtime.openvino import compiled_parts, load
from quantface_arch.runtime.openvino.compiled import integer_products

# Without VNNI 8-bit weights are rounded again, to 7 bits.
EXACT = processor.has_vnni()

pytestmark = pytest.mark.usefixtures("cache")


def sqnrs(wanted, found):
    """Return the SQNR of each image of a batch."""
    return [sqnr(*pair) for pair in zip(wanted, found, strict=True)]


def make_tiny(path, name="w4a8"):
    torch.manual_seed(1)
    return saved(path, lambda: build_arch(TINY), pictures(2, 64), TINY, name)


def products(model):
    """Return layer → precision for all parts that have run."""
    found = {}
    for name in traits_of(model).parts:
        for compiled in vars(model)[name].part.compiled.values():
            found |= integer_products(compiled)
    return found


@torch.no_grad()
def compare(path, build, mode, x):
    """Return the distance in dB between reference and OpenVINO, and the network that ran."""
    found = load(path, build, mode)
    return sqnr(load_checkpoint(path, build)(x), found(x)), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "zeros"),
    [
        *((name, "tensor") for name in ("w4a8", "w8a8", "w4a6", "w4a4", "w3a3")),
        *((name, "channel") for name in ("w4a8", "w4a6", "w3a3")),
    ],
)
def test_every_layer_is_integer_arithmetic_and_equals_the_reference(tmp_path, name, zeros):
    path, options = tmp_path / "net.safetensors", {"activations": {"zero_points": zeros}}
    saved(path, TinyNet, pictures() + 1, {"type": "any"}, name, **options)
    distance, found = compare(path, lambda _: TinyNet(), "faithful", pictures(2) + 1)
    assert distance > (45 if EXACT or name != "w8a8" else 30)
    assert products(found).keys() == {"conv_in", "body", "linear", "line", "conv_out"}
    assert set(products(found).values()) <= {"u8", "i8"}


def test_folded_layers_are_integer_arithmetic_alone(net):
    distance, found = compare(*net, "auto", pictures(2))
    assert distance > 25
    graph = next(iter(vars(found)["forward"].part.compiled.values())).get_runtime_model()
    kinds = [(node.get_rt_info()["layerType"].astype(str)) for node in graph.get_ops()]
    assert sum(kind in ("Convolution", "FullyConnected", "MatMul") for kind in kinds) == 5
    assert set(products(found).values()) <= {"u8", "i8"}


@pytest.mark.slow
def test_a_float_network_has_no_integer_products_and_stays_exact(tmp_path):
    torch.manual_seed(1)
    save_checkpoint(build_arch(RRDB), tmp_path / "float.safetensors", RRDB)
    x = torch.rand(1, 3, 24, 32)
    distance, found = compare(tmp_path / "float.safetensors", build_arch, "auto", x)
    assert distance > 80 and products(found) == {}


@pytest.mark.slow
def test_a_restorer_is_compiled_in_parts_for_batches_and_sizes(tmp_path):
    path = make_tiny(tmp_path / "tiny.safetensors")
    reference, found = load_model(path, "reference"), load(path, build_arch, "faithful")
    close, latents = 60 if EXACT else 30, []
    # Other orders of sums tip some roundings the other way, which changes everything after it in
    # that image. Images without such a rounding are exact.
    for shape in ((6, 3, 64, 64), (4, 3, 64, 64), (1, 3, 96, 128)):
        x = torch.rand(shape) * 2 - 1
        noise = torch.randn(reference.latent_shape(shape[0], *shape[2:]))
        with torch.no_grad():
            z, prompt = reference.encode_latent(x, noise)[0], reference.encode_prompt(x)[0]
            assert median(sqnrs(prompt, found.encode_prompt(x)[0])) > close
            latents.append(sqnrs(z, found.encode_latent(x, noise)[0]))
            assert median(latents[-1]) > 25
            noises = reference.predict_noise(z, prompt)
            assert median(sqnrs(noises, found.predict_noise(z, prompt))) > 25
            assert median(sqnrs(reference.decode(z), found.decode(z))) > 25
            assert found(x, noise=noise).shape == shape
    assert max(chain(*latents)) > close
    assert all(len(vars(found)[name].part.compiled) == 2 for name in found.parts)
    # Layers that depend on the timestep alone are constants and are not listed.
    layers = {layer.name for layer in quant_layers(reference) if "time_emb" not in layer.name}
    assert products(found).keys() == layers
    assert set(products(found).values()) <= {"u8", "i8"}


@pytest.mark.slow
def test_a_compiled_restorer_needs_none_of_the_libraries_of_its_networks(monkeypatch):
    monkeypatch.undo()  # the cache of all tests, where it may be already
    shape = load_model("mini-w4a8", "openvino").latent_shape(1, 512, 512)
    code = (
        "import sys\n"
        "from quantface_arch.pretrained.zoo import load_model\n"
        f"assert load_model('mini-w4a8', 'openvino').latent_shape(1, 512, 512) == {shape}\n"
        "heavy = {'diffusers', 'transformers', 'peft', 'sympy', 'torch._dynamo'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where threads may run is read from /proc")
def test_threads_are_bound_to_no_core_so_that_processes_can_share_them(net):
    def affinities():
        for task in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):
                yield frozenset(os.sched_getaffinity(int(task)))

    found, x, seen = load(*net), pictures(1, 512), set()
    every = {frozenset(os.sched_getaffinity(0))}
    found(x)
    # Compiling, of other tests too, binds a thread for a while.
    deadline = time.monotonic() + 20
    while set(affinities()) != every and time.monotonic() < deadline:
        time.sleep(0.1)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(lambda: [found(x) for _ in range(20)])
        while not running.done():
            seen.update(affinities())
    assert seen == every


def test_weights_are_not_kept_twice(net):
    assert not load(*net).state_dict()


@pytest.mark.slow
def test_weights_have_seven_bits_on_a_processor_without_vnni(net, cache, monkeypatch):
    path, build = net
    monkeypatch.setattr(compiled_parts, "has_vnni", lambda: False)
    largest = []
    init = lowering.IntegerProduct.__init__

    def watched(self, *arguments):
        init(self, *arguments)
        largest.append(int(self.weight.abs().max()))

    monkeypatch.setattr(lowering.IntegerProduct, "__init__", watched)
    with pytest.warns(UserWarning, match="7 bits"):
        distance, _ = compare(path, build, "auto", pictures(1))
    assert max(largest) == processor.SPARE and distance > 20


def test_what_cannot_be_compiled_is_named(tmp_path):
    dynamic = {"granularity": "token"}
    path = saved(tmp_path / "net.safetensors", TinyNet, pictures(), {}, "w4a8", activations=dynamic)
    with pytest.raises(QuantFaceError, match=r"layer conv_in: .*runtime reference"):
        load(path, lambda _: TinyNet())


def test_an_operator_that_openvino_lacks_is_an_error_that_names_the_network(net, tmp_path):
    class Odd(TinyNet):
        def forward(self, x):
            return torch.linalg.eigvals(super().forward(x)[..., :3, :3].double()).real.float()

    with pytest.raises(QuantFaceError, match=r"net.safetensors: Odd.forward cannot be compiled"):
        load(net[0], lambda _: Odd())


def test_auto_is_openvino_on_a_cpu_and_the_device_must_fit():
    assert runtime.resolve("auto", "cpu") == "openvino"
    assert runtime.resolve("auto", "cuda") == "reference"
    with pytest.raises(QuantFaceError, match="runtime openvino: found device 'cuda'"):
        runtime.resolve("openvino", "cuda")


@pytest.mark.slow
def test_shipped_models_give_the_reference_s_pictures(aligned_face, monkeypatch):
    monkeypatch.undo()  # the cache of all tests, where they may be already
    x = torch.from_numpy(aligned_face).permute(2, 0, 1)[None].float() / 127.5 - 1
    path = resolve_model("mini-w4a8")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "this processor has no VNNI")
        wanted = load_checkpoint(path, build_arch)(x)
        error = (load(path, build_arch)(x) - wanted).square().mean()
    assert 10 * torch.log10(4 / error) > 38


@pytest.mark.slow
def test_nothing_is_reported_over_the_network():
    code = (
        "import quantface_arch.runtime.openvino.network\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__ == 'openvino.tools.ovc.telemetry_stub'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
