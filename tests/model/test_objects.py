"""What a forward leaves in objects and containers, wherever a module holds them, is put back."""

import collections
import dataclasses
import gc
import logging
import threading
import time
import unittest.mock
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from zoo import METHODS, penalty_of, same, traces

from torchlipreg import lipschitz_lower_bound
from torchlipreg.model.fixed import fixed_function
from torchlipreg.model.traces.kept import MANY, Kept


class Books:
    """Kept in attributes."""

    def __init__(self):
        self.loss, self.terms, self.sum = None, [], torch.zeros(3)


class Base:
    """Without slots, so that objects of classes below have a dict beside theirs."""


class Beside(Base):
    __slots__ = ("loss", "sum", "terms")

    def __init__(self):
        self.loss, self.terms, self.sum = None, [], torch.zeros(3)
        self.forwards = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Its attributes are set once: what they hold is written."""

    terms: list = dataclasses.field(default_factory=list)
    sum: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(3))
    loss = None


class Logs:
    """As many classes do."""

    def __init__(self):
        self.log, self.loss, self.terms, self.sum = logging.getLogger(__name__), None, [], torch.zeros(3)


class Pair(NamedTuple):
    name: str
    books: object


class Layered:
    """As a cache of keys and values: objects in a list of an object."""

    def __init__(self, books):
        self.layers, self.seen = [books], 0


PLACES = {
    "list": lambda books: [books],
    "dict": lambda books: {"of layer 1": books},
    "tuple": lambda books: (1, books),
    "namedtuple": lambda books: Pair("router", books),
    "list in a tuple": lambda books: ([books],),
    "object": Layered,
}


def inside(place):
    if isinstance(place, (Books, Beside, Frozen, Logs)):
        return place
    held = place.layers if isinstance(place, Layered) else list(place.values()) if isinstance(place, dict) else place
    return inside(held[-1])


class Router(nn.Module):
    def __init__(self, place):
        super().__init__()
        self.linear, self.place = nn.Linear(6, 3), place

    def forward(self, x):
        y, books = self.linear(x), inside(self.place)
        if not isinstance(books, Frozen):
            books.loss = y.square().mean()
        if isinstance(books, Beside):
            books.forwards += 1
        books.terms.append(y.detach())
        books.sum.add_(y.detach().sum(0))
        return y


@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("method", ["tv", "max"])
@pytest.mark.parametrize("make", [Books, Beside, Frozen, Logs])
@pytest.mark.parametrize("place", PLACES)
def test_objects_in_containers_and_in_objects_are_put_back(place, make, method, radius):
    net, x, penalty = Router(PLACES[place](make())), torch.randn(8, 6), penalty_of(method, radius=radius)
    books = inside(net.place)
    for calls in range(1, 4):
        out = net(x)
        loss, total, own = books.loss, books.sum.clone(), books.sum
        penalty(net, x, out)
        assert inside(net.place) is books
        assert books.loss is loss
        assert books.sum is own
        assert torch.equal(own, total)
        assert len(books.terms) == calls
        assert getattr(books, "forwards", calls) == calls


def test_a_cache_of_keys_and_values_is_put_back():
    """transformers' own, whose layers replace their tensors by longer ones."""
    transformers = pytest.importorskip("transformers")
    cache = transformers.DynamicCache()

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.cache = nn.Linear(6, 3), cache

        def forward(self, x):
            y = self.linear(x)
            keys, _ = self.cache.update(y.detach()[None, None], y.detach()[None, None], 0)
            return y + 0 * keys.mean()

    net, x, penalty = Decoder(), torch.randn(8, 6), penalty_of("tv")
    for calls in range(1, 4):
        out = net(x)
        penalty(net, x, out)
        assert cache.get_seq_length() == 8 * calls


class ReadOnly(complex):
    __slots__ = ()


class Assumed(Base):
    """As symbols of computer algebra: classes below answer for a slot by an attribute of the class."""

    __slots__ = ("is_even",)


class Even(Assumed):
    __slots__ = ()
    is_even = True


class Again(Assumed):
    """Declares a slot that the class above has, too."""

    __slots__ = ("is_even",)


class Asks:
    """Answers for attributes that it does not have, and raises what nobody expects."""

    __slots__ = ("count",)

    def __getattr__(self, name):
        raise KeyError(name)


class Proxy:
    """Keeps its attributes elsewhere."""

    def __init__(self):
        object.__setattr__(self, "_of", {"count": 0})

    def __getattribute__(self, name):
        if name not in (values := object.__getattribute__(self, "_of")):
            raise AttributeError(name)
        return values[name]

    def __setattr__(self, name, value):
        object.__getattribute__(self, "_of")[name] = value


@pytest.mark.parametrize("make", [lambda: ReadOnly(1), Even, Again, Asks, Proxy])
@pytest.mark.parametrize("place", [lambda value: value, lambda value: [value]])
def test_classes_of_unusual_make_are_left_as_they_were(make, place):
    value, x = make(), torch.randn(8, 6)
    net = nn.Sequential(nn.Linear(6, 3))
    net.extra = place(value)
    for method in METHODS:
        penalty = penalty_of(method)
        for _ in range(2):
            penalty(net, x)
    kept = Kept()
    kept.note(net)
    assert not kept.differs()
    if isinstance(value, Asks):
        value.count = 3
        assert kept.differs()
        kept.put_back()
        with pytest.raises(KeyError):
            value.count  # noqa: B018


class Counts(nn.Module):
    """Its dict keeps the order of use, and its other one takes no update, as outputs of transformers."""

    def __init__(self):
        super().__init__()
        self.linear, self.recent = nn.Linear(6, 3), collections.OrderedDict(a=1, b=2, c=3)
        self.recent.move_to_end("a")
        self.last = Output(logits=torch.zeros(3))

    def forward(self, x):
        y = self.linear(x)
        self.recent.move_to_end("b")
        self.recent["d"] = 4
        dict.__setitem__(self.last, "hidden", y)
        self.last.logits = y
        return y


class Output(collections.OrderedDict):
    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        object.__setattr__(self, name, value)

    def update(self, *args, **kwargs):
        raise RuntimeError("not here")

    clear = pop = setdefault = __delitem__ = update


@pytest.mark.parametrize("method", METHODS)
def test_dicts_that_keep_an_order_or_refuse_changes(method):
    net, x, penalty = Counts(), torch.randn(8, 6), penalty_of(method)
    logits, own = net.last.logits, net.last
    for _ in range(2):
        penalty(net, x)
        assert [*net.recent] == ["b", "c", "a"]
        assert net.last is own
        assert own.logits is own["logits"] is logits
        assert [*own] == ["logits"]


class Views(nn.Module):
    """Writes a tensor and reads it by another name, or a view of it."""

    def __init__(self, view):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.memory = torch.zeros(2, 4)
        self.seen = [self.memory[1, :3]] if view else self.memory

    def forward(self, x):
        y = self.linear(x)
        self.memory += 1.0
        return y * (self.seen[0] if isinstance(self.seen, list) else self.seen[1, :3]).to(y.dtype)


@pytest.mark.parametrize("view", [True, False])
def test_a_tensor_and_its_view_stay_one(view):
    net, x = Views(view).double(), torch.randn(8, 6, dtype=torch.float64)
    penalty = penalty_of("tv")
    memory, seen = net.memory, net.seen
    penalty(net, x)
    assert net.memory is memory
    assert net.seen is seen
    assert not memory.any()
    norm = torch.linalg.matrix_norm(net.linear.weight, 2)  # of the first forward, whose factor is 1
    assert 0.3 * norm < penalty.estimate <= norm * (1 + 1e-9)
    bound = lipschitz_lower_bound(net.float(), x.float(), radius=0.1)
    assert 0.3 * norm < bound <= norm * (1 + 1e-6)


def counting_in(shared):
    """Let a thread count without a pause in an object that a module holds."""
    net, stop = nn.Sequential(nn.Linear(6, 3)), threading.Event()
    net.shared = shared

    def count():
        while not stop.is_set():
            shared.count += 1
            time.sleep(0)

    return net, stop, threading.Thread(target=count)


class Worker(threading.Thread):
    count = 0


class Locked:
    def __init__(self):
        self.lock, self.count = threading.Lock(), 0


class Loader:
    """Its workers are in a list."""

    def __init__(self):
        self.workers, self.count = [threading.Thread()], 0


@pytest.mark.parametrize("place", [lambda shared: shared, lambda shared: {"of": [shared]}])
@pytest.mark.parametrize("make", [Worker, Locked, Loader])
def test_what_other_threads_write_is_not_taken_back(make, place):
    shared = make()
    net, stop, thread = counting_in(shared)
    net.shared = place(shared)
    x, penalty = torch.randn(8, 6), penalty_of("tv")
    thread.start()
    try:
        for _ in range(20):
            before = shared.count
            penalty(net, x)
            assert shared.count >= before
    finally:
        stop.set()
        thread.join()
    kept = Kept()
    kept.note(net)
    assert all(values is not vars(shared) for values, _ in [*kept.of_modules, *kept.of_objects])


def test_modules_of_an_object_with_a_lock_are_frozen_all_the_same():
    net, x, shared, penalty = nn.Sequential(nn.Linear(6, 3)), torch.randn(8, 6), Locked(), penalty_of("tv")
    net.shared = shared
    penalty(net, x)
    shared.head = nn.BatchNorm1d(3)
    model, before = Through(net), traces(shared.head)
    penalty(model, x)
    assert same(traces(shared.head), before)


class Through(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.shared.head(self.net(x))


def test_objects_with_many_attributes_are_known_by_their_number():
    net, index, x = nn.Sequential(nn.Linear(6, 3)), Base(), torch.randn(8, 6)
    vars(index).update({f"word {i}": [i] for i in range(MANY + 1)})
    net.index = index
    kept = Kept()
    kept.note(net)
    assert len(kept.containers) == 1
    index.new = 1
    assert kept.differs()
    kept.put_back()
    assert not hasattr(index, "new")
    assert len(vars(index)) == MANY + 1
    penalty_of("tv")(net, x)


def test_a_dict_of_parameters_and_buffers_that_is_made_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(16, 6, dtype=torch.float64)
    net(x)
    for training in (True, False):
        net.train(training)
        owned = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        before = {name: value.clone() for name, value in owned.items()}
        values = [penalty_of("tv")(model, x) for model in (lambda z, owned=owned: functional_call(net, owned, z), net)]
        assert all(torch.equal(owned[name], value) for name, value in before.items())
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)


class Strange(type):
    """A class of classes that cannot be hashed."""

    def __eq__(self, other):
        return False


class Unhashable(metaclass=Strange):
    pass


class Backwards(tuple):
    def __iter__(self):
        raise RuntimeError("not here")


class Raises:
    @property
    def __dict__(self):
        raise ValueError("not here")


def proxy_of(value):
    Unhashable.kept = value
    return weakref.proxy(value)


PROXIES = {
    "a module": lambda net: weakref.proxy(net),
    "a dead module": lambda net: weakref.proxy(nn.Linear(1, 1)),
    "a dict": lambda net: proxy_of(Output(logits=1)),
    "a mock of a dict": lambda net: unittest.mock.MagicMock(spec=dict),
    "a mock of a module": lambda net: unittest.mock.MagicMock(spec=nn.Module),
    "of no hash": lambda net: Unhashable(),
    "a tuple": lambda net: Backwards((1, [2])),
    "a dict that raises": lambda net: Raises(),
    "an optimizer": lambda net: torch.optim.Adam(net.parameters()),
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("make", PROXIES.values(), ids=PROXIES)
def test_what_says_to_be_another_is_taken_for_what_it_is(make, deep):
    net, x, penalty = nn.Sequential(nn.Linear(6, 3)), torch.randn(8, 6), penalty_of("tv")
    value = make(net)
    object.__setattr__(net, "extra", [value, (value,)] if deep else value)
    for _ in range(2):
        assert penalty(net, x).isfinite()


def test_nothing_is_kept_alive():
    alive = []
    for _ in range(3):
        net = nn.Sequential(nn.Linear(6, 3))

        class Own:
            __slots__ = ("of",)

            def model(self, net=net):
                return net

        net.own, net.lock = Own(), threading.Lock()
        penalty_of("tv")(net, torch.randn(8, 6))
        alive.append(weakref.ref(net))
        del net, Own
    gc.collect()
    assert sum(of() is not None for of in alive) <= 1  # the frame's own


class Decoding(dict):
    """Reads its entries in its own way."""

    def __getitem__(self, name):
        return ("decoded", super().__getitem__(name))

    def __iter__(self):
        return super().__iter__()


class Late(nn.Module):
    """Makes modules, parameters and buffers in its forward; counts in an array, and in a long list."""

    def __init__(self):
        super().__init__()
        self.linear, self.extra, self.heads = nn.Linear(6, 3), None, nn.ModuleDict()
        self.counts, self.ring, self.at, self.raw = np.zeros(3), [None] * 1_500, 0, Decoding(a=1)

    def forward(self, x):
        y = self.linear(x)
        if self.extra is None:
            self.extra = nn.Identity()
            self.heads[str(len(x))] = nn.Identity()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("seen", torch.zeros(()))
        self.counts += 1
        for row in y.detach():
            self.ring[self.at] = row
            self.at += 1
        self.raw["b"] = 2
        return y * self.scale


@pytest.mark.parametrize("method", METHODS)
def test_what_is_registered_in_a_forward_is_taken_away(method):
    net, x, penalty = Late(), torch.randn(8, 6), penalty_of(method)
    penalty(net, x)
    assert net.extra is None
    assert sorted(net.state_dict()) == ["linear.bias", "linear.weight"]
    assert not net.heads
    assert not net.counts.any()
    assert all(row is None for row in net.ring)
    assert dict.items(net.raw) == {"a": 1}.items()


class Length(list):
    def __len__(self):
        raise RuntimeError("not here")


class Kinds(nn.Module):
    """Collects in kinds of containers of its own, and forgets a name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.user, self.long = collections.UserList([1]), collections.deque(range(MANY + 1))
        self.memory, self.length = Memory(), Length([1])
        self.set = set(range(1_000))
        [self.set.discard(i) for i in range(990)]

    def forward(self, x):
        self.user.append(1)
        self.long.append(1)
        self.memory.rows += 1
        list.append(self.length, 2)
        return self.linear(x)


class Memory(torch.utils.data.Dataset):
    rows = 0


def test_containers_of_other_kinds_are_put_back():
    net, x, penalty = Kinds(), torch.randn(8, 6), penalty_of("tv")
    for _ in range(2):
        penalty(net, x)
    assert (len(net.user), len(net.long), net.memory.rows, list.copy(net.length)) == (1, MANY + 1, 0, [1])
    kept = Kept()
    kept.note(net)
    assert not kept.differs()


def test_a_name_of_a_closure_that_a_forward_deletes_comes_back():
    net, note = nn.Linear(6, 3), "here"

    def forward(z):
        nonlocal note
        note = len(z)
        del note
        return net(z)

    penalty = penalty_of("tv")
    for _ in range(2):
        penalty(forward, torch.randn(8, 6))
    assert note == "here"


def test_arrays_of_a_whole_data_set_are_not_copied():
    net = nn.Linear(6, 3)
    net.images = [np.zeros((16, 16, 3)) for _ in range(2_000)]
    kept = Kept()
    kept.note(net)
    assert sum(array.size for array, _ in kept.arrays) <= 1 << 20


def test_a_tensor_of_two_names_stays_one():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.a = self.b = torch.ones(3)
            self.names = [self.a]

        def forward(self, x):
            return self.linear(x) * (2.0 if self.a is self.b is self.names[0] else 1.0)

    net, x = Two(), torch.randn(8, 6)
    penalty = penalty_of("tv")
    penalty(net, x)
    assert penalty.estimate > torch.linalg.matrix_norm(net.linear.weight, 2)


def test_tensors_of_a_whole_data_set_are_not_copied_in_each_call():
    net, x = nn.Sequential(nn.Linear(6, 3), nn.Identity()), torch.randn(8, 6)
    net.examples = [[{"image": torch.zeros(3, 64, 64)} for _ in range(20)] for _ in range(20)]
    net[1].own = own = torch.zeros(3)  # for which there is room all the same
    with fixed_function(net) as f:
        copied = [t.numel() for t in f.state.private_tensors()]
        assert net[1].own is not own
    assert net[1].own is own
    assert 0 < sum(copied) <= 1 << 20
    penalty_of("tv")(net, x)


@pytest.mark.parametrize("kind", ["closure", "kwargs", "object in kwargs"])
def test_a_state_outside_of_modules_is_put_back_and_each_forward_starts_from_it(kind):
    net, books, x = nn.Linear(6, 3).double(), {"offset": 0.0, "seen": []}, torch.randn(8, 6, dtype=torch.float64)
    held = Layered(books) if kind == "object in kwargs" else books

    def forward(z, books=None):
        books = books.layers[0] if isinstance(books, Layered) else books
        books["offset"] += 1.0
        books["seen"].append(len(z))
        return net(z) * books["offset"]

    def closed(z):
        return forward(z, held)

    penalty = penalty_of("tv")
    value = penalty(closed, x) if kind == "closure" else penalty(forward, x, model_kwargs={"books": held})
    assert books == {"offset": 0.0, "seen": []}
    u, v = penalty.pairs
    torch.testing.assert_close(value, ((net(v) - net(u)).norm(dim=1) / (v - u).norm(dim=1)).square().mean())
