"""What a playground does, whatever shows it: one run of answers at a time in a thread of its own, and a closer look at a token."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Final, cast

import torch
from torch import Tensor

from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.apps.playground.request import STRONGEST, WEAKEST, Request
from psr_lens.errors import InputError, PsrLensError
from psr_lens.evaluation.methods import NONE, PROMPT, Method, parts_of
from psr_lens.evaluation.stream import stream
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel, tokenizer_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.prompts.chat_templates import ChatSettings
from psr_lens.prompts.pair_builder import remade
from psr_lens.prompts.token_text import is_byte_level, token_strings, token_text, visible

Emit = Callable[[dict[str, Any]], None]
"""Gets a run's messages, from the run's thread."""

TOP: Final = 8
"""Next tokens that are listed at a token."""

UNKNOWN: Final = "..."
"""Where Python would load something, and it is not known from where."""


class Session:
    """A model, its methods and the run that is going on."""

    def __init__(
        self,
        model: HookedModel,
        pairs: Sequence[PromptPair],
        methods: Mapping[str, Method],
        alphas: Mapping[str, float],
        sampling: SamplingConfig,
        load_model: str,
        loads: Mapping[str, str],
    ) -> None:
        """Begin without a run.

        Args:
            model: The model.
            pairs: Questions with their instructions; the first is shown first.
            methods: The methods by name.
            alphas: Strength of each to begin with.
            sampling: How answers are sampled to begin with.
            load_model: Python that loads the model, or `UNKNOWN`.
            loads: Python that loads each method, by name, as far as it is known.
        """
        self._model, self._pairs, self._methods = model, list(pairs), dict(methods)
        self._load_model, self._loads = load_model, loads
        self._alphas, self._sampling = alphas, sampling
        self._columns = [NONE, PROMPT, *methods]
        self._computing = threading.Lock()
        self._starting = threading.Lock()
        self._run: _Run | None = None
        self._answers: dict[str, _Answer] = {}
        self._number = 0

    @property
    def hello(self) -> dict[str, Any]:
        """What a browser has to know before the first run."""
        pair = self._pairs[0]
        return {
            "type": "hello",
            "model": str(self._model.cfg.model_name),
            "columns": [
                {
                    "name": name,
                    "method": self._methods[name].method if name in self._methods else None,
                    "points": self._points[name],
                }
                for name in self._columns
            ],
            "alphas": dict(self._alphas),
            "question": pair.question,
            "instruction": pair.instruction,
            "questions": list(dict.fromkeys(each.question for each in self._pairs)),
            "alpha_range": [WEAKEST, STRONGEST],
            "seed": str(self._sampling.seed),  # exact in a browser too
            "temperature": self._sampling.temperature,
            "max_new_tokens": self._sampling.max_new_tokens,
        }

    @cached_property
    def _points(self) -> dict[str, list[str]]:
        """The hook points at which each column has magnitudes, from the lowest layer up."""
        found = {
            name: sorted({point: None for part in parts_of(method) for point in part.replacement.sites}, key=_layer)
            for name, method in self._methods.items()
        }
        layers = range(int(self._model.cfg.n_layers))
        return {NONE: [], PROMPT: [f"blocks.{layer}.hook_resid_post" for layer in layers], **found}

    # --- runs ---------------------------------------------------------------------------------------------------------------

    def start(self, asked: Mapping[str, Any], emit: Emit) -> int:
        """Cancel the run that is going on, if any, and begin another.

        Args:
            asked: What the browser sent.
            emit: Gets the messages: `start`, a `token` for each token, then `end` or `error`.

        Returns:
            The number of the run, for `cancel`.
        """
        with self._starting:
            self.stop()
            self._number += 1
            label = asked.get("run")
            run = self._run = _Run(self._number, label if isinstance(label, int | str) else self._number)
            run.thread = threading.Thread(target=self._answer, args=(run, dict(asked), emit), name="psr-lens play", daemon=True)
            run.thread.start()
            return run.number

    def cancel(self, number: int) -> None:
        """Cancel a run if it is the one that is going on; does not wait."""
        run = self._run
        if run is not None and run.number == number:
            run.cancelled.set()

    @property
    def shown(self) -> dict[str, Any]:
        """What was shown last in each column, for a frozen page.

        Raises:
            InputError: there was no run.
        """
        if not self._answers:
            raise InputError("run", "none", "a run with answers", "Run it first.")
        answers = [self._answers[name] for name in self._columns if name in self._answers]
        messages = [message for answer in answers for message in answer.messages]
        settings = {**answers[0].asked, "alphas": self._alphas_shown}
        del settings["alpha"]
        return {"hello": {**self.hello, **settings}, "messages": [self._start, *messages, {"type": "end", "stopped": False}]}

    @property
    def _alphas_shown(self) -> dict[str, float]:
        """The strength of each method's answer; where there is none, the one to begin with."""
        asked = {name: answer.request.alphas[name] for name, answer in self._answers.items() if name in self._methods}
        return {**self._alphas, **asked}

    @property
    def _start(self) -> dict[str, Any]:
        """The message before the tokens: what each answer was asked with, and the Python for all of them."""
        asked = {name: answer.asked for name, answer in self._answers.items()}
        return {"type": "start", "asked": asked, "python": self._python(next(iter(self._answers.values())))}

    def stop(self) -> None:
        """Cancel the run that is going on, and wait until its hooks and caches are gone."""
        run = self._run
        if run is not None and run.thread is not None:
            run.cancelled.set()
            if run.thread is not threading.current_thread():
                run.thread.join()

    def _answer(self, run: _Run, asked: Mapping[str, Any], emit: Emit) -> None:
        def say(kind: str, **content: Any) -> None:
            emit({"type": kind, "run": run.label, **content})

        try:
            request = Request.of(asked, list(self._methods), self._columns, self._sampling)
            pair = self._pair(request)
            if any((each.pair, each.request.sampling) != (pair, request.sampling) for each in self._answers.values()):
                self._answers.clear()  # answers that are shown together differ in their strengths alone
            self._answers |= {name: _Answer(name, run.label, request, pair) for name in request.columns}
            emit({**self._start, "run": run.label})
            self._stream(run, pair, request, say)
        except Exception as error:
            say("error", message=explained(error))
            if not isinstance(error, PsrLensError):
                raise
        else:
            say("end", stopped=run.cancelled.is_set())

    def _stream(self, run: _Run, pair: PromptPair, request: Request, say: Callable[..., None]) -> None:
        found = stream(
            self._model,
            pair,
            self._methods,
            alpha=request.alphas,
            columns=request.columns,
            sampling=request.sampling,
        )
        with closing(found) as tokens:
            while not run.cancelled.is_set():
                with self._computing:
                    token = next(tokens, None)
                if token is None or run.cancelled.is_set():
                    return
                answer = self._answers[token.column]
                answer.ids.append(token.id)
                content = {
                    "column": token.column,
                    "index": token.index,
                    "text": token.text,
                    "answer": token.answer,
                    "token": self._spelled([token.id])[0],
                    "magnitudes": [token.magnitudes[name] for name in self._points[token.column]],
                    "cosines": [token.cosines[name] for name in self._points[token.column]],
                    "last": token.is_last,
                }
                answer.messages.append({"type": "token", **content})
                say("token", **content)

    def _pair(self, request: Request) -> PromptPair:
        wanted = request.question, request.instruction
        same = [pair for pair in self._pairs if pair.question == request.question]
        first = next((pair for pair in same if pair.instruction == request.instruction), (same or self._pairs)[0])
        if (first.question, first.instruction) == wanted:
            return first
        if first.thought_ids and not same:
            raise InputError(
                "question",
                repr(request.question),
                "one of the pairs' questions, since the model thought about those before it answers",
                "Let it think about this one too: `psr.think`.",
            )
        return remade(self._model, [first], questions=[request.question], instructions=[request.instruction])[0]

    def _spelled(self, ids: Sequence[int]) -> list[str]:
        """Tokens as they are shown in lists, with visible spaces."""
        spelled = token_strings(tokenizer_of(self._model), ids)
        return [visible(token_text(token, self._byte_level)).replace(" ", "␣") for token in spelled]

    @cached_property
    def _byte_level(self) -> bool:
        return is_byte_level(tokenizer_of(self._model).get_vocab())

    def _python(self, answer: _Answer) -> str:
        """Lines of Python that give the answers that are shown."""
        pair, sampling = answer.pair, answer.request.sampling
        question: Any = pair.question
        if pair.earlier:
            question = [{"role": role, "content": text} for role, text in (*pair.earlier, ("user", pair.question))]
        usual = vars(ChatSettings())
        chat = {name: value for name, value in vars(pair.chat).items() if value != usual[name]}
        if "template_kwargs" in chat:
            chat["template_kwargs"] = json.loads(chat["template_kwargs"])
        more = "".join(f", {name}={value!r}" for name, value in chat.items())
        standard = vars(SamplingConfig())
        settings = {name: value for name, value in vars(sampling).items() if value != standard[name]}
        lines = [
            "import psr_lens as psr",
            "",
            f"model = {self._load_model}" + ("  # the model" if self._load_model == UNKNOWN else ""),
            f"pairs = psr.prompt_pairs(model, [{question!r}], {pair.instruction!r}{more})",
            *(
                ["# The thought that `psr.think` put before the answers is not repeated here; without it they differ."]
                if pair.thought_ids
                else []
            ),
            f"sampling = psr.SamplingConfig({', '.join(f'{name}={value!r}' for name, value in settings.items())})",
            "methods = {",
            *(f"    {name!r}: {self._loads.get(name, UNKNOWN)},  # {method.method}" for name, method in self._methods.items()),
            "}",
            f"alpha = {self._alphas_shown!r}",
            "print(psr.generate(model, pairs, sampling=sampling)[0].text)",
            'print(psr.generate(model, pairs, context="prompted", sampling=sampling)[0].text)',
            "for name, method in methods.items():",
            "    print(name, psr.generate(model, pairs, method, alpha=alpha[name], sampling=sampling)[0].text)",
        ]
        return "\n".join(lines) + "\n"

    # --- a closer look ------------------------------------------------------------------------------------------------------

    def inspect(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The likeliest next tokens where a token was predicted: in its column, and unsteered behind the base prompt.

        Raises:
            InputError: there is no such column or token, or its answer is of another run.
            ModelError: logits are not finite.
        """
        column, index = asked.get("column"), asked.get("index")
        answer = self._answers.get(column) if isinstance(column, str) else None
        if answer is None:
            raise InputError("column", repr(column), "a column with an answer", "Run it first.")
        if asked.get("run", answer.run) != answer.run:
            raise InputError("run", repr(asked["run"]), f"{answer.run!r}, the last run in this column", "Run it again.")
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(answer.ids):
            raise InputError("index", repr(index), f"a whole number from 0 to {len(answer.ids) - 1}")
        triplet = Triplet(answer.pair, tuple(answer.ids[: index + 1]), "")
        method = self._methods.get(str(column))
        steered = None if method is None else PassSteering(method, answer.request.alphas[str(column)])
        with self._computing:
            here = self._next(triplet, "prompted" if column == PROMPT else "base", steered)
            base = self._next(triplet, "base", None)
        found = {"type": "inspected", "column": column, "index": index, "here": here, "base": base}
        answer.messages.append(found)
        return found

    def _next(self, triplet: Triplet, context: Any, steered: PassSteering | None) -> list[tuple[str, float]]:
        logits = cast(Tensor, read_batch(self._model, [triplet], [], context, "R", steered=steered, logits=True).logits)
        top = torch.topk(logits[-1].float().softmax(-1), min(TOP, logits.shape[-1]))
        return list(zip(self._spelled(top.indices.tolist()), top.values.tolist(), strict=True))


def explained(error: Exception) -> str:
    """What the page says about an error."""
    return str(error) if isinstance(error, PsrLensError) else f"{type(error).__name__}: {error}"


def _layer(point: str) -> int:
    found = layer_of(point)
    return -1 if found is None else found


class _Run:
    """One run."""

    def __init__(self, number: int, label: int | str) -> None:
        self.number, self.label = number, label
        self.cancelled = threading.Event()
        self.thread: threading.Thread | None = None


class _Answer:
    """What a column shows."""

    def __init__(self, name: str, run: int | str, request: Request, pair: PromptPair) -> None:
        self.run, self.request, self.pair = run, request, pair
        sampling = request.sampling
        self.asked = {
            "question": request.question,
            "instruction": request.instruction,
            "alpha": request.alphas.get(name),
            "seed": str(sampling.seed),
            "temperature": sampling.temperature,
            "max_new_tokens": sampling.max_new_tokens,
        }
        """What it was asked with, as a browser and JSON take it."""
        self.ids: list[int] = []
        self.messages: list[dict[str, Any]] = []
