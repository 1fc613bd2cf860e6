"""What goes wrong beside the input: rows of the page that other tests prove. Add a row here, with its
test."""

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
        "start it again: `--resume auto` (train.sh does) goes on from the last checkpoint to the same "
        "weights and figures",
        "end_to_end/test_restart.py::test_a_worker_killed_twice_comes_back_twice",
    ),
    Fault(
        "Training diverges",
        "`the loss is not finite at epoch …, step … (images of the batch: …)` (exit code 1)",
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
        "`… could not be written (…): the checkpoint before it stays; make room and start again with "
        "--resume auto`",
        "make room, start again",
        "weights/test_checkpoint.py::test_a_failed_write_keeps_what_was_there",
    ),
    Fault(
        "A checkpoint's temporary file was left by a killed run",
        "it is removed at the next start",
        "nothing to do",
        "weights/test_checkpoint.py::test_torn_files_of_dead_processes_are_removed",
    ),
    Fault(
        "A start of predict.py is killed",
        "its rows stay in `FILE.partial`",
        "start it again: it goes on where it was",
        "test_predict.py::test_a_start_that_died_goes_on",
    ),
    Fault(
        "An image vanishes in mid-run",
        "`an image that was there at the start cannot be read any more: …` (exit code 1)",
        "put it back, start again",
        "data/test_dataset.py::test_a_picture_that_is_gone_in_mid_run_is_named",
    ),
    Fault(
        "The hub is silent",
        "`…: the hub has sent nothing for … s; try again, …`",
        "set `HF_ENDPOINT` to a mirror, or pass a file",
        "weights/test_finding.py::test_a_silent_hub_is_given_up",
    ),
    Fault(
        "There is no network",
        "`… is not on this disk and the hub can't be reached: …`",
        "fetch the file elsewhere and pass its path",
        "weights/test_finding.py::test_no_network",
    ),
    Fault(
        "A download breaks off",
        "`…: the download broke off (…): start again (it goes on where it stopped), …`",
        "start again",
        "weights/test_finding.py::test_cut_off_in_the_middle_then_whole",
    ),
    Fault(
        "A download arrives changed",
        "`… arrived changed (its sha256 is not the hub's …): the copy was removed; start again`",
        "start again",
        "weights/test_finding.py::test_changed_on_the_way",
    ),
    Fault(
        "A token or password is in the environment, in an address, or in the hub's file",
        "it is never printed, logged or saved: `***` stands in its place",
        "nothing to do",
        "end_to_end/test_secrets.py::test_no_token_is_printed_or_saved",
    ),
    Fault(
        "A scheduler ends the job (SIGTERM, SIGUSR1)",
        "`stopped by SIGTERM: epoch … stands at step … of … in the last checkpoint; start again to go on` "
        "(exit code 99)",
        "queue the job again: it goes on at that step",
        "end_to_end/test_restart.py::test_asked_to_end_it_writes_a_checkpoint_and_ends_with_99",
    ),
    Fault(
        "A run is killed again and again, also inside an epoch or while it writes",
        "nothing is torn, and the end is that of a run that was left alone, bit for bit (CPU)",
        "start it again; `--save_every_steps` writes within long epochs",
        "end_to_end/test_chaos.py::test_killed_and_started_again_it_ends_with_the_same_bits",
    ),
    Fault(
        "The process always dies of a signal",
        "it is started again three times, then `error: the program was ended by SIGKILL (…) 4 times`",
        "lower `--batch_size` or `--num_workers` where the memory is full",
        "end_to_end/test_restart.py::test_a_program_that_always_dies_is_started_four_times",
    ),
    Fault(
        "One of several processes dies",
        "the others end within two minutes: `another process does not answer (…); …`; train.sh starts all "
        "again",
        "nothing, or start again",
        "end_to_end/test_nodes.py::test_without_a_launcher_a_process_that_is_gone_ends_the_other",
    ),
    Fault(
        "One of several processes hangs or is stopped",
        "after 100 s: `another process does not answer (Timed out …); …`, or `process … on … has not been "
        "heard of for …`",
        "nothing, or start again; `PEER_TIMEOUT=600` where a file system hangs so long",
        "end_to_end/test_nodes.py::test_a_process_that_does_not_come_to_a_step_ends_all",
    ),
    Fault(
        "A machine of several is lost",
        "the others wait for it (`NODE_WAIT`), then all go on from the last checkpoint",
        "start the same command on it again",
        "end_to_end/test_nodes.py::test_a_process_then_a_node_is_lost_and_comes_back",
    ),
    Fault(
        "The first machine of several is lost",
        "`node … can't reach the store of the nodes at …` (exit code 1)",
        "start the same command on every machine; `RDZV_ENDPOINT` keeps the store elsewhere",
        "end_to_end/test_nodes.py::test_the_store_is_lost_with_node_0",
    ),
    Fault(
        "A lost machine does not come back",
        "`node … waited … s in vain for the other nodes: …` (exit code 1)",
        "start the same command on every machine",
        "end_to_end/test_nodes.py::test_a_node_that_does_not_come_back",
    ),
    Fault(
        "The disk has no room for the first checkpoint",
        "`… is on a disk with … free, and this run needs …` (exit code 2, before the first step)",
        "make room, or another `--output_dir`",
        "end_to_end/test_full_disk.py::test_room_is_asked_for_at_the_start",
    ),
    Fault(
        "The disk fills, in whatever file",
        "`… can't be written (No space left on device): what was saved before stays; make room and …` (exit "
        "code 1)",
        "make room, start again: it ends with the same bits",
        "end_to_end/test_full_disk.py::test_a_full_disk",
    ),
    Fault(
        "A quota is used up",
        "the same with the system's words for it",
        "make room, start again",
        "end_to_end/test_full_disk.py::test_a_quota",
    ),
    Fault(
        "The output folder becomes read-only or vanishes",
        "`… is gone (…): bring it back (was its disk unmounted?) and start again …` (exit code 1)",
        "bring it back, start again",
        "end_to_end/test_full_disk.py::test_a_folder_that_can_no_more_be_written",
    ),
    Fault(
        "Two runs in one folder",
        "`… is in use by another run (process … on …, begun …): wait for it or stop it, or …` (exit code 2)",
        "another `--task`; a killed run leaves no lock",
        "core/test_run_lock.py::test_two_runs_of_one_task",
    ),
    Fault(
        "Slurm's commands or submitit are not there, Slurm refuses a job, or does not answer",
        "`--slurm needs submitit, which is not installed: …`, `Slurm did not take …: …` (exit code 2)",
        "the line says what is missing, or repeats Slurm's words; jobs that were taken stay in the queue",
        "study/test_slurm.py::test_without_slurm_or_submitit_it_is_one_line",
    ),
    Fault(
        "The GPU's memory is full",
        "`the device's memory is full: lower --batch_size …` (exit code 1)",
        "a smaller `--batch_size` with a larger `--accum_iter`, or `--batch_size auto`",
        "jobs/test_batch_size.py::test_a_full_memory_is_one_line",
    ),
    Fault(
        "A GPU is there, and PyTorch can't use it: an old driver, a PyTorch for CPUs",
        "`nvidia-smi lists a GPU, and PyTorch … can't use it (…): …` (exit code 2)",
        "a newer driver or another PyTorch build, or `--device cpu`",
        "parallel/test_processes.py::test_a_gpu_that_pytorch_cannot_use_stops_the_run",
    ),
    Fault(
        "Two processes are given the same GPU",
        "`2 processes would share the GPU …: …` (exit code 2)",
        "as many processes as GPUs, or each with its own (`srun --gpus-per-task=1`)",
        "parallel/test_processes.py::test_two_processes_do_not_share_a_gpu",
    ),
    Fault(
        "The GPU fails: faulty memory, a driver's error, another program that has it for itself",
        "`the GPU reports that its memory is faulty (ECC): …`, `the GPU's own software failed (…): …`, "
        "`another process has the GPU for itself: …` (exit code 1)",
        "another GPU (`CUDA_VISIBLE_DEVICES`), or start again: what was saved stays",
        "end_to_end/test_environment_faults.py::test_known_messages",
    ),
    Fault(
        "A loader process is killed for memory",
        "`a loader process was killed, as Linux does where the machine's memory is full: …`",
        "lower `--num_workers` or `--batch_size`",
        "end_to_end/test_environment_faults.py::test_a_loader_process_killed_for_memory",
    ),
    Fault(
        "/dev/shm is too small",
        "`the shared memory of this machine (/dev/shm) is too small for the loader processes: …`",
        "`docker run --shm-size=8g`, or `--num_workers 0`",
        "end_to_end/test_environment_faults.py::test_a_small_shared_memory",
    ),
    Fault(
        "Names in another script, a locale without them, a read-only data folder",
        "it works; nothing is written beside the images",
        "nothing to do",
        "end_to_end/test_environment_faults.py::test_a_name_in_another_script_in_data_that_cannot_be_written",
    ),
    Fault(
        "The clock jumps",
        "no duration is negative, nothing depends on it",
        "nothing to do",
        "end_to_end/test_environment_faults.py::test_a_clock_that_jumps",
    ),
    Fault(
        "Nobody reads the output (`… | head`)",
        "`nobody reads what this program prints (a closed pipe): stopped; …` (exit code 1)",
        "write it to a file",
        "end_to_end/test_environment_faults.py::test_output_that_nobody_reads",
    ),
    Fault(
        "A sharded checkpoint's index comes from a stranger",
        "`… is damaged, or holds more than tensors, and nothing in it was run`",
        "the weights of checkpoint-best.pth with `--finetune`",
        "parallel/test_sharding.py::test_a_hostile_index_executes_nothing",
    ),
    Fault(
        "An adapter's base weights are gone or are others",
        "`… is an adapter to … with sha256 …, and … has …`",
        "pass their place with `--finetune`",
        "end_to_end/test_lora.py::test_base_weights_are_held_to_their_sha256",
    ),
)
