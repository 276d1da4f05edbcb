"""Massive activations: which tokens have them, against their definition and plain transformers."""

import torch

from psr_lens.activations.massive import is_massive


def test_a_token_is_massive_if_one_number_outweighs_nine_ordinary_tokens():
    rows = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.norm(dim=1, keepdim=True) * 10
    rows[3, 7], rows[5, 0], rows[8] = 31.0, -40.0, 5.0  # the last has norm 40, but no number that is large by itself
    rows[9, 2] = 29.0
    for each in (rows, rows * 1e-3, rows.double(), rows.bfloat16(), rows.reshape(200, 4, 16), (rows * 1000).half()):
        assert is_massive(each).nonzero().flatten().tolist() == [3, 5]
    assert is_massive(rows, ratio=2.5).nonzero().flatten().tolist() == [3, 5, 9]
    assert is_massive(rows[3:4], typical=10.0).tolist() == [True]
    assert not is_massive(torch.zeros(5, 4)).any()
    assert not is_massive(torch.eye(5, 8) * torch.tensor([0, 0, 0, 0, 9.0])[:, None]).any()
    assert is_massive(rows[:0]).shape == (0,)
