"""torch's own module database, with which torch tests its modules."""

import functools

import torch
from torch import Tensor, nn

from sweep.sample import Sample, Skip

EACH = 8  # samples of a module at most: LinearCrossEntropyLoss has hundreds


def database():
    try:
        from torch.testing._internal.common_modules import module_db
    except ImportError as error:
        raise Skip(f"torch's module database cannot be imported: {error}") from error
    return {info.name.removeprefix("nn."): info for info in module_db}


@functools.cache
def inputs_of(name):
    info = database()[name]
    torch.manual_seed(0)
    found = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=False)
    return info.module_cls, [each for each in found if each.forward_input is not None]


def names():
    found = []
    for name in database():
        count = len(inputs_of(name)[1])
        step = max(1, -(-count // EACH))
        found += [f"{name} {i}" for i in range(0, count, step)]
    return found


def builds(name):
    name, _, number = name.rpartition(" ")
    module, inputs = inputs_of(name)
    one = inputs[int(number)]

    def build():
        net = module(*one.constructor_input.args, **one.constructor_input.kwargs)
        args, kwargs = list(one.forward_input.args), dict(one.forward_input.kwargs)
        places = [i for i, z in enumerate(args) if isinstance(z, Tensor) and z.is_floating_point()]
        named = [k for k, z in kwargs.items() if isinstance(z, Tensor) and z.is_floating_point()]
        if not places and not named:
            raise Skip("no floating input")
        x = args[places[0]] if places else kwargs[named[0]]
        if any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in net.modules()):
            net.double()(*args, **kwargs)  # makes its parameters

        def call(m, z):
            if places:
                return m(*args[: places[0]], z, *args[places[0] + 1 :], **kwargs)
            return m(*args, **{**kwargs, named[0]: z})

        return Sample(net, x.detach(), call, bounds=(0.0, 1.0) if name == "BCELoss" else None)

    return [build]
