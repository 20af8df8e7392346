"""Two processes as one: this one and a child, over gloo; and one process alone, which is itself."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdslib.io import distributed

CPU = torch.device("cpu")
X = torch.arange(12, dtype=torch.float32).view(4, 3) / 10


def loss_of(rows, weight):
    """Of all rows together, so that each row's gradient depends on the others."""
    emb = rows @ weight
    return (emb @ emb.T).softmax(-1).diagonal().log().neg().mean() + 0.1 * emb.square().mean()


def work():
    """What each of the two does, in this order; gives what this one saw."""
    own = distributed.part(4)
    weight = torch.nn.Parameter(torch.eye(3) * (1 + distributed.place()))
    idle = torch.nn.Parameter(torch.ones(2))
    lonely = torch.nn.Parameter(torch.ones(1))
    distributed.same([weight])
    emb = distributed.gather(X[own] @ weight)
    loss = (emb @ emb.T).softmax(-1).diagonal().log().neg().mean()
    loss = loss + 0.1 * (X[own] @ weight).square().mean()
    if distributed.is_main():
        loss = loss + lonely.sum()
    loss.backward()
    distributed.mean_gradients([weight, idle, lonely])
    return {
        "weight": weight.detach().clone(),
        "grad": weight.grad,
        "idle": idle.grad,
        "lonely": lonely.grad,
        "means": distributed.mean([torch.tensor(float(distributed.place())), torch.ones(2)]),
        "told": distributed.told(lambda: ["from", distributed.place()]),
        "anywhere": [
            distributed.anywhere(distributed.place() == 1, CPU),
            distributed.anywhere(0, CPU),
        ],
        "first": distributed.main_first(distributed.place),
    }


def child():
    """The other process: works along, checks its own share, then is gone."""
    distributed.join(CPU)
    saw = work()
    assert saw["told"] == ["from", 0]
    assert saw["first"] == 1
    print(saw["grad"].flatten().tolist())
    distributed.gather(X[:2])  # the last thing it does; nobody answers this process's leaving


@pytest.fixture(scope="module")
def pair():
    """What this process saw as number 0 of two, what the other printed, and what came after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0"}
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    code = "import test_distributed; test_distributed.child()"
    there = os.environ | here | {"RANK": "1", "PYTHONPATH": path}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        other = subprocess.Popen([sys.executable, "-c", code], env=there, stdout=subprocess.PIPE,
                                 text=True)  # fmt: skip
        distributed.join(CPU)
        try:
            saw = work()
            saw["counts"] = (distributed.count(), distributed.place(), distributed.is_main())
            distributed.gather(X[:2])
            saw["other"] = other.communicate(timeout=120)[0]
            with pytest.raises(distributed.PeerLost) as lost:
                distributed.gather(X[:2])
            saw["lost"] = str(lost.value)
            with pytest.raises(ValueError, match="a batch of 5 cannot be divided among 2 proc"):
                distributed.part(5)
        finally:
            other.kill()
            distributed.leave()
    return saw


def test_the_gradient_of_a_gathered_batch_is_that_of_one_process(pair):
    weight = torch.eye(3).requires_grad_()
    loss_of(X, weight).backward()
    torch.testing.assert_close(pair["grad"], weight.grad)
    other = torch.tensor([float(x) for x in pair["other"].strip("[]\n").split(",")])
    assert torch.equal(other, pair["grad"].flatten())


def test_all_begin_with_the_main_ones_values(pair):
    assert torch.equal(pair["weight"], torch.eye(3))
    assert pair["counts"] == (2, 0, True)


def test_a_gradient_that_nobody_has_stays_away_and_one_that_some_have_is_averaged(pair):
    assert pair["idle"] is None
    assert pair["lonely"].tolist() == [0.5]


def test_means_words_and_flags_reach_everybody(pair):
    assert [mean.tolist() for mean in pair["means"]] == [0.5, [1, 1]]
    assert pair["told"] == ["from", 0]
    assert pair["anywhere"] == [True, False]
    assert pair["first"] == 0


def test_a_process_that_is_gone_is_told_in_one_line(pair):
    assert pair["lost"] == (
        "process 0 of 2 lost another one, which ended or was killed; run again to go on from the "
        "last checkpoint"
    )


def test_alone_everything_is_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x = torch.ones(2, 3)
    assert distributed.gather(x) is x
    assert distributed.mean([x])[0] is x
    assert distributed.part(7) == slice(0, 7)
    assert (distributed.count(), distributed.place(), distributed.is_main()) == (1, 0, True)
    assert distributed.join(CPU) == CPU
    assert distributed.told(lambda: 3) == distributed.main_first(lambda: 3) == 3
    parameter = torch.nn.Parameter(x)
    distributed.mean_gradients([parameter])
    distributed.same([parameter])
    assert parameter.grad is None
    assert distributed.anywhere(True, CPU)
    assert not distributed.anywhere(False, CPU)


def test_a_lack_of_memory_is_not_taken_for_a_lost_process():
    def exchange():
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        distributed._heard(exchange)
