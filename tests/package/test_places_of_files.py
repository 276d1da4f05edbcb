"""Where results are written: a path that is a folder, or leads through a file, is an error of our own before costly work."""

import re
from types import SimpleNamespace

import pytest
from helpers import random_replacement, random_triplets, replacement_at
from made_up_results import comparison

import psr_lens as psr
from psr_lens._utils.safe_files import write_text
from psr_lens.errors import ArtifactError, InputError
from psr_lens.plots import images

WRITERS = {
    "a report": lambda on, path: psr.report(comparison(), path),
    "a control vector": lambda on, path: on.constant.to_gguf(path),
    "a text": lambda on, path: write_text(path, "x"),
    "a replacement": lambda on, path: on.made.save(path),
    "a plan": lambda on, path: (on.made + on.made).save(path),
    "images": lambda on, path: images.write_images({"a": psr.plots.magnitude_heatmap(comparison())}, path),
    "a store": lambda on, path: psr.capture(on.model, on.triplets, to=psr.OnDisk(path)),
    "a table": lambda on, path: comparison().table().to_json(path),
}
FILES = ("a report", "a control vector", "a text", "a table")


@pytest.fixture
def on(tiny_llama):
    model = tiny_llama.model
    return SimpleNamespace(
        model=model,
        triplets=random_triplets(model, 2),
        made=random_replacement(model),
        constant=replacement_at(model, "hook_resid_post", [1], rule="constant"),
    )


@pytest.mark.parametrize("below", ["x.out", "deep/x.out"])
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_below_a_file(on, tmp_path, name, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((InputError, ArtifactError), match=re.escape(str(tmp_path / "file"))):
        WRITERS[name](on, tmp_path / "file" / below)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_not_written_in_a_folders_place(on, tmp_path, name):
    with pytest.raises(InputError, match=rf"^path: got the folder '{re.escape(str(tmp_path))}', expected a file name"):
        WRITERS[name](on, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES[1:])
def test_folders_are_made_for_a_file(on, tmp_path, name):
    WRITERS[name](on, tmp_path / "new" / "deep" / "x.out")
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["x.out"]
