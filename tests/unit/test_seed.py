import random

import numpy as np
import pytest
import torch

from stratrun.seed import (
    HostRng,
    _python_own,
    derive_seed,
    host_rng_state,
    seed_everything,
    seed_host,
    set_host_rng_state,
)


def draw():
    return random.random(), float(torch.rand(())), float(np.random.rand())


def test_derived_seeds_depend_on_every_part_and_on_their_borders():
    assert derive_seed(1, "a") == derive_seed(1, "a")
    assert len({derive_seed(1, "ab"), derive_seed(1, "a", "b"), derive_seed(2, "ab"), derive_seed(1)}) == 4


def test_the_seed_of_a_plain_script_gives_its_numbers():
    random.seed(3), torch.manual_seed(3), np.random.seed(3)
    expected = draw()
    seed_everything(3)
    assert draw() == expected


def test_restored_state_goes_on_with_the_same_numbers():
    seed_everything(0)
    draw()
    state = host_rng_state()
    expected = [draw() for _ in range(3)]
    set_host_rng_state(state)
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("seed", [None, 5])
def test_draws_in_a_private_stream_leave_the_runs_own_generators_as_they_were(seed):
    seed_everything(1)
    expected = [draw() for _ in range(2)]
    seed_everything(1)
    private = HostRng(seed)
    with private:
        seed_host(99)
        draw()
    first = draw()
    with private:
        draw()
    assert [first, draw()] == expected


def test_a_private_stream_goes_on_where_it_stopped():
    whole = HostRng(7)
    with whole:
        expected = [draw() for _ in range(4)]
    parts = HostRng(7)
    with parts:
        found = [draw()]
    draw()
    with parts:
        found += [draw() for _ in range(3)]
    assert found == expected


def test_a_private_stream_leaves_the_normal_number_that_numpy_has_in_store():
    private = HostRng()
    np.random.seed(2)
    expected = [np.random.randn() for _ in range(6)]
    np.random.seed(2)
    found = []
    for _ in range(6):
        with private:
            np.random.randn(3)
        found.append(np.random.randn())
    assert found == expected


def test_other_kinds_of_numpy_generator_are_put_back_too():
    own = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        expected = [np.random.randn() for _ in range(3)]
        np.random.set_bit_generator(np.random.PCG64(3))
        found = []
        for _ in range(3):
            with HostRng(1):
                draw()
            found.append(np.random.randn())
        assert found == expected
    finally:
        np.random.set_bit_generator(own)


def test_the_normal_number_that_python_has_in_store_stays_on_its_side():
    random.seed(5)
    random.gauss(0, 1)
    expected = random.getstate()
    rng = HostRng(1)
    with rng:
        inside = random.gauss(0, 1)
    assert random.getstate() == expected
    with rng:
        second = random.gauss(0, 1)
    random.seed(1)
    assert [inside, second] == [random.gauss(0, 1), random.gauss(0, 1)]


def test_python_s_generator_is_exchanged_alike_with_and_without_reaching_into_its_memory(monkeypatch):
    def drawn():
        random.seed(4)
        rng, found = HostRng(2), []
        for _ in range(400):  # past the end of the words, where new ones are made
            found.append(random.random())
            with rng:
                found += [random.random(), random.gauss(0, 1)]
        return found

    truth = drawn()
    monkeypatch.setattr(_python_own(), "_memory", None)
    assert drawn() == truth
    monkeypatch.undo()

    def refused(*_):
        raise AssertionError("a state was made into objects")

    with monkeypatch.context() as patch:
        patch.setattr(random, "getstate", refused)
        patch.setattr(random, "setstate", refused)
        assert drawn() == truth
