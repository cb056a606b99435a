"""Training on any number of ranks comes to the same: in threads here, under MPI in `test_mpi`."""

import time

import numpy as np
import pytest
from small_runs import BATCH, images, make_trainer, network, train
from thread_ranks import together

import minifocal as mf
from minifocal.arrays import random_generator
from minifocal.data import Standardize
from minifocal.models.config import MODULATION_NAMES
from minifocal.training import distributed, trainer
from minifocal.training.augment import Augmentation
from minifocal.training.distributed import BatchDraws, part_of_batch
from minifocal.training.ranks import ALONE
from minifocal.training.step import evaluate

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # relative, of the loss of each of 50 steps
SHORT = {"epochs": 1, "images_to_train": 24, "warmup_steps": 1}  # three steps, the last of two images


def losses_of(size, **options):
    trainers = together(size, lambda ranks: train(ranks, **options))
    for other in trainers[1:]:
        assert other.listener.losses == trainers[0].listener.losses
        assert list(map(without_clock, other.history)) == list(map(without_clock, trainers[0].history))
        for name, weights in other.model.state_dict().items():
            np.testing.assert_array_equal(weights, trainers[0].model.state_dict()[name], err_msg=name)
    return np.array(trainers[0].listener.losses)


def without_clock(record):
    return {name: value for name, value in record.items() if name not in ("seconds", "images_per_second")}


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_losses_do_not_depend_on_the_number_of_ranks(dtype, modulation):
    options = {"modulation": modulation, "dtype": dtype, "ops": "numpy"}
    alone = np.array(train(ALONE, **options).listener.losses)
    assert len(alone) == 50
    assert alone[-1] < 0.95 * alone[0]
    for size in (2, 3, 4):
        np.testing.assert_allclose(losses_of(size, **options), alone, rtol=TOLERANCE[dtype], err_msg=str(size))


@pytest.mark.parametrize("ops", ["reference", "numba"])
def test_it_holds_for_the_other_tables_for_clipping_and_for_adamw(ops):
    pytest.importorskip("numba")
    for options in (
        {"clip_norm": 0.05},
        {"optimizer": "adamw", "lr": 0.01},
        {"label_smoothing": 0.0, "micro_batch": 2},
    ):
        options = {**SHORT, "dtype": "float64", "ops": ops, **options}
        alone = np.array(train(ALONE, **options).listener.losses)
        np.testing.assert_allclose(losses_of(3, **options), alone, rtol=1e-12)


def weighted(part, weight):
    return part._replace(weight=weight)


MISTAKES = {
    "each rank's part counts alike": lambda part, ranks, count: weighted(part, part.weight and 1 / ranks.size),
    "each rank computes the first part": lambda part, ranks, count: part._replace(images=slice(0, 1)),
    "an image that stands in counts": lambda part, ranks, count: weighted(part, part.weight or 1 / count),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_parts_would_be_seen(mistake, monkeypatch):
    options = {**SHORT, "dtype": "float64"}
    alone = np.array(train(ALONE, **options).listener.losses)
    monkeypatch.setattr(trainer, "part_of_batch", lambda *given: MISTAKES[mistake](part_of_batch(*given), *given))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(losses_of(3, **options), alone, rtol=1e-3)


@pytest.mark.parametrize("broken", ["random", "integers"])
def test_draws_by_rank_would_be_seen(broken, monkeypatch):
    options = {**SHORT, "dtype": "float64"}
    alone = np.array(train(ALONE, **options).listener.losses)
    right = getattr(BatchDraws, broken)

    def by_rank(draws, *given):
        return np.roll(right(draws, *given), 1, axis=0)

    monkeypatch.setattr(BatchDraws, broken, by_rank)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(losses_of(2, **options), alone, rtol=1e-3)


def test_a_part_gets_the_draws_of_its_images():
    whole = random_generator(5)
    for part in (slice(0, 3), slice(3, 7), slice(6, 7)):
        draws = BatchDraws(random_generator(5), 7, part)
        whole = random_generator(5)
        np.testing.assert_array_equal(draws.random((part.stop - part.start, 2, 1)), whole.random((7, 2, 1))[part])
        np.testing.assert_array_equal(draws.integers(2, 9, (1, 2)), whole.integers(2, 9, (7, 2))[part])
        np.testing.assert_array_equal(draws.integers(0, 3, 5), whole.integers(0, 3, 7)[part])
        np.testing.assert_array_equal(draws.random(5), whole.random(7)[part])


@pytest.mark.parametrize("augmentation", [Augmentation(crop=(4, 5)), Augmentation(shift=2), Augmentation(flip=True)])
def test_a_part_is_augmented_as_in_the_whole_batch(augmentation):
    pixels = images(9).images
    whole = augmentation(pixels, random_generator(3))
    for part in (slice(0, 4), slice(4, 9)):
        np.testing.assert_array_equal(augmentation(pixels[part], BatchDraws(random_generator(3), 9, part)), whole[part])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_parts_make_up_the_batch_and_weights_one(size, count):
    parts = together(size, lambda ranks: part_of_batch(ranks, count))
    counted = [index for part in parts if part.weight for index in range(count)[part.images]]
    assert counted == list(range(count))
    np.testing.assert_allclose(sum(part.weight for part in parts), 1.0)
    lengths = [part.images.stop - part.images.start for part in parts]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    assert [part.images for part in parts if not part.weight] == [slice(0, 1)] * max(0, size - count)


def test_all_measure_the_same_as_one_alone():
    model, data = network(dtype="float64"), images(7, seed=3)
    standardize = Standardize.fit(data)
    alone = evaluate(model, data, standardize)
    for size in (2, 3, 9):
        for found in together(size, lambda ranks: evaluate(model, data, standardize, batch_size=2, ranks=ranks)):
            assert found.confusion == alone.confusion
            assert found.accuracy == alone.accuracy
            np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-14)


def test_a_run_goes_on_with_other_ranks_as_if_nothing_had_been(tmp_path):
    straight = train(ALONE, dtype="float64", folder=tmp_path / "straight")

    def begin(ranks):
        run = make_trainer(
            network(seed=ranks.rank, dtype="float64"), ranks, tmp_path / "run" if ranks.is_first else None
        )
        if ranks.rank == 1:
            run.listener.on_step = lambda step, *_: step == 17 and run._ask_to_stop(2)
        assert not run.fit()
        return run.progress.epoch, run.progress.step

    assert together(3, begin) == [(1, 7)] * 3  # the others stop with the one that is asked to

    def go_on(ranks):
        run = make_trainer(network(seed=5, dtype="float64"), ranks, tmp_path / "run" if ranks.is_first else None)
        ranks.from_first(run.resume)
        assert run.fit()

    together(2, go_on)
    ends = [mf.load_checkpoint(tmp_path / name / "last.safetensors") for name in ("straight", "run")]
    for name, weights in ends[0].model.items():
        np.testing.assert_allclose(ends[1].model[name], weights, rtol=0, atol=1e-12, err_msg=name)
    losses = [[record["train_loss"] for record in end.meta["progress"]["history"]] for end in ends]
    np.testing.assert_allclose(*losses, rtol=1e-12)
    assert len(losses[0]) == len(straight.history) == 5


def test_nobody_leaves_before_the_first_has_saved(tmp_path):
    """A signal that comes to all would end those that have left, and with them the job, in the middle of a file."""
    left = []

    def run(ranks):
        run = make_trainer(network(), ranks, tmp_path if ranks.is_first else None, **SHORT)
        save = run._save

        def slowly(name="last.safetensors"):
            assert not left
            save(name)
            time.sleep(0.05)
            assert not left

        run._save = slowly
        run.fit()
        left.append(ranks.rank)
        return run.stopped_by

    assert together(2, run) == [None, None]
    assert sorted(left) == [0, 1]


def test_all_are_told_the_signal_that_came_to_one():
    def run(ranks):
        run = make_trainer(network(), ranks, **SHORT)
        if ranks.rank == 2:
            run.listener.on_start = lambda trainer: run._ask_to_stop(15)
        assert not run.fit()
        return run.stopped_by

    assert together(3, run) == [15, 15, 15]


def test_ranks_that_train_something_else_are_refused():
    def different(ranks, **changes):
        changes = changes if ranks.rank == 2 else {}
        return make_trainer(network(changes.pop("modulation", "focal")), ranks, **changes).fit()

    for changes, what in (
        ({"lr": 0.2}, "settings"),
        ({"modulation": "box_mean"}, "network"),
        ({"images_to_train": 102}, "training images"),
    ):
        with pytest.raises(mf.InputError, match=f"rank 2: {what} differ from rank 0's .*; install and copy the same"):
            together(3, lambda ranks, changes=changes: different(ranks, **changes))


def test_weights_that_drift_apart_end_the_run(monkeypatch):
    def drift(ranks):
        run = make_trainer(network(), ranks, **SHORT)
        if ranks.rank == 1:
            right = run.optimizer.step
            run.optimizer.step = lambda skip: (right(skip), run.model.head.bias.data.__iadd__(1e-7))
        run.fit()

    with pytest.raises(mf.InputError, match=r"rank 1: weights differ from rank 0's .*machines of one kind"):
        together(2, drift)


def test_a_graph_is_refused_and_so_is_a_micro_batch_of_none():
    with pytest.raises(mf.InputError, match="a graph replays a step of one process"):
        together(2, lambda ranks: make_trainer(network(), ranks, graph=True))
    with pytest.raises(mf.InputError, match="micro_batch must be"):
        make_trainer(network(), micro_batch=0)


def test_the_batch_has_a_rest_that_is_smaller_than_the_ranks():
    """What the tests above rely on."""
    assert 101 % BATCH == 24 % BATCH == 2 < 3
    assert distributed.part_of_batch(ALONE, 5) == (slice(0, 5), 1.0)
