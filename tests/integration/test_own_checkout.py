"""A checkout of BasicSR, whose loop is the running program, and options files made for it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from loops import load_options, shrink_restorer, train, write_images

import quantface_arch.register  # noqa: F401
from quantface_arch.errors import QuantFaceError
from quantface_arch.models.osdface_model import OSDFaceModel


@pytest.mark.slow
def test_the_loop_of_a_basicsr_checkout_resumes_without_a_gpu(repo, tmp_path, monkeypatch):
    import basicsr.train as own

    # A checkout's train.py is the running program: it imports the package first, then defines the
    # loop, and runs it.
    program = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    code = "import quantface_arch.register\n" + Path(own.__file__).read_text()
    exec(compile(code.partition("if __name__ ==")[0], own.__file__, "exec"), vars(program))
    assert program.load_resume_state is not own.load_resume_state
    write_images(tmp_path / "faces")
    opt = shrink_restorer(load_options(repo / "options/train_mini.yml"), tmp_path / "faces", 4)
    opt["train"].pop("discriminator")
    opt["train"]["total_iter"] = 2
    monkeypatch.setattr("basicsr.train.train_pipeline", program.train_pipeline)
    train(monkeypatch, tmp_path, opt)
    opt["train"]["total_iter"] = 4
    steps, optimize = [], OSDFaceModel.optimize_parameters

    def counted(self, iteration):
        steps.append(iteration)
        optimize(self, iteration)

    monkeypatch.setattr(OSDFaceModel, "optimize_parameters", counted)
    models = train(monkeypatch, tmp_path, opt, "--auto_resume")
    assert (models / "net_g_4.pth").is_file()
    assert steps == [3, 4]


def test_losses_of_basicsr_models_are_named_with_their_new_place(repo, tmp_path, monkeypatch):
    write_images(tmp_path / "faces")
    opt = shrink_restorer(load_options(repo / "options/train_mini.yml"), tmp_path / "faces", 2)
    opt["train"]["pixel_opt"] = {"type": "L1Loss", "loss_weight": 1.0}
    with pytest.raises(QuantFaceError, match="pixel_opt: losses are entries of `losses`"):
        train(monkeypatch, tmp_path, opt)
