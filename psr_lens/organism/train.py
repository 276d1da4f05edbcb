"""Train the organism: `python -m psr_lens.organism.train --family llama --out FOLDER`.

The model is a plain transformers model, trained from scratch on dialogues drawn from the grammar, with the loss on the answers only.
Held-out questions never occur.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
import typer
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from psr_lens._utils.sequences import padded
from psr_lens.organism.grammar import Question, all_questions, dialogue
from psr_lens.organism.tokenizer import CONTEXT_LENGTH, build_tokenizer

Family = Literal["llama", "gpt2"]
IGNORED: Final = -100
"""The label that cross-entropy ignores."""
POOLED_BATCHES: Final = 16
"""Number of batches drawn together and sorted by length, to keep padding low."""

Batch = tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"]]


def build_model(family: Family, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model of one family: 6 layers, d_model 128, 4 heads, tied embeddings."""
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=128,
                intermediate_size=344,
                num_hidden_layers=6,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
                **common,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=128,
            n_layer=6,
            n_head=4,
            n_positions=CONTEXT_LENGTH,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            n_ctx=CONTEXT_LENGTH,
            **common,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, rng: random.Random, questions: list[Question]) -> tuple[list[int], int]:
    """Token ids of one drawn dialogue, and the position of its answer's first token."""
    drawn = dialogue(rng, questions)
    messages = [{"role": "system", "content": drawn.instruction}] if drawn.instruction else []
    messages.append({"role": "user", "content": drawn.question})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(drawn.answer, add_special_tokens=False)
    return [*prompt_ids, *answer_ids, int(tokenizer.eos_token_id)], len(prompt_ids)


def batches(tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of `(input ids, labels)`, right-padded, labels on the answers only."""
    rng = random.Random(seed)
    questions = all_questions(split="train")
    while True:
        pool = sorted((encode(tokenizer, rng, questions) for _ in range(batch_size * POOLED_BATCHES)), key=lambda e: len(e[0]))
        starts = list(range(0, len(pool), batch_size))
        rng.shuffle(starts)
        for start in starts:
            chosen = pool[start : start + batch_size]
            inputs, _ = padded([ids for ids, _ in chosen], "right", filler=int(tokenizer.pad_token_id))
            answers = [[IGNORED] * answer_at + ids[answer_at:] for ids, answer_at in chosen]
            labels, _ = padded(answers, "right", filler=IGNORED)
            yield inputs, labels


def train(
    family: Family, steps: int, batch_size: int, learning_rate: float, seed: int, *, progress: bool = True
) -> PreTrainedModel:
    """Train a model of `family` from scratch; the same seed gives the same weights on the same machine."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(family, tokenizer).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=steps, pct_start=0.05, final_div_factor=100
    )
    bar = tqdm(batches(tokenizer, batch_size, seed), total=steps, desc=f"train {family}", disable=not progress)
    for step, (inputs, labels) in enumerate(bar, start=1):
        # Right padding needs no mask here: attention is causal and the loss skips the padding.
        logits = model(inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if step == steps:
            break
    bar.close()
    return model.eval()


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the Hugging Face model and tokenizer to.")],
    family: Annotated[Family, typer.Option(help="Architecture.")] = "llama",
    steps: Annotated[int, typer.Option(help="Optimiser steps.", min=1)] = 1600,
    batch_size: Annotated[int, typer.Option(help="Dialogues per step.", min=1)] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.", min=0)] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the dialogues.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for torch's default.", min=0)] = 0,
) -> None:
    """Train one organism from scratch and save it as a Hugging Face folder."""
    if threads:
        torch.set_num_threads(threads)
    model = train(family, steps, batch_size, learning_rate, seed)
    model.save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    typer.echo(f"saved {family} to {out}")


if __name__ == "__main__":
    typer.run(main)
