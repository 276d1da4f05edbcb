"""Answers and their scores, each made once: in memory, and in a folder if there is one, from which a run that was cut off goes on.

A file holds the answers to some questions by one method at one strength. Its name is a digest of all that they depend on: the model and its
weights, the content of what steers, strength, context, the prompts' tokens, the sampling and the random streams. So a folder can be
shared by any runs at all, and nothing in it is ever out of date. Files are put in place when they are whole.

Strengths that are asked for together share batches, since steering takes one strength a sequence. Methods do not: from 150 answers on a
larger batch costs as much an answer. What else is in a batch changes an answer only where two tokens are as likely to within rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from psr_lens._utils.digests import digest_of, raw_bytes
from psr_lens.errors import ArtifactError, InputError
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.fingerprints import weights_digest
from psr_lens.prompts import Context, PromptPair
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.results.intervals import present_in
from psr_lens.results.judgement import Judge, Judgement

FORMAT: Final = 1
CHUNK: Final = 256
"""Most questions a file, and most answers that are made at once: what a run that is cut off loses at most."""

Steering = Replacement | SteeringPlan


@dataclass(frozen=True)
class Judged:
    """Answers to some questions, and their scores."""

    texts: tuple[str, ...]
    """The answers."""
    judgement: Judgement
    """Their scores."""


@dataclass(frozen=True)
class _Asked:
    """One method at one strength."""

    steering: Steering | None
    alpha: float
    about: Mapping[str, Any]
    """What its answers depend on, besides the questions."""
    key: str
    """A digest of that and of the context."""


class Answers:
    """Answers of one model to one list of questions, judged by one judge if there is one."""

    def __init__(
        self,
        model: HookedModel,
        pairs: Sequence[PromptPair],
        judge: Judge | None = None,
        config: SamplingConfig | None = None,
        folder: str | Path | None = None,
    ) -> None:
        """Make the folder, if there is to be one.

        Raises:
            InputError: there are no pairs, or the folder cannot be made.
        """
        if not pairs:
            raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
        self.pairs = tuple(pairs)
        self.config = config or SamplingConfig()
        self.generated = 0
        """Answers that the model gave, those that were there already not counted."""
        self._model, self._judge = model, judge
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError("cache", f"{folder} ({error.strerror})", "a folder that can be written") from error
        sampling = {name: value for name, value in asdict(self.config).items() if name != "token_budget"}
        self._common = {"model": fingerprint(model) | {"weights": weights_digest(model)}, "sampling": sampling}
        self._judge_name = None if judge is None else identity_of(judge)
        self._written: dict[str, tuple[Response, ...]] = {}
        self._known: dict[tuple[str, ...], Judged] = {}

    def of(self, steering: Steering | None = None, alpha: float = 1.0, context: Context = "base") -> Judged:
        """The answers of one method at one strength with their scores; made only if they are not there yet.

        Raises:
            InputError: there is no judge.
        """
        return self.at(steering, [alpha], context)[0]

    def at(self, steering: Steering | None, alphas: Sequence[float], context: Context = "base") -> list[Judged]:
        """The answers of one method at several strengths with their scores; those that are not there yet are made together.

        Raises:
            InputError: there is no judge.
        """
        judged = []
        for responses in self._responses(steering, alphas, context):
            texts = tuple(answer.text for answer in responses)
            if texts not in self._known:
                self._known[texts] = self._scored(texts)
            judged.append(self._known[texts])
        return judged

    def responses(self, steering: Steering | None = None, alpha: float = 1.0, context: Context = "base") -> tuple[Response, ...]:
        """The answers of one method at one strength; made only if they are not there yet."""
        return self._responses(steering, [alpha], context)[0]

    def _responses(self, steering: Steering | None, alphas: Sequence[float], context: Context) -> list[tuple[Response, ...]]:
        asked = self._asked(steering, alphas, context)
        new = list({each.key: each for each in asked if each.key not in self._written}.values())
        starts = range(0, len(self.pairs) if new else 0, CHUNK)
        chunks = [self._chunk(range(first, min(first + CHUNK, len(self.pairs))), new, context) for first in starts]
        self._written |= {each.key: tuple(answer for chunk in chunks for answer in chunk[each.key]) for each in new}
        return [self._written[each.key] for each in asked]

    def _asked(self, steering: Steering | None, alphas: Sequence[float], context: Context) -> list[_Asked]:
        digest = None if steering is None else content_digest(steering)
        asked = []
        for alpha in map(float, alphas):
            # At strength 0 and without an offset, steering is bit-identical to none.
            acts = steering is not None and (alpha != 0 or not offset_free(steering))
            about = {**self._common, "steering": digest if acts else None, "alpha": alpha if acts else None}
            asked.append(_Asked(steering if acts else None, alpha, about, digest_of({**about, "context": context})))
        return asked

    def _chunk(self, places: range, asked: Sequence[_Asked], context: Context) -> dict[str, list[Response]]:
        """Answers to some questions by one method, or by none, at each strength: read, or made together and written."""
        chosen = [self.pairs[place] for place in places]
        questions = {
            "prompts": [pair.ids(context) for pair in chosen],
            "spans": [pair.question_length for pair in chosen],
            "streams": list(places),
        }
        names = {each.key: f"answers-{digest_of({**each.about, **questions})}.jsonl" for each in asked}
        read = {key: self._read(name, len(chosen)) for key, name in names.items()}
        found = {
            key: [Response(tuple(line["ids"]), line["text"]) for line in lines] for key, lines in read.items() if lines is not None
        }
        missing = [each for each in asked if each.key not in found]
        together = max(1, CHUNK // len(chosen))
        alike = [list(group) for _, group in groupby(missing, key=lambda each: each.steering is None)]
        for group in (each[first : first + together] for each in alike for first in range(0, len(each), together)):
            answers = generate(
                self._model,
                chosen * len(group),
                group[0].steering,
                context=context,
                sampling=self.config,
                alpha=group[0].alpha if len(group) == 1 else [each.alpha for each in group for _ in chosen],
                streams=[*places] * len(group),
            )
            self.generated += len(answers)
            for place, each in enumerate(group):
                found[each.key] = answers[place * len(chosen) : (place + 1) * len(chosen)]
                self._write(names[each.key], [asdict(answer) for answer in found[each.key]])
        return found

    def _scored(self, texts: tuple[str, ...]) -> Judged:
        if self._judge is None:
            raise InputError("judge", None, "a judge, which scores need")
        questions = [pair.asked for pair in self.pairs]
        name = self._judge_name and f"scores-{digest_of([self._judge_name, texts, questions])}.jsonl"
        found = self._read(name, len(texts)) if name else None
        if found is not None:
            return Judged(
                texts, Judgement(_side(found, "trait"), _side(found, "coherence"), tuple(each["reason"] for each in found))
            )
        judgement = checked(self._judge(texts, questions), len(texts))
        if name and present_in(judgement.trait, judgement.coherence).all():  # what is missing may be there another time
            rows = zip(judgement.trait.tolist(), judgement.coherence.tolist(), judgement.reasons, strict=True)
            self._write(name, [{"trait": _or_null(a), "coherence": _or_null(b), "reason": why} for a, b, why in rows])
        return Judged(texts, judgement)

    def _read(self, name: str, count: int) -> list[dict[str, Any]] | None:
        if self._folder is None or not (self._folder / name).exists():
            return None
        path = self._folder / name
        try:
            head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            if head == {"format": FORMAT, "lines": count} and len(lines) == count:
                return lines
            problem = f"{len(lines)} lines after {head}"
        except (OSError, ValueError) as error:
            problem = str(error)
        raise ArtifactError(f"{path}: is damaged ({problem}). Delete it, and its answers are made anew.")

    def _write(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        if self._folder is None:
            return
        text = "\n".join(json.dumps(line, allow_nan=False) for line in ({"format": FORMAT, "lines": len(lines)}, *lines)) + "\n"
        # Two processes may make the same answers at once: each writes a file of its own, and either may come last.
        temporary = self._folder / f".{name}.{os.getpid()}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._folder / name)


def _side(lines: Sequence[dict[str, Any]], key: str) -> Float[np.ndarray, " text"]:
    return np.array([math.nan if line[key] is None else line[key] for line in lines], dtype=float)


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score


def offset_free(steering: Steering) -> bool:
    """Whether a strength of 0 is no steering."""
    return all(part.replacement.offset == 0 for part in SteeringPlan.of(steering).parts)


def content_digest(steering: Steering) -> str:
    """Digest of all that decides what a replacement or a plan does: its numbers, rules, hook points, span and factors."""
    content = []
    for part in SteeringPlan.of(steering).parts:
        each = part.replacement
        sites = {}
        for name, site in each.sites.items():
            numbers = hashlib.sha256()
            for tensor in (site.directions, site.weights, site.bias):
                numbers.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                numbers.update(raw_bytes(tensor))
            sites[name] = [site.rule, numbers.hexdigest()]
        content.append([part.factor, each.span, each.tokens, each.offset, each.question_start, sites])
    return digest_of(content)


def identity_of(judge: Judge) -> str | None:
    """What tells a judge from another from one run to the next; None where nothing does, and its scores are not kept on disk.

    A judge may say it by itself in an attribute `identity`; else that of a dataclass is its type and fields.
    """
    own = getattr(judge, "identity", None)
    if isinstance(own, str):
        return own
    described: Any = judge
    text = repr(described)
    return f"{type(judge).__module__}.{text}" if is_dataclass(described) and " at 0x" not in text else None


def checked(judgement: Judgement, count: int) -> Judgement:
    """A judgement with one score a text on each side.

    Raises:
        InputError: it has more scores, or fewer.
    """
    sizes = (len(judgement.trait), len(judgement.coherence), len(judgement.reasons))
    if set(sizes) != {count}:
        raise InputError("judge", f"{sizes} trait scores, coherence scores and reasons for {count} texts", "one of each a text")
    return judgement
