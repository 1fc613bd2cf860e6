"""Defaults that belong to a kind of backbone and a kind of start: one small table, chosen by measurement.

Layer-wise learning rates and small crops are made for pre-trained vision transformers. A convolutional
network hardly moves with a layer decay of 0.65, since timm counts some twenty layers in it; random weights
have nothing that a low learning rate would keep. What is typed wins, and what differs from the flags' own
defaults is said at the start.

Pre-trained plain ViTs    keep the flags' own defaults, the original's recipe; not measured here, for want of
                          weights.
Other pre-trained models  IDRiD, EfficientNet-Lite0 with ImageNet weights, 12 epochs, means of 3 seeds. Score
                          on val: 0.534 with the flags' own defaults, 0.571 with layer_decay 1 alone, 0.532
                          with the crops alone, 0.586 with both. On EfficientNet-Lite1 and -Lite2, 3 seeds:
                          0.554 and 0.556, with both 0.607 and 0.618. With the round field cut out besides, 5
                          seeds: on IDRiD 0.591, without 0.579, on the demo's images 0.884 and 0.873; of a
                          probe 0.598 and 0.562, and 0.762 and 0.790.
Random weights            scikit-learn's digits (a ViT-Ti/16 at 64 pixels, 12 epochs, batch 32, 2 seeds):
                          accuracy on val 0.32 with RandAugment at blr 5e-3, 0.62 without it, 0.64 without it
                          at 2e-3. The demo of a regression (test_resnet, 20 epochs, 1 seed): R2 on test 0.60
                          with the flags' own defaults, 0.91 with these.
"""

from util.options.groups import Options

Value = float | str | list[float]
PRETRAINED_OTHER: dict[str, Value] = {"layer_decay": 1.0, "crop_scale": [0.3, 1.0], "fundus_crop": "auto"}
RANDOM: dict[str, Value] = {"layer_decay": 1.0, "drop_path": 0.0, "crop_scale": [0.3, 1.0], "aa": "none",
                            "blr": 2e-3}
OF_VIEWS = ("crop_scale", "aa")
# A regression's own crops are wide already: small ones destroy targets that are sizes, and so may the square
# round a field, whose sizes differ.
OF_CLASSIFICATION = (*OF_VIEWS, "fundus_crop")
RANDOM_REGRESSION: dict[str, Value] = {"blr": 5e-3}
NAMES = tuple(dict.fromkeys([*PRETRAINED_OTHER, *RANDOM]))


def defaults(plain_vit: bool, pretrained: bool, regression: bool) -> dict[str, Value]:
    """{option: value} in which a run of this kind differs from the flags' own defaults."""
    chosen = RANDOM if not pretrained else {} if plain_vit else PRETRAINED_OTHER
    if not regression:
        return chosen
    kept = {name: value for name, value in chosen.items() if name not in OF_CLASSIFICATION}
    return kept if pretrained else kept | RANDOM_REGRESSION


def settled(options: Options, plain_vit: bool, regression: bool) -> tuple[Options, list[str]]:
    """The options with the table's values where nothing was typed; a line that says so."""
    pretrained = bool(options.model.finetune)
    idle = set() if options.training.lr is None else {"blr"}
    # a probe has no such learning rates, and crops of random views alone
    if options.model.adaptation == "lp":
        idle |= set(NAMES).difference(["fundus_crop"], OF_VIEWS if options.probe.lp_views > 1 else ())
    changed = {name: value for name, value in defaults(plain_vit, pretrained, regression).items()
               if name not in options.typed and name not in idle and options.value(name) != value}
    if not changed:
        return options, []
    kind = "a pre-trained model that is no plain vision transformer" if pretrained else "random weights"
    said = ", ".join(f"--{name} {_text(value)} instead of {_text(options.value(name))}"
                     for name, value in changed.items())
    return options.having(**changed), [f"defaults   for {kind}: {said} (what you type wins)"]


def as_stored(options: Options, stored: dict,
              rows: tuple[dict, ...] = (PRETRAINED_OTHER, RANDOM, RANDOM_REGRESSION)) -> Options:
    """The options with a stored run's values of what was not typed, where these are defaults: the flags' own,
    which runs of before there was the table had, or those of `rows`."""
    return options.having(**{name: stored[name] for name in NAMES if name not in options.typed
                             and any(name in row and stored.get(name) == row[name] for row in rows)})


def _text(value: Value) -> str:
    if isinstance(value, list):
        return " ".join(f"{number:g}" for number in value)
    return value if isinstance(value, str) else f"{value:g}"
