"""Maps tags to predictors: what the user registered, and what installed plugins offer.

Plugins are looked for at the first use, not before, and again for a tag that is not there, once that may give something
else. A tag that two sources claim belongs to neither, whatever the order they came in: it is left out of the mapping,
listed among the problems, and refused when asked for. Nothing here imports a predictor.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

import attrs

from engine._errors import (
    DuplicatePredictorError,
    EngineError,
    InvalidTagError,
    PluginError,
    PredictorNotFoundError,
    quote,
)
from engine._fork import renew_after_fork
from engine._predictors.predictor import OPTIONS, Predictor, mark_of, name_of, tag_of
from engine._registry.plugins import Plugins
from engine._registry.sources import PREDICTORS, Offer, Origin, Problem, one_line, title_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Sequence, ValuesView

    from pluggy import HookRelay


_COMPARED: Final = 256  # tags that a misspelt one is compared with: 1 ms, and the caller may be an event loop


@attrs.frozen(eq=False)
class _Registration(Offer):
    """What the user registered; `replaces` says it stands above whatever plugins offer under its tag."""

    replaces: bool = False


class _SimilarTags:
    """Many tags by how they begin and by how they end, to find those that a misspelt one may have been meant for."""

    def __init__(self, tags: Iterable[str]) -> None:
        self._forward = sorted(tags)
        self._backward = sorted(tag[::-1] for tag in self._forward)

    def of(self, tag: str) -> list[str]:
        return [*_nearest(tag, self._forward), *(each[::-1] for each in _nearest(tag[::-1], self._backward))]


def _nearest(text: str, ordered: list[str]) -> list[str]:
    place, reach = bisect_left(ordered, text), _COMPARED // 4
    return ordered[max(0, place - reach) : place + reach]


@attrs.define(eq=False)
class _View:
    """Everything known since plugins were looked for, to be read without a lock.

    One store changes one tag, and what goes over all tags goes over a copy: a reader sees a tag as it was or as it is.

    Attributes:
        ready: the tags with one claim.
        clashes: the tags with more.
        runners: the runners with one claim, by name and in its order.
        runner_claims: the sources of all of them.
    """

    ready: dict[str, Offer] = attrs.field(factory=dict)
    clashes: dict[str, tuple[Offer, ...]] = attrs.field(factory=dict)
    runners: Mapping[str, object] = attrs.field(factory=dict)
    runner_claims: Mapping[str, Sequence[Origin]] = attrs.field(factory=dict)
    _similar: _SimilarTags | None = None  # made once a tag is missed

    def put(self, tag: str, claims: Sequence[Offer]) -> None:
        """Store what claims a tag now; the caller holds the lock of writers."""
        self._similar = None
        if len(claims) == 1:
            self.ready[tag] = claims[0]
            self.clashes.pop(tag, None)
            return
        if claims:
            self.clashes[tag] = tuple(claims)
        else:
            self.clashes.pop(tag, None)
        self.ready.pop(tag, None)

    def near(self, tag: str) -> list[str]:
        """What a misspelt tag is compared with: of many tags, those that begin or end most like it."""
        similar = self._similar
        if similar is None:
            tags = [*self.ready.copy(), *self.clashes.copy()]
            if len(tags) <= _COMPARED:
                return tags
            self._similar = similar = _SimilarTags(tags)
        return [each for each in dict.fromkeys(similar.of(tag)) if each in self.ready or each in self.clashes]


class Registry(Mapping[str, Predictor]):
    """The predictors of one engine, by tag, and the runners that plugins offer; users see it as `Predictors`.

    Threads may share it. The first use imports installed plugins (never predictors) while other threads that need the
    registry wait; how long an import takes is not bounded. `register` does not wait for it, and from then on nothing
    but a tag that is not there does. `must_look` tells a caller on an event loop beforehand.

    Args:
        predictors: `Predictor` records, or functions and classes marked with `@predictor`.
        discover: whether installed plugins are looked for.
        plugins: plugin objects or modules to use besides installed ones, and runners as they are.
        block: names of plugins, entry points or distributions to leave alone, besides those in the environment
            variable `PREDICTOR_ENGINE_BLOCK`.
        reserved: names of runners that no plugin may offer, since they are the engine's own.

    Attributes:
        on_change: called with a tag after what it stands for has changed, outside every lock.

    Raises:
        DuplicatePredictorError: two of the predictors have one tag.
        InvalidTagError: a tag is not of the form `@owner/name`.
        TypeError: something given cannot be a predictor or a plugin.
        ValueError: a runner that is given has a name that is reserved, or that another one has.
    """

    def __init__(
        self,
        predictors: Iterable[Any] = (),
        *,
        discover: bool = True,
        plugins: Iterable[object] = (),
        block: Iterable[str] = (),
        reserved: Iterable[str] = (),
    ) -> None:
        self._reserved = frozenset(reserved)
        self.on_change: Callable[[str], None] | None = None
        self._plugins = Plugins(plugins, block=block, discover=discover, reserved=self._reserved)
        self._own: dict[str, _Registration] = {}
        self._offered: dict[str, tuple[Offer, ...]] = {}
        self._removed: set[str] = set()
        self._view: _View | None = None
        self.after_fork()
        renew_after_fork(self)
        for given in predictors:
            self.register(given)

    def after_fork(self) -> None:
        """Make locks, for a thread that holds the old ones may be gone."""
        # Reentrant, for a plugin may use the registry while it is being imported; it sees what there is so far.
        self._discovery = threading.RLock()
        self._is_discovering = False
        self._discoverer = 0  # the thread that looks for plugins
        # Never held while foreign code runs.
        self._writing = threading.Lock()

    # Reading

    def __getitem__(self, tag: str) -> Predictor:
        """The predictor registered under `tag`; see `retrieve`."""
        return (self._ready_offer(tag) or self._search(tag_of(tag))).predictor

    def _ready_offer(self, tag: object) -> Offer | None:
        """The fast path: one look into a dict. Anything but the exact tag, and all before the first use, is slow."""
        view = self._view
        return view.ready.get(tag) if view is not None and isinstance(tag, str) else None

    def retrieve(self, tag: str) -> Predictor:
        """Give the predictor registered under a tag; for one that is not there plugins are looked for again, if due.

        Raises:
            InvalidTagError: the text is no tag.
            PredictorNotFoundError: nothing is registered under it; tags that look like it are named.
            DuplicatePredictorError: two sources claim it.
            PluginError: it belongs to a plugin or an entry point that could not be used.
        """
        return self[tag]

    def __contains__(self, tag: object) -> bool:
        """Whether `retrieve` would give a predictor; never raises."""
        try:
            return tag_of(tag) in self._current_view().ready
        except InvalidTagError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._current_view().ready.copy()))

    def __len__(self) -> int:
        return len(self._current_view().ready)

    def items(self) -> ItemsView[str, Predictor]:
        """The tags and their predictors as they are now: one that is unregistered meanwhile stays among them."""
        return self._snapshot().items()

    def values(self) -> ValuesView[Predictor]:
        """The predictors as they are now, in the order of their tags."""
        return self._snapshot().values()

    def __eq__(self, other: object) -> bool:
        """Whether it is the same registry: comparing contents would import plugins."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        view = self._view
        return f"<Registry of {len(view.ready)} predictors>" if view is not None else "<Registry, not read yet>"

    def __reduce__(self) -> Any:
        """Refuse to travel."""
        raise TypeError("an engine's predictors cannot be pickled: make an engine, or a list of Predictor records")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be used: plugins, entry points, and tags that two sources claim."""
        return self._problems_in(self._current_view())

    @property
    def hook(self) -> HookRelay:
        """Pluggy's relay, to call the plugins' other hooks by."""
        self._current_view()
        return self._plugins.hook

    def runners(self) -> Mapping[str, object]:
        """The runners that plugins offer, by name; a name that two of them claim is left out, and a problem."""
        return self._current_view().runners

    def source_of_runner(self, name: str) -> str:
        """Where a runner comes from, such as `engine-ray 0.1 (plugin ray)`; empty where no plugin offers it."""
        return " and by ".join(sorted(map(str, self._current_view().runner_claims.get(name, ()))))

    def source(self, tag: str) -> str:
        """Where a predictor comes from, such as `predictor-engine-muna 0.1 (entry point)`.

        Raises:
            EngineError: as `retrieve` does.
        """
        return str(self._search(tag_of(tag)).origin)

    def standing(self, tag: str) -> Predictor | None:
        """The record that a tag stands for now, as far as is known; looks for nothing."""
        view = self._view
        offer = self._own.get(tag) if view is None else view.ready.get(tag)
        return None if offer is None else offer.predictor

    def stands_for(self, record: Predictor) -> bool:
        """Whether this very record is what its tag stands for now, as far as is known; looks for nothing."""
        return self.standing(record.tag) is record

    def source_of(self, record: Predictor) -> str:
        """Where a record comes from; where it is registered no longer, what its target is called."""
        offer = self._current_view().ready.get(record.tag)
        if offer is not None and offer.predictor is record:
            return str(offer.origin)
        return str(Origin(name_of(record.target), "registered"))

    # Discovery, for callers that must not wait for it

    @property
    def is_read(self) -> bool:
        """Whether plugins have been looked for, or there can be none."""
        return self._view is not None or not self._plugins.are_sought

    def must_look(self, tag: str) -> bool:
        """Whether asking for a tag would look for plugins, which may take long.

        Raises:
            InvalidTagError: the text is no tag.
        """
        if self._ready_offer(tag) is not None:
            return False
        tag, view = tag_of(tag), self._view
        if view is None:
            return not self.is_read and self._discoverer != get_ident()  # a plugin's import gets what there is so far
        return tag not in view.ready and tag not in view.clashes and self._plugins.is_due

    def must_look_for_runner(self, name: str) -> bool:
        """Whether only plugins that are still to be looked for, or again, may have a runner."""
        return not self.is_read or (name not in self.runners() and self._plugins.is_due)

    def look(self) -> None:
        """Look for plugins, or again for what may be there by now; threads that come meanwhile wait for this look."""
        self._discover(again=self._view is not None)

    def known(self, tag: str) -> Predictor:
        """The predictor registered under a tag as far as is known; raises as `retrieve` does, and never looks again."""
        return (self._ready_offer(tag) or self._search(tag_of(tag), may_look=False)).predictor

    # Writing

    def register(self, marked_or_tag: Any, target: Any = None, *, replace: bool = False, **options: Any) -> Predictor:
        """Add a predictor in place of one of the same name under its tag, or, with `replace`, of any.

        Raises:
            DuplicatePredictorError: the tag is taken.
            InvalidTagError: the tag is not of the form `@owner/name`.
            TypeError: the target cannot be called, or there is no such option.
            ValueError: an option has no meaning.
        """
        predictor = _record(marked_or_tag, target, options)
        offer = _Registration(predictor, Origin(name_of(predictor.target), "registered"), replaces=replace)
        with self._writing:
            self._own[predictor.tag] = self._checked(offer)
            self._update(predictor.tag)
        self._announce([predictor.tag])
        return predictor

    def unregister(self, tag: str) -> Predictor:
        """Take a predictor out, wherever it came from, and give its record.

        Raises:
            EngineError: as `retrieve` does.
        """
        predictor = self[tag]
        with self._writing:
            self._own.pop(predictor.tag, None)
            self._removed.add(predictor.tag)
            self._update(predictor.tag)
        self._announce([predictor.tag])
        return predictor

    # Inside

    def _search(self, tag: str, *, may_look: bool = True) -> Offer:
        view = self._current_view()
        if may_look and self.must_look(tag):
            view = self._discover(again=True)
        offer = view.ready.get(tag)
        if offer is None:
            error, cause = self._refusal(tag, view)
            raise error from cause
        return offer

    def _refusal(self, tag: str, view: _View) -> tuple[EngineError, EngineError | None]:
        """Why there is no such predictor, and the failed plugin that may have had it."""
        if tag in view.clashes:
            return DuplicatePredictorError(tag, _sources(view.clashes[tag])), None
        problems = self._plugins.problems
        for problem in problems:
            if tag in problem.claims:
                return _plugin_error(problem), None
        from difflib import get_close_matches  # only a misspelt tag needs it

        error = PredictorNotFoundError(tag, get_close_matches(tag, view.near(tag)))
        # An entry point of the first group claims nothing but its name; what else failed may have had any tag.
        suspects = [problem for problem in problems if problem.group != PREDICTORS]
        for problem in suspects:
            error.add_note(f"It may belong to a plugin that failed: {problem}")
        return error, _plugin_error(suspects[0]) if suspects else None

    def _current_view(self) -> _View:
        return self._view or self._discover()

    def _discover(self, *, again: bool = False) -> _View:
        with self._discovery:
            if self._is_discovering:
                return self._view_of(_by_tag(self._plugins.offers))
            # Threads that waited here while another looked take what it found.
            if self._view is not None and not (again and self._plugins.is_due):
                return self._view
            self._is_discovering, self._discoverer = True, get_ident()
            try:
                self._plugins.load()
            finally:
                self._is_discovering, self._discoverer = False, 0
            with self._writing:
                self._offered = _by_tag(self._plugins.offers)
                before, self._view = self._view, self._view_of(self._offered)
            view = self._view
        for problem in self._problems_in(view):
            self._plugins.report(problem)
        self._announce(_changed(before, view))
        return view

    def _problems_in(self, view: _View) -> tuple[Problem, ...]:
        clashes = [_clash(tag, offers) for tag, offers in sorted(view.clashes.copy().items())]
        rivalries = [
            self._runner_clash(name, claims) for name, claims in view.runner_claims.items() if name not in view.runners
        ]
        return (*self._plugins.problems, *clashes, *rivalries)

    def _runner_clash(self, name: str, claims: Sequence[Origin]) -> Problem:
        sources = " and by ".join(sorted(map(str, claims)))
        reason = f"it is offered by {sources}"
        if name in self._reserved:
            reason += ", and the engine has a runner of that name: give it another"
        return Origin(name, "runner").problem(reason, [name])

    def _checked(self, offer: _Registration) -> _Registration:
        """Check that nothing else has the tag; a registration made again keeps its standing."""
        tag, name = offer.predictor.tag, offer.origin.name
        before = self._own.get(tag)
        if before is not None and before.origin.name == name:
            return attrs.evolve(offer, replaces=before.replaces or offer.replaces)
        offers = _by_tag(self._plugins.offers) if self._is_discovering else self._offered
        rivals = [rival for rival in self._claims(tag, offers) if name_of(rival.predictor.target) != name]
        if rivals and not offer.replaces:
            raise DuplicatePredictorError(tag, _sources([*rivals, offer]))
        return offer

    def _update(self, tag: str) -> None:
        """Take a change of a tag into the view, where there is one already."""
        if self._view is not None:
            self._view.put(tag, self._claims(tag, self._offered))

    def _view_of(self, offers: Mapping[str, tuple[Offer, ...]]) -> _View:
        view = _View()
        for tag in {*self._own.copy(), *offers}:
            view.put(tag, self._claims(tag, offers))
        offered: dict[str, list[tuple[object, Origin]]] = {}
        for name, runner, origin in self._plugins.runners:
            offered.setdefault(name, []).append((runner, origin))
        view.runner_claims = {name: [origin for _, origin in claims] for name, claims in sorted(offered.items())}
        sole = {name: claims[0][0] for name, claims in offered.items() if len(claims) == 1}
        view.runners = {name: sole[name] for name in sorted(sole.keys() - self._reserved)}
        return view

    def _claims(self, tag: str, offers: Mapping[str, tuple[Offer, ...]]) -> list[Offer]:
        """What claims a tag; the same target again, by the user or by one distribution, is no claim of its own."""
        own = self._own.get(tag)
        claims: list[Offer] = [] if own is None else [own]
        if tag in self._removed or (own is not None and own.replaces):
            return claims
        for offer in offers.get(tag, ()):
            if not any(_is_same(offer, rival) for rival in claims):
                claims.append(offer)
        return claims

    def _snapshot(self) -> dict[str, Predictor]:
        return {tag: offer.predictor for tag, offer in sorted(self._current_view().ready.copy().items())}

    def _announce(self, tags: Iterable[str]) -> None:
        for tag in tags:
            if self.on_change is not None:
                self.on_change(tag)


def _record(marked_or_tag: Any, target: Any, options: Mapping[str, Any]) -> Predictor:
    """Make the record out of what `register` was given."""
    if isinstance(marked_or_tag, str):
        tag = tag_of(marked_or_tag)
        if target is None:
            raise TypeError(f"a tag needs a target: register({tag!r}, function)")
        return _predictor(tag, target, options)
    if target is not None:
        raise TypeError(
            f"a target is given together with a tag, register('@owner/name', target), not {quote(marked_or_tag)}"
        )
    if isinstance(marked_or_tag, Predictor):
        return attrs.evolve(marked_or_tag, **_known(options)) if options else marked_or_tag
    marked = mark_of(marked_or_tag)
    if "tag" not in marked:
        raise TypeError(
            f"{quote(marked_or_tag)} has no tag: mark it with @predictor(tag), or give register() the tag first"
        )
    return _predictor(marked["tag"], marked_or_tag, options)


def _predictor(tag: str, target: Any, options: Mapping[str, Any]) -> Predictor:
    marked = {name: value for name, value in mark_of(target).items() if name != "tag"}
    return Predictor(tag, target, **_known({**marked, **options}))


def _known(options: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise TypeError(
            f"{', '.join(map(quote, unknown))} is no option of a predictor; the options are {', '.join(OPTIONS)}"
        )
    return options


def _by_tag(offers: Iterable[Offer]) -> dict[str, tuple[Offer, ...]]:
    found: dict[str, list[Offer]] = {}
    for offer in offers:
        found.setdefault(offer.predictor.tag, []).append(offer)
    return {tag: tuple(each) for tag, each in found.items()}


def _is_same(one: Offer, other: Offer) -> bool:
    """Whether two offers under one tag do not compete."""
    is_same_target = name_of(one.predictor.target) == name_of(other.predictor.target)
    return is_same_target and (isinstance(other, _Registration) or one.origin.claimant == other.origin.claimant)


def _sources(offers: Collection[Offer]) -> list[str]:
    """What claims a tag, in an order of its own; with the target where the source alone does not tell them apart."""
    texts = {str(offer.origin): offer for offer in offers}
    if len(texts) < len(offers):
        return sorted(one_line(f"{offer.origin} as {name_of(offer.predictor.target)}") for offer in offers)
    return sorted(texts)


def _clash(tag: str, offers: Collection[Offer]) -> Problem:
    """The problem of a tag that several sources claim."""
    installed = [offer.origin.distribution for offer in offers]
    return Problem(
        distribution=", ".join(
            sorted(title_of(distribution) for distribution in installed if distribution is not None)
        ),
        entry_point=tag,
        value=", ".join(sorted(name_of(offer.predictor.target) for offer in offers)),
        group="",
        reason=one_line(str(DuplicatePredictorError(tag, _sources(offers)))),
        claims=(tag,),
    )


def _plugin_error(problem: Problem) -> PluginError:
    return PluginError(problem.entry_point, problem.distribution, problem.reason, problem.traceback)


def _changed(before: _View | None, now: _View) -> list[str]:
    """The tags that stood for a predictor and do not stand for the same one now."""
    stood = before.ready if before is not None else {}
    return [
        tag for tag, offer in stood.items() if tag not in now.ready or now.ready[tag].predictor is not offer.predictor
    ]
