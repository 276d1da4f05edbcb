"""Captured differences on disk: a folder of safetensors shards with a manifest, written shard by shard and read on demand."""

from psr_lens.activations.store.destination import OnDisk
from psr_lens.activations.store.format import StoreDtype, StoreSpec
from psr_lens.activations.store.reader import Store, StoreDataset, StoreSummary
from psr_lens.activations.store.rows import RowError, StoredRows
from psr_lens.activations.store.shards import SHARD_BYTES, plan_shards
from psr_lens.activations.store.triplets import triplet_id, triplets_digest
from psr_lens.activations.store.writer import StoreWriter
from psr_lens.models.identity_by_content import tokenizer_fingerprint

__all__ = [
    "SHARD_BYTES",
    "OnDisk",
    "RowError",
    "Store",
    "StoreDataset",
    "StoreDtype",
    "StoreSpec",
    "StoreSummary",
    "StoreWriter",
    "StoredRows",
    "plan_shards",
    "tokenizer_fingerprint",
    "triplet_id",
    "triplets_digest",
]
