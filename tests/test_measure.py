"""lipschitz_lower_bound: a lower bound, close to the truth where that is known, from any kind of data set."""

import contextlib
import math
import sys
from functools import partial

import oracles
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import Seen

from torchlipreg import LipschitzPenalty, difference_quotient, gradient_ratio, lipschitz_lower_bound, operator_norm
from torchlipreg.outputs import per_position

NORMS = [1, 2, math.inf]
TRACTABLE = [(p, q) for p in NORMS for q in NORMS if p == 1 or q == math.inf or p == q == 2]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def linear_map(shape, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(shape[1], shape[0]).double()
    return model, model.weight.detach()


@pytest.mark.parametrize("radius", [None, 0.1, 0.0])
@pytest.mark.parametrize(("p", "q"), TRACTABLE)
@pytest.mark.parametrize("shape", [(5, 20), (64, 10), (1, 30)])
def test_never_above_the_operator_norm_of_a_linear_map(shape, p, q, radius):
    model, matrix = linear_map(shape)
    found = lipschitz_lower_bound(model, draw(32, shape[1]), radius=radius, input_norm=p, output_norm=q)
    bound = oracles.matrix_norm(matrix, p, q)
    assert found <= bound * (1 + 1e-6)
    assert found >= bound * (0.99 if p == q == 2 else 0.8)


def test_float32_rounding_adds_no_more_than_a_per_cent():
    torch.manual_seed(0)
    model = nn.Linear(20, 5)
    found = lipschitz_lower_bound(model, draw(64, 20, dtype=torch.float32))
    assert found == pytest.approx(torch.linalg.svdvals(model.weight.detach())[0].item(), rel=0.01)


def test_it_finds_the_steep_part_that_the_data_surround():
    def kink(z):  # slope 50 between 0.45 and 0.55, slope 1 elsewhere
        return z + 49 * (z.clamp(0.45, 0.55) - 0.45)

    x = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(1)
    assert 20 < lipschitz_lower_bound(kink, x) <= 50 * (1 + 1e-9)


def test_radius_zero_is_the_largest_operator_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x = draw(32, 6)
    exact = operator_norm(model, x).max().item()
    assert lipschitz_lower_bound(model, x, radius=0, steps=100) == pytest.approx(exact, rel=1e-3)


def test_more_steps_find_no_less():
    model, _ = linear_map((20, 20))
    found = [lipschitz_lower_bound(model, draw(8, 20), radius=0.1, steps=k) for k in (1, 5, 25)]
    assert found == sorted(found)
    assert found[0] < 0.98 * found[-1]


def test_batches_of_every_kind_give_the_same():
    model, _ = linear_map((3, 6))
    x = draw(9, 6)
    dataset = TensorDataset(x, torch.arange(9))
    expected = lipschitz_lower_bound(model, x, batch_size=4)
    loader = DataLoader(dataset, batch_size=4)  # tuples; the last batch has one row
    assert lipschitz_lower_bound(model, loader) == expected
    assert lipschitz_lower_bound(model, list(x.split(4))) == expected
    assert lipschitz_lower_bound(model, (batch for batch in x.split(4))) == expected
    with pytest.raises(TypeError, match=r"`inputs`.*TensorDataset.*DataLoader"):  # whose items are samples
        lipschitz_lower_bound(model, dataset)


@pytest.mark.parametrize("sizes", [[256, 1], [255, 1, 1], [256, 1, 2]])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_row_that_is_alone_in_its_batch_counts(sizes, as_tensor):
    def kink(z):  # slope 50 from 5 on, where only the row is that is alone
        return z + 49 * (z - 5).clamp_min(0)

    x = torch.cat([torch.linspace(0, 1, sum(sizes) - 1, dtype=torch.float64), torch.tensor([10.0])]).unsqueeze(1)
    x[sizes[0] :] = x[sizes[0] :].flip(0)
    inputs = x if as_tensor else list(x.split(sizes))
    found = max(lipschitz_lower_bound(kink, inputs, seed=seed) for seed in range(5))  # not each draws the row
    assert 20 < found <= 50 * (1 + 1e-9)


def test_the_progress_bar_is_shown_on_request_only(capsys):
    pytest.importorskip("tqdm")
    model, _ = linear_map((3, 6))
    lipschitz_lower_bound(model, draw(8, 6))
    assert capsys.readouterr().err == ""
    lipschitz_lower_bound(model, draw(8, 6), progress=True)
    assert "lipschitz_lower_bound" in capsys.readouterr().err


def test_one_row_batches_need_a_radius():
    model, matrix = linear_map((3, 6))
    rows = list(draw(4, 6).split(1))
    with pytest.raises(ValueError, match=r"`inputs`.*`radius`"):
        lipschitz_lower_bound(model, rows)
    assert lipschitz_lower_bound(model, rows, radius=0.1) == pytest.approx(oracles.matrix_norm(matrix, 2, 2), rel=0.01)


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match="`inputs`"):
        lipschitz_lower_bound(nn.Linear(2, 2), [], radius=0.1)


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = lipschitz_lower_bound(model, draw(16, 6, dtype=torch.float32))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)
    assert first == lipschitz_lower_bound(model, draw(16, 6, dtype=torch.float32))


def test_bounds_and_no_grad():
    seen = Seen()

    def model(z):
        seen.append(z.detach())
        return z**2

    x = torch.rand(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = lipschitz_lower_bound(model, x, bounds=(0, 1))
    assert min(z.min() for z in seen.items) >= 0
    assert max(z.max() for z in seen.items) <= 1
    assert 1 < found <= 2


def test_the_output_may_be_named():
    model, matrix = linear_map((3, 6))
    bound = oracles.matrix_norm(matrix, 2, 2)
    of_logits = lipschitz_lower_bound(lambda z: {"aux": z, "logits": model(z)}, draw(16, 6))
    of_aux = lipschitz_lower_bound(lambda z: {"aux": z, "logits": model(z)}, draw(16, 6), output=lambda y: y["aux"])
    assert of_logits == pytest.approx(bound, rel=0.01)
    assert of_aux == pytest.approx(1, rel=1e-6)


def test_a_constant_model_has_bound_zero():
    assert lipschitz_lower_bound(lambda z: 0 * z, draw(8, 3)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": torch.zeros(4, 3, dtype=torch.long)}, TypeError, "`inputs`.*floating"),
        ({"inputs": [["text"]]}, TypeError, "`inputs`"),
        *(({"inputs": bad}, TypeError, "`inputs`.*but got") for bad in (3, None, nn.Linear(3, 2))),
        ({"inputs": torch.full((4, 3), math.nan)}, ValueError, "`inputs`.*finite"),
        ({"inputs": torch.ones(4, 3).to_sparse()}, TypeError, "`inputs`.*dense"),
        ({"bounds": (5, 6)}, ValueError, "`bounds`.*`inputs` spans"),
        ({"normalization": ((0, 0), (1, 1))}, ValueError, "`inputs`.*2 channels"),
        ({"radius": -1.0}, ValueError, "`radius`"),
        ({"input_norm": 3}, ValueError, "`input_norm`"),
        ({"output_norm": 3}, ValueError, "`output_norm`"),
        ({"steps": 0}, ValueError, "`steps`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"bounds": (1, 0)}, ValueError, "`bounds`"),
        ({"model": lambda z: z.sum()}, ValueError, "batch axis"),
        ({"model": lambda z: z.detach()}, ValueError, "carry a gradient"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        lipschitz_lower_bound(**{"model": nn.Linear(3, 2), "inputs": torch.randn(4, 3), **arguments})


@pytest.mark.parametrize(
    ("name", "bad", "error"),
    [
        ("output", 3, TypeError),
        *(("seed", bad, TypeError) for bad in ("a", 1.5, None, True)),
        ("seed", -1, ValueError),
        *(("progress", bad, TypeError) for bad in ("no", None, 1)),
    ],
)
def test_arguments_are_checked_before_the_data_are_read(name, bad, error):
    def batches():
        raise AssertionError("read")
        yield

    with pytest.raises(error, match=f"`{name}`"):
        lipschitz_lower_bound(nn.Linear(3, 2), batches(), **{name: bad})


def test_the_progress_bar_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"torchlipreg\[progress\]"):
        lipschitz_lower_bound(torch.nn.Linear(6, 3), torch.randn(8, 6), progress=True)


def test_a_measurement_warns_once_and_at_the_line_that_asked_for_it():
    x = draw(64, 6)
    with pytest.warns(UserWarning, match="depend on the other rows") as caught:
        lipschitz_lower_bound(lambda z: z - z.mean(0), x, radius=0.1, batch_size=16)
    assert len(caught) == 1
    assert caught[0].filename == __file__


HALF_INSIDE = {
    "cast before": lambda net: lambda z: net(z.bfloat16()),
    "cast back": lambda net: lambda z: net(z.bfloat16()).float(),
}


@pytest.mark.parametrize("radius", [None, 3.0, 0.5])
@pytest.mark.parametrize("of_net", HALF_INSIDE.values(), ids=HALF_INSIDE)
def test_half_precision_inside_makes_no_bound_too_large(of_net, radius):
    net = nn.Linear(8, 4, bias=False).bfloat16().requires_grad_(False)
    exact = torch.linalg.matrix_norm(net.weight.double(), 2).item()
    found = lipschitz_lower_bound(of_net(net), torch.randn(64, 8), radius=radius)
    assert 0.5 * exact < found <= exact


class Masked(nn.Module):
    """Of float64, with a mask of float32."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4, bias=False).double()

    def forward(self, x):
        return self.linear(x) * (x[:, :1] < 100.0).float() + torch.ones(4)


class Narrow(Masked):
    """Of float64, with a part in float32."""

    def forward(self, x):
        return nn.functional.linear(x.float(), self.linear.weight.float()).double() + 3.0


@pytest.mark.parametrize("radius", [1e-3, 1e-8])
def test_a_mask_of_float32_takes_nothing_from_a_bound_in_float64(radius):
    torch.manual_seed(0)
    net = Masked()
    exact = torch.linalg.matrix_norm(net.linear.weight, 2).item()
    assert 0.99 * exact < lipschitz_lower_bound(net, draw(64, 8).double(), radius=radius) <= exact * (1 + 1e-12)


ROUNDED = {
    "complex64": lambda x: torch.view_as_real(torch.view_as_complex(x.view(-1, 4, 2)).to(torch.complex64)) + 1e4,
    "complex64 and back": lambda x: (x.to(torch.complex64) + 1e4).to(torch.complex128).real,
    "float8": lambda x: x.to(torch.float8_e4m3fn).float(),
    "coarser float8": lambda x: x.to(torch.float8_e5m2).float(),
}


@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("f", ROUNDED.values(), ids=ROUNDED)
def test_other_narrow_dtypes_make_no_bound_too_large(f, radius):
    assert lipschitz_lower_bound(f, draw(64, 8).double(), radius=radius) <= 1.0


@pytest.mark.parametrize("bad", [3, None, "net"])
def test_a_model_that_cannot_be_called(bad):
    with pytest.raises(TypeError, match=r"`model` to be callable, but got [a-zA-Z]+\.$"):
        lipschitz_lower_bound(bad, draw(8, 4))


def test_one_number_that_a_model_logs_is_not_its_precision():
    class Logging(Masked):
        def forward(self, x):
            y = self.linear(x)
            self.log = y.detach().mean().float()
            return y

    penalty = LipschitzPenalty("tv", radius=1e-6, input_norm=2, scale=1.0)
    penalty(Logging(), draw(64, 8).double())  # warnings are errors


@pytest.mark.parametrize("radius", [1e-3, 1e-6])
def test_float32_inside_of_float64_is_seen(radius):
    """At the smaller radius, a difference of roundings, the penalty takes the derivative."""
    torch.manual_seed(0)
    net, x = Narrow(), draw(64, 8).double()
    exact = torch.linalg.matrix_norm(net.linear.weight, 2).item()
    assert lipschitz_lower_bound(net, x, radius=radius) <= exact
    penalty = LipschitzPenalty("tv", radius=radius, input_norm=2, scale=1.0)
    with contextlib.nullcontext() if radius > 1e-4 else pytest.warns(UserWarning, match="less than torch.float32 res"):
        penalty(net, x)
    assert 0.3 * exact < penalty.estimate <= exact * 1.001


@pytest.mark.compiler
def test_the_ratio_of_a_compiled_model_names_the_way_out():
    net = torch.compile(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), backend="aot_eager")
    x, penalty = torch.randn(8, 6), LipschitzPenalty("tv")
    out = net(x)
    with pytest.raises(RuntimeError, match="module that was compiled"):
        gradient_ratio(out.square().sum(), penalty(net, x, out), net.parameters())


@pytest.mark.parametrize("radius", [None, 0.1, 0.0])
def test_outputs_that_count_one_by_one(radius):
    """Of a map that repeats its input each position moves as far as the input, whatever the number of positions."""
    torch.manual_seed(0)
    x = torch.rand(8, 1, 4, 4)
    found = lipschitz_lower_bound(
        lambda z: z * 1.0, x, radius=radius, input_norm=math.inf, output_norm=2, output=per_position
    )
    assert found == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    "f",
    [
        lambda z: torch.sin(50 * z.float()),  # float64 goes in, less comes out
        lambda z: torch.sin(50 * _float32_only(z)),
    ],
    ids=["narrows", "refuses float64"],
)
def test_the_derivative_is_one_at_less_precision_too(f):
    """As it was, the difference over a distance of one was returned."""
    x = torch.linspace(0.1, 0.4, 7).view(-1, 1)
    truth = (50 * torch.cos(50 * x.double())).abs().max().item()
    assert truth * 0.999 <= lipschitz_lower_bound(f, x, radius=0.0) <= truth * (1 + 1e-6)


def _float32_only(z):
    if z.dtype == torch.float64:
        raise TypeError("float32 alone")
    return z


@pytest.mark.parametrize(
    "measure",
    [
        lambda f, x: difference_quotient(f, x, x + 1),
        operator_norm,
    ],
)
def test_a_function_is_named_as_the_measure_names_it(measure):
    with pytest.raises(TypeError, match="argument `f` to be callable, but got int"):
        measure(3, torch.rand(2, 3))


def test_a_loader_of_dicts_is_told_how_to_pick():
    batches = [{"x": torch.rand(2, 3)}]
    with pytest.raises(TypeError, match=r'a batch of type dict. Pick the tensor: \(batch\["x"\] for batch in loader\)'):
        lipschitz_lower_bound(nn.Linear(3, 2), batches)


@pytest.mark.parametrize("radius", [0.1, 0.5, None])
@pytest.mark.parametrize("p", NORMS)
def test_no_point_outside_of_the_bounds_counts(p, radius):
    """As it was, the partners that the search began at could lie outside."""
    x = torch.cat([torch.zeros(16, 1), torch.rand(16, 1)])
    f = lambda z: 1000 * torch.relu(-z) + z  # noqa: E731
    found = lipschitz_lower_bound(f, x, radius=radius, bounds=(0, 1), input_norm=p)
    assert found == pytest.approx(1.0, rel=1e-4)


def test_the_largest_position_is_climbed():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.rand(6, 2, 5, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda row: conv(row.view(1, 2, 5, 5)).flatten(), x[0].flatten())
    truth = torch.linalg.matrix_norm(jacobian.view(3, 25, 50).transpose(0, 1), 2).max().item()
    for radius in (0.1, None, 0.0):
        found = lipschitz_lower_bound(conv, x, radius=radius, output=per_position, steps=50)
        assert 0.99 * truth <= found <= truth * (1 + 1e-6)


@pytest.mark.parametrize(
    "f", [torch.sqrt, lambda z: torch.where(z[:, :1] > 0.97, torch.nan, z)], ids=["outside", "in the data"]
)
def test_what_is_not_finite_is_no_bound(f):
    torch.manual_seed(0)
    x = torch.rand(200, 4)
    x[100:, 0] = 0.0
    with pytest.raises(ValueError, match=r"finite outputs"):
        lipschitz_lower_bound(f, x, radius=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_operator_norm_of_a_half_precision_network_is_not_above_the_truth(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 10)).to(dtype)
    matrix = net[2].weight.double() @ net[1].weight.double() @ net[0].weight.double()
    truth = torch.linalg.matrix_norm(matrix, 2).item()
    found = operator_norm(net, torch.rand(20, 32, dtype=dtype))
    assert truth * 0.9999 <= found.min()
    assert found.max() <= truth * (1 + 1e-6)


def test_the_ratio_counts_complex_parameters():
    w = nn.Parameter(torch.tensor([1 + 2j]))
    loss, penalty = (w * w.conj()).real.sum(), 3 * (w * w.conj()).real.sum()
    assert gradient_ratio(loss, penalty, [w]) == pytest.approx(3.0)
    imaginary = nn.Parameter(torch.tensor([2j]))
    assert gradient_ratio(imaginary.imag.sum(), imaginary.imag.sum(), [imaginary]) == pytest.approx(1.0)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e15, 1e30])
def test_a_quotient_of_any_units_is_that_in_float64(scale, p):
    _, matrix = linear_map((4, 6))
    x, x_prime = scale * draw(8, 6), scale * draw(8, 6, seed=1)
    expected, found = (
        difference_quotient(lambda z: z @ matrix.to(z).T, x.to(dtype), x_prime.to(dtype), input_norm=p, output_norm=p)
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("p", "q"), TRACTABLE)
@pytest.mark.parametrize("scale", [1e-25, 1e20, 1e25])
def test_operator_norm_of_any_units_is_that_in_float64(scale, p, q):
    _, matrix = linear_map((4, 6))
    slope = (scale * matrix).float()
    found = operator_norm(lambda z: nn.functional.linear(z, slope), draw(2, 6).float(), input_norm=p, output_norm=q)
    expected = scale * oracles.matrix_norm(matrix, p, q)
    torch.testing.assert_close(found.double(), torch.full((2,), float(expected)).double(), rtol=1e-4, atol=0)


def test_the_ratio_counts_a_parameter_that_is_listed_twice_once():
    first, second = (nn.Parameter(torch.tensor(value)) for value in (1.0, 2.0))
    loss, penalty = first**2 + second**2, first * second
    once = gradient_ratio(loss, penalty, [first, second])
    assert once == pytest.approx(0.5)
    assert gradient_ratio(loss, 3 * first + second, [first, first, second]) == pytest.approx((10 / 20) ** 0.5)


class Cancelling(nn.Module):
    """A linear map with complex weights, of which a large number is taken off at the end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.spectrum = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
        self.shift = nn.Parameter(torch.full((4,), 1000.0))

    def forward(self, x):
        there, here = (torch.fft.rfft(z) @ torch.diag(self.spectrum) for z in (x + self.shift, self.shift))
        return torch.fft.irfft(there - here, n=4)


@pytest.mark.parametrize("radius", [None, 1e-1, 1e-3])
def test_what_cancels_inside_makes_no_bound_too_large(radius):
    """Such a forward refused float64; less 16 roundings of the output, bounds were up to a sixth above the truth."""
    net, x = Cancelling(), draw(64, 4, dtype=torch.float32)
    spectrum = net.spectrum.detach().to(torch.complex128)
    matrix = torch.fft.irfft(torch.fft.rfft(torch.eye(4, dtype=torch.float64)) * spectrum, n=4)
    exact = torch.linalg.matrix_norm(matrix, 2).item()
    assert 0.999 * exact < lipschitz_lower_bound(net, x, radius=radius) <= exact * (1 + 1e-9)
    assert torch.get_default_dtype() == torch.float32
    assert torch.full((1,), 1.0).dtype == torch.float32


CANCELLING = {  # by a number that is added and taken off again: the identity
    "float64": (torch.float64, lambda x, c: (x + c) - c),
    "behind a cast": (torch.float32, lambda x, c: ((x.float() + c) - c).to(x)),
    "a number of its own": (torch.float32, lambda x, c: (x + torch.tensor(c)).float() - c),
}


OFFSETS = {"float64": (1e-8, 1.0, 1e3, 1e5, 1e8), "behind a cast": (1.0, 1e3), "a number of its own": (1.0, 1e3)}


@pytest.mark.parametrize("radius", [None, 1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize(("kind", "offset"), [(kind, offset) for kind in OFFSETS for offset in OFFSETS[kind]])
def test_an_offset_inside_makes_no_bound_too_large(kind, offset, radius):
    dtype, f = CANCELLING[kind]
    found = lipschitz_lower_bound(partial(f, c=offset), draw(64, 4, dtype=dtype), radius=radius)
    assert 0.99 <= found <= 1 + 1e-9


@pytest.mark.parametrize("radius", [None, 0.5])
def test_what_derivatives_do_not_show_counts_by_its_values(radius):
    """A step is steeper than the slopes beside it, and a detached part moves outputs, too."""
    x = draw(64, 4)
    assert lipschitz_lower_bound(lambda z: z + (z > 0.25), x, radius=radius) > 1.5
    assert lipschitz_lower_bound(lambda z: z + 10 * (z > 0.25), x, radius=radius) > 10
    assert lipschitz_lower_bound(lambda z: z + z.detach(), x, radius=radius) == pytest.approx(2.0, rel=1e-6)


UNDEFINED = {  # at some points, at which the slope says nothing
    "norm": lambda z: z.square().sum(1, keepdim=True).sqrt(),
    "root": lambda z: z.relu().sqrt(),
    "angle": lambda z: torch.atan2(z[:, :1], z[:, 1:2]),
}


@pytest.mark.filterwarnings("ignore:The gradient of argument `model` to its input is NaN")
@pytest.mark.parametrize("kind", UNDEFINED)
def test_a_slope_that_is_not_defined_takes_nothing_from_a_bound(kind):
    x, f = torch.cat([torch.zeros(8, 4), draw(56, 4)]).double(), UNDEFINED[kind]
    found = lipschitz_lower_bound(f, x, radius=0.5)
    assert 0.99 < found < 20
    assert kind != "norm" or found <= 1 + 1e-9


class Packed(nn.Module):
    """Scales that are held as bytes, or weights that are drawn anew from a seed."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("bytes", torch.tensor([3.0, 3.0]).view(torch.uint8))

    def weights(self):
        if self.kind == "bytes":
            return torch.eye(4)[:, :2] * self.bytes.view(torch.float32)  # of float64 it would be one number, 32
        return torch.randn(4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float32)

    def forward(self, x):
        return x @ self.weights().to(x.dtype)


@pytest.mark.parametrize("kind", ["bytes", "seed"])
def test_double_precision_reads_the_same_bits_and_draws_the_same_numbers(kind):
    net, x = Packed(kind), draw(64, 4, dtype=torch.float32)
    exact = torch.linalg.matrix_norm(net.weights().double(), 2).item()
    for radius in (None, 0.1):
        assert 0.99 * exact < lipschitz_lower_bound(net, x, radius=radius) <= exact * (1 + 1e-9)


@pytest.mark.filterwarnings("ignore:The gradient of argument `model` to its input is NaN")
def test_a_gradient_that_does_not_exist_is_told():
    """Of distances at zero; as it was, no point moved, and only radius 0 told."""

    head = nn.Linear(5, 2)

    def distances(x):
        return head(((x[:, :, None] - x[:, None]) ** 2).sum(-1).sqrt().sum(2))

    x = draw(8, 5, 3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="to its input is NaN at points"):
        LipschitzPenalty("tv", radius=0.1)(distances, x)
    with pytest.warns(UserWarning, match="`operator_norm` has no value there"):
        operator_norm(distances, x)
