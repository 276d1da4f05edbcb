"""What a reader needs to make such a report and to cite it: the calls, and the paper."""

from __future__ import annotations

from typing import Final

from psr_lens.evaluation.comparison import Comparison

BIBTEX: Final = """@inproceedings{heyman2026steer,
  title = {Steer Like the {LLM}: Activation Steering that Mimics Prompting},
  author = {Heyman, Geert and Vandeputte, Frederik},
  booktitle = {Proceedings of the 43rd International Conference on Machine Learning},
  series = {PMLR 306},
  year = {2026},
  url = {https://arxiv.org/abs/2605.03907}
}"""
"""The paper of the method, as `CITATION.cff` has it."""


def outline_in_python(comparison: Comparison) -> str:
    """The calls that make such a comparison, with what a comparison holds of their arguments.

    It does not know the questions, the judge and where the instruction was put (`place`, `system` and so on), nor where its methods were
    saved; these are names or comments.
    """
    name = comparison.model.get("model_name")
    loaded = [f"    {method!r}: psr.Replacement.load(…),  # the folder it was saved in" for method in comparison.methods]
    paraphrase = "" if comparison.paraphrase_rmse is None else ", paraphrase=paraphrase"
    given = f"span={comparison.span!r}, layers={list(comparison.layers)!r}, alpha={dict(comparison.alphas)!r}{paraphrase}"
    return "\n".join(
        [
            "import psr_lens as psr",
            "",
            f"model = psr.load_model({name!r})" if name else "model = psr.load_model(…)",
            f"instruction = {comparison.instruction!r}",
            "pairs = psr.prompt_pairs(model, questions, instruction)  # and place=, system=, … as they were given",
            "triplets = psr.sample_responses(model, pairs, judge, sampling=sampling)",
            "methods = {",
            *loaded,
            "}",
            f"comparison = psr.compare(model, triplets, methods, {given})",
            'psr.report(comparison, "report.html")',
        ]
    ).replace("…)", "...)")
