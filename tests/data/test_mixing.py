"""The order of documents is a function of (seed, position): shares, epochs, lanes, resuming."""

from collections import Counter

import numpy as np
import pytest

from tunalab.data.mixing import Mixer, Pick, stream_rng

LENGTHS = {"a": None, "b": 7, "c": 100, "d": None}
WEIGHTS = {"a": 0.5, "b": 0.2, "c": 0.3, "d": 0.0}


def picks(count: int, seed: int = 0, lane: int = 0, lanes: int = 1, weights: dict[str, float] = WEIGHTS) -> list[Pick]:
    mixer = Mixer(LENGTHS, seed, lane, lanes)
    return [mixer.next(weights) for _ in range(count)]


def test_weights_are_respected() -> None:
    n = 4000
    shares = Counter(pick.source for pick in picks(n))
    for source, weight in WEIGHTS.items():
        assert abs(shares[source] / n - weight) < 4 * (weight * (1 - weight) / n) ** 0.5 + 1e-12
    doubled = {source: 2 * weight for source, weight in WEIGHTS.items()}
    assert picks(200, weights=doubled) == picks(200)


def test_the_order_in_which_a_mix_is_written_does_not_matter() -> None:
    assert picks(300, weights=dict(reversed(WEIGHTS.items()))) == picks(300)


def test_the_stream_depends_on_the_seed_alone() -> None:
    assert picks(300) == picks(300)
    assert [p.source for p in picks(300)] != [p.source for p in picks(300, seed=1)]
    assert [p.position for p in picks(50)] == list(range(50))


def test_blocks_of_draws_leave_no_seam() -> None:
    across = picks(2 * Mixer.block + 50)
    uniforms = np.array([pick.uniform for pick in across])
    assert len(set(uniforms)) == len(uniforms) and ((uniforms >= 0) & (uniforms < 1)).all()
    assert abs(uniforms.mean() - 0.5) < 0.03
    # The draw that drops prompts is independent of the one that picks the source.
    for source in ("a", "b", "c"):
        chosen = [pick.uniform for pick in across if pick.source == source]
        assert abs(np.mean(chosen) - 0.5) < 4 * 0.29 / len(chosen) ** 0.5


def test_endless_sources_are_counted_through_and_epochs_are_permutations() -> None:
    by_source: dict[str, list[int]] = {}
    for pick in picks(1500):
        by_source.setdefault(pick.source, []).append(pick.index)
    assert by_source["a"] == list(range(len(by_source["a"])))
    for source in ("b", "c"):
        length = LENGTHS[source]
        assert length is not None
        found = by_source[source]
        epochs = [found[at : at + length] for at in range(0, len(found) - length + 1, length)]
        assert len(epochs) >= 2
        for number, epoch in enumerate(epochs):
            assert sorted(epoch) == list(range(number * length, (number + 1) * length))
        orders = [tuple(index % length for index in epoch) for epoch in epochs]
        assert len(set(orders)) == len(orders), "every epoch has an order of its own"


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_share_the_stream_out(lanes: int) -> None:
    n = 600
    whole = picks(n)
    parts = [picks(n // lanes, lane=lane, lanes=lanes) for lane in range(lanes)]
    merged = [parts[at % lanes][at // lanes] for at in range(n)]
    # Same positions, sources and drops as one lane reads; only which document of a source differs.
    assert [(p.position, p.source, p.uniform) for p in merged] == [(p.position, p.source, p.uniform) for p in whole]
    indices = [(pick.source, pick.index) for part in parts for pick in part]
    assert len(set(indices)) == len(indices), "no document is read by two lanes"
    # Where every lane has read k documents of a source, together they have read its first k * lanes.
    for source in ("a", "b", "c"):
        read = [[pick.index for pick in part if pick.source == source] for part in parts]
        k = min(len(indices) for indices in read)
        covered = {index for indices in read for index in indices[:k]}
        assert k > 5 and len(covered) == k * lanes
        length = LENGTHS[source] or 1  # of an endless source every document is an epoch
        assert covered >= set(range(k * lanes // length * length)), "whole epochs are covered"


def test_resuming_is_exact_even_where_the_mix_changes() -> None:
    other = {"c": 1.0, "a": 2.0}
    for stop in (1, 40, 1023, 1024, 1025):
        mixer = Mixer(LENGTHS, 3, lane=1, lanes=2)
        for _ in range(stop):
            mixer.next(WEIGHTS)
        state = mixer.state_dict()
        expected = [mixer.next(other) for _ in range(60)]
        resumed = Mixer(LENGTHS, 3, lane=1, lanes=2)
        resumed.load_state_dict(state)
        assert [resumed.next(other) for _ in range(60)] == expected
        assert state["counts"] != mixer.state_dict()["counts"], "a state is a copy, not a view"


def test_a_state_of_other_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="sources"):
        Mixer({"a": None}, 0).load_state_dict(Mixer(LENGTHS, 0).state_dict())


def test_generators_of_different_keys_are_unrelated() -> None:
    keys = [(seed, kind, number) for seed in range(3) for kind in (1, 2) for number in range(5)]
    assert len({stream_rng(*key).random() for key in keys}) == len(keys)
