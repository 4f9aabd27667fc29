"""Faults of every kind in passes of every kind, and an exact pass behind each. `make faults` has ten thousand of them."""

from __future__ import annotations

from collections import Counter

from tellme.host.image.model import Model
from tests.machine.campaign import KINDS, ODD, PASSES, Campaign, Injection, lost_answer, odd_answer


def test_faults_are_told_or_change_nothing_and_the_next_pass_is_exact(demo: Model) -> None:
    done: list[Injection] = []
    with Campaign(demo, seed=1) as campaign:
        for number in range(26):
            injection, exact = campaign.inject(number)
            assert injection.outcome not in ("hung", "wrong") and exact, (number, injection)
            done.append(injection)
    seen = Counter(i.kind for i in done)
    assert set(seen) == set(KINDS) - {"bus error"}
    assert {i.passed for i in done} == set(PASSES)
    outcomes = Counter(i.outcome for i in done)
    assert outcomes["detected"] > 6 and outcomes["harmless"] > 2


def test_errors_of_any_burst_are_told_and_the_machine_goes_on(demo: Model) -> None:
    with Campaign(demo, seed=2, error_rate=1 / 3000) as campaign:
        done = [campaign.inject(number)[0] for number in range(12)]
    assert not [i for i in done if i.outcome not in ("detected", "harmless")]
    outcomes = Counter(i.outcome for i in done)
    assert outcomes["detected"] > 2 and outcomes["harmless"] > 0, outcomes
    assert len({i.code for i in done}) > 1


def test_an_answer_lost_anywhere_is_told_with_what_is_owed(demo: Model) -> None:
    done = [lost_answer(demo, 1, number) for number in range(2)]
    assert not [i for i in done if i.outcome not in ("detected", "harmless")], done
    assert any(i.outcome == "detected" for i in done)


def test_what_axi_does_not_allow_ends_and_writes_nothing_stray(demo: Model) -> None:
    done = {what: odd_answer(demo, 7, number) for number, what in enumerate(ODD)}
    assert {what: i.outcome for what, i in done.items()} == {"id": "harmless", "twice": "detected", "swap": "data"}, (
        done
    )
    assert done["twice"].detail.endswith("load the bitstream again")


def test_registers_and_memories_that_begin_as_random_bits_change_nothing(demo: Model) -> None:
    """The reset gives every register that matters its value; a reset in the middle of a pass, too."""
    kinds = [kind for kind in KINDS if kind != "bus error"]
    first = kinds.index("hardware reset")
    with Campaign(demo, seed=3, random_start=True) as campaign:
        for name, given in campaign.passes.items():
            assert campaign.same(name, campaign.machine.run_pass(given)), name
        for number in (first, first + len(kinds)):
            injection, exact = campaign.inject(number)
            assert injection.kind == "hardware reset" and injection.outcome in ("detected", "harmless") and exact, (
                injection
            )


def test_a_screened_head_meets_faults_as_the_full_one(demo_screened: Model) -> None:
    with Campaign(demo_screened, seed=4, screened=True) as campaign:
        for number in range(12):
            injection, exact = campaign.inject(number)
            assert injection.outcome not in ("hung", "wrong") and exact, (number, injection)
