"""What changes the result of a stage, and the address that follows from it before there is a result.

The *address* is a hash of kind, stage version, the spec fields that differ from the default they were introduced with,
and the addresses of the inputs. See docs/formats/artifacts.md.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, JsonValue, SerializerFunctionWrapHandler, model_serializer
from pydantic.fields import FieldInfo

NOT_ADDRESSED: dict[str, JsonValue] = {"addressed": False}
"""`json_schema_extra` of a spec's field that decides whether and when there is a result, never which: it stays out of
the address."""

_COMPUTED = object()


class Spec(BaseModel):
    """What changes the result of a stage. Frozen; unknown fields are refused.

    A field whose default changed after its introduction carries the old one as
    `json_schema_extra={"introduced_with": …}`, so that the addresses of old results stay right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def but(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})

    @property
    def engine_tokens(self) -> int:
        """Return how many tokens an engine is asked for, an answer; 0: the stage asks none."""
        return 0

    @property
    def engine_slots(self) -> int:
        """Return how many requests an engine should take at once, where the stage asks one."""
        return 1

    @property
    def engine_states(self) -> "Spec | None":
        """Return what says which states an engine is asked for, by themselves or with answers; None: none."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return the fields that differ from the default they were introduced with, as JSON values."""
        return {name: _identity(getattr(self, name)) for name in self._told()}

    def _told(self) -> Iterable[str]:
        for name, field in type(self).model_fields.items():
            if not field.exclude and _addressed(field) and getattr(self, name) != _introduced_with(field):
                yield name


class TargetId(Spec):
    """Which target model, exactly: hashes, so that no path enters an address."""

    config: str
    """Hash of the model's config."""
    weights: str
    """Hash of the weight files, or the revision of a hub id."""
    tokenizer: str
    """Hash of the tokenizer files."""
    template: str
    """Hash of the chat template."""
    proof: str = ""
    """The proof that a reading by the general rule has to pass wherever this target is loaded (families/general.py);
    empty where the target is of a family that is known."""

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = serialize(self)
        return told if told.get("proof") else {name: value for name, value in told.items() if name != "proof"}

    @property
    def digest(self) -> str:
        """Return one short name for all of it."""
        return digest(self.identity())[:16]


def address_of(kind: str, version: int, spec: Spec, inputs: Mapping[str, str]) -> str:
    """Return the address that a stage's result will have.

    Args:
        kind: the artifact kind.
        version: the stage's version, raised when its output changes for the same spec.
        spec: what changes the result.
        inputs: name -> address of each input.
    """
    told = {"kind": kind, "version": version, "spec": spec.identity(), "inputs": dict(inputs)}
    return digest(told)[:32]


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _addressed(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return not isinstance(extra, dict) or bool(extra.get("addressed", True))


def _introduced_with(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "introduced_with" in extra:
        return extra["introduced_with"]
    if field.default_factory is not None:  # computed where it is read: always told
        return _COMPUTED
    return field.default


def _identity(value: Any) -> Any:
    """Return a spec value as JSON: nested specs by their own identity."""
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
