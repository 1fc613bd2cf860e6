"""What goes wrong beside the input: rows of the page that other tests prove. Add a row here, with its test."""

from dataclasses import dataclass

KIND = "Faults of machines"


@dataclass(frozen=True)
class Fault:
    """A line of the page. test: FILE::FUNCTION below tests/, which proves it."""

    what: str
    says: str
    remedy: str
    test: str


FAULTS = (
    Fault(
        "A run is killed or the power goes",
        "what the last epoch wrote stays whole",
        "start it again: `--resume auto` (train.sh does) goes on from the last checkpoint to the same weights and figures",
        "end_to_end/test_restart.py::test_a_worker_killed_twice_comes_back_twice",
    ),
    Fault(
        "Training diverges",
        "`the loss is not finite at epoch …, step … (pictures of the batch: …)` (exit code 1)",
        "lower `--lr` or `--blr`, or try `--precision fp32`; look at the named images",
        "end_to_end/test_restart.py::test_a_diverged_run_is_not_started_again",
    ),
    Fault(
        "Ctrl-C",
        "`interrupted: what was saved stays; …` (exit code 130)",
        "`--resume auto`",
        "end_to_end/test_restart.py::test_ctrl_c_is_one_line_and_130",
    ),
    Fault(
        "The disk fills while a checkpoint is written",
        "`… could not be written (…): the checkpoint before it stays; make room and start again with --resume auto`",
        "make room, start again",
        "test_checkpoint.py::test_a_failed_write_keeps_what_was_there",
    ),
    Fault(
        "A checkpoint's temporary file was left by a killed run",
        "it is removed at the next start",
        "nothing to do",
        "test_checkpoint.py::test_torn_files_of_dead_processes_are_removed",
    ),
    Fault(
        "A start of predict.py is killed",
        "its rows stay in `FILE.partial`",
        "start it again: it goes on where it was",
        "test_predict.py::test_a_start_that_died_goes_on",
    ),
    Fault(
        "A picture vanishes in mid-run",
        "`a picture that was there at the start cannot be read any more: …` (exit code 1)",
        "put it back, start again",
        "test_datasets.py::test_a_picture_that_is_gone_in_mid_run_is_named",
    ),
    Fault(
        "The hub is silent",
        "`…: the hub has sent nothing for … s; try again, …`",
        "set `HF_ENDPOINT` to a mirror, or pass a file",
        "test_pretrained.py::test_a_silent_hub_is_given_up",
    ),
    Fault(
        "There is no network",
        "`… is not on this disk and the hub can't be reached: …`",
        "fetch the file elsewhere and pass its path",
        "test_pretrained.py::test_no_network",
    ),
    Fault(
        "A download breaks off",
        "`…: the download broke off (…): start again (it goes on where it stopped), …`",
        "start again",
        "test_pretrained.py::test_cut_off_in_the_middle_then_whole",
    ),
    Fault(
        "A download arrives changed",
        "`… arrived changed (its sha256 is not the hub's …): the copy was removed; start again`",
        "start again",
        "test_pretrained.py::test_changed_on_the_way",
    ),
    Fault(
        "A token or password is in the environment, in an address, or in the hub's file",
        "it is never printed, logged or saved: `***` stands in its place",
        "nothing to do",
        "end_to_end/test_secrets.py::test_no_token_is_printed_or_saved",
    ),
)
