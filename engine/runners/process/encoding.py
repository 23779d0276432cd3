"""Predictors as workers get them: each is encoded once, and anew where what it is made of has changed.

Those of installed packages travel by name, others by value. A predictor is known again by the identity of its function,
class or object, which is referred to weakly, so that none is kept alive for having run in a worker.
"""

from __future__ import annotations

import itertools
import types
import weakref
from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import quote, warn
from engine._wire.target_snapshots import Snapshot, defining_modules, is_function
from engine._wire.targets import encode_target
from engine.runners.ending import Ending, Report
from engine.runners.process.offload import report_of, result_of, run_offloaded
from engine.runners.process.queue import Need

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine._predictors.body import Body
    from engine.runners.process.offload import Offload

_keys: Final = itertools.count(1)  # numbers that predictors are known by in workers
_MOST_STRONG: Final = 512  # encoded predictors that may keep objects of the program alive, to know them again


@attrs.define(eq=False)
class EncodedPredictor:
    """A predictor as workers get it.

    Attributes:
        key: the number it is known by in workers.
        tag: its tag, or `module:qualname`.
        text: `"module:name"`, where workers import it; then it has no data.
        need: what its calls need of a worker.
        cache_key: what it is kept by here.
        is_kept: whether later calls of it find it here.
        data: itself, encoded at the first call.
        function: of a bound method, which must not make room for another at its address.
        whole: names of modules of which everything it uses travels by value, also in its inputs.
        snapshot: what it was made of; `None` where a change of that is not, or no longer, noticed.
    """

    key: int
    tag: str
    text: str | None
    need: Need
    cache_key: Any = None
    is_kept: bool = True
    data: bytes | None = None
    function: Any = None
    whole: frozenset[str] = frozenset()
    snapshot: Snapshot | None = None


class EncodedPredictors:
    """The predictors that were encoded for the workers of one runner.

    Args:
        evict: has every worker evict the predictor of a key before its next call.
        offload: has an owner thread do what would keep an event loop for long.
    """

    def __init__(self, evict: Callable[[int], None], offload: Offload) -> None:
        """Start without any."""
        self._evict = evict
        self._offload = offload
        self._encoded: dict[Any, tuple[weakref.ref[Any] | None, EncodedPredictor]] = {}
        self._strong: deque[tuple[Any, int]] = deque()  # those of them that keep objects of the program alive
        self._under_way: dict[Any, Ending] = {}  # single-flight: predictors that an owner thread encodes just now

    def get(self, tag: str, target: Any, limit: float, *, by_value: bool = False) -> EncodedPredictor:
        """A predictor, encoded in this thread if it is not yet, or has changed.

        Raises:
            PayloadError: it cannot travel.
        """
        current = self.current(tag, target, limit, by_value=by_value)
        return current or self._encode(tag, target, limit, _whole_modules(target, by_value=by_value))

    async def aget(self, body: Body) -> EncodedPredictor:
        """The predictor of a call in an asyncio task: an owner thread encodes it, once for all calls that wait for it.

        Raises:
            PayloadError: it cannot travel.
            PredictionCancelledError: the call was stopped meanwhile.
        """
        call, target, limit, by_value = body.call, body.target, body.limit, body.by_value
        cache_key, *_ = _cache_key(call.tag, target, limit, _whole_modules(target, by_value=by_value))
        made: EncodedPredictor | None = None
        while made is None:
            mine = Ending(call.tag)
            encoding = self._under_way.setdefault(cache_key, mine)  # one step: only one of the calls that come begins
            if encoding is mine:
                self._begin(encoding, cache_key, partial(self.get, call.tag, target, limit, by_value=by_value))
            report = await report_of(encoding, body)
            # A call that waited beside finds out for itself what was wrong, or what has changed before it came.
            made = result_of(report) if encoding is mine else self.current(call.tag, target, limit, by_value=by_value)
        return made

    def _begin(self, encoding: Ending, cache_key: Any, get: Callable[[], EncodedPredictor]) -> None:
        def encode(_is_abandoned: Callable[[], bool]) -> EncodedPredictor:
            try:
                return get()
            finally:
                self._under_way.pop(cache_key, None)  # before its report: a call that finds none begins another

        try:
            self._offload(encoding, partial(copy_context().run, run_offloaded, encoding, encode))
        except BaseException as error:
            self._under_way.pop(cache_key, None)
            encoding.finish(Report(error))  # for the calls that wait for it by now
            raise

    def current(self, tag: str, target: Any, limit: float, *, by_value: bool) -> EncodedPredictor | None:
        """A predictor that is encoded as it is now; `None` where it is not yet, or has changed."""
        if isinstance(target, str):
            cache_key: Any = (tag, target, limit)
            found = self._encoded.get(cache_key)
            if found is None:
                found = self._encoded.setdefault(cache_key, (None, _new(tag, limit, target)))
            return found[1]
        whole = defining_modules(target) if by_value else frozenset()
        cache_key, owner, _ = _cache_key(tag, target, limit, whole)
        encoded = self._find(cache_key, owner)
        if encoded is None:
            return None
        change = None if encoded.snapshot is None else encoded.snapshot.change()
        if change is None:
            return encoded
        if is_function(target):
            self._evict(encoded.key)
            return None
        encoded.snapshot = None
        warn(
            f"{tag}: {quote(change)} has changed since it was sent to workers, where a class or an object stays as it "
            "was: unload it there, with unload(..., runner='process'), and the next call sends it as it is now"
        )
        return encoded

    def as_sent(self, tag: str, target: Any, limit: float, *, by_value: bool) -> EncodedPredictor:
        """A predictor as workers may have it, whatever has changed since.

        Raises:
            PayloadError: it was never encoded, and cannot travel.
        """
        cache_key, owner, _ = _cache_key(tag, target, limit, _whole_modules(target, by_value=by_value))
        return self._find(cache_key, owner) or self.get(tag, target, limit, by_value=by_value)

    def _find(self, cache_key: Any, owner: Any) -> EncodedPredictor | None:
        found = self._encoded.get(cache_key)
        # An address is used again, so it alone does not tell that this is the object that was encoded.
        return None if found is None or found[0] is None or found[0]() is not owner else found[1]

    def _encode(self, tag: str, target: Any, limit: float, whole: frozenset[str]) -> EncodedPredictor:
        """Encode a function, class or object as it is now."""
        snapshot = Snapshot(target, whole)  # before the encoding: a change meanwhile is noticed by the next call
        data = encode_target(tag, target, whole)
        cache_key, owner, function = _cache_key(tag, target, limit, whole)
        made = _new(tag, limit, cache_key=cache_key, data=data, function=function)
        made.snapshot, made.whole = snapshot, whole
        try:
            reference = weakref.ref(owner, lambda _gone: self._discard(cache_key, made.key))
        except TypeError:  # it cannot be referred to weakly: sent again with every call
            made.is_kept = False
            return made
        self._encoded[cache_key] = reference, made
        if snapshot.holds and is_function(target):  # what it is made of may in turn keep it alive
            self._strong.append((cache_key, made.key))
            if len(self._strong) > _MOST_STRONG:
                self._discard(*self._strong.popleft())
        return made

    def discard(self, encoded: EncodedPredictor) -> None:
        """Have a predictor encoded anew for its next call, and evicted by every worker."""
        self._discard(encoded.cache_key, encoded.key)

    def _discard(self, cache_key: Any, key: int) -> None:
        found = self._encoded.get(cache_key)
        if found is not None and found[1].key == key:
            del self._encoded[cache_key]
        self._evict(key)


def _whole_modules(target: Any, *, by_value: bool) -> frozenset[str]:
    return defining_modules(target) if by_value else frozenset()


def _cache_key(tag: str, target: Any, limit: float, whole: frozenset[str]) -> tuple[Any, Any, Any]:
    """What a predictor is kept by; the object that is referred to for it, and the function of a method of that."""
    is_method = isinstance(target, types.MethodType)
    owner, function = (target.__self__, target.__func__) if is_method else (target, None)
    return (tag, id(owner), id(function), limit, whole), owner, function


def _new(tag: str, limit: float, text: str | None = None, **facts: Any) -> EncodedPredictor:
    key = next(_keys)
    return EncodedPredictor(key, tag, text, Need(key, limit), **facts)
