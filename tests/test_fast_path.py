"""The fast path: one graph without breaks, no second compilation, bf16 autocast; on a GPU (`pytest -m gpu`) no waiting."""

import pytest
import torch
from films import TINY, folder
from torch import _dynamo

import pretrain
import vatt
from engine import loading
from engine.processes import Processes
from pretrain import Step
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


@pytest.mark.slow
def test_the_inductor_backend_computes_the_gradients_of_the_uncompiled_model():
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = vatt.VATT(CONFIG)
        for transformer in (m for m in model.modules() if isinstance(m, Transformer)):
            if compiled:
                transformer.compile(fullgraph=True)
        Step(model, Processes(), (0.5, 0.5))(clips("cpu"), step=0)
        gradients.append([p.grad for p in model.parameters()])
    assert all((a - b).abs().max() < 1e-5 * (1 + a.abs().max()) for a, b in zip(*gradients, strict=True))


def clips(device, n=4):
    """A batch as the loader gives it"""
    g = torch.Generator().manual_seed(1)
    batch = {"video": torch.randint(0, 256, (n, 4, 16, 16, 3), generator=g, dtype=torch.uint8),
             "audio": torch.rand(n, CONFIG.samples, generator=g), "text": torch.randint(2, 20, (n, 5, 4), generator=g),
             "has_text": torch.rand(n, 5, generator=g) < 0.7, "has_audio": torch.ones(n, dtype=torch.bool),
             "flip": torch.rand(n, generator=g) < 0.5, "colour": torch.tensor([[1, 0.1, 1.2, 0.8, 0.1]]).repeat(n, 1),
             "keys": torch.randint(2**60, (n, 2), generator=g)}
    return {k: v.to(device) for k, v in batch.items()}


# ------------------------------------------------------------------------------------------------------------ with a GPU

gpu = lambda test: pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


@gpu
def test_a_gpu_computes_what_a_cpu_computes():
    model = vatt.VATT(CONFIG).eval()
    inputs = (torch.rand(4, 4, 16, 16, 3), torch.rand(4, 3200), torch.randint(2, 20, (4, 5, 4)))
    keys = torch.randint(2**60, (4, 2))
    with torch.no_grad():
        here = model(*inputs, (0.5, 0.5), keys)
        there = model.cuda()(*(x.cuda() for x in inputs), (0.5, 0.5), keys.cuda())
    assert all(torch.allclose(a, b.cpu(), atol=1e-2) for a, b in zip(here, there, strict=True))


@gpu
@pytest.mark.parametrize("chunk", [1, 3])
def test_on_a_gpu_chunks_give_the_gradients_of_the_whole_batch(chunk):
    gradients = []
    for size in (None, chunk):
        torch.manual_seed(0)
        model = vatt.VATT(CONFIG).double().cuda()
        Step(model, Processes(), (0.5, 0.5), size)(clips("cuda"), step=0)
        gradients.append([p.grad for p in model.parameters()])
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(*gradients, strict=True))


@gpu
def test_a_step_does_not_wait_for_the_gpu():
    model = vatt.VATT(CONFIG).cuda()
    step, batch = Step(model, Processes(), (0.5, 0.5), precision="bf16"), clips("cuda")
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, eps=1e-7, fused=True)
    step(batch, 0)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = step(batch, 1)
        torch.nn.utils.get_total_norm(p.grad for p in model.parameters())
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(x) for x in parts.values())


class Given(torch.utils.data.Dataset):
    """Pieces that are made already, of so many clips"""

    sizes, in_flight = (2, 3, 4, 1, 5, 2), loading.InFlight()

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        torch.manual_seed(i)
        return clips("cpu", self.sizes[i]), [("film", "reason")] * self.sizes[i]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])])
def test_batches_copied_ahead_are_those_of_the_loader(device):
    given = Given()
    whole = [loading.concatenate([given[i], given[i + 1]]) for i in (0, 2, 4)]
    loader = torch.utils.data.DataLoader(given, batch_size=None, collate_fn=lambda piece: piece)
    ahead = loading.prefetch(loader, 2, Processes(), 60, torch.device(device))
    for (batch, failed), (copied, said) in zip(whole, ahead, strict=True):
        assert failed == said
        assert all(torch.equal(v, copied[k].cpu()) for k, v in batch.items())


@gpu
@pytest.mark.parametrize("flags", [["--compile"], ["--recompute"], ["--chunk", "2"], ["--precision", "tf32"]])
def test_a_run_on_a_gpu_ends_with_scores(tmp_path, capsys, flags):
    films = folder(tmp_path / "films", films=6)
    pretrain.main(["--data", str(films), "--val", str(films), "--out", str(tmp_path / "run"), *TINY, *flags])
    assert "held-out retrieval" in capsys.readouterr().out
