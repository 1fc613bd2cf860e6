"""What the flags may say of which part of a model is trained, and of what a probe's head reads."""

import argparse
import re

# what a probe's head may read of a frozen backbone (util/model/feature_kinds.py)
POOLED, ATTENTIVE = "pooled", "attentive"
OF_CASES = "cases"  # what the model's own head reads, with an attention over the images of a case
KINDS = {
    POOLED: "what the model's own head reads",
    "cls": "class token",
    "cls_mean": "class token and mean patch token",
    "last4": "class tokens of the last 4 blocks and mean patch token",
    ATTENTIVE: "patch tokens by a learned query",
}


def layers(text: str) -> str:
    """`--lora_targets` as it is; what util/model/lora.py makes of it has to be readable."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None
    if not text:
        raise argparse.ArgumentTypeError("it names no layers")
    return text
