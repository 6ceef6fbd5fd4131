"""Checkpoints from strangers: an error that says what is wrong, before anything is changed."""

import copy

import pytest
import torch
from zoo import mlp, penalty_of, same

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(
        [
            torch.zeros(()),
            torch.full((4, 6), float("nan")),
            torch.zeros(1).expand(10**12),  # of which a copy would fill any memory
            torch.zeros(4, 6, dtype=torch.int64),
            torch.zeros(4, 6).to_sparse(),
            torch.zeros(4, dtype=torch.bool),
        ]
    ),
)


def paths(value, path=()):
    """Every place in nested dicts and lists."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


def refused(penalty, state):
    """Return why a state is refused, None if it is not."""
    try:
        penalty.load_state_dict(state)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def state_of(method, ascent):
    torch.manual_seed(0)
    penalty, net, x = penalty_of(method, ascent=ascent), mlp(), torch.randn(8, 6)
    penalty(net, x, model_kwargs=None)
    return penalty, net, x


@pytest.mark.parametrize(("method", "ascent"), [("max", "adam"), ("sum", "sgd"), ("tv", "power")])
def test_any_field_may_be_strange(method, ascent):
    penalty, net, x = state_of(method, ascent)
    good = penalty.state_dict()
    places = [path for path in paths(good) if path]

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.sampled_from(places), STRANGE, st.booleans())
    def strange(path, value, remove):
        state = copy.deepcopy(good)
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        if remove:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        loaded = penalty_of(method, ascent=ascent)
        before = loaded.state_dict()
        error = refused(loaded, state)
        if error is None:  # then it was one that a penalty could have had
            if path[0] not in ("weight", "radius"):  # which may be anything that a user may set
                loaded(net, x)
        else:
            assert "`" in error
            assert same(loaded.state_dict(), before)

    strange()


def test_nan_pairs_are_refused():
    penalty, _, _ = state_of("max", "sgd")
    state = penalty.state_dict()
    state["ranks"][0]["pairs"]["x"][1, 2] = float("nan")
    with pytest.raises(ValueError, match="finite numbers as pairs"):
        penalty.load_state_dict(state)
