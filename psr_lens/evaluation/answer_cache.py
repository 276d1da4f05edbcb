"""Answers and their scores, each made only once: kept in memory, and in a folder if there is one, so that an interrupted run continues.

A file holds the answers of one method at one strength to some questions. Its name is a digest of everything that they depend on: the model
(all bytes of its weights, its modules' settings and functions, its config, its tokenizer), what the replacement does, strength, context,
the prompts' tokens, the sampling, the random streams, and the versions of the packages. So any runs may share a folder, and nothing in it
is ever out of date. Files are written completely or not at all. What hooks do is in no digest: while any are on the model, or something in
its modules cannot be told by its content, nothing is read, kept or written.

Strengths that are requested together share batches, since steering takes one strength for each sequence. Methods do not: above about 150
answers, a larger batch is no faster. What else is in a batch changes an answer only where two tokens are equally likely up to rounding.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import versions
from psr_lens.errors import ArtifactError, InputError
from psr_lens.evaluation.methods import Method, parts_of
from psr_lens.generation.engine import Engine
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel, model_content, settings_digest, untold
from psr_lens.prompts import Context, PromptPair
from psr_lens.replacement import InWeights
from psr_lens.replacement.content_digest import content_digest
from psr_lens.results.judgement import Judge, Judgement, identity_of, judged_by_name

FORMAT: Final = 2
"""Format 1 had a sample of the weights in the names of its files, and a judge's `repr`; they are not read."""
CHUNK: Final = 256
"""Most questions in a file and most answers generated at once: the most that an interrupted run loses."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Answers to some questions, and their scores."""

    texts: tuple[str, ...]
    """The answers."""
    judgement: Judgement
    """Their scores."""


@dataclass(frozen=True, eq=False)
class _Requested:
    """One method at one strength."""

    steering: Method | None
    alpha: float
    about: Mapping[str, Any]
    """What its answers depend on besides the questions."""
    key: str
    """A digest of `about` and the context."""


class AnswerCache:
    """Answers of one model to one list of questions, scored by one judge if there is one."""

    def __init__(
        self,
        model: HookedModel,
        pairs: Sequence[PromptPair],
        judge: Judge | None = None,
        config: SamplingConfig | None = None,
        folder: str | Path | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Create the folder, if one is given.

        Raises:
            InputError: no pairs, or the folder cannot be created.
        """
        if not pairs:
            raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
        self.pairs = tuple(pairs)
        self.config = config or SamplingConfig()
        self.generated = 0
        """Number of answers that the model generated; those that were read from the folder do not count."""
        self._model, self._judge = model, judge
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError("cache", f"{folder} ({error.strerror})", "a folder that can be written") from error
        sampling = {name: value for name, value in asdict(self.config).items() if name != "token_budget"}
        self._common: dict[str, Any] = {"format": FORMAT, "versions": dict(versions()), "sampling": sampling}
        self._engine = engine
        if engine is not None:
            self._common["engine"] = engine.identity
        self._judge_name: str | None = None
        self._settings: str | None = None
        if self._folder is not None:
            self._common["model"] = {name: value for name, value in model_content(model).items() if name != "settings"}
        self._warned = False
        self._written: dict[str, tuple[Response, ...]] = {}
        self._known: dict[tuple[str, ...], Judged] = {}

    def of(self, steering: Method | None = None, alpha: float = 1.0, context: Context = "base") -> Judged:
        """The answers of one method at one strength with their scores; generated only if they do not exist yet.

        Raises:
            InputError: no judge was given.
        """
        return self.at(steering, [alpha], context)[0]

    def at(self, steering: Method | None, alphas: Sequence[float], context: Context = "base") -> list[Judged]:
        """The answers of one method at several strengths with their scores; those that do not exist yet are generated together.

        Raises:
            InputError: no judge was given.
        """
        keep = self._may_keep()
        wanted = [tuple(each.text for each in responses) for responses in self._responses(steering, alphas, context, keep)]
        scored = dict(self._known) if keep else {}
        scored |= self._scored([texts for texts in dict.fromkeys(wanted) if texts not in scored], keep)
        if keep:
            self._known = scored
        return [scored[texts] for texts in wanted]

    def responses(self, steering: Method | None = None, alpha: float = 1.0, context: Context = "base") -> tuple[Response, ...]:
        """The answers of one method at one strength; generated only if they do not exist yet."""
        return self._responses(steering, [alpha], context, self._may_keep())[0]

    def _may_keep(self) -> bool:
        """Whether answers and scores may be read from memory and disk and kept there: not while the model cannot be told by content."""
        reason = untold(self._model)
        if reason is None:
            settings = settings_digest(self._model)
            if (
                settings != self._settings
            ):  # somebody may have changed one since the last request, and the judge may read the model too
                self._settings, self._known = settings, {}
                self._judge_name = None if self._folder is None or self._judge is None else identity_of(self._judge)
            return True
        if self._folder is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"cache: there are {reason}, which no cache can tell from others. "
                f"Nothing is read from {self._folder} or kept there; undo that to use it.",
                RuntimeWarning,
                stacklevel=4,
            )
        return False

    def _responses(
        self, steering: Method | None, alphas: Sequence[float], context: Context, keep: bool
    ) -> list[tuple[Response, ...]]:
        requested = self._requested(steering, alphas, context)
        known = self._written if keep else {}
        new = list({each.key: each for each in requested if each.key not in known}.values())
        starts = range(0, len(self.pairs) if new else 0, CHUNK)
        chunks = [self._chunk(range(first, min(first + CHUNK, len(self.pairs))), new, context, keep) for first in starts]
        known |= {each.key: tuple(answer for chunk in chunks for answer in chunk[each.key]) for each in new}
        return [known[each.key] for each in requested]

    def _requested(self, steering: Method | None, alphas: Sequence[float], context: Context) -> list[_Requested]:
        digest = None if steering is None else steering_digest(steering)
        requested = []
        for alpha in map(float, alphas):
            # At strength 0 and without an offset, steering is bit-identical to none.
            acts = steering is not None and (alpha != 0 or not offset_free(steering))
            about = {
                **self._common,
                "settings": self._settings,
                "steering": digest if acts else None,
                "alpha": alpha if acts else None,
            }
            requested.append(_Requested(steering if acts else None, alpha, about, digest_of({**about, "context": context})))
        return requested

    def _chunk(self, indices: range, requested: Sequence[_Requested], context: Context, keep: bool) -> dict[str, list[Response]]:
        """Answers of one method, or of the unsteered model, to some questions at each strength: read, or generated together and written."""
        chosen = [self.pairs[index] for index in indices]
        questions = {
            "prompts": [pair.ids(context) for pair in chosen],
            "spans": [pair.question_length for pair in chosen],
            "streams": list(indices),
        }
        names = {each.key: f"answers-{digest_of({**each.about, **questions})}.jsonl" for each in requested}
        read = {key: self._read(name, len(chosen)) if keep else None for key, name in names.items()}
        found = {
            key: [Response(tuple(line["ids"]), line["text"]) for line in lines] for key, lines in read.items() if lines is not None
        }
        missing = [each for each in requested if each.key not in found]
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
                streams=[*indices] * len(group),
                engine=self._engine,
            )
            self.generated += len(answers)
            for start, each in enumerate(group):
                found[each.key] = answers[start * len(chosen) : (start + 1) * len(chosen)]
                if keep:
                    self._write(names[each.key], [asdict(answer) for answer in found[each.key]])
        return found

    def _scored(self, answers: Sequence[tuple[str, ...]], keep: bool) -> dict[tuple[str, ...], Judged]:
        """Scores of several answers to all questions: read, or judged together and written."""
        if self._judge is None:
            raise InputError("judge", None, "a judge to score the answers")
        questions = [pair.asked for pair in self.pairs]
        names: dict[tuple[str, ...], str] = {}
        if keep and self._judge_name is not None:
            about = {"format": FORMAT, "versions": dict(versions()), "judge": self._judge_name, "questions": questions}
            names = {texts: f"scores-{digest_of({**about, 'texts': texts})}.jsonl" for texts in answers}
        scored = {}
        for texts, name in names.items():
            if (found := self._read(name, len(texts))) is not None:
                reasons = tuple(each["reason"] for each in found)
                scored[texts] = Judged(texts, Judgement(_side(found, "trait"), _side(found, "coherence"), reasons))
        new = {str(number): texts for number, texts in enumerate(answers) if texts not in scored}
        for number, judgement in judged_by_name(self._judge, new, questions).items() if new else ():
            texts = new[number]
            scored[texts] = Judged(texts, judgement)
            if texts in names and judgement.present.all():  # a missing score may be there next time
                rows = zip(judgement.trait.tolist(), judgement.coherence.tolist(), judgement.reasons, strict=True)
                self._write(names[texts], [{"trait": _or_null(a), "coherence": _or_null(b), "reason": why} for a, b, why in rows])
        return scored

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
        raise ArtifactError(f"{path}: is damaged ({problem}). Delete it; its answers will be generated again.")

    def _write(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        if self._folder is None:
            return
        text = "\n".join(json.dumps(line, allow_nan=False) for line in ({"format": FORMAT, "lines": len(lines)}, *lines)) + "\n"
        # Two processes may generate the same answers at once: each writes its own file, and either may finish last.
        temporary = self._folder / f".{name}.{os.getpid()}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._folder / name)


def _side(lines: Sequence[dict[str, Any]], key: str) -> Float[np.ndarray, " text"]:
    return np.array([math.nan if line[key] is None else line[key] for line in lines], dtype=float)


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score


def offset_free(steering: Method) -> bool:
    """Whether strength 0 is the same as no steering."""
    return all(part.replacement.offset == 0 for part in parts_of(steering))


def steering_digest(steering: Method) -> str:
    """Digest of everything that determines what a method does: what its parts do, and their factors; or the numbers in the weights."""
    if isinstance(steering, InWeights):
        return steering.digest
    return digest_of([[float(part.factor), content_digest(part.replacement)] for part in parts_of(steering)])
