"""Does a replacement carry over to another model? The same text in two models, and what of one can be read in the other."""

from psr_lens.transfer.pairing import PairedText, TokenPairs, pair_texts, pair_tokens

__all__ = ["PairedText", "TokenPairs", "pair_texts", "pair_tokens"]
