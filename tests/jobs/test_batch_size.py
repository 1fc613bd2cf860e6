"""--batch_size auto: by the estimate on a CPU, by trying on a GPU (a test gives its memory out here), kept by
a resumed run."""

import torch

import jobs.parallel as room
from tests.conftest import SMALL, weights_of

AUTO = [*SMALL, "--batch_size", "auto"]


def test_by_the_estimate_it_is_what_the_free_memory_holds(start, monkeypatch):
    def chosen(free):
        monkeypatch.setattr(room, "available_bytes", lambda: free)
        code, out, err = start("--batch_size", "auto", "--epochs", 1, "--dry_run", "--input_size", 160)
        if code:
            return err
        (line,) = [line for line in out.splitlines() if "--batch_size auto is" in line]
        number = int(line.split("auto is ")[1].split(" ")[0])
        assert f"; batch {number} x accumulation 1 x 1 process = {number}; learning rate" in out
        need = float(out.split("memory     about ")[1].split(" GiB")[0])
        return number, need, line

    most, need, line = chosen(2**40)
    assert most == 32 and "estimated" in line and "bounded by the training images" in line  # of 43
    some, need, _ = chosen(2**26)
    assert 1 < some < most and need <= 2**26 / 2**31 + 0.01
    assert chosen(2**25)[0] < some
    assert chosen(2**10).startswith("error: --batch_size auto: not one image of 160 pixels fits")


def test_it_is_stored_and_kept(start, tmp_path, monkeypatch):
    code, out, err = start("--batch_size", "auto", "--blr", 0.01, "--task", "a")
    assert code == 0, err
    assert "--batch_size auto is 32" in out and "batch 32 x accumulation 1" in out
    stored = torch.load(tmp_path / "output_dir/a/checkpoint-last.pth", weights_only=True)["options"]
    assert stored["batch_size"] == 32
    monkeypatch.setattr(room, "available_bytes", lambda: 0)  # now there would be room for none
    code, out, err = start("--batch_size", "auto", "--blr", 0.01, "--task", "a", "--resume", "same")
    assert code == 0 and "this run is complete" in out, err
    code, out, err = start("--batch_size", "auto", "--blr", 0.01, "--task", "a", "--resume", "auto",
                           "--epochs", 3)
    assert code == 0 and "batch 32 x" in out and "auto is" not in out and "--batch_size" not in out, err
    code, out, err = start("--batch_size", "auto", "--task", "s", "--eval", "--resume",
                           "output_dir/a/checkpoint-best.pth")
    assert code == 0, err
    assert weights_of(tmp_path / "output_dir/a/checkpoint-last.pth")


def test_wrong_sizes_stay_errors(start):
    for wrong in ("0", "-1", "foo", "1.5", ""):
        code, _, err = start("--batch_size", wrong)
        assert code == 2 and err.startswith("error: argument --batch_size: ") and err.count("\n") == 1


def test_what_is_tried_is_the_largest_that_fits(start, monkeypatch):
    """A model that runs out of memory above 12 images, on a CPU that is tried like a GPU."""
    sizes, whole = [], room.fits

    def fits(job, size, for_training=False):
        before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}

        def full(module, inputs):
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > 12:
                raise torch.OutOfMemoryError("full")

        with_limit = job.model.register_forward_pre_hook(full)
        found = whole(job, size, for_training)
        with_limit.remove()
        assert all(torch.equal(before[name], tensor) for name, tensor in job.model.state_dict().items())
        assert all(p.grad is None for p in job.model.parameters())
        return found

    monkeypatch.setattr(room, "_estimated", lambda job,
                        sizes: room._largest(sizes, lambda size: fits(job, size, True)))
    code, out, err = start("--batch_size", "auto", "--epochs", 1, "--model_arch", "test_resnet",
                           "--no_savemodel")
    assert code == 0 and "--batch_size auto is 12" in out, err
    assert sizes == [2, 2, 3, 4, 6, 8, 12, 16]


def test_a_full_memory_is_one_line(start, monkeypatch):
    import models_vit

    def full(self, inputs):
        if not inputs[0].is_meta:  # the check of the input size takes a step of shapes alone
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    real = models_vit.build_model

    def build(*args, **kwargs):
        model = real(*args, **kwargs)
        model.register_forward_pre_hook(full)
        return model

    monkeypatch.setattr(models_vit, "build_model", build)
    code, _, err = start("--epochs", 1)
    assert code == 1 and err.startswith("error: the device's memory is full: lower "
                                        "--batch_size") and err.count("\n") == 1
    assert "lower --batch_size" in err and "--accum_iter" in err and "--batch_size auto" in err
