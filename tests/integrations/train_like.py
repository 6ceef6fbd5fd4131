"""A training script that uses timm's tasks as timm's own train.py (1.0.31) does: same imports, same order of calls.

Compile comes before DDP, resume before both; the saver lives on rank 0; the loss is divided in place.
"""

import argparse
import logging
import os
from contextlib import nullcontext

import torch
import yaml
from timm import utils
from timm.data import Mixup, create_dataset, create_loader
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    evaluation_sample_limit,
    load_task_ema_checkpoint,
    resume_task_checkpoint,
)

_logger = logging.getLogger("train")

config_parser = argparse.ArgumentParser(add_help=False)
config_parser.add_argument("-c", "--config", default="")

parser = argparse.ArgumentParser(description="A small double of train.py")
parser.add_argument("data", nargs="?")
parser.add_argument("--data-dir")
parser.add_argument("--model", default="test_resnet")
parser.add_argument("--kd-distill-type", choices=("logit", "feature"))
parser.add_argument("--img-size", type=int, default=32)
parser.add_argument("--drop-path", type=float)
parser.add_argument("-b", "--batch-size", type=int, default=4)
parser.add_argument("--opt-betas", type=float, nargs="+")
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--grad-accum-steps", type=int, default=1)
parser.add_argument("--clip-grad", type=float)
parser.add_argument("--no-aug", action="store_true")
parser.add_argument("--mixup", type=float, default=0.0)
parser.add_argument("--cutmix", type=float, default=0.0)
parser.add_argument("--amp", action="store_true")
parser.add_argument("--channels-last", action="store_true")
parser.add_argument("--model-ema", action="store_true")
parser.add_argument("--torchcompile", nargs="?", const="inductor")
parser.add_argument("--log-interval", type=int, default=2)
parser.add_argument("--recovery-interval", type=int, default=0)
parser.add_argument("--val-interval", type=int, default=1)
parser.add_argument("--in-chans", type=int, default=3)
parser.add_argument("--prefetcher", action="store_true")
parser.add_argument("--resume", default="")
parser.add_argument("--device", default="cpu")
parser.add_argument("--output", default="output")
parser.add_argument("--no-device-ids", action="store_true", help="without it DDP refuses a CPU, as with train.py")


def parse_args():
    config, remaining = config_parser.parse_known_args()
    if config.config:
        with open(config.config) as f:
            parser.set_defaults(**yaml.safe_load(f))
    args = parser.parse_args(remaining)
    args.data_dir = args.data_dir or args.data
    return args


def create_task(args, model, device):
    common = {"device": device, "verbose": utils.is_primary(args)}
    common["criterion_kwargs"] = {"smoothing": 0.1, "soft_targets": args.mixup > 0 or args.cutmix > 0}
    if args.kd_distill_type is None:
        return ClassificationTask(model=model, **common)
    kind = {"logit": LogitDistillationTask, "feature": FeatureDistillationTask}[args.kd_distill_type]
    return kind(student_model=model, teacher_model=create_model("test_vit", num_classes=2, img_size=160), **common)


def main():
    utils.setup_default_logging()
    args = parse_args()
    device = utils.init_distributed_device(args)
    utils.random_seed(42, args.rank)
    chosen = {"num_classes": 2, "drop_path_rate": args.drop_path, "in_chans": args.in_chans}
    model = create_model(args.model, **chosen).to(device)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    amp_autocast = torch.autocast(device.type, dtype=torch.bfloat16) if args.amp else nullcontext()

    common = {"input_size": (args.in_chans, args.img_size, args.img_size), "batch_size": args.batch_size}
    common |= {"use_prefetcher": args.prefetcher}
    common |= {"num_workers": 0, "distributed": args.distributed, "device": device, "pin_memory": False}
    mode = {"input_img_mode": "L"} if args.in_chans == 1 else {}
    loader_train = create_loader(
        create_dataset("", args.data_dir, split="train", **mode), is_training=True, no_aug=args.no_aug, **common
    )
    validation = create_dataset("", args.data_dir, split="validation", **mode)
    loader_eval = create_loader(validation, is_training=False, **common)
    mixed = args.mixup > 0 or args.cutmix > 0
    mixup_fn = Mixup(mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, num_classes=2) if mixed else None

    task = create_task(args, model, device)
    eval_model = task.get_eval_model()
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="momentum", lr=args.lr)
    start_epoch = 0
    if args.resume:
        start_epoch = resume_task_checkpoint(task, args.resume, optimizer=optimizer)
    if args.model_ema:
        task.setup_ema(decay=0.9)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
        eval_model = task.get_eval_model()
        if task.has_ema():
            task.compile_ema(backend=args.torchcompile)
    if args.distributed:
        task.prepare_distributed(device_ids=None if args.no_device_ids else [device], broadcast_buffers=True)

    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader_eval))
    saver = None
    if utils.is_primary(args):
        os.makedirs(args.output, exist_ok=True)
        directories = {"checkpoint_dir": args.output, "recovery_dir": args.output}
        saver = utils.CheckpointSaver(task.get_trainable_module(), optimizer, args=args, task=task, **directories)
        with open(os.path.join(args.output, "args.yaml"), "w") as f:
            f.write(yaml.safe_dump(vars(args)))

    for epoch in range(start_epoch, args.epochs):
        if args.distributed:
            loader_train.sampler.set_epoch(epoch)
        train_metrics = train_one_epoch(epoch, task, loader_train, optimizer, args, saver, amp_autocast, mixup_fn)
        if args.distributed:
            utils.distribute_bn(task.get_trainable_module(), args.world_size, True)
        metrics = {}
        if (epoch + 1) % args.val_interval == 0:
            metrics = validate(eval_model, loader_eval, evaluator, args, amp_autocast)
            if task.has_ema():
                metrics = validate(task.get_eval_model(ema=True), loader_eval, evaluator, args, amp_autocast)
        if saver is not None:
            summary = os.path.join(args.output, "summary.csv")
            utils.update_summary(epoch, train_metrics, metrics, summary, write_header=epoch == start_epoch)
            saver.save_checkpoint(epoch, metric=metrics.get("top1"))
    if args.distributed:
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        spread = utils.reduce_tensor(weights, args.world_size).sub(weights).abs().max()
        assert spread == 0, f"rank {args.rank} drifted by {spread}"
        torch.distributed.destroy_process_group()


def train_one_epoch(epoch, task, loader, optimizer, args, saver, amp_autocast, mixup_fn):
    losses_m = utils.AverageMeter()
    task.get_trainable_module().train()
    accum_steps, last = args.grad_accum_steps, len(loader) - 1
    optimizer.zero_grad()
    for batch_idx, (input, target) in enumerate(loader):
        need_update = batch_idx == last or (batch_idx + 1) % accum_steps == 0
        if mixup_fn is not None:
            input, target = mixup_fn(input, target)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with nullcontext() if need_update else task.no_sync():
            with amp_autocast:
                loss = task(input, target)["loss"]
            if accum_steps > 1:
                loss /= accum_steps
            loss.backward()
        losses_m.update(loss.item() * accum_steps, len(input))
        if not need_update:
            continue
        if args.clip_grad is not None:
            utils.dispatch_clip_grad(task.get_clip_parameters(), value=args.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        update_idx = batch_idx // accum_steps
        task.update_ema(step=epoch * len(loader) + update_idx + 1)
        if update_idx % args.log_interval == 0 or batch_idx == last:
            if args.distributed:
                utils.reduce_tensor(torch.tensor(losses_m.avg), args.world_size)
            if utils.is_primary(args):
                _logger.info(
                    f"Train: {epoch} [{update_idx:>4d}/{len(loader) // accum_steps}]  Loss: {losses_m.avg:#.3g}"
                )
        if saver is not None and args.recovery_interval and (update_idx + 1) % args.recovery_interval == 0:
            saver.save_recovery(epoch, batch_idx=update_idx)
    return {"loss": losses_m.avg}


def validate(model, loader, evaluator, args, amp_autocast):
    evaluator.reset()
    model.eval()
    with torch.inference_mode():
        for input, target in loader:
            with amp_autocast:
                evaluator.update(model(input), target)
    return evaluator.compute(distributed=args.distributed)


if __name__ == "__main__":
    main()
