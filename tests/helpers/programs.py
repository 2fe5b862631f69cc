"""Run programs in processes of their own that need not import the libraries anew.

A command of this project imports torch, diffusers and peft for five seconds. Here each command runs
in a fork of a process that has imported them, but nothing of this repository. ``sys.executable`` in
its place is for tests of starting up, of signals and of the environment.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torchvision",
        "cv2",
        "openvino",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.autoencoders.autoencoder_kl",
        "scipy.stats",
    ]
)
# Where a program finds modules, apart from its own folder and PYTHONPATH, which -E leaves out.
_PATHS = [sys.executable, "-E", "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
INSTALLED = subprocess.check_output(_PATHS, text=True).splitlines()


def run_program(path, *words, cwd=None, env=None, timeout=300) -> subprocess.CompletedProcess:
    """Run ``python PATH WORDS ...``; return its exit status, stdout and stderr."""
    command = [str(path), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        place = (os.fspath(cwd or Path.cwd()), dict(os.environ if env is None else env))
        process = FORKS.Process(target=_become, args=(command, *place, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [Path(output).read_text() for output in outputs]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _become(command, cwd, env, outputs):
    """Be the process of a program from here on."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY, 0o600), number)
    added = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    sys.path[:] = [str(Path(command[0]).resolve().parent), *added, *INSTALLED]
    # As Python does, so that ``__file__`` is absolute.
    runpy.run_path(os.path.abspath(command[0]), run_name="__main__")
