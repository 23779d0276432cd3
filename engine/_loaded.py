"""Predictors made ready in this process: their slots, and the life of class predictors.

A `LoadedPredictor` is a profile with its target, ready to be called; a class is set up once, by the call that comes
first, and torn down once. An instance of a class with an async method lives on the engine's loop; any other lives in
the thread that sets it up: a `PinnedThread` kept for it, or that of a caller that runs it inline. No user code runs
under a lock.
"""

from __future__ import annotations

import math
import threading
import types
import weakref
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from engine._errors import EngineClosedError, NestingError, warn
from engine._fork import keep_for_parent, renew_after_fork
from engine._predictors.body import invoke
from engine._predictors.normaliser import is_async
from engine._predictors.predictor import Predictor, name_of
from engine._predictors.profile import Profile, function_of, options_of, profile_of
from engine._records import Call, current, current_call
from engine._wire.remote_profile import RemoteProfile, profile_of_description
from engine.runners.base import in_use_error
from engine.runners.pinned import PinnedThread
from engine.runners.single_flight import SingleFlight
from engine.runners.slots import LongWait, Slots, current_task

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from contextvars import Context

    from engine._wire.target_snapshots import NameBinding
    from engine.runners.loop import LoopRunner
    from engine.runners.thread import ThreadRunner


class _SlotsElsewhere(dict[str, Slots | None]):
    """The slots of a predictor in other processes, by the name of the runner there: each runner sets it up itself."""

    def __init__(self, profile: Profile, grace: float) -> None:
        super().__init__()
        self._facts = profile, grace

    def __missing__(self, runner: str) -> Slots | None:
        return self.setdefault(runner, _slots_of(*self._facts))


def _slots_of(profile: Profile, grace: float) -> Slots | None:
    """The slots of one place that sets a predictor up; `None` where nothing is to be bounded or counted."""
    is_counted = profile.is_class or profile.limit != math.inf
    return Slots(profile.tag, profile.limit, grace) if is_counted else None


def _all_slots_of(profile: Profile, grace: float) -> tuple[Slots | None, _SlotsElsewhere]:
    """The slots of this process, and those of others."""
    return _slots_of(profile, grace), _SlotsElsewhere(profile, grace)


class LoadedPredictor:
    """A predictor ready to be called in this process.

    Attributes:
        profile: what is known of it.
        function: what is called; `None` for a class that is not set up.
        slots: bounds its calls; `None` where nothing is to be bounded or counted.
        slots_elsewhere: the slots of its calls in other processes, by the name of the runner they belong to.
        is_described: whether it is known only from what a runner told of it, and so runs in other processes only.
        described_by: the name of that runner, if there is one.
        places: where sync callers' `runner=` leads, once that is known; kept by the executor.
        is_plain: whether an asyncio caller that names no runner steps it with nothing to begin or to end; kept by the
            executor, `None` until it is known.
        thread: of a class without async methods, where this process has owner threads: the one kept for it.
        owner: what runs its calls in owner threads, where not any of these may: its `thread`, if it has one and serves
            one call at a time.
    """

    __slots__ = (
        "_engine",
        "_grace",
        "_home",
        "_instance",
        "_is_closed",
        "_is_named",
        "_lock",
        "_loop",
        "_pinned",
        "_replaced",
        "_set_up_now",
        "_target",
        "_text",
        "described_by",
        "function",
        "is_described",
        "is_plain",
        "owner",
        "places",
        "profile",
        "slots",
        "slots_elsewhere",
        "thread",
    )

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        profile: Profile,
        target: Any,
        loop: LoopRunner,
        engine: int,
        slots: tuple[Slots | None, _SlotsElsewhere] | None = None,
        text: str | None = None,
        threads: ThreadRunner | None = None,
        grace: float = 0.0,
    ) -> None:
        """Make `target` ready, but for a class's instance.

        Args:
            profile: what is known of it.
            target: itself; `None` where it is only described.
            loop: where its async methods live.
            engine: the number of the engine.
            slots: shared by all loaded predictors of one object.
            text: `"module:name"`, where it was registered by that.
            threads: the owner threads there are; `None` where everything runs in one thread.
            grace: seconds a call waits for another thread to go on with the stream that this one read last.
        """
        self.is_described = isinstance(profile, RemoteProfile)
        self.described_by: str | None = None
        self._text = text
        self._home: NameBinding | None = None
        self._is_named = False  # workers have a class or an object by its text, until `reset_reference`
        self._engine = engine
        self._grace = grace
        self._is_closed = False
        self.profile = profile
        self.places: dict[str | None, Any] = {}
        self.is_plain: bool | None = None
        self._target = target
        self._loop = loop
        self._instance: Any = None
        self._replaced: list[Any] = []  # instances that could not be torn down before the next one was set up
        self._set_up_now: _SetUp | None = None
        self._lock = threading.Lock()
        self.function: Any = None if profile.is_class or self.is_described else function_of(target)
        self.slots, self.slots_elsewhere = slots or _all_slots_of(profile, grace)
        self._pinned: dict[int, Any] = {}  # instances that were set up in `thread` and are not torn down yet, by `id`
        self.thread: PinnedThread | None = None
        self.owner: PinnedThread | None = None
        if threads is not None and profile.is_class and not profile.lives_on_loop and not self.is_described:
            self.thread = PinnedThread(threads, self._is_thread_kept)
            self.owner = self.thread if profile.limit == 1 else None

    def _is_thread_kept(self, is_closed: bool) -> bool:  # noqa: FBT001
        """Whether an instance lives in its thread or is called there; in a closed engine, one is torn down there."""
        if is_closed:
            return self._instance is None and bool(self._pinned)
        return self._instance is not None or bool(self._pinned)

    @property
    def target(self) -> Any:
        """What workers get to run: the function, class or object, or `"module:name"` where they find it by that."""
        if self._text is None or self.is_described:
            return self._text or self._target
        return self._reference(self._text)

    def _reference(self, text: str) -> Any:
        """The text by which workers find what runs here; itself, where they would find another, or nothing."""
        home = self._home
        if home is None:
            from engine._wire.target_snapshots import NameBinding, is_function  # only what workers run needs it

            home = self._home = NameBinding(self._target, *text.split(":"))
            if self.profile.by_value or not home.is_importable():
                self._text = None
                return self._target
            self._is_named = not is_function(self._target)
        if home.is_bound():
            return text
        if not self._is_named:
            return self._target
        warn(
            f"{self.profile.tag}: {text} is another since it was sent to workers, where a class or an object stays as "
            "it was: unload it there, with unload(..., runner='process'), and the next call sends what runs here"
        )
        self._home = home.always_bound()
        return text

    def reset_reference(self) -> None:
        """Note that workers have it no more, so that what they get next is what runs here."""
        self._home = None

    @property
    def is_ready(self) -> bool:
        """Whether nothing stands between a call and its body."""
        return self.function is not None

    def prepare(self) -> Any:
        """Give what is called, setting the class up in this thread if none was, and waiting for another caller's setup.

        Raises:
            NestingError: the class is being set up by this very call chain, or would block the engine's loop.
            BaseException: what the constructor or `setup` raised; the next call tries again.
        """
        function = self.function  # as in almost every call
        return self._prepare(is_posted=False) if function is None else function

    def prepare_in_thread(self) -> Any:
        """Give what is called, setting the class up in the thread kept for it; as `prepare` where there is none."""
        function = self.function
        if function is not None:
            return function
        return self._prepare(is_posted=self.thread is not None and not self.thread.is_current_thread())

    def _prepare(self, *, is_posted: bool) -> Any:
        # A loop, for an instance may be unloaded between the end of a set-up and this thread's next test.
        while (function := self.function) is None:
            context = self._own_context()
            set_up, is_mine = self._join_set_up(context, is_posted=is_posted)
            if is_mine and is_posted:
                self._post_set_up(set_up, context)
            elif is_mine or (set_up.is_posted and self.thread is not None and self.thread.is_current_thread()):
                # Another call has posted it to this very thread, which is busy with ours: waiting for it would be
                # waiting for ourselves, so it is done here, and what was posted finds it settled.
                self._run_set_up(set_up, context)
            else:
                set_up.wait_and_log(self.profile.tag)
        return function

    def _post_set_up(self, set_up: _SetUp, context: Context) -> None:
        """Have it set up in its thread, and wait for that; the set-up goes on though the wait is interrupted."""
        thread: Any = self.thread
        try:
            work = thread.post(partial(self._run_set_up, set_up, context), context[current])
        except BaseException as error:  # no thread is to be had, or Ctrl-C: calls that have joined wait for this
            self._settle(set_up, error)
            raise
        waited = LongWait(self.profile.tag, None)
        while not work.wait(waited.left()):
            if thread.is_waited_for:  # by a call that no other line of the log tells of
                waited.report()
        work.result()

    def _run_set_up(self, set_up: _SetUp, context: Context) -> None:
        """Set it up in this thread, unless that attempt was made already."""
        if set_up.is_over():
            set_up.outcome()
            return
        set_up.thread = threading.get_ident()  # a call that sets it up again from in here is refused by this
        try:
            if self.function is None:  # else by another just before, or by one that outlived its caller's wait
                instance = self._make_instance(context)
                if self.thread is not None and self.thread.is_current_thread():
                    self._pinned[id(instance)] = instance  # first: what is seen by others is known to live here
                self._keep_instance(instance)
        except BaseException as error:
            self._settle(set_up, error)
            raise
        self._settle(set_up)

    def _keep_instance(self, instance: Any) -> None:
        # `_instance` first: a call that sees `function` may be over, and unloaded, before the next line.
        self._instance = instance
        self.function = instance.predict
        # Stored first, looked second, as `close` stores `_is_closed` first and takes the instance out second: whichever
        # comes later sees the other's, and of two that both do, `detach` gives the instance to one.
        if self._is_closed and self.detach() is not None:
            try:
                self._run_member(instance, "teardown", self._own_context())
            finally:
                self._pinned.pop(id(instance), None)
            raise EngineClosedError

    async def aprepare(self) -> Any:
        """Give the function of a class that lives on the engine's loop, set up there first if it is not."""
        while (function := self.function) is None:
            context = self._own_context()
            set_up, is_mine = self._join_set_up(context)
            if not is_mine:
                await set_up.wait_task()
                set_up.outcome()
                continue
            try:
                if self.function is None:  # else by another, just before
                    await self._akeep_instance(await self._amake_instance(context))
            except BaseException as error:
                self._settle(set_up, error)
                raise
            self._settle(set_up)
        return function

    def _join_set_up(self, context: Context, *, is_posted: bool = False) -> tuple[_SetUp, bool]:
        """Begin an attempt, or join the one that is under way; tell whether it is this caller's to make."""
        with self._lock:  # nothing of the user's runs under it
            set_up = self._set_up_now
            if set_up is None:
                self._set_up_now = set_up = _SetUp(context.get(current), is_posted)
                return set_up, True
        set_up.refuse_nesting(self.profile.tag)
        return set_up, False

    async def _akeep_instance(self, instance: Any) -> None:
        self._instance = instance
        self.function = instance.predict
        if self._is_closed and self.detach() is not None:  # as in `_keep_instance`
            await _arun_member(instance, "teardown", self._own_context())
            raise EngineClosedError

    def _settle(self, set_up: _SetUp, error: BaseException | None = None) -> None:
        """End an attempt. Its waiters test `function` next, and begin another attempt where there is none."""
        # Before they wake: a waiter that finds neither function nor attempt begins one of its own.
        if self._set_up_now is set_up:  # not in a forked child, where the attempt is the parent's
            self._set_up_now = None  # call-free store: an attempt that began since is not taken out
        if error is None:
            set_up.succeed()
        else:
            set_up.fail(error)
        set_up.finish()

    def _make_instance(self, context: Context) -> Any:
        instance = context.run(invoke, self._target, (), {})
        self._run_member(instance, "setup", context)
        return instance

    def _own_context(self) -> Context:
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

    async def _amake_instance(self, context: Context) -> Any:
        instance = context.run(invoke, self._target, (), {})
        await _arun_member(instance, "setup", context)
        return instance

    @property
    def is_set_up(self) -> bool:
        """Whether there is an instance to tear down."""
        return self._instance is not None

    @property
    def is_thread_busy(self) -> bool:
        """Whether there is a thread kept for it that runs something, or is about to."""
        return self.thread is not None and self.thread.is_busy

    def close(self) -> list[Any]:
        """Take out for good what is to be torn down; an instance that is being set up is torn down once it is made."""
        self._is_closed = True  # before the instance is taken out: see `_keep_instance`
        replaced, self._replaced = self._replaced, []
        instance = self.detach()
        return replaced if instance is None else [*replaced, instance]

    def detach(self) -> Any:
        """Take the instance out, so that the next call sets up a new one; `None` if there is none."""
        instance, self._instance = self._instance, None  # call-free store: of two that take it out, one gets it
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
        # New calls set up another instance from here on; these leases are of those that have this one.
        left = () if self.slots is None else self.slots.wait_for(self.slots.leases, grace)
        if left:
            if self.function is None:
                self._instance, self.function = instance, instance.predict
            else:  # a call has set up the next one meanwhile: both are torn down with the engine
                self._replaced.append(instance)
            raise in_use_error(self.profile.tag, left)
        self.teardown(instance, None, grace)

    def teardown(self, instance: Any, seconds: float | None, busy_for: float | None = None) -> None:
        """Tear an instance down where it lives, from a thread.

        Args:
            instance: what was taken out; `None` does nothing.
            seconds: how long what is async of it may take.
            busy_for: seconds that the thread it lives in may still be busy, or it is not torn down at all; `None` to
                leave that thread to tear it down, without waiting for it, if it is busy.
        """
        if instance is None:
            return
        if self.profile.lives_on_loop and not self._loop.is_current_thread():
            context = self._own_context()
            closing = _arun_member(instance, "teardown", context)
            self._loop.run(closing, context.copy(), f"teardown() of {self.profile.tag}", seconds)
        elif id(instance) in self._pinned:  # `_pinned` keeps it, so its id is no other object's
            self._teardown_in_thread(instance, seconds, busy_for)
        else:
            self._run_member(instance, "teardown", self._own_context(), seconds)
            if self.thread is not None:  # set up elsewhere, but calls in that thread kept it
                self.thread.recheck()

    def _teardown_in_thread(self, instance: Any, seconds: float | None, busy_for: float | None) -> None:
        thread: Any = self.thread
        context, is_left = self._own_context(), busy_for is None and thread.is_busy

        def tear_down() -> None:
            try:
                self._run_member(instance, "teardown", context, seconds)
            except BaseException as error:
                if not is_left:
                    raise
                warn(f"{self.profile.tag}: error in teardown", error)
            finally:
                self._pinned.pop(id(instance), None)

        if thread.is_current_thread():
            tear_down()
            return
        work = thread.post(tear_down, context[current])  # behind what the thread has to do: it serves in order
        if is_left:  # no caller waits for it, so what goes wrong there is logged
            return
        # `withdraw` fails where the thread has begun with it: its end is waited for after all.
        if busy_for is not None and not work.wait(busy_for) and thread.withdraw(work):
            self._pinned.pop(id(instance), None)
            warn(
                f"{self.profile.tag} is not torn down: the thread that set it up, where teardown belongs, is still busy"
            )
            return
        work.result()

    def clear_places(self) -> None:
        """Have the executor decide anew which way calls go."""
        self.places.clear()
        self.is_plain = None

    def after_fork(self) -> None:
        """Have every slot free, and nothing set up that lives on the parent's loop or in a thread of the parent's."""
        self.clear_places()
        self._lock = threading.Lock()
        self._set_up_now = None
        self.slots, self.slots_elsewhere = _all_slots_of(self.profile, self._grace)
        keep_for_parent(*self._replaced, *self._pinned.values())
        self._replaced = []
        if self.profile.lives_on_loop or id(self._instance) in self._pinned:
            keep_for_parent(self.detach())
        self._pinned = {}


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


class _SetUp(SingleFlight):
    """One attempt to set a class up: others that need the class meanwhile wait for it."""

    __slots__ = ("_call", "is_posted", "thread")

    def __init__(self, call: Call | None, is_posted: bool) -> None:  # noqa: FBT001
        super().__init__()
        self._call = call
        self.is_posted = is_posted  # whether the setup waits its turn in the thread kept for the class
        self.thread = threading.get_ident()  # where the setup runs

    def refuse_nesting(self, tag: str) -> None:
        call = current_call()
        is_chain = call is not None and self._call is not None and call.is_within(self._call)
        if is_chain or (self.thread == threading.get_ident() and current_task() is None):
            raise NestingError(f"{tag} is being set up, and its setup calls {tag} again: it would wait for itself", tag)

    def wait_and_log(self, tag: str) -> None:
        waited = LongWait(tag, None)
        while not self.is_over():
            self.wait(waited.left())
            waited.report()
        self.outcome()


class LoadedPredictors:
    """All loaded predictors of one engine: by record where there is a tag, by identity for what callers pass directly.

    What is known of a predictor lives as long as its record, whatever its tag stands for meanwhile; only classes are
    kept, to be torn down with the engine.
    """

    def __init__(self, loop: LoopRunner, threads: ThreadRunner, engine: int, grace: float) -> None:
        """Start empty.

        Args:
            loop: where classes with async methods will live.
            threads: where other classes will, each in one of its own.
            engine: the number that calls know their engine by.
            grace: seconds, as given to each `LoadedPredictor`.
        """
        self._loop = loop
        self._threads = threads
        self._engine = engine
        self._grace = grace
        self._lock = threading.Lock()
        self._by_record: weakref.WeakKeyDictionary[Predictor, LoadedPredictor] = weakref.WeakKeyDictionary()
        self._described: weakref.WeakKeyDictionary[Predictor, LoadedPredictor] = weakref.WeakKeyDictionary()
        self._classes: dict[Hashable, tuple[object, LoadedPredictor]] = {}
        self._profiles: dict[int, tuple[weakref.ref[Any], Profile, tuple[Slots | None, _SlotsElsewhere]]] = {}
        self._kept: list[LoadedPredictor] = []
        renew_after_fork(self)

    def of(self, predictor: Predictor) -> LoadedPredictor:
        """The loaded predictor of a record, importing its target at the first use."""
        loaded = self._by_record.get(predictor)
        if loaded is None:
            target = predictor.load()
            profile = profile_of(predictor.tag, target, predictor.options(target))
            text = predictor.target if isinstance(predictor.target, str) else None
            made = LoadedPredictor(
                profile, target, self._loop, self._engine, text=text, threads=self._threads, grace=self._grace
            )
            # Two threads may import it at once, which Python makes one import; the first to get here is kept.
            loaded = self._by_record.setdefault(predictor, made)
            if loaded is made and profile.is_class:
                self._kept.append(made)
        return loaded

    def find(self, predictor: Predictor) -> LoadedPredictor | None:
        """The loaded predictor of a record, if it has one."""
        return self._by_record.get(predictor)

    def described(self, predictor: Predictor) -> LoadedPredictor | None:
        """The loaded predictor of a record that a runner described and this process has not imported, if any."""
        return self._described.get(predictor)

    def describe(self, predictor: Predictor, told: Mapping[str, Any], runner: str) -> LoadedPredictor:
        """The loaded predictor of a record, made of what a runner told of it, and kept."""
        profile = profile_of_description(predictor.tag, told, predictor.options(None))
        made = LoadedPredictor(profile, None, self._loop, self._engine, text=predictor.target, grace=self._grace)
        made.described_by = runner
        return self._described.setdefault(predictor, made)

    def of_object(self, given: Any) -> LoadedPredictor:
        """The loaded predictor of what a caller passed directly; that of a function is not kept, its profile is."""
        # An alias such as `Model[int]` may be another object at each call.
        name = given if type(given) is types.GenericAlias else id(given)
        kept = self._classes.get(name)
        if kept is not None:
            return kept[1]
        key = given.__func__ if isinstance(given, types.MethodType) else given
        found = self._profiles.get(id(key))
        # Still the same object: the entry of a freed one is dropped by its weak reference, perhaps only after its `id`
        # has become another object's.
        if found is not None and found[0]() is key and found[1].tag == name_of(given):
            return LoadedPredictor(found[1], given, self._loop, self._engine, found[2])
        profile = profile_of(name_of(given), given, options_of(given))
        loaded = LoadedPredictor(profile, given, self._loop, self._engine, threads=self._threads, grace=self._grace)
        if profile.is_class:
            with self._lock:
                return self._classes.setdefault(name, (given, loaded))[1]
        self._keep_profile(key, profile, (loaded.slots, loaded.slots_elsewhere))
        return loaded

    def _keep_profile(self, key: Any, profile: Profile, slots: tuple[Slots | None, _SlotsElsewhere]) -> None:
        number, profiles = id(key), self._profiles
        try:
            reference = weakref.ref(key, lambda _gone: profiles.pop(number, None))
        except TypeError:  # it cannot be referred to weakly: profiled again at every call
            return
        profiles[number] = (reference, profile, slots)

    def __iter__(self) -> Iterator[LoadedPredictor]:
        """Every loaded predictor that may have to be torn down."""
        yield from (loaded for _, loaded in tuple(self._classes.values()))
        yield from tuple(self._kept)

    def loaded(self, stands_for: Callable[[Predictor], bool]) -> tuple[str, ...]:
        """Tags of predictors that are ready here and that `stands_for` says their tags stand for, in order."""
        ready = [record for record, loaded in _items(self._by_record) if loaded.is_ready]
        return tuple(sorted(record.tag for record in ready if stands_for(record)))

    def clear_places(self) -> None:
        """Have the executor decide anew which way the calls of every predictor go."""
        for loaded in self._known():
            loaded.clear_places()

    def _known(self) -> set[LoadedPredictor]:
        by_record = (loaded for records in (self._by_record, self._described) for _, loaded in _items(records))
        return {*self, *by_record}

    def after_fork(self) -> None:
        """Have each loaded predictor start afresh, and no lock or slot held by threads of the parent's."""
        self._lock = threading.Lock()
        self._profiles.clear()
        for loaded in self._known():
            loaded.after_fork()


def _items(
    loaded_predictors: weakref.WeakKeyDictionary[Predictor, LoadedPredictor],
) -> list[tuple[Predictor, LoadedPredictor]]:
    """The records and their loaded predictors, copied: other threads may add some meanwhile."""
    records = [record for reference in loaded_predictors.keyrefs() if (record := reference()) is not None]
    return [(record, loaded_predictors[record]) for record in records]
