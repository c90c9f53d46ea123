"""Test the depth of a JSON text without parsing it."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http import body
from service.http.body import MAX_NESTING, nests_too_deep


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


awkward = st.text(st.sampled_from('[]{}"\\/ \u00e9x'), max_size=12)
values = st.recursive(
    awkward | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward, inner, max_size=3),
    max_leaves=30,
)


@given(value=values, limit=st.integers(0, 5))
def test_depth_is_that_of_the_value(value: Any, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "MAX_NESTING", limit)
        assert nests_too_deep(json.dumps(value).encode()) == (depth(value) > limit)
        assert nests_too_deep(json.dumps(value, ensure_ascii=False).encode()) == (depth(value) > limit)


def test_wide_is_not_deep() -> None:
    assert not nests_too_deep(b"[" + b"[],{}," * 10_000 + b"1]")
    assert not nests_too_deep(b"[" * MAX_NESTING + b"]" * MAX_NESTING)
    assert nests_too_deep(b"[" * (MAX_NESTING + 1))
    assert nests_too_deep(b'{"a":' * (MAX_NESTING + 1))


@pytest.mark.parametrize("text", ["\\", "\\\\", '"', '\\"', '"\\', "[[", "\\[", "]" * 40, "\u00e9"])
def test_no_text_hides_or_fakes_depth(text: str) -> None:
    quoted = json.dumps([text]).encode()
    assert nests_too_deep(b"[" + quoted + b"," + b"[" * MAX_NESTING)
    assert not nests_too_deep(b"[" + quoted + b"," + b"[" * (MAX_NESTING - 1))


@pytest.mark.parametrize("body", [b"[" * 2**23, b"[]," * (2**23 // 3), b'"' * 2**23, b'[\\"' * (2**23 // 3)])
def test_the_largest_bodies_take_a_fraction_of_a_second(body: bytes) -> None:
    started = time.process_time()
    nests_too_deep(body)
    # A tenth of it on the slowest machine seen; a loop in Python takes ten times as long.
    assert time.process_time() - started < 1.5
