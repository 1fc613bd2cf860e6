"""Do timm's architectures train here, and does predict.py give what the evaluation gave?

    python benchmarks/architectures.py          # all of NAMES: about 15 s of one core each
    python benchmarks/architectures.py resnet18 crossvit_9_240   # these
    python benchmarks/architectures.py --table   # what is known so far, no more

Each architecture runs in a process of its own: two training steps on a few noisy images at the smallest of a
few sizes that it takes, the evaluation of test, and predict.py on the same images. What came out stands in
--results, a JSON line each, as soon as it is known; a name that stands there is not run again. Exit code 1
where one ended otherwise than well or in one line.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main_finetune
import predict
from benchmarks.chaos import write_pictures
from jobs import train  # noqa: F401  (once, for all the processes)
from util.core.ending import exit_code_of

# one or two of every family of timm 1.0.31, the small ones
NAMES = """
beit_base_patch16_224 botnet26t_256 eca_botnext26ts_256 halonet26t lambda_resnet26t lambda_resnet26rpt_256
sebotnet33ts_256 sehalonet33ts bat_resnext26ts gcresnext26ts mobileone_s0 regnetz_b16 repvgg_a0 test_byobnet
cait_xxs24_224 coat_tiny convit_tiny convmixer_1024_20_ks9_p14 convnext_atto convnextv2_atto crossvit_9_240
crossvit_small_240 cs3darknet_s cspresnet50 davit_tiny deit_tiny_distilled_patch16_224
deit3_small_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100
flexivit_small focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100 gmixer_12_224
gmlp_ti16_224 hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small
inception_next_atto inception_v3 inception_v4 inception_resnet_v2 lcnet_035 levit_128s mambaout_femto
coatnet_pico_rw_224 maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256 caformer_s18 convformer_s18 poolformer_s12
poolformerv2_s12 mixer_s32_224 mixnet_s mnasnet_050 mobilenetv1_100 mobilenetv2_035 mobilenetv3_small_050
mobilenetv4_conv_small_035 mobilenetv5_300m mobilevit_xxs mobilevitv2_050 mvitv2_tiny
naflexvit_base_patch16_gap nasnetalarge nest_tiny nextvit_small dm_nfnet_f0 eca_nfnet_l0 nf_regnet_b0
test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005
repghostnet_050 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d resnet10t resnetaa34d resnetblur18
resnetrs50 resnetv2_18 rexnet_100 samvit_base_patch16 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1
skresnet18 spnasnet_100 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
swinv2_cr_tiny_224 tiny_vit_5m_224 tinynet_e tnt_s_patch16_224 tresnet_m twins_svt_small vgg11
visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224
vit_small_patch16_dinov3 vitamin_small_224 volo_d1_224 vovnet39a ese_vovnet19b_dw xception41 legacy_xception
xcit_nano_12_p16_224 tf_efficientnet_b0_ns resnet10t.a1_in1k
"""
SIZES = (64, 128, None)  # None: the architecture's own
FLAGS = ("--model timm --nb_classes 2 --batch_size 8 --epochs 1 --lr 1e-3 --num_workers 0 --aa none --reprob "
         "0 --device cpu --precision fp32 --task run")
TRAINS = "trains, predicts as evaluation does"


def ended(main: Callable[[list[str]], int | None], words: list[str]) -> tuple[int, str]:
    """(exit code, last line of stderr) of a program in this process."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = exit_code_of(main, words)
    return code, (errors.getvalue().strip().splitlines() or [""])[-1]


def one(name: str, data: Path, folder: Path, sizes: tuple[int | None, ...] = SIZES) -> dict:
    """What becomes of an architecture, at the first of these sizes that it takes."""
    for size in sizes:
        where = folder / str(size)
        words = [*FLAGS.split(), "--model_arch", name, "--data_path", str(data), "--output_dir", str(where),
                 "--log_dir", str(where), *(["--input_size", str(size)] if size else [])]
        code, line = ended(main_finetune.main, words)
        if code == 0:
            break
    if code:
        return {"name": name, "size": size, "code": code, "line": line}
    code, line = ended(predict.main, [
        "--resume", str(where / "run/checkpoint-best.pth"), "--input", str(data / "test"),
        "--output", str(where / "out.csv"), "--num_workers", "0", "--device", "cpu", "--precision", "fp32"])
    if code:
        return {"name": name, "size": size, "code": code, "line": f"predict.py: {line}"}
    first, second = (pd.read_csv(file) for file in (where / "run/predictions_test.csv", where / "out.csv"))
    ends = [table["path"].str[-len("class0/000.png"):] for table in (first, second)]
    first, second = (table.groupby(end).first().filter(regex="^logit_").to_numpy()
                     for table, end in zip((first, second), ends, strict=True))
    apart = float(np.abs(first - second).max() / max(1.0, np.abs(first).max()))
    line = TRAINS if len(first) and apart < 1e-4 else f"logits differ by {apart:.2g}"
    return {"name": name, "size": size, "code": 0, "apart": apart, "line": line}


def _send(name: str, data: Path, folder: Path, pipe: Connection) -> None:
    try:
        pipe.send(one(name, data, folder))
    except Exception:  # what this program looks for
        line = f"TRACEBACK {traceback.format_exc().splitlines()[-1]}"
        pipe.send({"name": name, "size": None, "code": 1, "line": line})


def measured(name: str, data: Path, seconds: float) -> dict:
    """`one` in a process of its own, which has all modules already."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_send, args=(name, data, Path(folder), theirs))
        process.start()
        theirs.close()
        try:
            if ours.poll(seconds):
                return ours.recv()
            return {"name": name, "size": None, "code": None, "line": f"no end after {seconds:g} s"}
        except EOFError:
            process.join()
            return {"name": name, "size": None, "code": process.exitcode, "line": "the process died"}
        finally:
            process.kill()
            process.join()


def is_well(row: dict) -> bool:
    return row["line"] == TRAINS or row["code"] == 2


def table(rows: list[dict]) -> str:
    counts = (f"{sum(row['line'] == TRAINS for row in rows)} train and predict as evaluation does, "
              f"{sum(row['code'] == 2 for row in rows)} end in one line, "
              f"{sum(not is_well(row) for row in rows)} otherwise")
    return "\n".join([*map(as_line, rows), counts])


def as_line(row: dict) -> str:
    return f"{row['name']:34} {row['size'] or 'own':>5}  {row['line']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES.split(), help="architectures of timm; all of NAMES")
    parser.add_argument("--results", type=Path, default=Path("architectures.jsonl"),
                        help="where it writes, and goes on")
    parser.add_argument("--seconds", type=float, default=600, help="the longest that one may take")
    parser.add_argument("--table", action="store_true", help="print what is known and run nothing")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may have been cut
    if not options.table:
        options.results.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with tempfile.TemporaryDirectory() as data:
            write_pictures(Path(data), 16)  # two steps of 8, and 4 for val and test each
            known = {row["name"] for row in rows}
            for name in options.names:
                if name not in known:
                    rows.append(measured(name, Path(data), options.seconds))
                    print(as_line(rows[-1]), flush=True)
                    with open(options.results, "a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))
    return 0 if all(map(is_well, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
