"""Predictors of every kind, each of which performs any script."""

from __future__ import annotations

import asyncio
from collections.abc import (  # noqa: TC003 - the engine reads the annotations of predictors
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from functools import cache, partial, wraps
from types import MappingProxyType
from typing import Any, Final

import attrs

from engine._predictors.predictor import Predictor
from engine.testing.script import Give, Journal, Return, Script, aact, aclean_up, act, clean_up, numbered


def returns(script: Script, journal: Journal) -> Any:
    """Perform a script and return."""
    try:
        for step in numbered(script, journal):
            if isinstance(step, Return):
                return step.value
            act(step)
        return None
    finally:
        clean_up(script, journal)


def yields(script: Script, journal: Journal) -> Generator[Any, None, Any]:
    """Perform a script as a generator."""
    try:
        for step in numbered(script, journal):
            if isinstance(step, Give):
                yield step.value
            elif isinstance(step, Return):
                return step.value
            else:
                act(step)
        return None
    finally:
        clean_up(script, journal)


async def returns_later(script: Script, journal: Journal) -> Any:
    """Perform a script as a coroutine function."""
    try:
        for step in numbered(script, journal):
            if isinstance(step, Return):
                return step.value
            await aact(step)
        return None
    finally:
        await aclean_up(script, journal)


async def yields_later(script: Script, journal: Journal) -> AsyncGenerator[Any]:
    """Perform a script as an async generator."""
    try:
        for step in numbered(script, journal):
            if isinstance(step, Give):
                yield step.value
            elif isinstance(step, Return):
                return
            else:
                await aact(step)
    finally:
        await aclean_up(script, journal)


class _SetUp:
    is_ready = False

    def setup(self) -> None:
        self.is_ready = True

    def ask_ready(self) -> None:
        if not self.is_ready:
            raise AssertionError("predict() was called before setup()")


class _SetUpLater(_SetUp):
    async def setup(self) -> None:  # type: ignore[override]  # another kind of class, not a substitute
        await asyncio.sleep(0)
        self.is_ready = True


class _Returner(_SetUp):
    def predict(self, script: Script, journal: Journal) -> Any:
        self.ask_ready()
        return returns(script, journal)


class _Yielder(_SetUp):
    def predict(self, script: Script, journal: Journal) -> Generator[Any, None, Any]:
        self.ask_ready()
        return (yield from yields(script, journal))


class _LateYielder(_SetUpLater):
    def predict(self, script: Script, journal: Journal) -> Generator[Any, None, Any]:
        self.ask_ready()
        return (yield from yields(script, journal))


class _AsyncReturner(_SetUpLater):
    async def predict(self, script: Script, journal: Journal) -> Any:
        self.ask_ready()
        return await returns_later(script, journal)


class _AsyncYielder(_SetUpLater):
    async def predict(self, script: Script, journal: Journal) -> AsyncGenerator[Any]:
        self.ask_ready()
        async with aclosing(yields_later(script, journal)) as partials:
            async for each in partials:
                yield each


class _Callable:
    def __call__(self, script: Script, journal: Journal) -> Generator[Any, None, Any]:
        return (yield from yields(script, journal))

    def method(self, script: Script, journal: Journal) -> Generator[Any, None, Any]:
        return (yield from yields(script, journal))

    @staticmethod
    def static(script: Script, journal: Journal) -> Generator[Any, None, Any]:
        return (yield from yields(script, journal))


class _AsyncCallable:
    async def __call__(self, script: Script, journal: Journal) -> Any:
        return await returns_later(script, journal)


class _Steps:
    """An iterator that is no generator."""

    def __init__(self, generator: Generator[Any, None, Any]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._generator)

    def close(self) -> None:
        self._generator.close()


class _AsyncSteps:
    """An async iterator that is no async generator."""

    def __init__(self, generator: AsyncGenerator[Any]) -> None:
        self._generator = generator

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Any:
        return self._generator.__anext__()

    async def aclose(self) -> None:
        await self._generator.aclose()


class _Awaitable:
    def __init__(self, script: Script, journal: Journal) -> None:
        self._made = script, journal

    def __await__(self) -> Generator[Any, Any, Any]:
        return returns_later(*self._made).__await__()


def _configured(_size: int, script: Script, journal: Journal) -> Generator[Any, None, Any]:
    return (yield from yields(script, journal))


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return around


def _gives_generator(script: Script, journal: Journal) -> Any:
    return yields(script, journal)


def _gives_coroutine(script: Script, journal: Journal) -> Any:
    return returns_later(script, journal)


def _gives_awaitable(script: Script, journal: Journal) -> Any:
    return _Awaitable(script, journal)


def _gives_async_generator(script: Script, journal: Journal) -> Any:
    return yields_later(script, journal)


async def _gives_generator_later(script: Script, journal: Journal) -> Any:
    return yields(script, journal)


async def _gives_async_generator_later(script: Script, journal: Journal) -> Any:
    return yields_later(script, journal)


def _gives_iterator(script: Script, journal: Journal) -> Iterator[Any]:
    return _Steps(yields(script, journal))


def _gives_async_iterator(script: Script, journal: Journal) -> AsyncIterator[Any]:
    return _AsyncSteps(yields_later(script, journal))


def _gives_undeclared_iterator(script: Script, journal: Journal) -> Any:
    return _Steps(yields(script, journal))


def _ready(instance: _Yielder) -> _Yielder:
    instance.setup()  # an object is set up by the program that makes it
    return instance


@attrs.frozen
class Kind:
    """One way to write a predictor.

    Attributes:
        name: such as `async-yield`.
        target: the predictor itself; its inputs are a `script` and a `journal`.
        is_yielding: whether it gives partials one by one; otherwise its return value is the one partial.
        is_async: whether it starts as an async function, which sync code never runs inline.
        is_driven_async: whether what it produces is async.
        is_followed: the option `yields`, where the kind needs it.
    """

    name: str
    target: Any
    is_yielding: bool
    is_async: bool = False
    is_driven_async: bool = False
    is_followed: bool | None = None

    @property
    def keeps_return(self) -> bool:
        """Whether its return value can be seen: an async generator has none."""
        return not (self.is_yielding and self.is_driven_async)

    def predictor(self, reduce: Any = None) -> Predictor:
        """A record of this kind with the reducer `reduce`; the same one each time, so that a class is set up once."""
        return _record(self, reduce)


@cache
def _record(kind: Kind, reduce: Any) -> Predictor:
    return Predictor(f"@testing/{kind.name}", kind.target, reduce=reduce, yields=kind.is_followed)


def _kinds() -> Iterator[Kind]:
    yield Kind("def-return", returns, is_yielding=False)
    yield Kind("def-yield", yields, is_yielding=True)
    yield Kind("async-return", returns_later, is_yielding=False, is_async=True, is_driven_async=True)
    yield Kind("async-yield", yields_later, is_yielding=True, is_async=True, is_driven_async=True)
    yield Kind("class-return", _Returner, is_yielding=False)
    yield Kind("class-yield", _Yielder, is_yielding=True)
    yield Kind("class-async-setup", _LateYielder, is_yielding=True)
    yield Kind("class-async-return", _AsyncReturner, is_yielding=False, is_async=True, is_driven_async=True)
    yield Kind("class-async-yield", _AsyncYielder, is_yielding=True, is_async=True, is_driven_async=True)
    yield Kind("object", _ready(_Yielder()), is_yielding=True)
    yield Kind("partial", partial(_configured, 3), is_yielding=True)
    yield Kind("wrapped-yield", _wrapped(yields), is_yielding=True)
    yield Kind("wrapped-async-yield", _wrapped(yields_later), is_yielding=True, is_async=True, is_driven_async=True)
    yield Kind("method", _Callable().method, is_yielding=True)
    yield Kind("static-method", _Callable.static, is_yielding=True)
    yield Kind("callable-object", _Callable(), is_yielding=True)
    yield Kind("async-callable-object", _AsyncCallable(), is_yielding=False, is_async=True, is_driven_async=True)
    yield Kind("def-gives-generator", _gives_generator, is_yielding=True)
    yield Kind("def-gives-coroutine", _gives_coroutine, is_yielding=False, is_driven_async=True)
    yield Kind("def-gives-awaitable", _gives_awaitable, is_yielding=False, is_driven_async=True)
    yield Kind("def-gives-async-generator", _gives_async_generator, is_yielding=True, is_driven_async=True)
    yield Kind("async-gives-generator", _gives_generator_later, is_yielding=True, is_async=True)
    yield Kind(
        "async-gives-async-generator",
        _gives_async_generator_later,
        is_yielding=True,
        is_async=True,
        is_driven_async=True,
    )
    yield Kind("annotated-iterator", _gives_iterator, is_yielding=True)
    yield Kind("annotated-async-iterator", _gives_async_iterator, is_yielding=True, is_driven_async=True)
    yield Kind("declared-iterator", _gives_undeclared_iterator, is_yielding=True, is_followed=True)


KINDS: Final[Mapping[str, Kind]] = MappingProxyType({kind.name: kind for kind in _kinds()})
"""Every kind of predictor by name."""
