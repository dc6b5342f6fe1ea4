"""Batches side by side: in order, one thread each, and an end that waits for nothing."""

import threading
from contextlib import closing

import pytest
import torch
from tiny import logits, padded, tiny_model

from quantlab.evaluation.answering import predict
from quantlab.machine.parallel import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return int(request.param)


def test_results_come_in_order_and_operators_get_one_thread(threads: int) -> None:
    seen = list(side_by_side(lambda n: (n, torch.get_num_threads()), range(20), CPU))
    assert seen == [(n, 1) for n in range(20)]
    assert torch.get_num_threads() == threads


def test_as_many_run_at_a_time_as_there_are_threads(threads: int) -> None:
    together = threading.Barrier(threads, timeout=20)
    assert len(list(side_by_side(lambda _: together.wait(), range(2 * threads), CPU))) == 2 * threads


def test_a_gpu_gets_one_batch_after_another() -> None:
    main = threading.get_ident()
    assert set(side_by_side(lambda _: threading.get_ident(), range(3), torch.device("cuda"))) == {main}


def test_an_error_ends_it(threads: int) -> None:
    ran: list[int] = []

    def fail_at_three(n: int) -> int:
        ran.append(n)
        if n == 3:
            raise ValueError("three")
        return n

    with pytest.raises(ValueError, match="three"):
        list(side_by_side(fail_at_three, range(1000), CPU))
    assert len(ran) < 1000 and torch.get_num_threads() == threads


def test_who_stops_asking_waits_for_what_runs_only(threads: int) -> None:
    ran: list[int] = []
    with closing(side_by_side(lambda n: ran.append(n), range(100_000), CPU)) as results:
        next(results)
    assert 1 <= len(ran) < 100_000 and torch.get_num_threads() == threads


def test_answers_do_not_depend_on_the_number_of_threads() -> None:
    model, batches = tiny_model(), [padded((9, 4)), padded((5, 3, 1), seed=1), padded((7,), seed=2)]
    for start, batch in zip((0, 2, 5), batches, strict=True):
        batch.indices[:] += start
    before, found = torch.get_num_threads(), []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(predict(model, batches, [0, 1], "").logits.tobytes())
    torch.set_num_threads(1)
    alone = torch.cat([logits(model, batch) for batch in batches])
    torch.set_num_threads(before)
    assert len(set(found)) == 1 and found[0] == alone.numpy().tobytes()
