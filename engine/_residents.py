"""Predictors made ready in this process: their slots, and the life of class predictors.

A `Resident` is a profile with its target, ready to be called; a class's is set up once, by whoever comes first, and
torn down once. No user code runs under a lock.
"""

from __future__ import annotations

import math
import threading
import types
import weakref
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from engine._channel import park_task, park_thread, wake_all
from engine._errors import EngineClosedError, EngineError, NestingError, warn
from engine._partials import invoke, is_async
from engine._predictor import Predictor, name_of
from engine._profiles import Profile, RemoteProfile, function_of, options_of, profile_from, profile_of
from engine._records import Call, current, current_call
from engine._slots import Patience, Slots, current_task

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from contextvars import Context

    from engine._channel import Wake
    from engine._snapshots import Home
    from engine.runners.loop import LoopRunner


def _slots_of(profile: Profile) -> tuple[Slots | None, Slots | None]:
    """The slots of the two places that set predictors up: this process, and its workers."""
    is_counted = profile.is_class or profile.limit != math.inf
    made = [Slots(profile.tag, profile.limit) if is_counted else None for _ in range(2)]
    return made[0], made[1]


class Resident:
    """A predictor ready to be called in this process.

    Attributes:
        profile: what is known of it.
        function: what is called; `None` for a class that is not set up.
        slots: bounds its calls; `None` where nothing is to be bounded or counted.
        worker_slots: the same for its calls in workers, which are a place of their own.
        is_described: it is known from a worker's description alone, and runs in workers only.
        places: where sync callers' `runner=` leads, once that is known; kept by the executor.
    """

    __slots__ = (
        "_engine",
        "_flight",
        "_home",
        "_instance",
        "_is_closed",
        "_is_named",
        "_lock",
        "_loop",
        "_target",
        "_text",
        "function",
        "is_described",
        "places",
        "profile",
        "slots",
        "worker_slots",
    )

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        profile: Profile,
        target: Any,
        loop: LoopRunner,
        engine: int,
        slots: tuple[Slots | None, Slots | None] | None = None,
        text: str | None = None,
    ) -> None:
        """Make `target` ready, but for a class's instance.

        Args:
            profile: what is known of it.
            target: itself; `None` where it is only described.
            loop: where its async methods live.
            engine: the number of the engine.
            slots: shared by all residents of one object.
            text: `"module:name"`, where it was registered by that.
        """
        self.is_described = isinstance(profile, RemoteProfile)
        self._text = text
        self._home: Home | None = None
        self._is_named = False  # workers have a class or an object by its text, until it is unloaded
        self._engine = engine
        self._is_closed = False
        self.profile = profile
        self.places: dict[str | None, Any] = {}
        self._target = target
        self._loop = loop
        self._instance: Any = None
        self._flight: _Flight | None = None
        self._lock = threading.Lock()
        self.function: Any = None if profile.is_class or self.is_described else function_of(target)
        self.slots, self.worker_slots = slots or _slots_of(profile)

    @property
    def target(self) -> Any:
        """What workers get to run: the function, class or object, or `"module:name"` where they find it by that."""
        if self._text is None or self.is_described:
            return self._text or self._target
        return self._named(self._text)

    def _named(self, text: str) -> Any:
        """The text by which workers find what runs here; itself, where they would find another, or nothing."""
        home = self._home
        if home is None:
            from engine._snapshots import Home, is_function  # only what workers run needs it

            home = self._home = Home(self._target, *text.split(":"))
            if self.profile.by_value or not home.is_importable():
                self._text = None
                return self._target
            self._is_named = not is_function(self._target)
        if home.is_there():
            return text
        if not self._is_named:
            return self._target
        warn(
            f"{self.profile.tag}: {text} is another since it was sent to workers, where a class or an object stays as "
            "it was: unload it there, with unload(..., runner='process'), and the next call sends what runs here"
        )
        self._home = home.forgotten()
        return text

    def unloaded(self) -> None:
        """Workers have it no more: what they get next is what runs here."""
        self._home = None

    @property
    def is_ready(self) -> bool:
        """Whether nothing stands between a call and its body."""
        return self.function is not None

    def prepare(self) -> Any:
        """Give what is called, setting the class up first if nobody has; in a thread, which waits for another's setup.

        Raises:
            NestingError: the class is being set up by this very call chain, or would block the engine's loop.
            BaseException: what the constructor or `setup` raised; the next call tries again.
        """
        while (function := self.function) is None:
            context = self._aside()
            flight, is_mine = self._join(context)
            if not is_mine:
                flight.wait(self.profile.tag)
                continue
            try:
                instance = self._make(context)
                if self._is_closed:
                    self._run_member(instance, "teardown", self._aside())
                self._land(flight, instance)
            except BaseException as error:
                self._crash(flight, error)
                raise
        return function

    async def aprepare(self) -> Any:
        """The same on the engine's loop, for a class that lives there."""
        while (function := self.function) is None:
            context = self._aside()
            flight, is_mine = self._join(context)
            if not is_mine:
                await flight.await_()
                continue
            try:
                instance = await self._amake(context)
                if self._is_closed:
                    await _arun_member(instance, "teardown", self._aside())
                self._land(flight, instance)
            except BaseException as error:
                self._crash(flight, error)
                raise
        return function

    def _join(self, context: Context) -> tuple[_Flight, bool]:
        with self._lock:
            flight = self._flight
            if flight is None:
                self._flight = flight = _Flight(context.get(current))
                return flight, True
        flight.refuse_nesting(self.profile.tag)
        return flight, False

    def _land(self, flight: _Flight, instance: Any) -> None:
        if self._is_closed:  # while it was being set up: it has been torn down again
            raise EngineClosedError
        self._instance = instance
        self.function = instance.predict
        self._flight = None
        flight.land(None)

    def _crash(self, flight: _Flight, error: BaseException) -> None:
        self._flight = None
        flight.land(error)

    def _make(self, context: Context) -> Any:
        instance = context.run(invoke, self._target, (), {})
        self._run_member(instance, "setup", context)
        return instance

    def _aside(self) -> Context:
        """A context of its own for what is no prediction: constructor, `setup`, `teardown`; it knows its engine."""
        context = copy_context()
        parent = current.get()
        depth = 0 if parent is None else parent.depth
        context.run(current.set, Call(self.profile.tag, "aside", parent, self._engine, depth))
        return context

    def _run_member(self, instance: Any, name: str, context: Context, seconds: float | None = None) -> None:
        """Call `setup` or `teardown`, and run on the loop what of it is awaitable."""
        member = getattr(instance, name, None)
        if member is None:
            return
        if is_async(member):
            self._loop.run(_call(member), context, f"{name}() of {self.profile.tag}", seconds)
            return
        made = context.run(invoke, member, (), {})
        if hasattr(made, "__await__"):
            self._loop.run(_wait_for(made), context, f"{name}() of {self.profile.tag}", seconds)

    async def _amake(self, context: Context) -> Any:
        instance = context.run(invoke, self._target, (), {})
        await _arun_member(instance, "setup", context)
        return instance

    @property
    def is_set_up(self) -> bool:
        """Whether there is an instance to tear down."""
        return self._instance is not None

    def close(self) -> Any:
        """Take the instance out for good; one that is being set up just now is torn down as soon as it stands."""
        self._is_closed = True
        return self.detach()

    def detach(self) -> Any:
        """Take the instance out, so that the next call sets up a new one; `None` if there is none."""
        instance, self._instance = self._instance, None
        if self.profile.is_class:
            self.function = None
        return instance

    def unload(self, grace: float) -> None:
        """Tear the instance down once its calls are over; they get `grace` seconds.

        Raises:
            EngineError: a call still uses it; it stays loaded.
            BaseException: what `teardown` raised.
        """
        instance = self.detach()
        if instance is None:
            return
        left = () if self.slots is None else self.slots.wait_for(self.slots.holders, grace)
        if left:
            if self.function is None:
                self._instance, self.function = instance, instance.predict
            raise EngineError(
                f"{self.profile.tag} is in use by {', '.join(map(str, left))}: read that stream to its end or close "
                "it, then unload again"
            )
        self.teardown(instance, None)

    def teardown(self, instance: Any, seconds: float | None) -> None:
        """Tear an instance down, from a thread; an async one on the loop, within `seconds`."""
        if instance is None:
            return
        if self.profile.lives_on_loop and not self._loop.is_here():
            context = self._aside()
            closing = _arun_member(instance, "teardown", context)
            self._loop.run(closing, context.copy(), f"teardown() of {self.profile.tag}", seconds)
        else:
            self._run_member(instance, "teardown", self._aside(), seconds)

    def renew(self, loop: LoopRunner) -> None:
        """In a forked child: the parent's threads hold no slot and no lock here, and its loop does not exist."""
        self._loop = loop
        self.places.clear()
        self._lock = threading.Lock()
        self._flight = None
        self.slots, self.worker_slots = _slots_of(self.profile)
        if self.profile.lives_on_loop:
            _parents_own.append(self.detach())


_parents_own: list[Any] = []  # instances that belong to a parent's loop; kept, so that no finaliser runs for them here


async def _call(member: Callable[[], Any]) -> None:
    await member()


async def _wait_for(made: Any) -> None:
    await made


async def _arun_member(instance: Any, name: str, context: Context) -> None:
    import asyncio

    member = getattr(instance, name, None)
    if member is None:
        return
    if is_async(member):
        await asyncio.get_running_loop().create_task(_call(member), context=context)
        return
    made = context.run(invoke, member, (), {})
    if hasattr(made, "__await__"):
        await made


class _Flight:
    """One attempt to set a class up, which everybody who comes meanwhile waits for."""

    __slots__ = ("_call", "_error", "_is_landed", "_parked", "_thread", "_traceback")

    def __init__(self, call: Call | None) -> None:
        self._call = call
        self._thread = threading.get_ident()
        self._is_landed = False
        self._error: BaseException | None = None
        self._traceback: types.TracebackType | None = None
        self._parked: deque[Wake] = deque()

    def refuse_nesting(self, tag: str) -> None:
        call = current_call()
        is_chain = call is not None and self._call is not None and call.is_within(self._call)
        if is_chain or (self._thread == threading.get_ident() and current_task() is None):
            raise NestingError(f"{tag} is being set up, and its setup calls {tag} again: it would wait for itself", tag)

    def land(self, error: BaseException | None) -> None:
        self._error = error
        self._traceback = None if error is None else error.__traceback__
        self._is_landed = True
        wake_all(self._parked)

    def _has_landed(self) -> bool:
        return self._is_landed

    def wait(self, tag: str) -> None:
        waited = Patience(tag, None)
        while not self._is_landed:
            park_thread(self._parked, self._has_landed, waited.left())
            waited.report()
        self._report()

    async def await_(self) -> None:
        while not self._is_landed:
            await park_task(self._parked, self._has_landed)
        self._report()

    def _report(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(self._traceback)  # it does not grow with everyone who waited


class Residents:
    """All residents of one engine: by record for predictors with a tag, by identity for what callers pass directly.

    What is known of a predictor lives as long as its record, whatever its tag stands for meanwhile; only classes are
    kept, to be torn down with the engine.
    """

    def __init__(self, loop: LoopRunner, engine: int) -> None:
        """Start empty; classes with async methods will live on `loop`; `engine` is the number calls know theirs by."""
        self._loop = loop
        self._engine = engine
        self._lock = threading.Lock()
        self._by_record: weakref.WeakKeyDictionary[Predictor, Resident] = weakref.WeakKeyDictionary()
        self._described: weakref.WeakKeyDictionary[Predictor, Resident] = weakref.WeakKeyDictionary()
        self._classes: dict[Hashable, tuple[object, Resident]] = {}
        self._profiles: dict[int, tuple[weakref.ref[Any], Profile, tuple[Slots | None, Slots | None]]] = {}
        self._kept: list[Resident] = []

    def of(self, predictor: Predictor) -> Resident:
        """The resident of a record, importing its target at the first use."""
        resident = self._by_record.get(predictor)
        if resident is None:
            target = predictor.load()
            profile = profile_of(predictor.tag, target, predictor.options(target))
            text = predictor.target if isinstance(predictor.target, str) else None
            made = Resident(profile, target, self._loop, self._engine, text=text)
            resident = self._by_record.setdefault(predictor, made)
            if resident is made and profile.is_class:
                self._kept.append(made)
        return resident

    def find(self, predictor: Predictor) -> Resident | None:
        """The resident of a record, if it has one."""
        return self._by_record.get(predictor)

    def described(self, predictor: Predictor) -> Resident | None:
        """What workers told of a predictor that this process has not imported, if they did."""
        return self._described.get(predictor)

    def describe(self, predictor: Predictor, told: Mapping[str, Any]) -> Resident:
        """Keep what a worker told of a predictor."""
        profile = profile_from(predictor.tag, told, predictor.options(None))
        made = Resident(profile, None, self._loop, self._engine, text=predictor.target)
        return self._described.setdefault(predictor, made)

    def given(self, given: Any) -> Resident:
        """The resident of what a caller passed directly; that of a function is not kept, its profile is."""
        # An alias such as `Model[int]` may be another object at each call.
        name = given if type(given) is types.GenericAlias else id(given)
        kept = self._classes.get(name)
        if kept is not None:
            return kept[1]
        key = given.__func__ if isinstance(given, types.MethodType) else given
        found = self._profiles.get(id(key))
        if found is not None and found[0]() is key and found[1].tag == name_of(given):
            return Resident(found[1], given, self._loop, self._engine, found[2])
        profile = profile_of(name_of(given), given, options_of(given))
        resident = Resident(profile, given, self._loop, self._engine)
        if profile.is_class:
            with self._lock:
                return self._classes.setdefault(name, (given, resident))[1]
        self._remember(key, profile, (resident.slots, resident.worker_slots))
        return resident

    def _remember(self, key: Any, profile: Profile, slots: tuple[Slots | None, Slots | None]) -> None:
        number, profiles = id(key), self._profiles
        try:
            reference = weakref.ref(key, lambda _gone: profiles.pop(number, None))
        except TypeError:  # it cannot be referred to weakly: looked at again at every call
            return
        profiles[number] = (reference, profile, slots)

    def __iter__(self) -> Iterator[Resident]:
        """Every resident that may have to be torn down."""
        yield from (resident for _, resident in tuple(self._classes.values()))
        yield from tuple(self._kept)

    def loaded(self, stands_for: Callable[[Predictor], bool]) -> tuple[str, ...]:
        """Tags of predictors that are ready here and that `stands_for` says their tags stand for, in order."""
        ready = [record for record, resident in _items(self._by_record) if resident.is_ready]
        return tuple(sorted(record.tag for record in ready if stands_for(record)))

    def forget_parents(self, loop: LoopRunner) -> None:
        """In a forked child: what lives on the parent's loop, and locks and slots its threads hold, are not ours."""
        self._loop = loop
        self._lock = threading.Lock()
        self._profiles.clear()
        known = (resident for residents in (self._by_record, self._described) for _, resident in _items(residents))
        for resident in {*self, *known}:
            resident.renew(loop)


def _items(residents: weakref.WeakKeyDictionary[Predictor, Resident]) -> list[tuple[Predictor, Resident]]:
    """The records and their residents as they are now; other threads may add some meanwhile."""
    records = [record for reference in residents.keyrefs() if (record := reference()) is not None]
    return [(record, residents[record]) for record in records]
