"""Hidden tokens: shares as BERT has them, and nothing hidden that may not be."""

from __future__ import annotations

import torch

from triune.core.masking import hide_tokens


def test_shares_are_those_of_bert() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 50, (400, 250), generator=generator)
    allowed = torch.rand(400, 250, generator=generator) < 0.5
    changed, targets = hide_tokens(tokens, allowed, 1, torch.arange(60, 70), generator)
    chosen = targets != -100
    assert not (chosen & ~allowed).any()
    assert torch.equal(targets[chosen], tokens[chosen]) and torch.equal(changed[~chosen], tokens[~chosen])
    count = int(chosen.sum())
    assert abs(count / int(allowed.sum()) - 0.15) < 0.01
    masked, other = changed[chosen] == 1, changed[chosen] >= 60
    kept = changed[chosen] == tokens[chosen]
    for part, share in ((masked, 0.8), (other, 0.1), (kept, 0.1)):
        assert abs(int(part.sum()) / count - share) < 0.02
    assert bool((masked | other | kept).all())
    assert len(changed[changed >= 60].unique()) == 10


def test_the_same_draws_give_the_same_masks() -> None:
    tokens = torch.arange(40).view(2, 20)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    one, two = (hide_tokens(tokens, tokens > 3, 0, torch.arange(4, 40), draw)[0] for draw in draws)
    assert torch.equal(one, two) and not torch.equal(one, tokens)
    assert torch.equal(one[0, :4], tokens[0, :4])
