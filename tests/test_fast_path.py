"""The fast path, as far as a CPU can check it: one graph without breaks, no second compilation, bf16 autocast."""

import pytest
import torch
from torch import _dynamo

import vatt
from transformer import Size, Transformer

SIZE = Size(1, 32, 64, 2)
CONFIG = vatt.Config(SIZE, SIZE, SIZE, frames=4, size=16, patch=(2, 8, 8), rate=8000, vocabulary=20, words=4, d_va=16,
                     d_vt=8, dropout=0.0)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    _dynamo.reset()
    yield
    _dynamo.reset()


@pytest.mark.parametrize(("relative_bias", "masked", "recompute"), [(False, False, False), (True, True, False),
                                                                  (False, True, True)])
def test_a_transformer_compiles_into_one_graph_and_computes_the_same(relative_bias, masked, recompute):
    transformer = Transformer(SIZE, relative_bias=relative_bias, dropout=0.0)
    transformer.recompute = recompute
    x = torch.randn(3, 7, 32, requires_grad=True)
    mask = (torch.rand(3, 7) < 0.7) if masked else None
    plain = transformer(x, mask)
    plain.sum().backward()
    gradient, x.grad = x.grad, None
    compiled = torch.compile(transformer, fullgraph=True, backend="aot_eager")(x, mask)  # fullgraph: a break would raise
    compiled.sum().backward()
    assert torch.allclose(plain, compiled, atol=1e-6)
    assert torch.allclose(gradient, x.grad, atol=1e-6)


def test_after_the_first_step_nothing_is_compiled_again():
    model = vatt.VATT(CONFIG)
    for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
        transformer.compile(backend="aot_eager")
    step = lambda: [z.sum().backward() for z in model(
        torch.randn(4, 4, 16, 16, 3), torch.randn(4, CONFIG.samples), torch.randint(2, 20, (4, 5, 4)), (0.5, 0.5),
        torch.randint(2**60, (4, 2)))]
    step()
    with _dynamo.config.patch(error_on_recompile=True):
        step()
        step()


def test_compiling_in_place_keeps_the_names_of_the_weights():
    model = Transformer(SIZE)
    names = list(model.state_dict())
    model.compile()
    assert list(model.state_dict()) == names


def test_bf16_autocast_stays_close_to_fp32_and_keeps_logits_in_fp32():
    torch.manual_seed(0)
    model = vatt.VATT(CONFIG).eval()
    inputs = (torch.rand(4, 4, 16, 16, 3), torch.rand(4, 3200), torch.randint(2, 20, (4, 5, 4)))
    with torch.no_grad():
        exact = model.project(*model(*inputs))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.project(*model(*inputs))
    assert all(z.dtype == torch.float32 for z in rounded)
    assert all((torch.cosine_similarity(a, b, dim=-1) > 0.99).all() for a, b in zip(exact, rounded, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_what_a_cpu_computes():
    model = vatt.VATT(CONFIG).eval()
    inputs = (torch.rand(4, 4, 16, 16, 3), torch.rand(4, 3200), torch.randint(2, 20, (4, 5, 4)))
    keys = torch.randint(2**60, (4, 2))
    with torch.no_grad():
        here = model(*inputs, (0.5, 0.5), keys)
        there = model.cuda()(*(x.cuda() for x in inputs), (0.5, 0.5), keys.cuda())
    assert all(torch.allclose(a, b.cpu(), atol=1e-2) for a, b in zip(here, there, strict=True))
