"""`psr.play` in JupyterLab itself: the widget is drawn there, and answers."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import browser, missing
from playground_runs import SAMPLED, generated

import psr_lens as psr

pytestmark = pytest.mark.slow

KEY = "a-key"
CELL = """\
import psr_lens as psr
model = psr.load_model("organism")
pairs = psr.prompt_pairs(model, ["what is a bear ?"], instruction="talk like a pirate")
sampling = psr.SamplingConfig(seed={seed}, temperature={temperature}, max_new_tokens={tokens})
psr.play(model, pairs, {{"A": psr.Replacement.load("A")}}, sampling=sampling)
"""
TEXTS = """
Object.fromEntries([...document.querySelectorAll('.psr-column')].map((each) => [each.dataset.column,
  each.querySelector('.psr-answer').textContent]))
"""


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder."""
    heard = folder / "heard.txt"
    options = ["--no-browser", "--allow-root", "--port=0", "--expose-app-in-browser", f"--IdentityProvider.token={KEY}"]
    with heard.open("w") as file:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"], stderr=file)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/lab", heard.read_text())):
            assert server.poll() is None, heard.read_text()
            assert time.monotonic() < end, heard.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)


def test_the_widget_is_drawn_and_answers_in_jupyterlab(organism, methods, tmp_path):
    pytest.importorskip("jupyterlab", reason="needs the extra `notebooks`")
    pytest.importorskip("anywidget", reason="needs the extra `play`")
    if why := missing():
        pytest.skip(why)
    methods["A"].save(tmp_path / "A")
    cell = CELL.format(seed=SAMPLED.seed, temperature=SAMPLED.temperature, tokens=SAMPLED.max_new_tokens)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # without which JupyterLab asks for one
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel), tmp_path / "play.ipynb")
    with jupyterlab(tmp_path) as address, browser() as page:
        page.show(f"{address}/tree/play.ipynb?token={KEY}", 1440)
        page.wait_for("window.jupyterapp?.shell.currentWidget?.context && document.querySelector('.jp-Cell')")
        page.js("jupyterapp.shell.currentWidget.context.sessionContext.ready.then(() => true)")
        page.js("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
        page.wait_for("document.querySelector('.psr-run')")
        page.js("document.querySelector('.psr-run').click()")
        page.wait_for("document.querySelector('.psr-status').textContent === 'Done.'")
        shown = page.js(TEXTS)
        drawn = page.js("document.querySelector('.psr-column').getBoundingClientRect().height")
        page.picture(tmp_path / "jupyterlab.png")
    (pair,) = psr.prompt_pairs(organism.model, ["what is a bear ?"], instruction="talk like a pirate")
    assert shown == generated(organism.model, pair, {"A": methods["A"]}, {"A": 1.0})
    assert drawn > 100
