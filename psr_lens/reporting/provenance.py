"""What a reader needs to make a report again and to cite it: lines of Python, and the paper."""

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


def lines_of_python(comparison: Comparison) -> str:
    """Lines of Python that compare the saved replacements on the same responses again and write the page."""
    name = comparison.model.get("model_name")
    saved = [f"    {method!r}: psr.Replacement.load({'artifacts/' + method.replace(' ', '-')!r})," for method in comparison.methods]
    return "\n".join(
        [
            "import psr_lens as psr",
            "",
            f"model = psr.load_model({name!r})" if name else "model = psr.load_model(…)",
            f"instruction = {comparison.instruction!r}",
            "pairs = psr.prompt_pairs(model, questions, instruction)  # the held-out questions",
            "triplets = psr.sample_responses(model, pairs, judge, sampling=sampling)",
            "methods = {",
            *saved,
            "}",
            f"comparison = psr.compare(model, triplets, methods, span={comparison.span!r}, alpha={dict(comparison.alphas)!r})",
            'psr.report(comparison, "report.html")',
        ]
    )
