"""A quick run: its questions, its settings, and a report that takes no time. Imports are within, as `typecheck.install` says."""

import pytest


@pytest.fixture
def questions(tmp_path):
    import psr_lens as psr

    (tmp_path / "questions.txt").write_text("\n\n".join(psr.organism.questions(12)) + "\n")
    return tmp_path / "questions.txt"


@pytest.fixture
def settings(folders, tmp_path, questions):
    """A quick run of a tiny random model, without a judge."""
    from run_command import QUICK

    return {
        "model": str(folders["llama"]),
        "instruction": "talk like a pirate .",
        "questions": str(questions),
        "out": str(tmp_path / "out"),
        "methods": QUICK,
        "sampling": {"max_new_tokens": 6},
        "paraphrase": "speak as a pirate would .",
        "seed": 3,
    }


@pytest.fixture
def no_report(monkeypatch):
    """The report takes longer than all the rest of a tiny run; one test has it. The others get the answers that it would show."""
    shown = []
    monkeypatch.setattr("psr_lens.apps.pipeline.steps.report", lambda *_, also: shown.extend(also))
    return shown
