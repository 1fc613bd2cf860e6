"""The flags that say which part of a model is trained, beyond flags.py: what they may be, and what contradicts what."""

import argparse
import re

from util.core.errors import InputError

# what a probe's head may read of a frozen backbone (util/model/feature_kinds.py)
POOLED, ATTENTIVE = "pooled", "attentive"
KINDS = {POOLED: "what the model's own head reads", "cls": "class token", "cls_mean": "class token and mean patch token",
         "last4": "class tokens of the last 4 blocks and mean patch token", ATTENTIVE: "patch tokens by a learned query"}


def layers(text: str) -> str:
    """`--lora_targets` as it is; what util/model/lora.py makes of it has to be readable."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None
    if not text:
        raise argparse.ArgumentTypeError("it names no layers")
    return text


def check(options: argparse.Namespace) -> None:
    """Refuse two answers to which part of the model is trained. Raises InputError."""
    if options.train_last_blocks and options.adaptation != "finetune":
        raise InputError(f"--train_last_blocks and --adaptation {options.adaptation} each say which part is trained: pass one "
                         "of them")
    if options.adaptation == "lora" and options.allow_partial and not options.eval:
        raise InputError("--allow_partial leaves some tensors at random, and --adaptation lora would never train them: pass "
                         "weights that fit")


def settle(options: argparse.Namespace, typed: set[str]) -> None:
    """Check, then fill in what follows: adapters start at nothing, so that there is nothing of the early layers' that a lower
    rate would keep, and --layer_decay is 1 unless it was typed."""
    check(options)
    if options.adaptation == "lora" and "layer_decay" not in typed:
        options.layer_decay = 1.0
