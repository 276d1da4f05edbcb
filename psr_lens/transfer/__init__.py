"""Does a replacement carry over to another model? The same text in two models, and what of one can be read in the other."""

from psr_lens.transfer.activation_map import ActivationMap, LayerMap, fit_activation_map
from psr_lens.transfer.agreement_result import Agreement
from psr_lens.transfer.co_pilot import CoPilot
from psr_lens.transfer.direction_map import DirectionMap, fit_direction_map, whole
from psr_lens.transfer.driven_directions import copilot
from psr_lens.transfer.gate_reading import GateReading
from psr_lens.transfer.layer_matching import best_monotone_matching, matched_by_depth
from psr_lens.transfer.measured_agreement import agreement
from psr_lens.transfer.pairing import PairedText, pair_texts, pair_tokens
from psr_lens.transfer.rungs import gates, gates_through_text, through_text

__all__ = [
    "ActivationMap",
    "Agreement",
    "CoPilot",
    "DirectionMap",
    "GateReading",
    "LayerMap",
    "PairedText",
    "agreement",
    "best_monotone_matching",
    "copilot",
    "fit_activation_map",
    "fit_direction_map",
    "gates",
    "gates_through_text",
    "matched_by_depth",
    "pair_texts",
    "pair_tokens",
    "through_text",
    "whole",
]
