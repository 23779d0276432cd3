"""The profile of a predictor that only a worker has imported: described there, made here of the description."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from engine._predictors.annotations import MISSING
from engine._predictors.parameter import Parameter
from engine._predictors.profile import Facts, Profile, options_of, profile_of, profile_with
from engine._predictors.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable

    Bind = Callable[[Mapping[str, Any] | None], tuple[tuple[Any, ...], dict[str, Any]]]


class RemoteProfile(Profile):
    """A profile by a worker's description: its binder checks what can be checked here, and keeps the mapping."""

    def make_binder(self, *, check: bool) -> Bind:
        """Make a function that binds no inputs, but checks what can be checked here, and gives all of them by name."""
        bind = self.signature.binder(self.tag, check=check)

        def keep(inputs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if not isinstance(inputs, Mapping):
                bind(inputs)
                return (), {}
            kept = dict(inputs)
            bind(kept)
            return (), kept

        return keep


def describe(target: Any) -> dict[str, Any]:
    """Describe a predictor in built-in types, which any process can read without importing what the predictor needs."""
    from engine._wire.encode import encode_whole  # here and below: only what workers run needs it

    profile = profile_of("", target, {})
    signature = profile.signature
    return {
        "parameters": [
            (each.name, each.kind, each.description, *map(_encoded, (each.annotation, each.default, each.constraints)))
            for each in signature.parameters
        ],
        "signature": (signature.yields, signature.readable, tuple(signature.given)),
        "first_line": profile.description,
        "is": (profile.is_async, profile.lives_on_loop, profile.is_class, profile.limit == math.inf),
        "options": {name: encode_whole(value) for name, value in options_of(target).items()},
    }


def _encoded(value: Any) -> bytes | None:
    from engine._wire.encode import encode_whole

    try:
        return encode_whole(value)
    except Exception:
        return None


def profile_of_description(tag: str, description: Mapping[str, Any], own: Mapping[str, Any]) -> Profile:
    """Make a profile of what `describe` returned in a worker.

    Args:
        tag: the predictor's tag.
        description: what `describe` returned.
        own: the options of the predictor's record, which precede those of its decorator.
    """
    from engine._wire.decode import decode

    parameters, opaque = [], False
    for name, kind, text, *rest in description["parameters"]:
        annotation, default, constraints = (_decoded(each) for each in rest)
        opaque = opaque or annotation is _OPAQUE or constraints is _OPAQUE
        parameters.append(
            Parameter(
                name,
                kind,
                MISSING if annotation is _OPAQUE else annotation,
                default,
                text,
                () if constraints is _OPAQUE else constraints,
            )
        )
    yields, readable, given = description["signature"]
    is_async, lives_on_loop, is_class, is_plain = description["is"]
    signature = Signature(tuple(parameters), yields, readable, frozenset(given))
    facts = Facts(signature, description["first_line"], is_async, lives_on_loop, is_class, is_plain, opaque)
    options = {name: decode(data) for name, data in description["options"].items()}
    return profile_with(RemoteProfile, tag, facts, {**options, **own})


class _Opaque:
    """Stands for a value that cannot be rebuilt in this process."""

    def __repr__(self) -> str:
        return "..."


_OPAQUE: Final = _Opaque()


def _decoded(data: bytes | None) -> Any:
    from engine._wire.decode import decode_known

    return _OPAQUE if data is None else decode_known(data, _OPAQUE)
