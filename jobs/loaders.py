"""The batches of a job: the plan of its steps, the cache of decoded images, a loader for each split."""


from engine_finetune import Schedule, make_loader
from jobs.job import Job
from util.core.errors import InputError
from util.core.machine import usable_cores
from util.data.dataset import ImageDataset
from util.data.images import transforms
from util.data.images.cache import Kept, open_cache
from util.data.sampling import EvalBatches, StepPlan
from util.model import lr_schedule
from util.model.frozen_features import FeatureDataset
from util.options.groups import Options
from util.parallel.processes import World

# training's batches in one of an evaluation, which keeps no activations; on CPUs more only cost time
GPU_EVAL_BATCHES = 2


def plan_training(job: Job) -> None:
    images, model, training = job.options.images, job.options.model, job.options.training
    reading = job.eval_transform
    job.train_transform = transforms.read_alike(transforms.train_settings(
        model.input_size, reading["mean"], reading["std"], reading["decode"], images.crop_scale,
        images.crop_ratio,
        images.hflip, images.vflip, images.color_jitter, images.aa, images.reprob, images.remode,
        images.recount,
        images.cache_size, model.fundus_crop, model.resize), reading)
    # a dry run is one process and may plan for several
    planned = job.options.compatibility.world_size if job.options.run.dry_run else 1
    even = job.resumed is None or job.resumed.rest.get("schedule", {}).get("even_steps", False)
    job.plan = StepPlan(len(job.rows("train")), training.batch_size, training.accum_iter,
                        max(planned, job.world.size), even)
    peak = training.lr if training.lr is not None else training.blr * job.plan.step_size / 256
    if training.min_lr > peak:
        raise InputError(f"--min_lr {training.min_lr:g} is above the peak rate {peak:g}: lower it, or raise "
                         "--lr or --blr")
    warmup = lr_schedule.usable_warmup(training.warmup_epochs, training.epochs)
    job.schedule = Schedule(peak, training.min_lr, warmup, training.epochs)


def fill_cache(job: Job, splits: tuple[str, ...]) -> None:
    """With --image_cache: `job.cache` with the images of these splits. The check of all files has filled it
    (`job.filled`) on the main process's machine; what it had to leave out, and other machines' own caches,
    are filled here by the first process of each machine."""
    options, world, side = job.options, job.world, job.eval_transform.get("kept")
    if not options.images.image_cache:
        return
    if not side:
        world.say(f"--image_cache does nothing: {options.run.resume} reads images at their own size "
                  "(--cache_size brings them to another)")
        return
    paths = list(job.data.table["path"][job.data.table["split"].isin(splits)])

    def of(say, fill):
        kept = Kept.of(job.eval_transform, job.fields)
        return open_cache(options.images.image_cache, paths, kept, usable_cores(), say, fill, job.filled)

    job.cache = of(world.say, fill=True) if world.local_rank == 0 else None
    world.barrier()
    if job.cache is None:
        job.cache = of(world.say, fill=False)


def loader(job: Job, split: str, batches=None, view: int | None = None):
    """Batches of a split: as `batches` says, through the training's transform; else all of it in order,
    through the evaluation's. view: all of it in order, through the training's transform as in that epoch."""
    options, rows = job.options, job.rows(split)
    if job.features is not None:
        dataset = FeatureDataset(job.features[split], job.task.targets(rows), list(rows["path"]),
                                 job.task.covariates(rows))
        batches = batches or EvalBatches(len(rows), options.training.batch_size, job.world.rank,
                                         job.world.size)
        return make_loader(dataset, batches, 0, False)
    random_view = batches is not None or view is not None
    transform = (transforms.TrainTransform(job.train_transform, job.fields) if random_view else
                 transforms.EvalTransform(job.eval_transform, job.fields))
    size = options.training.batch_size * (1 if job.world.device.type == "cpu" else GPU_EVAL_BATCHES)
    batches = batches or EvalBatches(len(rows), size, job.world.rank, job.world.size, view or 0)
    pinned = options.run.pin_mem and job.world.device.type == "cuda"
    dataset = ImageDataset(rows, job.task.targets(rows), transform, options.run.seed,
                           job.task.covariates(rows), job.cache)
    return make_loader(dataset, batches, workers(options, job.world), pinned)


def workers(options: Options, world: World) -> int:
    """Loader processes: as asked, at most this machine's cores divided by its processes."""
    return min(options.run.num_workers, max(1, usable_cores() // world.local_size))
