"""The doctor: what it says here, and where packages are broken, missing or crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from quantface_arch import doctor, runtime
from quantface_arch.doctor_report import render
from quantface_arch.doctor_steps import RUNTIME_NAMES
from quantface_arch.zoo import WEIGHTS


def shadow(folder, name, code):
    """A package that stands before the installed one of that name."""
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
    assert set(healthy.models) == {path.stem for path in WEIGHTS.glob("*.safetensors")} > {"mini"}
    assert healthy.results["runtime reference"].keys() == {"seconds"}


def test_a_broken_torch_is_named_and_only_that_is_to_be_mended(repo, tmp_path):
    found, packages = ask(repo, shadow(tmp_path, "torch", "raise OSError('no such libc10.so')"))
    assert not found["works"]
    assert "no such libc10.so" in packages["torch"]["error"] and packages["torch"]["cause"] is None
    assert packages["diffusers"]["cause"] == packages["basicsr"]["cause"] == "torch"
    assert packages["numpy"]["error"] is None


def test_a_package_that_kills_the_process_takes_only_itself_along(monkeypatch, tmp_path):
    path = shadow(tmp_path, "openvino", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", path)
    found = doctor.attempt(["import openvino", "import yaml", "runtime reference"])
    assert found["import openvino"]["error"] == "crashed with signal 9"
    assert "error" not in found["import yaml"] and "error" not in found["runtime reference"]


def test_without_the_runtime_that_auto_takes_a_restoration_does_not_work(healthy):
    auto = healthy.results["restore"]["auto"]
    broken = doctor.Findings(**vars(healthy))
    broken.results = {**healthy.results, f"runtime {auto}": {"error": "ImportError: libtbb.so"}}
    lines, works = render(broken)
    assert not works and "libtbb.so" in lines[-1]
    assert any("--runtime reference" in line for line in lines)


def test_versions_outside_the_range_and_missing_packages_say_what_to_install(healthy):
    changed = doctor.Findings(**vars(healthy))
    changed.packages = [
        doctor.Package("torch", "torch>=2.4", None, "1.0", False),
        doctor.Package("numpy", "numpy>=1.24", None),
    ]
    text = "\n".join(render(changed)[0])
    assert "torch: found 1.0, wanted is torch>=2.4" in text and "numpy: MISSING" in text
    assert 'pip install "torch>=2.4"' in text and 'pip install "numpy>=1.24"' in text
    absent = doctor.looked_up(doctor.Package("no-such-package", "no-such-package>=1", None))
    assert absent.version is None
    old = doctor.looked_up(doctor.Package("numpy", "numpy<1", None))
    assert old.version and old.fits is False


def test_processors_without_vnni_are_recognized(healthy, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Old One\nflags\t\t: fpu avx2 sse\n")
    cpu = doctor.processor(cpuinfo)
    assert cpu["name"] == "Old One" and cpu["flags"] == ["avx2"]
    changed = doctor.Findings(**{**vars(healthy), "cpu": cpu})
    assert "rounded to 7 bits" in " ".join(render(changed)[0])
    assert doctor.processor(tmp_path / "absent")["flags"] is None


def test_it_tries_every_runtime_there_is():
    assert set(RUNTIME_NAMES) == set(runtime.RUNTIMES)
