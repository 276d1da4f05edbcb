"""Loading models, and one interface to both TransformerLens classes for the rest of the package.

`HookedTransformer` (TransformerLens up to 3.x) and `TransformerBridge` (3.x and 4.x) share hook names, `hooks()` and `forward`. Their
differences (masks, caches, positions, aliases, placement, processed weights) are handled here and nowhere else.
"""

from psr_lens.models.added_weights import LowRank, linear_weight, plain_with_shared_weights, weights_added
from psr_lens.models.call_positions import Call, Columns
from psr_lens.models.extra_neurons import (
    ExtraNeurons,
    MLPLayout,
    activation_name,
    mlp_layout,
    neurons_added,
    plain_with_mlps,
    widened,
)
from psr_lens.models.fingerprints import fingerprint, model_identity, processing, processing_differs
from psr_lens.models.foreign_hooks import has_hooks
from psr_lens.models.forward_pass import forward, frozen, logits_at
from psr_lens.models.hook_names import distinct_names, edit_fault, is_switched_off
from psr_lens.models.hooked_model import (
    HookedModel,
    WithTokenizer,
    all_modules,
    called_module,
    check_ids,
    check_model,
    context_length,
    device_of,
    dtype_of,
    end_tokens,
    has_hooked_transformer,
    hook_tables,
    is_bridge,
    tokenizer_of,
)
from psr_lens.models.identity_by_content import model_content, untold
from psr_lens.models.kv_cache import Decoder, TransformersDecoder, alike, can_extend_by_several, can_leave_out
from psr_lens.models.loading import DTYPES, Backend, load_model
from psr_lens.models.module_settings import is_altered, settings_digest
from psr_lens.models.observed_calls import ModelCalls, observer_of, spans_known
from psr_lens.models.own_hooks import OwnHook
from psr_lens.models.plain_model import plain_transformers
from psr_lens.models.sources import EMBEDDED
from psr_lens.models.temporary_hooks import TemporaryHooks, hooked

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "Backend",
    "Call",
    "Columns",
    "Decoder",
    "ExtraNeurons",
    "HookedModel",
    "LowRank",
    "MLPLayout",
    "ModelCalls",
    "OwnHook",
    "TemporaryHooks",
    "TransformersDecoder",
    "WithTokenizer",
    "activation_name",
    "alike",
    "all_modules",
    "called_module",
    "can_extend_by_several",
    "can_leave_out",
    "check_ids",
    "check_model",
    "context_length",
    "device_of",
    "distinct_names",
    "dtype_of",
    "edit_fault",
    "end_tokens",
    "fingerprint",
    "forward",
    "frozen",
    "has_hooked_transformer",
    "has_hooks",
    "hook_tables",
    "hooked",
    "is_altered",
    "is_bridge",
    "is_switched_off",
    "linear_weight",
    "load_model",
    "logits_at",
    "mlp_layout",
    "model_content",
    "model_identity",
    "neurons_added",
    "observer_of",
    "plain_transformers",
    "plain_with_mlps",
    "plain_with_shared_weights",
    "processing",
    "processing_differs",
    "settings_digest",
    "spans_known",
    "tokenizer_of",
    "untold",
    "weights_added",
    "widened",
]
