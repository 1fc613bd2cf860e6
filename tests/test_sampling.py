"""The plan of an epoch: every picture once, in steps of one size, the same for any number of processes."""

import pytest

from util.sampling import EvalBatches, StepPlan, TrainBatches, epoch_order


def steps(num_samples, batch_size, accum_iter, world_size, epoch=0, seed=0, even=True):
    """Sets of positions an optimizer step, over all processes, and how many of a rank's samples count."""
    plan = StepPlan(num_samples, batch_size, accum_iter, world_size, even)
    together = [set() for _ in range(plan.steps)]
    counted = 0
    for rank in range(world_size):
        batches = TrainBatches(plan, rank, seed)
        batches.set_epoch(epoch)
        listed = list(batches)
        assert len(listed) == len(batches) == plan.micro_steps
        for micro_step, batch in enumerate(listed):
            real = plan.samples_of(micro_step, rank)
            assert len(batch) == max(1, real) <= batch_size
            counted += real
            together[micro_step // plan.of_a_step] |= {position for _, position in batch}
    assert counted == num_samples
    return plan, together


@pytest.mark.parametrize("num_samples", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("batch_size, accum_iter, world_size", [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4), (3, 1, 3)])
@pytest.mark.parametrize("even", [True, False])
def test_every_picture_once_in_steps_of_the_right_size(num_samples, batch_size, accum_iter, world_size, even):
    plan, together = steps(num_samples, batch_size, accum_iter, world_size, even=even)
    sizes = [len(step) for step in together]
    assert max(sizes) <= batch_size * accum_iter * world_size
    if even:
        assert max(sizes) - min(sizes) <= 1
    else:
        assert set(sizes[:-1]) <= {plan.step_size}
    assert set().union(*together) == set(range(num_samples))
    assert sum(len(step) for step in together) == num_samples
    assert [len(step) for step in together] == [plan.samples_of_step(step) for step in range(plan.steps)]
    assert sum(plan.ends_step(m) for m in range(plan.micro_steps)) == plan.steps


@pytest.mark.parametrize("even", [True, False])
def test_steps_are_the_same_for_any_number_of_processes(even):
    expected = steps(33, 8, 1, 1, epoch=3, even=even)[1]
    for batch_size, accum_iter, world_size in ((4, 1, 2), (2, 1, 4), (2, 2, 2), (1, 4, 2)):
        assert steps(33, batch_size, accum_iter, world_size, epoch=3, even=even)[1] == expected


@pytest.mark.parametrize("even", [True, False])
def test_steps_within_some_pictures(even):
    for plan in (StepPlan(33, 8, 1, 1, even), StepPlan(900, 8, 4, 1, even), StepPlan(1, 8, 1, 1, even)):
        for step in range(plan.steps):
            first, end = plan.of_step(step)
            assert plan.steps_within(first) == step and plan.steps_within(end - 1) == step
            assert plan.steps_within(end) == step + 1


def test_order_depends_on_seed_and_epoch_alone():
    assert (epoch_order(50, 1, 2) == epoch_order(50, 1, 2)).all()
    assert (epoch_order(50, 1, 2) != epoch_order(50, 1, 3)).any()
    assert (epoch_order(50, 1, 2) != epoch_order(50, 2, 2)).any()


def test_start_inside_an_epoch():
    batches = TrainBatches(StepPlan(20, 3, 1, 1), 0, 0)
    batches.set_epoch(1)
    whole = list(batches)
    batches.set_epoch(1, start=4)
    assert list(batches) == whole[4:] and len(batches) == 3


def test_evaluation_has_the_same_batches_for_any_number_of_processes():
    alone = [tuple(batch) for batch in EvalBatches(23, 4, 0, 1)]
    assert [position for batch in alone for _, position in batch] == list(range(23))
    for world_size in (2, 3, 7):
        dealt = [tuple(batch) for rank in range(world_size) for batch in EvalBatches(23, 4, rank, world_size)]
        assert sorted(dealt) == sorted(alone)
        assert sum(len(EvalBatches(23, 4, rank, world_size)) for rank in range(world_size)) == len(alone)
