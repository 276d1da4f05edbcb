"""Run the notebooks from a clean kernel, each from its first cell to its last.

python notebooks/execute.py                    # run them and keep the outputs, with a picture beside every figure
python notebooks/execute.py --check            # run them and change no file; what CI does
python notebooks/execute.py --html FOLDER      # the same, and write each as a page that works offline
python notebooks/execute.py 1_quickstart       # only this one

Pictures are for viewers that run no scripts, such as GitHub's; they need kaleido and a Chrome or Chromium.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import nbformat
import plotly.graph_objects as go
import plotly.io
import typer
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

HERE: Final = Path(__file__).parent
LIMIT: Final = 180.0
"""Seconds that a notebook may take; a slower one is said to be."""
FIGURE: Final = "application/vnd.plotly.v1+json"
WIDGET: Final = "application/vnd.jupyter.widget-view+json"
"""The type of an output that only a running kernel can show, such as a progress bar."""
WIDTH: Final = 860
"""Pixels of a picture; it is drawn at twice that resolution."""


_OFFLINE: Final = """{% extends 'index.html.j2' %}
{% block notebook_css %}{{ super() }}<style>
@media (max-width: 600px) {
  body.jp-Notebook { padding: 0; margin: 0; }
  .jp-Cell { padding: 4px; }
  .jp-RenderedHTMLCommon, .jp-OutputArea-output { padding-left: 0 !important; padding-right: 0 !important; }
}
</style>{% endblock %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
"""nbconvert's page without the scripts that it would fetch, none of which the notebooks use, and with narrow margins on a phone, since
figures are laid out for 390 pixels."""


def run(path: Path) -> tuple[Any, float]:
    """The executed notebook, and the seconds that it took.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    began = time.perf_counter()
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook, time.perf_counter() - began


def tidied(notebook: Any) -> Any:
    """Without progress bars, times of execution and other things that differ from run to run."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                out
                for out in cell.outputs
                if not (out.output_type == "stream" and out.name == "stderr") and WIDGET not in out.get("data", {})
            ]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def figures(notebook: Any) -> Iterator[tuple[dict[str, Any], go.Figure]]:
    """The outputs that hold a figure, and the figures."""
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if FIGURE in out.get("data", {}):
                yield out.data, plotly.io.from_json(json.dumps(out.data[FIGURE]), skip_invalid=True)


def with_pictures(notebook: Any) -> Any:
    """A PNG beside every figure."""
    for data, figure in figures(notebook):
        data["image/png"] = base64.b64encode(figure.to_image("png", width=WIDTH, scale=2)).decode()
    return notebook


def as_page(notebook: Any) -> str:
    """An executed notebook as HTML that fetches nothing: Plotly is in it once, before the first figure."""
    notebook = copy.deepcopy(notebook)
    for place, (data, figure) in enumerate(figures(notebook)):
        html = figure.to_html(full_html=False, include_plotlyjs=place == 0, config={"responsive": True, "displaylogo": False})
        data.clear()
        data["text/html"] = html
    exporter = HTMLExporter(template_file="offline.html.j2", extra_loaders=[DictLoader({"offline.html.j2": _OFFLINE})])
    return str(exporter.from_notebook_node(notebook)[0])


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Names of notebooks, without ending; all if left out.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change no file.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write pages into this folder, and change no notebook.")] = None,
) -> None:
    """Run the notebooks."""
    known = {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}
    if unknown := [name for name in names or () if name not in known]:
        sys.exit(f"names: got {', '.join(unknown)}, expected some of {', '.join(known)}.")
    failed = []
    for name in names or known:
        try:
            notebook, seconds = run(known[name])
        except CellExecutionError as error:
            print(f"{name}: failed\n{error}")
            failed.append(name)
            continue
        print(f"{name}: {seconds:.0f} s" + (f", more than {LIMIT:.0f}" if seconds > LIMIT else ""), flush=True)
        if html:
            html.mkdir(parents=True, exist_ok=True)
            (html / f"{name}.html").write_text(as_page(tidied(notebook)))
        elif not check:
            nbformat.write(with_pictures(tidied(notebook)), known[name])
    if failed:
        sys.exit(f"{len(failed)} of {len(names or known)} notebooks failed: {', '.join(failed)}.")


if __name__ == "__main__":
    typer.run(main)
