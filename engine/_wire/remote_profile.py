"""What a worker tells of a predictor that this process has not imported, and the profile made of that."""

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

# Predictors that this process has not imported


class RemoteProfile(Profile):
    """A profile that a worker told: its binder checks what can be checked here, and leaves the mapping as it is."""

    def make_binder(self, *, check: bool) -> Bind:
        """Make the binder."""
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
    """Tell what a predictor is, in built-in types that any process can read without importing what it needs."""
    from engine._wire.encode import encode_whole  # here and below: only what workers run needs it

    profile = profile_of("", target, {})
    signature = profile.signature
    return {
        "parameters": [
            (each.name, each.kind, each.description, *map(_told, (each.annotation, each.default, each.constraints)))
            for each in signature.parameters
        ],
        "signature": (signature.yields, signature.readable, tuple(signature.given)),
        "first_line": profile.description,
        "is": (profile.is_async, profile.lives_on_loop, profile.is_class, profile.limit == math.inf),
        "options": {name: encode_whole(value) for name, value in options_of(target).items()},
    }


def _told(value: Any) -> bytes | None:
    from engine._wire.encode import encode_whole

    try:
        return encode_whole(value)
    except Exception:
        return None


def profile_of_description(tag: str, told: Mapping[str, Any], own: Mapping[str, Any]) -> Profile:
    """Make a profile of what `describe` told in a worker.

    Args:
        tag: the predictor's tag.
        told: what was told.
        own: the options of its record, which go before those of its mark.
    """
    from engine._wire.decode import decode

    parameters, opaque = [], False
    for name, kind, description, *rest in told["parameters"]:
        annotation, default, constraints = (_heard(each) for each in rest)
        opaque = opaque or annotation is _UNHEARD or constraints is _UNHEARD
        parameters.append(
            Parameter(
                name,
                kind,
                MISSING if annotation is _UNHEARD else annotation,
                default,
                description,
                () if constraints is _UNHEARD else constraints,
            )
        )
    yields, readable, given = told["signature"]
    is_async_, lives_on_loop, is_class, is_plain = told["is"]
    signature = Signature(tuple(parameters), yields, readable, frozenset(given))
    facts = Facts(signature, told["first_line"], is_async_, lives_on_loop, is_class, is_plain, opaque)
    options = {name: decode(data) for name, data in told["options"].items()}
    return profile_with(RemoteProfile, tag, facts, {**options, **own})


class _Unheard:
    """Stands for a value that means nothing in this process."""

    def __repr__(self) -> str:
        return "..."


_UNHEARD: Final = _Unheard()


def _heard(data: bytes | None) -> Any:
    from engine._wire.decode import decode_known

    return _UNHEARD if data is None else decode_known(data, _UNHEARD)
