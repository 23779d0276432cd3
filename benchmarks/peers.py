"""What peers need to do the job of more than one case."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.predictors import acount, count


def llm_counter() -> Any:
    """A model of `llm` whose response streams as many short strings as its prompt says."""
    import llm

    class Counter(llm.Model):
        model_id = "counter"
        can_stream = True

        def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
            return count(int(prompt.prompt))

    return Counter()


def llm_acounter(opening: Any = acount) -> Any:
    """The same for asyncio."""
    import llm

    class Counter(llm.AsyncModel):
        model_id = "counter"
        can_stream = True

        def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncIterator[str]:
            return opening(int(prompt.prompt))

    return Counter()


def langchain_counter(opening: Any = count) -> Any:
    """`count` as a runnable of LangChain that streams; its input is how far."""
    from langchain_core.runnables import RunnableGenerator

    def transform(chunks: Iterator[int]) -> Iterator[str]:
        for to in chunks:
            yield from opening(to)

    return RunnableGenerator(transform)


def langchain_acounter(opening: Any = acount) -> Any:
    """The same for asyncio."""
    from langchain_core.runnables import RunnableGenerator

    async def transform(chunks: AsyncIterator[int]) -> AsyncIterator[str]:
        async for to in chunks:
            async for word in opening(to):
                yield word

    return RunnableGenerator(transform)


@contextmanager
def ray_started() -> Iterator[Any]:
    """Ray on this machine, without its dashboard."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()
