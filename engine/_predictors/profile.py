"""What is known of a predictor before it runs: one look at its target."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import types
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from engine._predictors.normaliser import is_async
from engine._predictors.predictor import check_target, class_behind, mark_of
from engine._predictors.signature import Signature
from engine._reducers import reducer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine._reducers import Reducer

    Bind = Callable[[Mapping[str, Any] | None], tuple[tuple[Any, ...], dict[str, Any]]]


@attrs.define(eq=False)
class Profile:
    """What one look at a predictor's target tells.

    Attributes:
        tag: its tag, or `module:qualname`.
        description: one line for people, or "".
        signature: its inputs.
        is_async: the colour of what is called for a prediction.
        lives_on_loop: a class or object with an async method, whose clients and locks belong to the engine's loop.
        is_class: the target makes an instance, which is set up before the first call.
        follows: whether a returned iterator that is no generator is a stream of partials.
        reducer: how partials become the result.
        runner: the author's choice of a runner, by name, or `None`.
        limit: calls at a time; `math.inf` for any number.
        is_checked: whether inputs are checked.
        by_value: whether workers get it by value though they could import it.
        bind: turns a mapping of inputs into arguments, checked as declared.
        is_opaque: some of its annotations mean nothing in this process, so that a worker has to check again.
    """

    tag: str
    description: str
    signature: Signature
    is_async: bool
    lives_on_loop: bool
    is_class: bool
    follows: bool
    reducer: Reducer
    runner: str | None
    limit: float
    is_checked: bool
    bind: Bind
    is_opaque: bool = False
    by_value: bool = False
    _other: Bind | None = None

    @property
    def set_up_limit(self) -> float:
        """Workers that may have it set up at one time; `math.inf` where nothing is set up."""
        return self.limit if self.is_class else math.inf

    def make_binder(self, *, check: bool) -> Bind:
        """Make the function that binds inputs, whose values it checks if `check`."""
        return self.signature.binder(self.tag, check=check)

    def binder(self, check: bool) -> Bind:  # noqa: FBT001
        """The binder with inputs checked or not, whatever the author's choice."""
        if check == self.is_checked:
            return self.bind
        if self._other is None:
            self._other = self.make_binder(check=check)
        return self._other


def profile_of(tag: str, target: Any, options: Mapping[str, Any]) -> Profile:
    """Look at a target once.

    Raises:
        TypeError: it cannot be called for a prediction.
    """
    factory = class_of(target)
    is_plain = factory is None and not is_object(target)
    read, signature = _read_function(target) if is_plain else _read_method(target if factory is None else factory)
    others = [getattr(target if factory is None else factory, name, None) for name in ("setup", "teardown")]
    facts = Facts(
        signature,
        _first_line(target),
        is_async=is_async(read),
        lives_on_loop=not is_plain and any(map(is_async, filter(None, (read, *others)))),
        is_class=factory is not None,
        is_plain=is_plain,
    )
    return profile_with(Profile, tag, facts, options)


class Facts(NamedTuple):
    """What is so about a target, whatever options it is registered with."""

    signature: Signature
    first_line: str
    is_async: bool
    lives_on_loop: bool
    is_class: bool
    is_plain: bool
    is_opaque: bool = False


def profile_with(kind: type[Profile], tag: str, facts: Facts, options: Mapping[str, Any]) -> Profile:
    """Make a profile of the class `kind`: what is so about a target, and the options it is registered with."""
    follows = options.get("yields")
    made = kind(
        tag=tag,
        description=options.get("description") or facts.first_line,
        signature=facts.signature,
        is_async=facts.is_async,
        lives_on_loop=facts.lives_on_loop,
        is_class=facts.is_class,
        follows=facts.signature.yields if follows is None else follows,
        reducer=reducer_of(options.get("reduce")),
        runner=options.get("runner"),
        limit=options.get("concurrency") or (math.inf if facts.is_plain else 1),
        is_checked=options.get("check", True),
        bind=_unbound,
        is_opaque=facts.is_opaque,
        by_value=bool(options.get("by_value")),
    )
    made.bind = made.make_binder(check=made.is_checked)
    return made


def _unbound(_inputs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    raise AssertionError("a profile gets its binder when it is made")


def class_of(target: Any) -> type | None:
    """The class a target makes instances of: itself, or what a `functools.partial` configures; `None` if no class."""
    while isinstance(target, partial):
        target = target.func
    check_target(target)
    return class_behind(target)


def is_object(target: object) -> bool:
    """Whether a target is an object with `predict`, and neither a function nor a class."""
    return callable(getattr(target, "predict", None)) and class_behind(target) is None


def function_of(target: Any) -> Any:
    """What is called for a prediction of a target that is no class."""
    return target.predict if is_object(target) else target


def _read_function(function: Any) -> tuple[Any, Signature]:
    """A function as it is looked at, and its inputs."""
    signature = Signature.of(function)
    is_dispatching = isinstance(function, types.FunctionType) and hasattr(function, "dispatch")
    return function, signature.dispatched() if is_dispatching and hasattr(function, "registry") else signature


def _read_method(holder: Any) -> tuple[Any, Signature]:
    """The method `predict` of an object or a class as it is looked at, and its inputs, among which is no instance.

    Whatever a class has under that name binds as its own descriptor says: a function does, what
    `functools.lru_cache` makes does, a static method or a callable object does not.
    """
    owner = holder if isinstance(holder, type) else type(holder)
    member = inspect.getattr_static(owner, "predict", None)
    if isinstance(member, functools.singledispatchmethod):  # it binds to what `inspect` cannot see through
        bound = _bound(member.func, owner)
        return bound, Signature.of(bound).dispatched()
    bound = _bound(member, owner) if owner is holder else holder.predict
    signature = Signature.of(bound)
    is_static = isinstance(member, staticmethod) or not hasattr(type(member), "__get__")
    # A function made around the one inside shows that one's inputs, and so its instance.
    return bound, signature if is_static else signature.without_instance()


def _bound(member: Any, owner: Any) -> Any:
    """What a class's `member` is on an instance, as far as can be told without making one."""
    if isinstance(member, types.FunctionType):
        return types.MethodType(member, owner)
    bind = getattr(type(member), "__get__", None)
    if bind is None or isinstance(member, (staticmethod, classmethod)):
        return owner.predict if bind is None else bind(member, None, owner)
    try:
        return bind(member, _unmade(owner), owner)
    except Exception:  # one written in C insists on a true instance
        return partial(member, None) if callable(member) else owner.predict


def _unmade(owner: type) -> object:
    """An instance that is never initialised, for a descriptor to bind to; just any object where it would be noticed."""
    if not hasattr(owner, "__del__"):
        with contextlib.suppress(TypeError):  # it is abstract, or its base is written in C
            return object.__new__(owner)
    return types.SimpleNamespace()


def _first_line(target: object) -> str:
    while isinstance(target, partial):
        target = target.func
    target = class_behind(target) or target
    own = isinstance(target, (type, types.FunctionType, types.MethodType))
    text = getattr(target, "__doc__", None) if own else None
    return text.strip().partition("\n")[0] if isinstance(text, str) else ""


def options_of(target: Any) -> Mapping[str, Any]:
    """The options a target is marked with."""
    return {name: value for name, value in mark_of(target).items() if name != "tag" and value is not None}
