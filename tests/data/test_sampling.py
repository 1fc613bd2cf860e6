"""The plan of an epoch: every image once, in steps of one size, the same for any number of processes."""

import numpy as np
import pytest

from util.data.sampling import EvalBatches, StepPlan, TrainBatches, balanced_order, epoch_order


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
@pytest.mark.parametrize("batch_size, accum_iter, world_size",
                         [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4), (3, 1, 3)])
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


def test_balanced_classes():
    targets = np.array([0] * 70 + [2] * 20 + [5] * 10)  # classes 1, 3 and 4 have no images
    seen = np.zeros(100, int)
    for epoch in range(21):
        order = balanced_order(targets, 3, epoch)
        assert len(order) == 100
        assert sorted(np.bincount(targets[order])[[0, 2, 5]]) == [33, 33, 34]
        times = np.bincount(order, minlength=100)
        seen += times
        for target in (0, 2, 5):  # none comes again before all of its class have come
            assert np.ptp(times[targets == target]) <= (2 if 33 % (targets == target).sum() else 0)
            assert np.ptp(seen[targets == target]) <= 1
    assert (balanced_order(targets, 3, 4) == balanced_order(targets, 3, 4)).all()
    assert (balanced_order(targets, 3, 4) != balanced_order(targets, 4, 4)).any()


def test_balanced_batches_are_the_same_for_any_number_of_processes_and_count_repeats():
    targets = np.array([0] * 28 + [1] * 5)

    def of_steps(batch_size, accum_iter, world_size):
        plan = StepPlan(33, batch_size, accum_iter, world_size)
        together = [[] for _ in range(plan.steps)]
        for rank in range(world_size):
            for micro_step, batch in enumerate(TrainBatches(plan, rank, 1, targets)):
                together[micro_step // plan.of_a_step] += batch[:plan.samples_of(micro_step, rank)]
        return [sorted(step) for step in together]

    alone = of_steps(8, 1, 1)
    assert alone == of_steps(4, 1, 2) == of_steps(2, 2, 2) == of_steps(1, 2, 4)
    keys = sum(alone, [])
    assert len(keys) == len(set(keys)) == 33 and max(times for *_, times in keys) == 3
    for position in {key[1] for key in keys}:
        assert sorted(times for _, other, times in keys if other == position) == list(
            range(sum(other == position for _, other, _ in keys)))


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
