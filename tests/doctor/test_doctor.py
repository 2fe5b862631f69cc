"""The doctor's report here, and with packages that are broken, missing or crash."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest
from torch import nn

from quantface_arch import runtime
from quantface_arch.doctor import cli as doctor
from quantface_arch.doctor import steps as doctor_steps
from quantface_arch.doctor.report import INT8_FLAGS, render
from quantface_arch.pretrained.names import WEIGHTS
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils import download
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

# The fixture of the module takes seconds.
pytestmark = pytest.mark.slow


def shadow(folder, name, code):
    """Create a package that hides the installed one of the same name."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def ask(repo, path=None):
    command = [sys.executable, "-m", "quantface_arch.doctor", "--json"]
    env = {**os.environ, "PYTHONPATH": path or os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=200)
    found = json.loads(done.stdout)
    assert (done.returncode == 0) == found["works"], done.stderr
    return found, {package["name"]: package for package in found["packages"]}


@pytest.fixture(scope="module")
def healthy():
    return doctor.examine()


def test_here_everything_needed_works_and_is_said_on_one_screen(healthy):
    lines, works = render(healthy)
    assert works and lines[-1].startswith("A restoration works")
    assert len("\n".join(lines).splitlines()) <= 45
    assert all(len(line) <= 100 or "http" in line for line in "\n".join(lines).splitlines())
    assert {p.name for p in healthy.packages} >= {"torch", "basicsr", "openvino", "diffusers"}
    assert not [p for p in healthy.packages if p.extra is None and (p.error or not p.fits)]
    assert not {"pytest", "mkdocs"} & {p.name for p in healthy.packages}
    assert set(healthy.models) == {path.stem for path in WEIGHTS.glob("*.safetensors")} > {"mini"}
    assert healthy.results["runtime reference"].keys() == {"seconds"}


def test_a_broken_torch_is_named_and_only_that_is_to_be_mended(repo, tmp_path):
    found, packages = ask(repo, shadow(tmp_path, "torch", "raise OSError('no such libc10.so')"))
    assert not found["works"]
    assert "no such libc10.so" in packages["torch"]["error"] and packages["torch"]["cause"] is None
    assert packages["diffusers"]["cause"] == packages["basicsr"]["cause"] == "torch"
    assert packages["numpy"]["error"] is None


def test_without_the_parser_of_requirements_that_package_is_named(repo, tmp_path):
    _, packages = ask(repo, shadow(tmp_path, "packaging", "raise ImportError('cut off')"))
    assert packages.keys() == {"packaging"} and "cut off" in packages["packaging"]["error"]


def test_a_requirement_is_listed_under_the_first_extra_that_wants_it():
    found = {package.name: package for package in doctor.wanted_packages()}
    assert (found["torch"].wanted, found["torch"].extra) == ("torch>=2.4", None)
    assert (found["onnx"].extra, found["nncf"].extra) == ("export", "bench")
    assert "hypothesis" not in found


def test_a_package_that_kills_the_process_takes_only_itself_along(monkeypatch, tmp_path):
    for name, code, end in (
        ("openvino", "import os; os.kill(os.getpid(), 9)", "crashed with signal 9"),
        ("piq", "import os; os.write(2, b'ends'); os._exit(3)", "ended with status 3: ends"),
        ("peft", "import time; time.sleep(100)", "no answer in 15 s"),
        ("lpips", "print('[not a result]')", None),
    ):
        monkeypatch.setenv("PYTHONPATH", shadow(tmp_path, name, code))
        monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 15)
        found = doctor.attempt(["import json", f"import {name}", "import csv"])
        assert found.pop(f"import {name}").get("error") == end
        assert found.keys() == {"import json", "import csv"}
        assert not any("error" in result for result in found.values())


def test_a_runtime_or_a_model_that_computes_something_else_is_found(monkeypatch):
    load = runtime.load
    monkeypatch.setattr(runtime, "load", lambda *_: nn.Conv2d(3, 8, 3))
    assert "its relative error is" in doctor_steps.try_runtime("reference")["error"]
    monkeypatch.setattr(FaceRestorer, "restore_aligned", lambda self, faces: faces)
    assert "does not restore" in doctor_steps.try_restore()["error"]
    for factor in (1.1, float("nan")):
        monkeypatch.setattr(runtime, "load", lambda *words, k=factor: lambda x: k * load(*words)(x))
        assert "its relative error is" in doctor_steps.try_runtime("reference")["error"]


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    for name, writable in (("new", True), ("file/new", False)):
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path / name))
        found = doctor_steps.look_at_cache()
        assert found["folder"] == str(tmp_path / name) and found["writable"] is writable
    monkeypatch.setenv("QUANTFACE_CACHE", str(tmp_path))
    assert doctor_steps.look_at_cache()["bytes"] == 1
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path)
    assert doctor_steps.look_at_cache()["writable"] is False


def test_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr(download, "_transfer", lambda *_: pytest.fail("downloads"))
    found = doctor_steps.try_detector()
    assert found == {"name": "yunet"}


@pytest.mark.parametrize(
    ("step", "result", "works", "said"),
    [
        ("restore", {"error": "no memory"}, False, "NOT work: restore: no memory"),
        ("detector", {"error": "no file"}, False, "detector  BROKEN: no file"),
        ("detector", {"error": "no file"}, False, "NOT work: detector: no file"),
        ("runtime openvino", {"missing": "install it"}, False, "openvino  not here: install it"),
        ("runtime openvino", {"missing": "install it"}, False, "NOT work: runtime openvino: inst"),
        ("models", {"damaged": {"mini": "mini is cut"}}, True, "- mini: mini is cut"),
        ("cache", {"folder": "/x", "bytes": 0, "writable": False}, True, "- /x cannot be written"),
        ("cache", {"folder": "/x", "bytes": 0, "writable": False}, True, "/x, 0.0 MB, NOT writ"),
    ],
)
def test_what_else_is_wrong_is_said_and_judged(healthy, step, result, works, said):
    changed = doctor.Findings(**vars(healthy))
    changed.results = {**healthy.results, step: result}
    changed.results["restore"] = {**changed.results["restore"], "auto": "openvino"}
    lines, judged = render(changed)
    assert judged is works and said in "\n".join(lines)


def test_broken_packages_say_what_to_do(healthy):
    changed = doctor.Findings(**vars(healthy))
    changed.packages = [
        doctor.Package("opencv-python", "opencv-python>=4.8", None, "4.9", True, "no libGL.so.1"),
        doctor.Package("piq", "piq>=0.8", None, "0.8", True, "SyntaxError: line 1"),
        doctor.Package("lpips", "lpips>=0.1", None, "0.1", True, "ImportError", "piq"),
    ]
    todo = " ".join("\n".join(render(changed)[0]).partition("what to do")[2].split())
    assert "apt-get install libgl1" in todo
    assert 'pip install --force-reinstall "piq>=0.8"' in todo and "lpips" not in todo


def test_without_the_runtime_that_auto_takes_a_restoration_does_not_work(healthy):
    auto = healthy.results["restore"]["auto"]
    broken = doctor.Findings(**vars(healthy))
    broken.results = {**healthy.results, f"runtime {auto}": {"error": "ImportError: libtbb.so"}}
    lines, works = render(broken)
    assert not works and "libtbb.so" in lines[-1]
    assert any("--runtime reference" in line for line in lines)


def test_versions_outside_the_range_and_missing_packages_say_what_to_install(healthy, monkeypatch):
    changed = doctor.Findings(**vars(healthy))
    changed.packages = [
        doctor.Package("torch", "torch>=2.4", None, "1.0", False),
        doctor.Package("numpy", "numpy>=1.24", None),
        doctor.Package("gradio", "gradio>=6", "app"),
    ]
    text = "\n".join(render(changed)[0])
    assert "torch: found 1.0, expected torch>=2.4" in text and "numpy: MISSING" in text
    assert 'pip install "torch>=2.4"' in text and 'pip install "numpy>=1.24"' in text
    assert "[app] gradio -" in text and 'pip install "gradio' not in text
    changed.packages = []
    assert "the package is not installed" in "\n".join(render(changed)[0])
    absent = doctor.looked_up(doctor.Package("no-such-package", "no-such-package>=1", None))
    assert absent.version is None
    old = doctor.looked_up(doctor.Package("numpy", "numpy<1", None))
    assert old.version and old.fits is False
    # PyTorch's containers have such a version.
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.6.0a0+ecf3bae")
    assert doctor.looked_up(doctor.Package("torch", "torch>=2.4", None)).fits


def test_processors_without_vnni_are_recognized(healthy, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Old One\nflags\t\t: fpu avx2 sse\n")
    cpu = doctor.processor(cpuinfo)
    assert cpu["name"] == "Old One" and cpu["flags"] == ["avx2"]
    changed = doctor.Findings(**{**vars(healthy), "cpu": cpu})
    assert "rounded to 7 bits" in " ".join(render(changed)[0])
    assert doctor.processor(tmp_path / "absent")["flags"] is None
    assert set(doctor.CPU_FLAGS) > INT8_FLAGS
    for line, flag in (("flags\t\t: avx2 avx_vnni", "avx_vnni"), ("Features\t: fp i8mm", "i8mm")):
        cpuinfo.write_text(f"{line}\n")
        changed.cpu = doctor.processor(cpuinfo)
        assert re.search(rf"at full speed \(.*{flag}\)", " ".join(render(changed)[0]))


def test_it_tries_every_runtime_there_is():
    assert list(RUNTIME_NAMES) == list(runtime.RUNTIMES)
