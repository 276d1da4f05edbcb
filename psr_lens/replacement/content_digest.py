"""A digest of what a replacement does, used to tell its files and cached answers from those of other replacements."""

from __future__ import annotations

import xxhash

from psr_lens._utils.digests import digest_of
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.replacement.site import Site
from psr_lens.replacement.spec import ReplacementSpec


def content_digest(replacement: ReplacementSpec) -> str:
    """xxh3_128 of everything that determines what a replacement adds and where, in hexadecimal; not of its name or its record."""
    return digest_of(
        {
            "sites": {name: [site.rule, _numbers_digest(site)] for name, site in replacement.sites.items()},
            "span": replacement.span,
            "tokens": replacement.tokens,
            "offset": float(replacement.offset),
            "question_start": replacement.question_start,
        }
    )


def _numbers_digest(site: Site) -> str:
    found = xxhash.xxh3_128()
    for tensor in (site.directions, site.weights, site.bias):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(raw_bytes(tensor))
    return found.hexdigest()
