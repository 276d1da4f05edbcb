"""A model that is steered by another one which runs beside it: the source's coefficients, the target's own directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens._utils.progress import progress_bar
from psr_lens.errors import ModelError
from psr_lens.generation.decoding import Decoding, NotFiniteError
from psr_lens.generation.sampling import (
    Response,
    checked_sampling,
    checked_streams,
    checked_strengths,
    prompt_batch,
    prompt_batches,
    stop_ids,
)
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.generation.token_choice import Ending
from psr_lens.models import Decoder, HookedModel, check_ids, context_length, frozen, hooked, tokenizer_of
from psr_lens.prompts import PromptPair, check_pairs
from psr_lens.prompts.token_text import decoded
from psr_lens.replacement import Replacement
from psr_lens.transfer.driving_coefficients import Coefficients, reader, sites_between, written
from psr_lens.transfer.layer_matching import LayerPairs
from psr_lens.transfer.pairing import counterparts


@dataclass(frozen=True, eq=False, repr=False)
class CoPilot:
    """A source that runs beside a target and drives the target's directions, token by token; `copilot` makes it.

    Example:
        >>> other = psr.load_model("organism-gpt2")
        >>> driven = psr.transfer.copilot(model, other, psr.transfer.pair_texts(model, other, triplets), pirate)
        >>> driven
        CoPilot(organism drives 6 layers of organism-gpt2)
    """

    source: HookedModel
    """The model whose coefficients are used."""
    target: HookedModel
    """The model that is steered."""
    replacement: Replacement
    """The source's replacement, which steers the source while it reads, and gives the coefficients."""
    directions: Mapping[int, Float[Tensor, "rank width"]]
    """By target layer, what is added to the residual stream after it for a coefficient of 1, in rows."""
    layers: LayerPairs
    """The source layer whose coefficients drive each target layer."""

    def __repr__(self) -> str:
        """Both models and the number of layers."""
        names = (str(each.cfg.model_name) for each in (self.source, self.target))
        return "CoPilot({} drives {} of {})".format(next(names), counted(len(self.directions), "layer"), next(names))

    @checks_arguments
    def generate(
        self,
        pairs: Sequence[PromptPair],
        *,
        alpha: float | Sequence[float] | Float[Tensor, " pair"] | Float[np.ndarray, " pair"] = 1.0,
        sampling: SamplingConfig | None = None,
        streams: Sequence[int] | None = None,
    ) -> list[Response]:
        """Sample one response of the target to each pair's prompt without the instruction, as `psr.generate` does.

        Before each of the target's tokens the source reads on in the text so far, behind the same question in a prompt of its own.

        Args:
            pairs: The target's prompts.
            alpha: Strength, one number or one per pair: a factor of the coefficients. The source itself is always steered at 1.
            sampling: How responses are sampled; None for the defaults.
            streams: Number of each pair's random stream; by default its index in `pairs`.

        Returns:
            The responses, in the order of `pairs`.

        Raises:
            InputError: as for `psr.generate`; prompts that the target's template does not make of their texts, so that the source cannot
                have its own; or a text that is too long for the source.
            ModelError: the target's logits are NaN or infinite.

        Example:
            >>> driven = psr.transfer.copilot(model, model, psr.transfer.pair_texts(model, model, triplets), pirate)
            >>> driven.generate(pairs[:1], sampling=psr.SamplingConfig(temperature=0))[0].text.startswith("arr")
            True
        """
        check_pairs(pairs, may_be_empty=True)
        for index, pair in enumerate(pairs):
            check_ids(self.target, pair.base_ids, f"pairs[{index}]")
        config = checked_sampling(sampling)
        strengths = torch.as_tensor(checked_strengths(alpha, len(pairs))).expand(len(pairs))
        streams = checked_streams(streams, len(pairs))
        beside = counterparts(self.target, self.source, pairs, "pairs[{}]")
        tokenizer, limit = tokenizer_of(self.target), context_length(self.target)
        responses: dict[int, Response] = {}
        with (
            torch.inference_mode(mode=False),
            torch.no_grad(),
            frozen(self.source),
            frozen(self.target),
            progress_bar(total=len(pairs), desc="sample", unit="response") as bar,
        ):
            stops = stop_ids(self.target, tokenizer)
            decode = Decoding(self.target, config, tokenizer, stops)
            ended = Ending(tokenizer, sorted(stops), config.stop, torch.device("cpu"))
            for rows in prompt_batches(pairs, range(len(pairs)), "base", config, limit):
                batch = prompt_batch(pairs, rows, "base", config, streams)
                with self._steps([beside[row] for row in rows], strengths[rows], ended) as (step, select):
                    try:
                        found = decode.with_steps(*batch, step, select)
                    except NotFiniteError as error:
                        raise ModelError(
                            f"model: the logits for token {len(error.ids)} of the response to pairs[{rows[error.row]}] are NaN or "
                            "infinite. Check the weights of both models, or steer at a smaller alpha."
                        ) from None
                for row, ids in zip(rows, found, strict=True):
                    responses[row] = Response(ids, decoded(tokenizer, ids))
                bar.update(len(rows))
        return [responses[row] for row in range(len(pairs))]

    @contextmanager
    def _steps(
        self, beside: Sequence[PromptPair], strengths: Float[Tensor, " row"], ended: Ending
    ) -> Iterator[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], None]]]:
        """What makes a step of the target, the source having read before it, and what continues with some of the sequences."""
        driving = sites_between(self.replacement, self.layers)
        source = reader(self.source, self.replacement, beside, list(dict.fromkeys(driving.values())))
        target, tokenizer = Decoder(self.target, len(beside)), tokenizer_of(self.target)
        ids: list[list[int]] = [[] for _ in beside]
        going = list(range(len(beside)))  # a response that has ended grows no further, while its row is still computed
        prompted = False

        def step(new: Tensor, mask: Tensor) -> Tensor:
            nonlocal prompted, going
            if prompted:
                tokens = new[:, 0].tolist()
                longer = {row: [*ids[row], tokens[row]] for row in going}
                over = ended(torch.tensor(list(longer.values())), torch.ones(len(going), dtype=torch.bool)).tolist()
                going = [row for row, is_over in zip(going, over, strict=True) if not is_over]
                for row in going:
                    ids[row] = longer[row]
            prompted = True
            found = source.read([written(tokenizer, row) for row in ids])
            hooks = [
                (f"blocks.{layer}.hook_resid_post", _adding(found, driving[layer], each, strengths))
                for layer, each in self.directions.items()
            ]
            with hooked(self.target, hooks):
                return target.step(new, mask)

        def select(rows: Tensor) -> None:
            nonlocal ids, going, strengths
            source.select(rows)
            target.select(rows)
            chosen = rows.tolist()
            ids, strengths = [ids[row] for row in chosen], strengths[rows.cpu()]
            going = list(range(len(chosen)))  # only responses that go on stay in a batch

        try:
            yield step, select
        finally:
            source.close()


def _adding(found: Coefficients, name: str, directions: Tensor, strengths: Tensor) -> Any:
    """A hook that adds directions times coefficients at the last token of each sequence."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        coefficients = strengths.to(activation.device, torch.float32)[:, None] * found[name].to(activation.device)
        added = coefficients @ directions.to(activation.device, torch.float32)
        moved = (activation[:, -1].float() + added).to(activation.dtype)
        return torch.cat([activation[:, :-1], moved[:, None]], dim=1)

    return hook
