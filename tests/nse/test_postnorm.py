"""Residuals where a norm stands behind the projection."""

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from nse.errors import ArchitectureError
from nse.postnorm import change_before_norm

WIDTH, FACTS = 24, 7


def random_norm(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    norm = kind(WIDTH)
    with torch.no_grad():
        norm.weight += 0.3 * torch.randn(WIDTH)
    return norm.to(dtype)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [Gemma2RMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@torch.no_grad()
def test_the_normed_output_turns_to_where_it_is_wanted(kind, dtype, size) -> None:
    norm = random_norm(kind, dtype)
    v, r = torch.randn(WIDTH, FACTS).double() * 5, torch.randn(WIDTH, FACTS).double() * size
    wanted = norm(v.T).T.double() + r
    achieved = norm((v + change_before_norm(v, r, norm)).T).T.double()
    exact = {torch.float32: 1e-6, torch.bfloat16: 1e-4, torch.float16: 1e-5}[dtype]
    assert (torch.cosine_similarity(achieved, wanted, dim=0) > 1 - exact).all()


@torch.no_grad()
def test_no_shorter_change_turns_it_there() -> None:
    norm = random_norm(Gemma2RMSNorm)
    v, r = torch.randn(WIDTH, FACTS).double(), torch.randn(WIDTH, FACTS).double() * 0.3
    change = change_before_norm(v, r, norm)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (((v + change) * factor - v).norm(dim=0) > change.norm(dim=0)).all()


@torch.no_grad()
def test_where_nothing_is_wanted_nothing_changes() -> None:
    norm = random_norm(Olmo2RMSNorm)
    v = torch.randn(WIDTH, FACTS).double()
    assert change_before_norm(v, torch.zeros_like(v), norm).abs().max() < 1e-6


@torch.no_grad()
def test_an_output_that_is_wanted_reversed_keeps_its_length() -> None:
    norm = random_norm(Olmo2RMSNorm)
    v = torch.randn(WIDTH, FACTS).double()
    there = v + change_before_norm(v, -2 * norm(v.T).T, norm)
    torch.testing.assert_close(there, -v, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_component_that_the_norm_puts_out_is_left_as_it_is() -> None:
    norm = random_norm(Olmo2RMSNorm)
    norm.weight[3] = 0
    v, r = torch.randn(WIDTH, FACTS).double(), torch.randn(WIDTH, FACTS).double()
    r[3] = 0
    there = v + change_before_norm(v, r, norm)
    assert there.isfinite().all()
    wanted = norm(v.T).T + r
    assert (torch.cosine_similarity(norm(there.T).T, wanted, dim=0) > 1 - 1e-6).all()


def test_without_a_norm_the_change_is_what_is_wanted() -> None:
    v, r = torch.randn(WIDTH, FACTS), torch.randn(WIDTH, FACTS)
    assert torch.equal(change_before_norm(v, r, None), r.double())


@pytest.mark.parametrize("norm", [nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, bias=False)], ids=["bias", "no bias"])
def test_a_norm_of_another_kind_is_refused(norm) -> None:
    norm.double()
    with pytest.raises(ArchitectureError, match="post norm LayerNorm is no RMSNorm"):
        change_before_norm(torch.randn(WIDTH, 2), torch.randn(WIDTH, 2), norm)
