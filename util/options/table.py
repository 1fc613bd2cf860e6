"""THE TABLE OF FLAGS: every flag is one row, a field of one of these groups; which program has which, in the
order of --help.

A group's docstring is its heading. Everything that is known of a flag stands in its row (util/options/flag.py
says what).
"""

import functools
from dataclasses import fields

from util.options.data import DataOptions, ImageOptions
from util.options.flag import FEATURES, FINETUNE, PREDICT, REGRESSION, Flag
from util.options.groups import FLAGS, Options
from util.options.launch import CompatibilityOptions, ProcessOptions, RunOptions
from util.options.model import HeadOptions, ModelOptions, PartOptions, ProbeOptions
from util.options.training import MetricOptions, MixingOptions, OptimisationOptions, SearchOptions
from util.options.use import HeatmapOptions

_IMAGES = ("input", "path_col", "path_suffix", "bad_images", "skip_file_check")
_MACHINE = ("batch_size", "precision", "device", "num_workers", "dist_url", "dist_on_itp")
Part = type | tuple[str, tuple[str, ...]]  # a group of options, or a heading and the names below it


def names_of(group: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(group))


def _sections(program: str, *parts: Part) -> list[tuple[str, list[str]]]:
    """Only flags that the program has; those that do nothing in it stand under the last heading."""
    found: dict[str, list[str]] = {}
    idle: list[str] = []
    for part in parts:
        heading, names = (part.__doc__ or "", names_of(part)) if isinstance(part, type) else part
        own = [name for name in names if program in FLAGS[name].programs]
        idle += [name for name in own if program in FLAGS[name].at and FLAGS[name].at[program].no_effect]
        found[heading] = [name for name in own if name not in idle]
    if idle:
        found[CompatibilityOptions.__doc__ or ""] += idle
    return [(heading, names) for heading, names in found.items() if names]


_OF_MODEL = names_of(ModelOptions)
# A program's headings, each with its flags: a group, or names where a program has them in an order of its
# own.
PROGRAMS = {
    FINETUNE: _sections(
        FINETUNE, ModelOptions, ProbeOptions, PartOptions, HeadOptions, DataOptions, ImageOptions,
        MixingOptions, MetricOptions, OptimisationOptions, SearchOptions, RunOptions, ProcessOptions,
        CompatibilityOptions),
    REGRESSION: _sections(
        REGRESSION, ModelOptions, ProbeOptions, PartOptions, HeadOptions, DataOptions, ImageOptions,
        MixingOptions, MetricOptions, OptimisationOptions, SearchOptions, RunOptions, ProcessOptions,
        CompatibilityOptions),
    PREDICT: _sections(
        PREDICT, ("checkpoint, images and result", ("resume", *_IMAGES, "output", "class_names")),
        ("cases: several images, one prediction", ("case_col", "case_regex")),
        HeatmapOptions,
        ("model of a checkpoint that does not name its own (of the original scripts)", _OF_MODEL),
        ("run", _MACHINE)),
    FEATURES: _sections(
        FEATURES, ("images and result", (*_IMAGES, "output", "decode")),
        ("weights (one of --finetune, --resume, --random_weights)",
         ("finetune", "resume", "random_weights", "seed", "weights_dir", "allow_partial")),
        ("model", tuple(name for name in _OF_MODEL
                        if name not in ("finetune", "weights_dir", "allow_partial"))),
        ("run", _MACHINE))}


@functools.cache
def flags_of(program: str) -> tuple[Flag, ...]:
    """The flags of a program as they are in it, in the order of its help."""
    return tuple(FLAGS[name].in_program(program) for _, names in PROGRAMS[program] for name in names)


def own_values(options: Options) -> dict[str, object]:
    """Of the flags that the options' program has, by name: what a checkpoint stores, compares and gives
    back."""
    return {flag.name: options.value(flag.name) for flag in flags_of(options.program)}
