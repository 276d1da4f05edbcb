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
from playground_runs import EVIL, SAMPLED, generated

import psr_lens as psr

pytestmark = pytest.mark.slow

KEY = "a-key"
MARKUP_SEED = 99
CELL = """\
from collections import defaultdict
import psr_lens as psr
from psr_lens.apps.playground import session
from psr_lens.generation.streaming import StreamedToken
stream, zeros = session.stream, defaultdict(float)
def stream_or_markup(*given, columns, sampling, **named):
    if sampling.seed != {markup_seed}:
        yield from stream(*given, columns=columns, sampling=sampling, **named)
        return
    for name in columns:
        yield StreamedToken(name, 0, 10, {evil!r}, {evil!r}, zeros, zeros, True)
session.stream = stream_or_markup
model = psr.load_model("organism")
pairs = psr.prompt_pairs(model, ["what is a bear ?"], instruction="talk like a pirate")
sampling = psr.SamplingConfig(seed={seed}, temperature={temperature}, max_new_tokens={tokens})
psr.play(model, pairs, {{"A": psr.Replacement.load("A")}}, sampling=sampling)
"""
"""What a model writes at one seed is markup, with which a test can see that it stays text."""
TEXTS = """
Object.fromEntries([...document.querySelectorAll('.psr-column')].map((each) => [each.dataset.column,
  each.querySelector('.psr-answer').textContent]))
"""
STATUS = "document.querySelector('.psr-status').textContent"
RUN = "document.querySelector('.psr-run').click()"
TOKENS = "document.querySelector('[name=max_new_tokens]').value"
SLIDER = "document.querySelector('[data-column=A] input[type=range]')"


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
    given = {"seed": SAMPLED.seed, "temperature": SAMPLED.temperature, "tokens": SAMPLED.max_new_tokens}
    cell = CELL.format(markup_seed=MARKUP_SEED, evil=EVIL, **given)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # without which JupyterLab asks for one
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel), tmp_path / "play.ipynb")
    with jupyterlab(tmp_path) as address, browser() as page:
        page.show(f"{address}/tree/play.ipynb?token={KEY}", 1440)
        page.wait_for("window.jupyterapp?.shell.currentWidget?.context && document.querySelector('.jp-Cell')")
        page.js("jupyterapp.shell.currentWidget.context.sessionContext.ready.then(() => true)")
        page.js("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
        page.wait_for("document.querySelector('.psr-run')")
        page.js(RUN)
        page.wait_for(f"{STATUS} === 'Done.'")
        shown = page.js(TEXTS)
        drawn = page.js("document.querySelector('.psr-column').getBoundingClientRect().height")
        page.picture(tmp_path / "jupyterlab.png")
        page.js(f"{SLIDER}.value = 0; for (const kind of ['input', 'change']) {SLIDER}.dispatchEvent(new Event(kind))")
        page.wait_for(f"{STATUS} === 'Done.' && !document.querySelector('.psr-going')")
        unsteered = page.js(TEXTS)
        page.js(f"{TOKENS} = 2000; document.querySelector('[name=temperature]').value = 5; {RUN}")
        page.wait_for("document.querySelectorAll('.psr-token').length > 3")
        page.js(f"{TOKENS} = 3; {RUN}")
        page.wait_for(f"{STATUS} === 'Done.'")
        second = page.js("[...document.querySelectorAll('.psr-answer')].map((each) => each.children.length)")
        page.js(f"{TOKENS} = 2000; {RUN}")
        page.wait_for("document.querySelectorAll('.psr-token').length > 3")
        page.js("document.querySelectorAll('.psr-buttons button')[1].click()")
        page.wait_for(f"{STATUS} === 'Stopped.'")
        title = page.js("document.title")
        page.js(f"document.querySelector('[name=seed]').value = {MARKUP_SEED}; {RUN}")
        page.wait_for(f"{STATUS} === 'Done.'")
        markup = page.js(TEXTS)
        made = page.js("document.querySelectorAll('.psr-play img, .psr-play script').length"), page.js("document.title") == title
        hosts = page.js("performance.getEntriesByType('resource').map((each) => new URL(each.name)).map((each) => each.hostname)")
    (pair,) = psr.prompt_pairs(organism.model, ["what is a bear ?"], instruction="talk like a pirate")
    assert shown == generated(organism.model, pair, {"A": methods["A"]}, {"A": 1.0})
    assert drawn > 100
    assert unsteered == {**shown, "A": shown["none"]}
    assert max(second) <= 3  # the second run has ended the first
    assert markup == dict.fromkeys(["none", "prompt", "A"], EVIL)
    assert made == (0, True)
    assert set(hosts) <= {"127.0.0.1", ""}  # "": what is in the page itself, such as `data:`
