"""What the tests of loading share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def fetched(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """`gpt2` lies in the Hub's cache; it is the tiny one of this folder."""
    from huggingface_hub import constants

    commit, cache = "0" * 40, tmp_path / "models--gpt2"
    shutil.copytree(folders["gpt2"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return folders["gpt2"]
