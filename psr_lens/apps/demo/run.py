"""`psr-lens demo` as a function: the model is loaded, every instruction is run, and the folder is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from psr_lens import organism
from psr_lens._utils.safe_files import write_text
from psr_lens.apps.demo.chat_demo import INSTRUCTIONS, ChatDemoConfig, instruction_named, run_instruction, unsteered_answers
from psr_lens.apps.demo.held_out import DemoResult, Say
from psr_lens.apps.demo.organism_demo import DemoConfig, run_trait
from psr_lens.apps.output_folder import check_folder
from psr_lens.apps.results_json import RESULTS_FORMAT, comparison_json
from psr_lens.models import HookedModel, load_model
from psr_lens.plots.images import check_browser
from psr_lens.reporting import report


def run_demo(
    out: str | Path,
    traits: Sequence[str] = (),
    config: DemoConfig | ChatDemoConfig | None = None,
    say: Say = lambda text: None,
    *,
    static: bool = False,
    device: str | None = None,
) -> dict[str, DemoResult]:
    """Run the demo and write `report.html`, `results.json` and `artifacts/` to a folder; with `static` also every figure.

    Args:
        out: The folder.
        traits: Traits of the organism, `pirate` if there are none; for a chat model names of `INSTRUCTIONS`, all if there are none.
        config: Settings, which say which model it is; the organism if left out.
        say: Called with each progress message.
        static: Also save the figures as PNG and SVG in `figures/`.
        device: Device of the model; None takes a GPU if there is one.

    Returns:
        The results by trait.

    Raises:
        InputError: an unknown trait, `out` is a file, torch has no such device, or `static` without a browser.
        MissingPackageError: `static` without kaleido, or a judge without the package that it needs.
        ModelError: the model cannot be loaded, or does not follow an instruction.
    """
    config = config or DemoConfig()
    out = check_folder(out)
    names = _checked(traits, config)
    if static:
        check_browser()
    say(f"loading {config.model}")
    run_one = _runner(load_model(config.model, device=device or "auto", verify=config.verify), config, say)
    results = {}
    for name in names:
        results[name] = run_one(name)
        for method, replacement in results[name].replacements.items():
            replacement.save(out / "artifacts" / name / method.replace(" ", "-"))
    say("writing the report")
    write_results(results, out / "results.json")
    report(
        {name: result.comparison for name, result in results.items()},
        out / "report.html",
        also={name: result.further for name, result in results.items()},
        static=out / "figures" if static else None,
    )
    return results


def write_results(results: Mapping[str, DemoResult], path: Path) -> None:
    """Write the numbers as JSON; the file is replaced as a whole."""
    content = {"format": RESULTS_FORMAT, "traits": {name: comparison_json(result.comparison) for name, result in results.items()}}
    write_text(path, json.dumps(content, indent=2) + "\n")


def _checked(traits: Sequence[str], config: DemoConfig | ChatDemoConfig) -> list[str]:
    """The traits to run, each once.

    Raises:
        InputError: an unknown one.
        MissingPackageError: the judge of one needs a package that is not installed.
    """
    on_chat_model = isinstance(config, ChatDemoConfig)
    names = list(dict.fromkeys(traits or (INSTRUCTIONS if on_chat_model else ("pirate",))))
    for name in names:
        if on_chat_model:
            instruction_named(name).make_judge()
        else:
            organism.instruction(name)
    return names


def _runner(model: HookedModel, config: DemoConfig | ChatDemoConfig, say: Say) -> Callable[[str], DemoResult]:
    """A function that runs one trait."""
    if isinstance(config, DemoConfig):
        organism_config = config
        return lambda trait: run_trait(model, trait, organism_config, _with_prefix(say, trait))
    chat_config, unsteered = config, unsteered_answers(model, config, say)
    return lambda trait: run_instruction(model, trait, chat_config, unsteered, _with_prefix(say, trait))


def _with_prefix(say: Say, prefix: str) -> Say:
    return lambda text: say(f"{prefix}: {text}")
