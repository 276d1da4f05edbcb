"""The questions of `psr-lens run`: read from a file, and split into those to fit on and those held out."""

import pytest

from psr_lens.apps.pipeline import config as configs
from psr_lens.apps.pipeline.questions import read_split
from psr_lens.errors import InputError


def test_questions_come_as_text_lines_or_pairs_and_repeated_ones_once(tmp_path):
    def config(name, text, **changes):
        (tmp_path / name).write_text(text)
        return configs.RunConfig(**{"model": "m", "questions": str(tmp_path / name), "out": "o", "instruction": "i", **changes})

    split = read_split(config("a.txt", "one\ntwo \n\none\nthree\nfour\nfive\n", held_out=2, seed=1))
    assert split.repeated == 1
    asked = [line.question for line in (*split.fit, *split.held_out)]
    assert sorted(asked) == ["five", "four", "one", "three", "two"]
    assert len(split.held_out) == 2
    assert not split.given
    again = read_split(config("a.txt", "one\ntwo \n\none\nthree\nfour\nfive\n", held_out=2, seed=2))
    assert again.digest() != split.digest()
    own = read_split(config("a.jsonl", '{"question": "one", "instruction": "x"}\n{"question": "two"}\n'))
    assert {line.question: line.instruction for line in (*own.fit, *own.held_out)} == {"one": "x", "two": "i"}
    csv = read_split(config("a.csv", "question\none\ntwo\n"))
    assert {line.instruction for line in (*csv.fit, *csv.held_out)} == {"i"}
    assert len(read_split(config("a.txt", "1\n2\n3\n4\n5\n", limit=3)).fit) == 2
    with pytest.raises(
        InputError, match=r"held_out: got 0\.25 of 1 questions, expected fewer than all, so that some are left to fit on"
    ):
        read_split(config("b.txt", "one\n"))
