"""A `predict` that binds to its instance but is no plain function is a method like any other, in every cell."""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import pytest

from engine import Engine, InvalidInputError, Predictor, predictor
from engine._predictors.predictor import name_of
from engine._predictors.profile import profile_of

T = TypeVar("T")


def repeat(self: Any, text: str, times: int = 2) -> str:
    return f"{self.mark}{text * times}"


class Binding:
    """A descriptor of one's own: a partial over the instance."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self.function, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Wrapping(Binding):
    """One that makes a function, which `inspect` takes for the one inside, with its `self`; and notes its instances."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self

        @functools.wraps(self.function)
        def bound(*args: Any, **kwargs: Any) -> Any:
            return self.function(instance, *args, **kwargs)

        instance.predict = bound  # as a cache would
        return bound


class Demanding(Binding):
    """One that takes instances of its own class only, as C's do."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is not None and type(instance) is not owner:
            raise TypeError(f"{owner} is meant, not {type(instance)}")
        return super().__get__(instance, owner)


class Base:
    mark = "="


class Cached(Base):
    predict = functools.lru_cache(repeat)


class Prepared(Base):
    predict = functools.partialmethod(repeat)


class Dispatched(Base):
    @functools.singledispatchmethod
    def predict(self, text: list[str], times: int = 2) -> str:
        raise NotImplementedError

    @predict.register
    def _(self, text: str, times: int = 2) -> str:
        return repeat(self, text, times)


class Bound(Base):
    predict = Binding(repeat)


class Wrapped(Base):
    predict = Wrapping(repeat)


class Demanded(Base):
    predict = Demanding(repeat)


class Static(Base):
    @staticmethod
    @functools.lru_cache
    def predict(text: str, times: int = 2) -> str:
        return f"={text * times}"


class OfClass(Base):
    @classmethod
    @functools.lru_cache
    def predict(cls, text: str, times: int = 2) -> str:
        return cls.mark + text * times


class Typed(Base, Generic[T]):
    def predict(self, text: T, times: int = 2) -> str:
        assert isinstance(text, str)
        return self.mark + text * times


class Subscripted(Base):
    predict = functools.lru_cache(repeat)


subscripted: Any = functools.partial(types.GenericAlias, Subscripted)  # what `Subscripted[...]` is of many a library


CLASSES: Final = (Cached, Prepared, Dispatched, Bound, Wrapped, Demanded, Static, OfClass)
ALIASES: Final[tuple[Any, ...]] = (Typed[str], subscripted(str))


def asked(muna: Engine, tag: Any, inputs: Any, **options: Any) -> list[Any]:
    """What a call gives in all four ways to consume it."""
    predictions = muna.predictions

    async def ahead() -> list[Any]:
        streamed = [each async for each in predictions.astream(tag, inputs, **options).values()]
        return [(await predictions.acreate(tag, inputs, **options)).value, *streamed]

    streamed = list(predictions.stream(tag, inputs, **options).values())
    return [predictions.create(tag, inputs, **options).value, *streamed, *asyncio.run(ahead())]


@pytest.mark.parametrize("made", [False, True], ids=["class", "object"])
@pytest.mark.parametrize("target", [*CLASSES, *ALIASES], ids=name_of)
def test_a_method_of_any_make_takes_its_inputs_without_its_instance(muna: Engine, target: Any, made: bool) -> None:
    target = target() if made else target
    for runner in (None, "thread"):
        assert asked(muna, target, {"text": "ab"}, runner=runner) == ["=abab"] * 4
        assert asked(muna, target, {"times": 1, "text": "ab"}, runner=runner) == ["=ab"] * 4
    with pytest.raises(InvalidInputError, match=r"'times' must be int, not 'x' \(str\)") as caught:
        muna.predictions.create(target, {"text": "ab", "times": "x"})
    assert caught.value.valid == ("text", "times")
    with pytest.raises(InvalidInputError, match=r"'text' is missing"):
        muna.predictions.create(target, {"self": 1})


def test_a_method_of_any_make_is_one_in_a_worker_too() -> None:
    with Engine(discover=False, workers=1) as muna:
        for target in (*CLASSES, *ALIASES, Cached()):
            assert asked(muna, target, {"text": "ab"}, runner="process") == ["=abab"] * 4


def test_reading_a_method_changes_nothing_of_its_class() -> None:
    before = dict(vars(Wrapped))
    profile_of("", Wrapped, {})

    assert dict(vars(Wrapped)) == before


def test_an_input_of_a_static_method_or_of_a_function_may_be_called_self(muna: Engine) -> None:
    class Plain:
        @staticmethod
        def predict(self: int) -> int:  # noqa: PLW0211 - what is tested
            return self + 1

    def plain(self: int) -> int:
        return self + 1

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> int:
        return plain(*args, **kwargs)

    for target in (Plain, Plain(), plain, wrapped, functools.lru_cache(plain)):
        assert muna.predictions.create(target, {"self": 1}).value == 2


class Table(dict[str, int]):
    """A class whose `predict` is a method of its base, written in C."""

    __slots__ = ()

    predict = dict.get


def test_a_method_written_in_c_is_one(muna: Engine) -> None:
    for target in (Table, Table(a=1)):
        assert muna.predictions.create(target, {"key": "b", "default": 5}).value == 5
        with pytest.raises(InvalidInputError) as caught:
            muna.predictions.create(target)
        assert caught.value.valid == ("key", "default")


def test_what_does_not_bind_is_no_method(muna: Engine) -> None:
    class Model:
        predict = len

    assert [muna.predictions.create(target, {"obj": "abc"}).value for target in (Model, Model())] == [3, 3]


def test_a_method_may_name_types_of_its_class_whatever_binds_it(muna: Engine) -> None:
    class Model:
        class Words(str):
            __slots__ = ()

        @functools.lru_cache  # noqa: B019 - what is tested
        def predict(self, text: Words) -> int:
            return len(text)

    with pytest.raises(InvalidInputError, match=r"'text' must be .*Words"):
        muna.predictions.create(Model, {"text": "abc"})
    assert muna.predictions.create(Model, {"text": Model.Words("abc")}).value == 3


def test_a_generator_and_a_coroutine_may_be_bound_by_any_descriptor(muna: Engine) -> None:
    def partials(self: Any, count: int) -> Iterator[int]:
        yield from range(count)

    async def later(self: Any, count: int) -> int:
        await asyncio.sleep(0)
        return count

    for binding in (functools.partialmethod, Binding, Wrapping, Demanding, functools.singledispatchmethod):
        yielding = type("Yielding", (), {"predict": binding(partials)})
        awaiting = type("Awaiting", (), {"predict": binding(later)})
        assert list(muna.predictions.stream(yielding, {"count": 3}).values()) == [0, 1, 2]
        assert asked(muna, awaiting, {"count": 3}) == [3] * 4
        assert profile_of("", awaiting, {}).is_async


def test_a_function_that_dispatches_by_its_first_argument_gets_one(muna: Engine) -> None:
    @functools.singledispatch
    def size(value: object, *, scale: int = 1) -> int:
        raise NotImplementedError(value)

    @size.register
    def _(value: int, *, scale: int = 1) -> int:
        return value * scale

    @size.register
    def _(value: str, *, scale: int = 1) -> int:
        return len(value) * scale

    assert asked(muna, size, {"value": 3}) == [3] * 4
    assert asked(muna, size, {"value": "four", "scale": 2}) == [8] * 4
    with pytest.raises(InvalidInputError, match="'value' is missing"):
        muna.predictions.create(size, {"scale": 2})


# Generic classes


def test_an_alias_of_a_class_is_that_class_with_its_mark_and_set_up_once(muna: Engine) -> None:
    set_up: list[object] = []

    @predictor("@me/model", reduce="collect", concurrency=2)
    class Model(Generic[T]):
        def setup(self) -> None:
            set_up.append(self)

        def predict(self, text: str) -> Iterator[str]:
            yield from text

    alias = Model[int]
    assert [muna.predictions.create(alias, {"text": "ab"}).value for _ in range(3)] == [["a", "b"]] * 3
    assert [instance.__orig_class__ for instance in set_up] == [alias]  # type: ignore[attr-defined]
    record = muna.predictors.register(alias)
    assert (record.tag, record.concurrency) == ("@me/model", 2)
    assert muna.predictions.create("@me/model", {"text": "ab"}).value == ["a", "b"]
    assert len(set_up) == 2


def test_an_alias_that_is_made_anew_at_each_call_is_still_set_up_once(muna: Engine) -> None:
    set_up: list[object] = []

    class Model:
        def setup(self) -> None:
            set_up.append(self)

        def predict(self) -> int:
            return len(set_up)

    aliases = [types.GenericAlias(Model, int) for _ in range(3)]
    assert [muna.predictions.create(alias).value for alias in aliases] == [1, 1, 1]
    assert muna.predictions.create(types.GenericAlias(Model, str)).value == 2
    assert name_of(aliases[0]) == name_of(Model)


@pytest.mark.parametrize("target", [list[int], Iterator[int]], ids=repr)
def test_an_alias_of_a_class_without_predict_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match=r"has no method predict\(\)"):
        Predictor("@me/x", target)
