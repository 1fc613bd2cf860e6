"""From a name or a path to a weight file on this disk.

`--finetune` names, in this order: a local file; a file of that name under `--weights_dir`; one of the hub's
names of the backbone table; `hf:owner/repo/file`, or `hf:timm/NAME.TAG` alone. Everything works offline once
a file is on disk (or in the hub's own cache).
"""

import hashlib
import os
import re
import threading
import time
from pathlib import Path

from util.core import disk
from util.core.errors import InputError
from util.core.secrets import hide_in_logs

SUFFIXES = ("", ".pth", ".pt", ".safetensors")
SHA256_PREFIX = re.compile(r"-([0-9a-f]{8})\.pth$")
TIMM_FILE = "model.safetensors"  # what timm names the weights in each of its repositories
# a hub that sends nothing for so long is given up; RETINA_HUB_SILENCE_S says another time
HUB_SILENCE_S = 90.0


def find_weights(name: str, weights_dir: str, hub_files: dict[str, tuple[str, str]], how_to_get: str) -> Path:
    """Path of the weights that `name` stands for, downloaded where it is a hub name that is not in the cache
    yet.

    `hub_files` maps a hub name to (repository, file). InputError where nothing of that name can be had;
    `how_to_get` ends that message.
    """
    # pathlib's own raises for a user that is not there, and for long names below
    direct = Path(os.path.expanduser(name))
    if os.path.isfile(direct):
        return direct
    if os.path.isdir(direct):
        raise InputError(f"--finetune {name} is a folder: name the weight file in it")
    if name.startswith("hf:"):
        parts = name[3:].split("/")
        if len(parts) == 2 and parts[0] == "timm":
            parts.append(TIMM_FILE)
        if len(parts) < 3 or not all(parts):
            raise InputError(f"--finetune {name}: write it as hf:owner/repo/file (hf:timm/NAME.TAG for "
                             "timm's)")
        return download("/".join(parts[:2]), "/".join(parts[2:]))
    for suffix in SUFFIXES:
        stored = Path(os.path.expanduser(weights_dir)) / f"{name}{suffix}"
        if os.path.isfile(stored):
            return stored
    hub_name = name.removesuffix(".pth")
    if hub_name in hub_files:
        return download(*hub_files[hub_name])
    raise InputError(f"--finetune {name}: no such file here or in --weights_dir {weights_dir}, and no name "
                     f"of the hub ({', '.join(hub_files)}): pass the path of the file; {how_to_get}")


def download(repository: str, file: str) -> Path:
    """A file of the Hugging Face hub, from its cache where it is there already, else downloaded by
    huggingface_hub.

    `HF_ENDPOINT` (a mirror), `HF_TOKEN` or `hf auth login`, `HF_HOME` and `HF_HUB_OFFLINE` work as that
    library documents. InputError with what to do where it can't be had, or where it is not what the hub says
    it is.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repository, file)
    except HFValidationError as error:
        raise _explain(error, repository, file) from error
    path = Path(cached) if isinstance(cached, str) else Path(_download_watched(repository, file))
    # the hub names a large file's blob by its sha256, so that what was stored can be held to it
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise InputError(f"{repository}/{file} arrived changed (its sha256 is not the hub's "
                         f"{blob.name[:8]}…): the copy was removed; start again")
    return path


def _download_watched(repository: str, file: str) -> str:
    """hf_hub_download in a thread of its own, given up when nothing arrives for `_hub_silence` seconds.

    The library retries a silent server for minutes; a job on a cluster should say so and end.
    """
    from huggingface_hub import hf_hub_download
    from tqdm.auto import tqdm

    hide_in_logs("huggingface_hub")

    last_sign, outcome, patience = [time.monotonic()], {}, _hub_silence()

    class Progress(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": None})

        def update(self, n: float | None = 1) -> bool | None:
            last_sign[0] = time.monotonic()
            return super().update(n)

    def work() -> None:
        try:
            outcome["path"] = hf_hub_download(repository, file, tqdm_class=Progress)
        except Exception as error:  # handed to the waiting thread, which raises or explains it
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    print(f"downloading {repository}/{file} from the Hugging Face hub", flush=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        if time.monotonic() - last_sign[0] > patience:
            raise InputError(f"{repository}/{file}: the hub has sent nothing for {patience:.0f} s; try "
                             "again, set HF_ENDPOINT to a mirror, or fetch the file elsewhere and pass its "
                             "path with --finetune")
    if "error" in outcome:
        raise _explain(outcome["error"], repository, file) from outcome["error"]
    return outcome["path"]


def _hub_silence() -> float:
    text = os.environ.get("RETINA_HUB_SILENCE_S", str(HUB_SILENCE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"RETINA_HUB_SILENCE_S={text} in the environment: seconds above 0, or unset it")
    return seconds


def _explain(error: Exception, repository: str, file: str) -> Exception:
    """What the user can do about a failed download, in one line; a bug of ours stays what it is."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    what = f"{repository}/{file}"
    elsewhere = "or fetch the file elsewhere and pass its path with --finetune"
    login = "log in with `hf auth login` or set HF_TOKEN"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    of_disk = f"({disk.reason(error)}): {disk.remedy(error)}" if isinstance(error, OSError) else ""
    known = (  # the first that fits counts
        (isinstance(error, HFValidationError), f"--finetune hf:{what}: {first}"),
        (isinstance(error, GatedRepoError),
         f"{what} is gated: ask for access on huggingface.co/{repository}, then {login}, {elsewhere}"),
        (isinstance(error, RepositoryNotFoundError) or status in (401, 403),
         f"{what}: the hub refuses ({status or 'not found'}): check the name, ask for access on "
         f"huggingface.co/{repository}, {login}, {elsewhere}"),
        (isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled),
         f"{what} is not on this disk and the hub can't be reached: check the network (HF_HUB_OFFLINE, "
         f"proxy), set HF_ENDPOINT to a mirror, {elsewhere}"),
        (isinstance(error, EntryNotFoundError) or status == 404,
         f"{what}: the hub has no such file; look at huggingface.co/{repository} for its name"),
        (isinstance(error, HfHubHTTPError),
         f"{what}: the hub answered {status}: try again later, set HF_ENDPOINT to a mirror, {elsewhere}"),
        (isinstance(error, OSError) and error.errno in (*disk.FULL, *disk.READ_ONLY),
         f"{what} can't be stored in the hub's cache {of_disk}, set HF_HOME to another one, {elsewhere}"),
        # the client's HTTP library is httpx in huggingface_hub 1 and httpx2 in 2; its errors are no OSError
        (isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpx2"),
         f"{what}: the download broke off ({first[:160]}): start again (it goes on where it stopped), "
         f"{elsewhere}"),
    )
    return next((InputError(text) for fits, text in known if fits), error)


def sha256(path: str | Path) -> str:
    """The file's sha256 in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
