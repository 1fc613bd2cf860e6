"""The options of one launch, typed and by group: what was asked for, which nothing changes, and new ones with
what was found."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from util.options.data import DataOptions, ImageOptions
from util.options.flag import Flag
from util.options.launch import CompatibilityOptions, ProcessOptions, RunOptions
from util.options.model import HeadOptions, ModelOptions, PartOptions, ProbeOptions
from util.options.training import MetricOptions, MixingOptions, OptimisationOptions, SearchOptions
from util.options.use import HeatmapOptions, UseOptions


@dataclass(frozen=True)
class Options:
    """Groups of values, `options.data.csv_file`. A flag that the program does not have has the value of its
    row.

    program: whose command line it was; typed: names of the flags that stood on it, or came as if they had.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    part: PartOptions = field(default_factory=PartOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    data: DataOptions = field(default_factory=DataOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    mixing: MixingOptions = field(default_factory=MixingOptions)
    metrics: MetricOptions = field(default_factory=MetricOptions)
    training: OptimisationOptions = field(default_factory=OptimisationOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    run: RunOptions = field(default_factory=RunOptions)
    processes: ProcessOptions = field(default_factory=ProcessOptions)
    compatibility: CompatibilityOptions = field(default_factory=CompatibilityOptions)
    use: UseOptions = field(default_factory=UseOptions)
    heatmaps: HeatmapOptions = field(default_factory=HeatmapOptions)
    program: str = ""
    typed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, program: str, values: Mapping[str, Any], typed: Collection[str] = ()) -> "Options":
        """Of values by the names of flags."""
        return cls(program=program, typed=frozenset(typed)).having(**values)

    def value(self, name: str) -> Any:
        """Of a flag by its name."""
        return getattr(getattr(self, PLACES[name]), name)

    def values(self) -> dict[str, Any]:
        """Of all flags by name, also of those that the program does not have."""
        return {name: self.value(name) for name in PLACES}

    def having(self, **values: Any) -> "Options":
        """These options, but for the values of some flags."""
        changed: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            changed.setdefault(PLACES[name], {})[name] = value
        return replace(self, **{place: replace(getattr(self, place), **of_group)
                                for place, of_group in changed.items()})

    def typing(self, **values: Any) -> "Options":
        """These options, as if some flags had been typed so."""
        return replace(self.having(**values), typed=self.typed | values.keys())


_ROWS = [(place, row) for place, group in vars(Options()).items() if is_dataclass(group)
         for row in fields(group)]
# Where a flag's value stands: {its name: its group's name in Options}; and each row of the table of flags.
PLACES = {row.name: place for place, row in _ROWS}
FLAGS = {row.name: Flag(name=row.name, **row.metadata["flag"]) for _, row in _ROWS}
