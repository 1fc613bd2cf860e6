"""The images of a job: the table, the check of all files, fields and leakage; and the settings by which they
are read."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import timm

import models_vit
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from util.core.errors import InputError
from util.core.machine import usable_cores
from util.data import cases, splits, tables
from util.data.images import cache, cache_choice, fundus_fields, scan, transforms
from util.data.leakage import search
from util.data.splits import plain
from util.metrics.folds import FOLD
from util.options.flag import AUTO, OFF
from util.options.groups import Options
from util.parallel.processes import World
from util.report import fundus_sheet
from util.weights.fitting import WeightFile

if TYPE_CHECKING:
    from util.data.leakage.fingerprints import Fingerprints

LEAKAGE = "leakage.json"
# mean and standard deviation of values of 0…1, by channel; where they are from, in a few words
Normalisation = tuple[tuple[float, ...], tuple[float, ...], str]
OF_TIMM = re.compile(r"hf:timm/([^/.]+\.[^/]+)(?:/.*)?")


def read_data(resumed: WeightFile | None, folder: RunFolder, world: World, task: Task,
              settings: dict) -> tuple[tables.Data, cache.Filling | None]:
    """The images of a run, all that is to be known of them from one pass over their files
    (util/data/images/reading_pass.py); and what that has brought into the cache, with --image_cache in the
    main process.

    settings: of the transform that evaluation reads by, but for the range of values that the files decide.
    """
    options = task.options
    data = task.read(resumed, ("test",) if options.run.eval else tables.SPLITS)
    # an image's number counts within its split, so that it is the same where only test is read
    data.table["index"] = data.table.groupby("split", sort=False).cumcount()
    # a stored expression gives way to a typed column
    if options.data.patient_regex and "patient_col" not in options.typed:
        data.table, lines = search.name_patients(data.table, options.data.patient_regex,
                                                 "patient_regex" in options.typed)
        data.notes += lines
    data.table, lines = cases.named(data.table, options.data, options.typed)
    data.notes += lines + _dealt(options, data)
    facts, fields = scan.ImageFacts(Path(options.run.output_dir) / ".image_facts.npy"), None
    if options.model.fundus_crop == "auto":
        fields = fundus_fields.Fields(Path(options.run.output_dir) / ".fundus_fields.npy",
                                      options.model.read_images == "as_shown")
    # what is used of them, unless one turns out to be bad
    used, asked, others = _subset(options, data.table), options.data, []
    filled = None
    if world.is_main and not options.run.dry_run:
        again = list(used["path"][is_cached(options, used["split"])])
        kept = cache.Kept.of(settings, fields)
        filling = cache.Filling(cache_folder(options), kept, world.say, final=False)
        filled = filling if _is_filled(options, resumed, filling, again, facts, world.say) else None
        others += [] if filled is None else [(filled, again)]
    looks_for_leakage = (world.is_main and not options.run.eval and asked.leakage != "off"
                         and not asked.skip_file_check)
    prints = None
    if looks_for_leakage and search.is_compared(used) and not _checked_before(options, resumed, folder):
        prints = _prints(options)
        others.append((prints, list(used["path"])))
    if asked.skip_file_check:
        data = tables.look_at_some(data, facts, fields, others=others)
    else:
        writes = world.is_main and not options.run.dry_run and asked.bad_images == "skip"
        skipped = folder.new_file("skipped_images.csv") if writes else None
        with folder.writing(skipped):
            data = tables.check_files(data, asked.bad_images, facts, skipped, fields=fields, others=others)
    if not options.run.eval:
        data.fingerprint = tables.fingerprint(data.table)
    data.table = _subset(options, data.table)
    if world.is_main and not options.run.eval:
        world.say(*_check_leakage(options, data, resumed, folder, prints))
    is_default = resumed is None and "fundus_crop" not in options.typed
    if fields is not None and is_default and not fields.any_of(list(data.table["path"])):
        # so that its checkpoint does not look for any either
        task.options, fields = options.having(fundus_crop="off"), None
        world.say("fundus     no image has a round field: all stay whole (--fundus_crop off)")
    if world.is_main and fields is not None:
        world.say(*_report_fields(options, data, fields, resumed, folder))
    task.settle(data, resumed)
    data.fields, data.facts = fields, facts.of(list(data.table["path"]))
    return data, filled


def _dealt(options: Options, data: tables.Data) -> list[str]:
    """Of --folds: the splits of the run of --fold among train's images, whose numbers stay; of a search those
    of the first fold, and all folds in a column -> a line."""
    folds, fold, table = options.data.folds, options.data.fold or 1, data.table
    if folds is None or options.run.eval:
        return []
    if (table["split"] == splits.OUT_OF_FOLD).any():
        raise InputError(f"--folds calls the images that a run does not train on {splits.OUT_OF_FOLD}, and a "
                         "test set has that name: rename it")
    dealt = splits.deal(table, folds, options.data.datasets_seed)
    table["split"] = splits.in_fold(table["split"], dealt, fold, folds)
    if options.search.optuna_trials:
        table[FOLD] = dealt
        sizes = np.bincount(dealt[dealt > 0])[1:]
        return [f"{folds} folds of {sizes.min():,} to {sizes.max():,} images; a trial trains once a fold "
                "(what is told of splits is that of the first)"]
    chosen_by = splits.next_fold(fold, folds)
    return [f"fold {fold} of {folds}: {(dealt == fold).sum():,} images are scored as {splits.OUT_OF_FOLD}, "
            f"{(dealt == chosen_by).sum():,} of fold {chosen_by} are val, "
            f"{(table['split'] == 'train').sum():,} train"]


def of_fold(options: Options, data: tables.Data) -> tables.Data:
    """Of a search's images those of the run of --fold."""
    table = data.table.copy()
    table["split"] = splits.in_fold(table["split"], table[FOLD], options.data.fold, options.data.folds)
    return replace(data, table=_subset(options, table), notes=[], facts=scan.NO_FACTS)


def cache_folder(options: Options) -> Path:
    """Where decoded images are kept."""
    asked = options.images.image_cache
    return Path(options.run.output_dir) / ".pictures" if asked == AUTO else Path(asked)


def _is_filled(options: Options, resumed: WeightFile | None, filling: cache.Filling, paths: list[str],
               facts: scan.ImageFacts, say: Callable[..., None]) -> bool:
    """Whether images are brought into the cache while they are checked."""
    if options.images.image_cache == OFF or not filling.kept.side:
        return False
    if options.images.image_cache != AUTO:
        return True
    worth, lines = cache_choice.worth_filling(filling, paths, _passes(options, resumed), usable_cores(),
                                              None if options.data.skip_file_check else facts)
    say(*lines)
    return worth


def _passes(options: Options, resumed: WeightFile | None) -> int:
    """How often this launch reads an image of train."""
    if options.run.eval:
        return 1
    if options.search.optuna_trials:
        # in a trial an image is in all folds' runs but the one that scores it, once
        runs = (options.data.folds or 2) - 1
        return options.search.optuna_trials * options.search.optuna_epochs * runs
    if options.model.adaptation == "lp":
        return options.probe.lp_views
    return options.training.epochs - (0 if resumed is None else resumed.rest.get("epoch", -1) + 1)


def is_cached(options: Options, of_images: pd.Series) -> pd.Series:
    """By the images' splits, which of them --image_cache keeps decoded: what this launch reads again and
    again; in a folder that was named, for other runs, what is scored at the end, too."""
    found = of_images.map(plain).isin(_cached_splits(options))
    if options.data.folds and options.search.optuna_trials:
        found |= of_images == splits.OUT_OF_FOLD  # of the first fold; the others train on it
    return found


def _cached_splits(options: Options) -> tuple[str, ...]:
    """Train, val or test (sets)."""
    if options.run.eval:
        return ("test",)
    if options.search.optuna_trials and options.model.adaptation == "lp":
        return ()
    if options.images.image_cache == AUTO:
        return ("train", "val")
    scores_test = not options.search.optuna_trials or options.search.optuna_eval_test
    return tables.SPLITS if scores_test else ("train", "val")


def _subset(options: Options, table: pd.DataFrame) -> pd.DataFrame:
    if options.data.dataratio[0] == 1 or options.run.eval:
        return table
    if options.data.folds and options.search.optuna_trials and options.data.fold is None:
        return table  # each fold's run has a share of its own training images
    return tables.subset(table, options.data.dataratio[0], options.data.stratified,
                         options.data.datasets_seed)


def _prints(options: Options) -> "Fingerprints":
    from util.data.leakage.fingerprints import Fingerprints  # needs scipy.ndimage, which takes half a second

    return Fingerprints(Path(options.run.output_dir) / ".fingerprints.npy")


def _report_fields(options: Options, data: tables.Data, fields: fundus_fields.Fields,
                   resumed: WeightFile | None, folder: RunFolder) -> list[str]:
    """fundus_crop.csv and fundus_crop.png of a run (fundus_crop_test of a checkpoint that is only scored) ->
    lines."""
    images = list(data.table["path"])
    if options.run.dry_run:
        return fundus_sheet.report(fields, images, None, None)
    place = folder.file if options.run.eval or folder.holds(resumed) else folder.new_file
    of_test = "_test" if options.run.eval else ""
    paths = [place(f"fundus_crop{of_test}{suffix}") for suffix in (".csv", ".png")]
    with folder.writing(paths[0]):
        return fundus_sheet.report(fields, images, *paths)


def _checked_before(options: Options, resumed: WeightFile | None, folder: RunFolder) -> bool:
    """Whether a resumed run was checked for leakage as it would be now, if its images are the same."""
    if not folder.holds(resumed) or options.data.leakage != "warn":
        return False
    before, looked_at = resumed.rest.get("options", {}), ("patient_col", "patient_regex", "skip_file_check")
    return folder.file(LEAKAGE).exists() and all(before.get(option) == options.value(option)
                                                 for option in looked_at)


def _check_leakage(options: Options, data: tables.Data, resumed: WeightFile | None, folder: RunFolder,
                   prints: "Fingerprints | None") -> list[str]:
    """Look for images and patients that two splits share, among the rows that this run uses -> lines about
    it; leakage.json lists them. InputError with --leakage stop where there are any.

    A resumed run with the same images was checked when it began; a dry run is checked, too, and writes
    nothing. Without the check of all files (--skip_file_check) images are not decoded here either: the same
    bytes and patients are found all the same.
    """
    if _checked_before(options, resumed, folder) and resumed.rest.get("data_fingerprint") == data.fingerprint:
        return [f"leakage    looked for when this run began, on the same images: {folder.file(LEAKAGE)}"]
    path = None
    if not options.run.dry_run:
        path = folder.file(LEAKAGE) if folder.holds(resumed) else folder.new_file(LEAKAGE)
    if options.data.leakage == "off":
        return []
    found = search.check(data.table, prints or _prints(options), decode=not options.data.skip_file_check)
    if path is not None:
        with folder.writing(path):
            search.write(found, path)
    if options.data.leakage == "stop" and search.summary(found):
        raise search.refusal(found, path or "")
    return search.describe(found, path or "")


def compare_data(options: Options, data: tables.Data, resumed: WeightFile | None) -> list[str]:
    """A line where the images are not those that the run began with; InputError where --resume same asks for
    the same."""
    before = resumed.rest.get("data_fingerprint") if resumed is not None else None
    if options.run.eval or before in (None, data.fingerprint):
        return []
    if options.run.resume == "same":
        raise InputError(f"the images, their labels or splits have changed since {resumed.path} was written: "
                         "name this run otherwise with --task (TASK=...), or go on with the new ones by "
                         "--resume auto")
    return [f"warning: the images, their labels or splits have changed since {resumed.path} was written: "
            "figures of epochs before and after don't compare"]


def evaluation_settings(options: Options, backbone: models_vit.Backbone, resumed: WeightFile | None,
                        facts: np.ndarray) -> dict:
    """Of the transform that evaluation reads images by: the checkpoint's, in which a typed flag changes its
    own entry. facts: of the images (`ImageFacts.of`), whose range is taken where no checkpoint says one."""
    model, images = options.model, options.images
    rest = resumed.rest if resumed is not None else {}
    mean, std, _ = _of_options(options, backbone, rest)
    stored = rest.get("transform", {}).get("eval")
    if not stored:
        settings = transforms.eval_settings(model.input_size, mean, std, images.decode, images.kept_side,
                                            model)
        return transforms.with_depth(settings, *scan.depth(facts))
    changed: dict[str, dict] = {
        "decode": {"decode": images.decode}, "cache_size": {"kept": images.kept_side},
        "norm": {"mean": list(mean), "std": list(std)}, "fundus_crop": {"fundus_crop": model.fundus_crop},
        "resize": {"fit": model.resize}, "read_images": {"read_images": model.read_images}}
    fit = model.resize if "resize" in options.typed else stored.get("fit", "crop")
    resized = {"resize": transforms.resized_side(model.input_size, fit)}
    if model.input_size != stored["input_size"]:
        changed["input_size"] = {"input_size": model.input_size} | resized
    if fit != stored.get("fit", "crop"):
        changed["resize"] |= resized
    settings = dict(stored)
    for name in options.typed & changed.keys():
        settings |= changed[name]
    return transforms.with_depth(settings, *scan.depth(facts))


# ---- by which mean and standard deviation the channels are normalised --------------------------------------

def normalisation(backbone: models_vit.Backbone, norm: str, finetune: str = "") -> Normalisation:
    """What --norm stands for. A timm model's constants are those of the weights that --finetune
    hf:timm/NAME.TAG/FILE names: a name's tags differ in them (vit_base_patch16_224.mae has ImageNet's, the
    default tag 0.5)."""
    if norm == "backbone" and backbone.model == models_vit.TIMM:
        return _timms(backbone, finetune)
    is_imagenets = (backbone.mean, backbone.std) == (models_vit.IMAGENET_MEAN, models_vit.IMAGENET_STD)
    whose = "ImageNet's" if is_imagenets else "its maker's"
    known = {"backbone": (backbone.mean, backbone.std, f"{whose}, by which {backbone.arch} was trained"),
             "imagenet": (models_vit.IMAGENET_MEAN, models_vit.IMAGENET_STD, "ImageNet's"),
             "half": ((0.5,) * 3, (0.5,) * 3, "0.5 throughout")}
    if norm in known:
        return known[norm]
    numbers = tuple(map(float, norm.split(",")))
    return numbers[:3], numbers[3:], "typed"


def _timms(backbone: models_vit.Backbone, finetune: str) -> Normalisation:
    named = OF_TIMM.fullmatch(finetune or "")
    if named and timm.is_model_pretrained(named[1]):
        settings = timm.get_pretrained_cfg(named[1], allow_unregistered=False)
        return (tuple(settings.mean), tuple(settings.std), f"timm's constants of {named[1]}")
    settings = timm.get_pretrained_cfg(backbone.timm_name, allow_unregistered=False)
    if settings is None:
        return (backbone.mean, backbone.std, f"ImageNet's: timm has no constants of {backbone.timm_name}")
    full = f"{backbone.timm_name.split('.')[0]}.{settings.tag}" if settings.tag else backbone.timm_name
    default = "" if full == backbone.timm_name else ", its default tag"
    return (backbone.mean, backbone.std, f"timm's constants of {full}{default}")


def _of_options(options: Options, backbone: models_vit.Backbone, rest: dict) -> Normalisation:
    """What --norm stands for where it decides. rest: the entries of a checkpoint beside its weights, {}
    without one; it knows the weights that its run started from."""
    return normalisation(backbone, options.model.norm,
                         options.model.finetune or rest.get("options", {}).get("finetune") or "")


def normalisation_source(options: Options, backbone: models_vit.Backbone, rest: dict) -> str:
    """Where the numbers of evaluation's transform are from: a checkpoint's own stay, unless --norm was
    typed."""
    stored = rest.get("transform", {}).get("eval")
    if not stored or "norm" in options.typed:
        return _of_options(options, backbone, rest)[2]
    then = rest.get("options", {})
    mean, std, source = normalisation(backbone, then.get("norm", "backbone"), then.get("finetune") or "")
    same = [list(mean), list(std)] == [list(stored["mean"]), list(stored["std"])]
    return f"the checkpoint's, {source}" if same else "the checkpoint's"
