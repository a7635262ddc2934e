"""A run with --compile, through a compiler that only counts: which graphs there are, and who must not run them."""

import contextlib
from collections import Counter

import pytest
import torch
from torch import nn

from dgfast.commands import train
from dgfast.config import RunConfig, check
from dgfast.errors import UserError
from dgfast.models.teacher import Teacher
from dgfast.training import trainer
from tests import tiny

LIMIT = torch._dynamo.config.recompile_limit
ITERATIONS = 12  # more than the limit: a network that were compiled anew in each would reach it


class Compiler:
    """Takes the place of torch.compile's backend; graphs run as they are."""

    def __init__(self, monkeypatch):
        self.graphs = Counter()  # by network
        self.sizes = set()  # kinds of all sizes in all graphs
        self.calls = Counter()  # by what the run is doing
        self.doing = ["training"]
        real = nn.Module.compile

        def compile(module, *, mode, **settings):
            assert mode == "default"
            name = type(module).__name__
            real(module, backend=lambda graph, inputs: self.take(name, graph, inputs), fullgraph=True, **settings)

        monkeypatch.setattr(nn.Module, "compile", compile)

    def take(self, name, graph, inputs):
        self.graphs[name] += 1
        self.sizes |= {type(size) for x in inputs if isinstance(x, torch.Tensor) for size in x.shape}
        self.sizes |= {type(x) for x in inputs if not isinstance(x, torch.Tensor)}

        def run(*args):
            self.calls[self.doing[-1]] += 1
            return graph.forward(*args)

        return run

    @contextlib.contextmanager
    def during(self, what):
        self.doing.append(what)
        yield
        self.doing.pop()


@pytest.fixture(scope="module")
def run(market, tmp_path_factory):
    torch.compiler.reset()
    out = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        compiler = Compiler(monkeypatch)
        for module, name in ((trainer, "sample_grid"), (train, "_report")):
            real = getattr(module, name)

            def noted(*args, real=real, name=name):
                with compiler.during(name):
                    return real(*args)

            monkeypatch.setattr(module, name, noted)
        settings = {"compile": "default", "iterations": ITERATIONS, "sample_every": 5, "checkpoint_every": 100}
        monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
        train.main(tiny.flags(tiny.config(market, out, **settings)))
    assert (out / "run" / "swaps.png").is_file()
    torch.compiler.reset()
    return compiler


@pytest.mark.slow
def test_many_iterations_stay_below_the_recompile_limit(run):
    """Of E_a there are four uses: codes, E_a' on generated images, real images, generated images with the teacher."""
    assert run.calls["training"] >= 8 * ITERATIONS
    assert run.graphs.keys() == {"AppearanceEncoder", "StructureEncoder", "Decoder", Teacher.__name__}
    assert max(run.graphs.values()) <= LIMIT - 2, run.graphs


@pytest.mark.slow
def test_every_size_is_a_constant_of_its_graph(run):
    assert run.sizes == {int}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sample_grid", "_report"])
def test_samples_and_evaluation_run_no_compiled_network(run, what):
    """With CUDA graphs, each compiled call there would overwrite what the one before it returned."""
    assert run.calls[what] == 0


def test_parts_of_a_batch_are_not_for_cuda_graphs(tmp_path):
    fine = tiny.config(tmp_path, tmp_path, batch_size=4, accumulate=2, compile="default")
    check(fine)
    with pytest.raises(UserError, match="--accumulate is 2; expected 1 with --compile reduce-overhead"):
        check(tiny.config(tmp_path, tmp_path, batch_size=4, accumulate=2, compile="reduce-overhead"))
    assert RunConfig().compile == "off"
