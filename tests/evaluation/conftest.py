import pytest

from psr_lens.evaluation import answer_cache
from psr_lens.evaluation.answer_cache import steering_digest


@pytest.fixture
def counted(monkeypatch):
    """Every call of `generate`: which answers it was asked for."""
    calls = []
    real = answer_cache.generate

    def generate(model, pairs, replacement, *, context, alpha, sampling, streams, **given):
        digest = None if replacement is None else steering_digest(replacement)
        strengths = [alpha] * len(pairs) if isinstance(alpha, float) else alpha
        calls.append([(digest, strength, context, stream) for strength, stream in zip(strengths, streams, strict=True)])
        return real(model, pairs, replacement, context=context, alpha=alpha, sampling=sampling, streams=streams, **given)

    monkeypatch.setattr(answer_cache, "generate", generate)
    return calls
