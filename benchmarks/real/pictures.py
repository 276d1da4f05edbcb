"""The pictures of docs/real-models.md, and how much of ‖Δ‖ depth alone explains.

python benchmarks/real/pictures.py MODEL docs    # SmolLM2-135M-Instruct, as a folder, a `.gguf` file or a name on the Hub

36 questions are asked with "Answer in French." after them. A-PSR of rank 4 and the difference in means at the middle layer are fitted on 24
of the answers; everything that is shown or measured is on the other 12. Five minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from torch import Tensor

import psr_lens as psr

QUESTIONS = """
What is the capital of Italy?
How do birds find their way?
What should I cook tonight?
Why is the sky blue?
How can I sleep better?
What is a good name for a cat?
How does a bicycle stay upright?
What do bees do in winter?
How do I write a thank-you note?
What is the difference between tea and coffee?
Why do leaves change colour in autumn?
How can I learn to swim?
What makes bread rise?
Who invented the telephone?
How do I clean a wooden table?
What is a volcano?
How do plants drink water?
What is a good gift for a child?
Why do we dream?
How do I plan a trip to the mountains?
What is the largest ocean?
How does a candle burn?
What can I do on a rainy day?
Why do cats purr?
How do I grow tomatoes?
What is the purpose of a bridge?
How does a camera work?
What is a healthy breakfast?
Why is the sea salty?
How can I save money?
What is a library for?
How do I tie a scarf?
What do whales eat?
Why do people laugh?
How does rain form?
What is a good book for a beginner?
""".strip().splitlines()
FITTED = 24
"""Questions that replacements are fitted on."""
SHOWN = 1
"""The response in the pictures of single responses."""
WIDTH = {"heatmap": 780, "strips": 420, "rmse": 780}
"""Width of each picture in pixels."""


def explained_by_layer(sizes: Float[Tensor, "token layer"]) -> float:
    """Share of the variance of log sizes that is between layers."""
    logs = sizes.double().log()
    between = (logs.mean(dim=0) - logs.mean()).square().mean()
    return float(between / (logs - logs.mean()).square().mean())


def main(
    model: Annotated[str, typer.Argument(help="SmolLM2-135M-Instruct, or another chat model.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the pictures.")],
    instruction: Annotated[str, typer.Option(help="Instruction, placed after the question.")] = "Answer in French.",
    paraphrase: Annotated[str, typer.Option(help="The instruction in other words.")] = "Reply in the French language.",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Draw the pictures and print the shares."""
    loaded = psr.load_model(model, device=device)
    pairs = psr.prompt_pairs(loaded, QUESTIONS, instruction, place="after")
    sampling = psr.SamplingConfig(temperature=0.7, max_new_tokens=32)
    triplets = psr.sample_responses(loaded, pairs, sampling=sampling)
    fitted, held_out = triplets[:FITTED], triplets[FITTED:]
    middle = int(loaded.cfg.n_layers) // 2
    methods = {
        "A-PSR": psr.fit(loaded, fitted, psr.Sequential(rank=4)),
        "S-Const DiM": psr.fit(loaded, fitted, psr.DiM(layers=middle)),
    }
    result = psr.compare(loaded, held_out, methods, paraphrase=paraphrase)
    tokens, layers = result.magnitude.shape
    print(f"{len(held_out)} responses, {tokens} tokens × {layers} layers: share of the variance of the logarithm between layers")
    units = {"‖Δ‖": 1.0, "‖Δ‖ / ‖A‖": result.base_norm, "‖Δ‖ / median of the layer": result.quantile(0.5)}
    for name, unit in units.items():
        sizes = result.magnitude / unit
        print(f"{name:>26}  {explained_by_layer(sizes):.1%}")
    figures = {
        "heatmap": psr.plots.magnitude_heatmap(result, SHOWN),
        "strips": psr.plots.magnitude_strips(result, SHOWN, layer=middle),
        "rmse": psr.plots.relative_rmse(result),
    }
    for name, figure in figures.items():
        psr.plots.write_images({f"real-{name}": figure}, folder, ["png"], width=WIDTH[name], scale=1.5)


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
