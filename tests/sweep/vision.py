"""timm and torchvision: the smallest member of every family."""

import re

import torch

from sweep.sample import Sample, Skip, check_size

SIZES = (32, 64, 96, 128, 224, 256)
SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxt",
    "micro",
    "tiny",
    "mobile",
    "_xs",
    "_s",
    "050",
    "lite",
    "18",
    "small",
)
CANDIDATES = 5  # of a family that are built, without memory, to count their parameters
BATCH = 2


def images(size):
    return torch.rand(BATCH, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Timm:
    @staticmethod
    def names():
        import timm

        return timm.list_modules()

    @staticmethod
    def builds(family):
        import timm

        name = smallest_of(family)
        own = timm.get_pretrained_cfg(name)
        own = own.input_size[-1] if own is not None else 224

        def build(size, **arguments):
            def make():
                net = timm.create_model(name, num_classes=5, **arguments)
                check_size(net)
                return Sample(net, images(size), detail=name)

            return make

        ways = []
        for size in sorted({*SIZES, own}):
            ways += [build(size), build(size, img_size=size)]
        return ways


def smallest_of(family):
    import timm

    def rank(name):
        return min((i for i, word in enumerate(SMALL) if word in name), default=len(SMALL)), len(name)

    counts = {}
    members = sorted(timm.list_models(module=family), key=rank)
    for name in members[:CANDIDATES]:
        try:
            with torch.device("meta"):
                counts[name] = sum(p.numel() for p in timm.create_model(name, num_classes=5).parameters())
        except Exception:  # looks at a tensor's value
            continue
    if not members:
        raise Skip("no models")
    return min(counts, key=counts.get) if counts else members[0]


class Torchvision:
    CLASSIFICATION = (
        *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
        *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
        *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
        *("swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
    )
    SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")

    @staticmethod
    def names():
        return [*Torchvision.CLASSIFICATION, *Torchvision.SEGMENTATION]

    @staticmethod
    def builds(name):
        import torchvision

        arguments = {"weights": None, "num_classes": 5}
        if name in Torchvision.SEGMENTATION:
            arguments["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            arguments["init_weights"] = True

        def build(size, **more):
            def make():
                net = torchvision.models.get_model(name, **arguments, **more)
                check_size(net)
                return Sample(net, images(size))

            return make

        sizes = (32, 64, 96, 128, 224, 299)
        by_size = re.match(r"vit|maxvit", name)
        ways = []
        for size in sizes:
            if by_size:
                ways.append(build(size, **{"input_size": (size, size)} if "maxvit" in name else {"image_size": size}))
            ways.append(build(size))
        return ways
