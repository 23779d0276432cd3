"""What contenders run: the same few functions for all of them."""

from collections.abc import AsyncIterator, Iterator


def shout(text: str) -> str:
    """Eager: give the text in capitals."""
    return text.upper()


async def ashout(text: str) -> str:
    """The same, as a coroutine that does not suspend."""
    return text.upper()


WORDS = tuple(f"word {number}" for number in range(64))  # short strings, made beforehand


def count(to: int) -> Iterator[str]:
    """Yield so many short strings."""
    words = WORDS
    for number in range(to):
        yield words[number & 63]


_cleaned_up = [0]


def tidy_count(to: int) -> Iterator[str]:
    """`count` with something to clean up."""
    words = WORDS
    try:
        for number in range(to):
            yield words[number & 63]
    finally:
        _cleaned_up[0] += 1


def cleaned_up() -> int:
    """How many of these have cleaned up, in this process."""
    return _cleaned_up[0]


async def acount(to: int) -> AsyncIterator[str]:
    """The same, as an async generator that does not suspend."""
    words = WORDS
    for number in range(to):
        yield words[number & 63]
