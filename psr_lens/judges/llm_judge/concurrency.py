"""Sending many prompts to a server at a time, from synchronous code and from within a notebook's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from psr_lens._utils.progress import progress_bar
from psr_lens.judges.llm_judge.chat import Chat, Failure
from psr_lens.judges.llm_judge.reply import Reply

GIVE_UP: Final = 10
"""Number of consecutive failures after which the remaining prompts are not sent."""

_Result = TypeVar("_Result")


async def ask_all(
    chat: Chat,
    prompts: Sequence[str],
    concurrency: int,
    received: Callable[[int, Reply], None],
    *,
    answered: bool = False,
) -> list[Reply | Failure]:
    """Send every prompt; one failure does not affect the others.

    The first prompt is sent alone, so that a wrong key, a wrong address or an unsupported parameter costs one request. After a failure
    that every other prompt would share, or `GIVE_UP` failures in a row, the remaining prompts are not sent.

    Args:
        chat: The connection to the server.
        prompts: The prompts.
        concurrency: Largest number of requests at a time.
        received: Called with a prompt's index and its reply as soon as the reply arrives.
        answered: Whether the server is known to answer such prompts.

    Returns:
        A reply or a failure for each prompt.
    """
    found: list[Reply | Failure | None] = [None] * len(prompts)
    stopped = ""
    in_a_row = 0

    async def work(indices: Iterator[int]) -> None:
        nonlocal stopped, in_a_row, answered
        for index in indices:
            if stopped:
                found[index] = Failure(f"not asked, because other prompts failed: {stopped}", "final")
                continue
            outcome = await chat.ask(prompts[index])
            found[index] = outcome
            bar.update()
            if isinstance(outcome, Reply):
                in_a_row, answered = 0, True
                received(index, outcome)
                continue
            # If the server answers other prompts, the fault is this prompt's own; some servers refuse a prompt's content with 403.
            if answered and (outcome.kind == "own" or outcome.status == 403):
                continue
            in_a_row += 1
            if outcome.kind == "final" or in_a_row >= GIVE_UP:
                stopped = stopped or outcome.reason

    with progress_bar(total=len(prompts), desc="judge", unit="reply") as bar:
        await work(iter(range(min(1, len(prompts)))))
        rest = iter(range(1, len(prompts)))
        await asyncio.gather(*(work(rest) for _ in range(min(concurrency, len(prompts)))))
    return [each for each in found if each is not None]


def run_blocking(main: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run a coroutine to completion; in a thread of its own if this one has a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def known() -> _Result:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))  # type: ignore[arg-type]
        return await main()

    with ThreadPoolExecutor(1, thread_name_prefix="judge") as pool:
        future = pool.submit(lambda: asyncio.run(known()))
        try:
            return future.result()
        except BaseException:
            if not future.done() and running:  # a KeyboardInterrupt: the thread would otherwise run to completion
                loop, task = running[0]
                loop.call_soon_threadsafe(task.cancel)
            raise
