"""Enlarging backgrounds: kinds of weight files, tiles without seams, memory, the command."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.meta import meta_network
from quantface_arch.archs.torch_network import TorchNetwork
from quantface_arch.background import weights
from quantface_arch.background.load import load_background
from quantface_arch.background.tiles import BackgroundUpsampler, windows
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.foreign import rrdbnet_options
from quantface_arch.quant import quantize, save_checkpoint
from quantface_arch.restore.cli import main, make_parser
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.cli import run
from quantface_arch.utils.images import RGBImage, load_rgb, resize, to_uint8, write_image

SMALL = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1}
SMALL = {**SMALL, "num_grow_ch": 8}


def network(scale, seed=0):
    """Return a random network whose results have enough contrast to show seams."""
    torch.manual_seed(seed)
    net = build_arch({**SMALL, "scale": scale}).eval()
    with torch.no_grad():
        net.conv_last.weight.div_(4 * net(torch.rand(1, 3, 32, 32)).std())
        net.conv_last.bias.sub_(net(torch.rand(1, 3, 32, 32)).mean((0, 2, 3)) - 0.5)
    return net


def official(path, scale, key="params_ema"):
    """Save a network as Real-ESRGAN's authors do."""
    torch.save({key: network(scale).state_dict()}, path)
    return path


@pytest.fixture
def photo(repo):
    return resize(load_rgb(repo / "inputs/astronaut.jpg"), 150, 110)


@pytest.mark.parametrize("length", [16, 64, 68, 132, 300, 304])
def test_windows_cover_an_axis_once_with_context(length):
    parts = list(windows(length, 64, 16))
    assert parts[0][1] == 0 and parts[-1][2] == length
    for (_, _, end), (_, begin, _) in itertools.pairwise(parts):
        assert end == begin
    for start, begin, end in parts:
        assert begin < end <= start + 64 and start >= 0 and (length <= 64 or start + 64 <= length)
        assert begin == 0 or begin >= start + 16
        assert end == length or end <= start + 64 - 16


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "depth"), [(2, np.uint8), (4, np.uint16)])
def test_tiles_leave_no_seams(photo, scale, depth):
    """Tiled and untiled images differ by at most one level of 255."""
    image = photo.astype(depth) * (1 if depth == np.uint8 else 257)
    net = TorchNetwork(network(scale))
    whole = BackgroundUpsampler(net, scale, tile=256)(image)
    tiled = BackgroundUpsampler(net, scale, tile=32)(image)
    assert tiled.shape == whole.shape == (110 * scale, 150 * scale, 3) and tiled.dtype == depth
    assert to_uint8(whole).std() > 4
    assert np.abs(to_uint8(tiled).astype(int) - to_uint8(whole)).max() <= 1
    # Without context there are seams, which this test detects.
    bare = BackgroundUpsampler(net, scale, tile=32, context=0)(image)
    assert np.abs(to_uint8(bare).astype(int) - to_uint8(whole)).max() > 30


@pytest.mark.parametrize("scale", [2, 4])
def test_sides_need_not_fit_the_grid(photo, scale):
    """The padding is cut off again, and changes only pixels near the edge."""
    upsampler = BackgroundUpsampler(TorchNetwork(network(scale)), scale)
    odd = upsampler(photo[:99, :147])
    assert odd.shape == (99 * scale, 147 * scale, 3)
    inner = np.s_[: 80 * scale, : 128 * scale]
    assert np.abs(odd[inner].astype(int) - upsampler(photo[:108, :148])[inner]).max() <= 1


class Brighter(torch.nn.Module):
    """Doubles the brightness and the size."""

    def forward(self, x):
        return 2 * x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_bright_values_are_clipped_and_values_that_are_not_finite_are_an_error(photo):
    large = BackgroundUpsampler(TorchNetwork(Brighter()), 2)(photo)
    wanted = np.minimum(2 * photo.astype(int), 255).repeat(2, 0).repeat(2, 1)
    assert np.abs(large - wanted).max() <= 1
    net = network(2)
    with torch.no_grad():
        net.conv_last.bias[1] = torch.inf
    with pytest.raises(QuantFaceError, match="not finite"):
        BackgroundUpsampler(TorchNetwork(net), 2)(photo)


def test_a_grey_image_stays_grey(photo):
    grey = np.repeat(photo[..., :1], 3, axis=2)
    large = BackgroundUpsampler(TorchNetwork(network(2)), 2)(grey)
    assert (large == large[..., :1]).all()


def test_all_kinds_of_files_give_the_same_network(photo, tmp_path):
    state = network(2).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    save_file({f"params_ema.{key}": state[key] for key in state}, tmp_path / "flat.safetensors")
    save_checkpoint(network(2), tmp_path / "ours.safetensors", {**SMALL, "scale": 2}, None)
    torch.save(state, tmp_path / "bare.pth")
    official(tmp_path / "ema.pth", 2)
    official(tmp_path / "params.pth", 2, "params")
    torch.save({"params": {f"module.{key}": state[key] for key in state}}, tmp_path / "many.pth")
    wanted = BackgroundUpsampler(TorchNetwork(network(2)), 2)(photo)
    for path in sorted(tmp_path.iterdir()):
        loaded = load_background(str(path), "reference")
        assert loaded.scale == 2
        difference = np.abs(loaded(photo).astype(int) - wanted)
        assert difference.max() <= (1 if path.stem == "ours" else 0), path.name


def test_a_changed_file_is_loaded_again(photo, tmp_path):
    results = []
    for seed in (0, 1):
        torch.save(network(2, seed).state_dict(), tmp_path / "a.pth")
        results.append(load_background(str(tmp_path / "a.pth"), "reference")(photo))
    assert not np.array_equal(*results)


def test_the_published_sizes_are_recognized():
    wanted = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 2}
    wanted |= {"num_feat": 64, "num_block": 23, "num_grow_ch": 32}
    assert rrdbnet_options(meta_network(wanted).state_dict()) == wanted
    assert rrdbnet_options(network(4).state_dict()) == {**SMALL, "scale": 4}


@pytest.mark.slow
def test_a_quantized_network_in_both_runtimes(photo, tmp_path):
    net, images = network(2), torch.rand(2, 3, 32, 32)
    wanted = BackgroundUpsampler(TorchNetwork(net), 2)(photo).astype(int)
    quantize(net, "w8a8", images, progress=False)
    save_checkpoint(net, tmp_path / "w8a8.safetensors", {**SMALL, "scale": 2})
    official(tmp_path / "float.pth", 2)
    for name, runtime, most in (
        ("w8a8.safetensors", "reference", 3),
        ("w8a8.safetensors", "openvino", 3),
        ("float.pth", "openvino", 1),
    ):
        large = load_background(str(tmp_path / name), runtime)(photo)
        assert np.abs(large - wanted).mean() < most, (name, runtime)


class Trap:
    def __reduce__(self):
        return print, ("executed",)


def test_the_error_names_a_file_with_another_network(tmp_path, capsys):
    torch.save({"params": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    narrow = network(2).state_dict()
    narrow["conv_hr.bias"] = torch.zeros(3)
    torch.save({"params": narrow}, tmp_path / "narrow.pth")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"params": Trap()}))
    (tmp_path / "text.safetensors").write_text("hello")
    save_checkpoint(build_arch(TINY), tmp_path / "faces.safetensors", TINY)
    for name, change in {"grey": {"num_out_ch": 1}, "same": {"scale": 1}}.items():
        arch = {**SMALL, "scale": 2, **change}
        save_checkpoint(build_arch(arch), tmp_path / f"{name}.safetensors", arch, None)
    for name, message in {
        "grey.safetensors": "'num_out_ch': 1.*expected a network that enlarges RGB images",
        "same.safetensors": "'scale': 1.*expected a network that enlarges",
        "other.pth": "none of the .* architectures|needs spandrel",
        "narrow.pth": "conv_hr.bias",
        "trap.pth": "cannot be unpickled safely|damaged",
        "text.safetensors": "text",
        "faces.safetensors": "expected a network that enlarges",
    }.items():
        with pytest.raises(QuantFaceError, match=rf"{name}: .*({message})|{message}"):
            load_background(str(tmp_path / name), "reference")
    assert "executed" not in capsys.readouterr().out


def test_published_weights_are_refused_if_their_digest_differs(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / "cache"))
    notes = []
    with pytest.raises(QuantFaceError, match="--offline forbids the download: get https://"):
        weights.find_background("realesrgan_x2", True, notes.append, "--bg-upsampler")
    source = official(tmp_path / "source.pth", 2)
    wrong = weights.Published(source.as_uri(), "0" * 64)
    monkeypatch.setitem(weights.PUBLISHED, "realesrgan_x2", wrong)
    with pytest.raises(QuantFaceError, match=r"download failed \(.*SHA-256"):
        weights.find_background("realesrgan_x2", False, notes.append, "--bg-upsampler")
    assert not list((tmp_path / "cache").rglob("*.pth"))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    right = weights.Published(source.as_uri(), digest)
    monkeypatch.setitem(weights.PUBLISHED, "realesrgan_x2", right)
    path = weights.find_background("realesrgan_x2", False, notes.append, "--bg-upsampler")
    assert path.read_bytes() == source.read_bytes() and "downloading" in notes[-1]
    # The file is downloaded once, and refused after it was changed.
    assert weights.find_background("realesrgan_x2", True, notes.append, "--bg-upsampler") == path
    path.write_bytes(b"other")
    with pytest.raises(QuantFaceError, match="SHA-256"):
        weights.find_background("realesrgan_x2", True, notes.append, "--bg-upsampler")
    assert len(notes) == 2


def test_too_many_pixels_are_refused_before_any_work():
    upsampler = BackgroundUpsampler(TorchNetwork(torch.nn.Identity()), 4)
    with pytest.raises(QuantFaceError, match="9000x9000 pixels enlarged 4 times"):
        upsampler(np.broadcast_to(np.uint8(0), (9000, 9000, 3)))


def test_memory_is_bounded_by_the_tile():
    """numpy needs little more than the result, and the network sees one window at a time."""

    class Doubled(torch.nn.Module):
        largest = 0

        def forward(self, x):
            self.largest = max(self.largest, x.numel())
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    net = Doubled()
    image = np.zeros((1000, 750, 3), np.uint8)
    image[0, 0] = 1, 2, 3
    tracemalloc.start()
    try:
        large = BackgroundUpsampler(TorchNetwork(net), 2, tile=128)(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert net.largest == 3 * 160 * 160
    assert peak < large.nbytes + image.nbytes * 3


@pytest.mark.slow
def test_the_command(repo, photo, tmp_path, monkeypatch, capsys):
    model = tmp_path / "tiny.safetensors"
    save_checkpoint(build_arch(TINY), model, TINY)
    photo = resize(load_rgb(repo / "inputs/astronaut.jpg"), 256, 256)
    write_image(tmp_path / "in.png", RGBImage(photo))
    official(tmp_path / "x2.pth", 2)

    def restore(*words):
        command = ["restore.py", "-i", tmp_path / "in.png", "-o", tmp_path / "out"]
        command += ["--model", model]
        command += ["--offline", "--detector", "yunet", "--runtime", "reference", *words]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as stopped:
            run(main, make_parser())
        return stopped.value.code, capsys.readouterr().err

    status, stderr = restore("--bg-upsampler", tmp_path / "x2.pth", "--upscale", "1.5")
    assert status == 0, stderr
    result = load_rgb(tmp_path / "out/restored/in.png")
    large = resize(BackgroundUpsampler(TorchNetwork(network(2)), 2)(photo), 384, 384)
    assert result.shape == (384, 384, 3)
    same = (result == large).all(axis=2)
    # The face is pasted over the enlarged background.
    assert 0.5 < same.mean() < 0.99 and same[:, :40].all()
    for words, message in {
        ("--bg-upsampler", "nowhere.pth"): "nowhere.pth: no such file of weights",
        ("--bg-upsampler", "realesrgan_x4"): "--offline forbids the download",
        ("--bg-upsampler", tmp_path / "in.png"): "not a file of weights",
        ("--bg-upsampler", tmp_path / "x2.pth", "--aligned"): "cannot be used with --aligned",
    }.items():
        status, stderr = restore(*words, "-o", tmp_path / "none")
        assert status == 2 and message in stderr and len(stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_without_a_network_the_background_is_interpolated(photo):
    class NoFaces:
        name = "none"

        def detect(self, rgb):
            return []

    restorer = FaceRestorer(torch.nn.Identity(), detector=NoFaces())
    assert np.array_equal(restorer.restore(photo, upscale=2).image, resize(photo, 300, 220))
