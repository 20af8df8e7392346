"""The bridge is linear, starts where it is told, and its ridge start is the closed form."""

import pytest
import reference
import torch

from sdslib.bridge import Bridge, load_bridge, random_start, ridge_start

SHAPE = (4, 2, 2)


def pairs(count=200, width=12, noise=0.3, seed=0):
    """Embeddings of unit length and latents that are affine in them, up to noise."""
    generator = torch.Generator().manual_seed(seed)
    emb = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
    weight = torch.randn(width, 16, generator=generator)
    z = emb @ weight + 0.5 + noise * torch.randn(count, 16, generator=generator)
    return emb, z.view(count, *SHAPE)


def test_bridge_is_affine_and_starts_at_zero():
    bridge = Bridge(12, SHAPE)
    emb, _ = pairs(3)
    assert bridge(emb).shape == (3, *SHAPE)
    assert not bridge(emb).any()
    bridge.load_state_dict(random_start(12, SHAPE, seed=1))
    a, b = emb[:1], emb[1:2]
    torch.testing.assert_close(bridge(0.25 * a + 0.75 * b), 0.25 * bridge(a) + 0.75 * bridge(b))


def test_bridge_names_a_wrong_width():
    with pytest.raises(ValueError, match="takes embeddings of width 12, got 8"):
        Bridge(12, SHAPE)(torch.zeros(1, 8))


def test_random_start_is_the_seed_and_has_unit_variance():
    first, again, other = (random_start(64, (4, 8, 8), seed) for seed in (1, 1, 2))
    assert torch.equal(first["linear.weight"], again["linear.weight"])
    assert not torch.equal(first["linear.weight"], other["linear.weight"])
    bridge = Bridge(64, (4, 8, 8))
    bridge.load_state_dict(random_start(64, (4, 8, 8), seed=1, norm=3.0))
    emb = 3 * torch.nn.functional.normalize(torch.randn(64, 64), dim=-1)
    assert bridge(emb).std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_ridge_start_solves_the_normal_equations(ridge):
    emb, z = pairs()
    start = ridge_start(emb, z, ridge)
    weight, bias = reference.ridge(emb, z.flatten(1), ridge)
    bridge = Bridge(12, SHAPE)
    bridge.load_state_dict(start.state)
    expected = torch.tensor(emb.double().numpy() @ weight + bias)
    torch.testing.assert_close(bridge(emb).flatten(1).double(), expected, rtol=0, atol=1e-5)
    assert start.ridge == ridge


def test_ridge_start_recovers_an_exact_linear_map():
    emb, z = pairs(noise=0.0)
    start = ridge_start(emb, z)
    bridge = Bridge(12, SHAPE)
    bridge.load_state_dict(start.state)
    assert start.r2 > 0.9999
    assert start.scale == pytest.approx(1, abs=1e-2)
    torch.testing.assert_close(bridge(emb), z, rtol=0, atol=1e-2)


def test_strength_and_r2_come_from_the_held_out_pairs():
    generator = torch.Generator().manual_seed(3)
    emb, z = pairs(60, width=40, noise=2.0)
    start = ridge_start(emb, z, (1e-6, 10.0))
    assert start.ridge == 10.0  # the weak penalty fits the training pairs best
    assert start.r2 == start.r2_by_ridge[10.0] > start.r2_by_ridge[1e-6]
    unrelated = torch.randn(60, *SHAPE, generator=generator)
    assert ridge_start(emb, unrelated).r2 < 0.1
    assert ridge_start(emb, unrelated).scale > 1.5  # the prediction shrinks towards the mean


def test_r2_is_that_of_a_fit_on_the_other_pairs():
    emb, z = pairs(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(7))
    test, train = order[:10], order[10:]
    weight, bias = reference.ridge(emb[train], z[train].flatten(1), 0.1)
    y = z[test].flatten(1).double().numpy()
    error = ((y - (emb[test].double().numpy() @ weight + bias)) ** 2).sum()
    expected = 1 - error / ((y - y.mean(0)) ** 2).sum()
    assert ridge_start(emb, z, 0.1, seed=7).r2 == pytest.approx(expected, abs=1e-9)


def test_ridge_start_survives_collinear_embeddings():
    emb, z = pairs(40)
    start = ridge_start(torch.cat([emb, emb], 1), z, 0.01)
    half = start.state["linear.weight"][:, :12]
    torch.testing.assert_close(half, start.state["linear.weight"][:, 12:], rtol=0, atol=1e-5)


def test_ridge_start_refuses_few_or_broken_pairs():
    emb, z = pairs(9)
    with pytest.raises(ValueError, match="needs 10 pairs or more, got 9 and 9"):
        ridge_start(emb, z)
    emb, z = pairs(20)
    with pytest.raises(ValueError, match="all 20 embeddings are the same"):
        ridge_start(emb[:1].expand(20, -1), z)
    z[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        ridge_start(emb, z)


def test_saved_bridge_comes_back_bit_for_bit(tmp_path):
    bridge = Bridge(12, SHAPE)
    bridge.load_state_dict(random_start(12, SHAPE, seed=1))
    bridge.save(tmp_path / "bridge.safetensors")
    again = load_bridge(tmp_path / "bridge.safetensors")
    assert again.latent_shape == SHAPE
    assert torch.equal(again.linear.weight, bridge.linear.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["bridge.safetensors"]
    (tmp_path / "broken.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match="is not a saved bridge"):
        load_bridge(tmp_path / "broken.safetensors")
