"""Two processes that share every parameter step as one process does: norms and decisions are global."""

import dataclasses
import math
import tempfile

import pytest
import torch
from torch import nn

from sibert.optim import ClippedSGD, Hybrid, Lamb, synchronisation
from sibert.optim.shards import is_sharded, local_shard

STEPS = 6
CASES = [(decides, how) for decides in ("host", "device") for how in ("reference", "foreach", "fused")]
"""Who decides, and the implementation."""


def model():
    torch.manual_seed(0)
    # Sizes that two processes cannot share evenly; the bias of the last layer lies in one process only.
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1)).double()


def optimizer_of(network, implementation):
    return Hybrid(
        [
            ClippedSGD(
                [
                    {"params": list(network[2].parameters()), "name": "body", "scale_invariant": False},
                    {"params": list(network[0].parameters()), "name": "rows", "rows": True},
                ],
                intrinsic_lr=0.05,
                implementation=implementation,
            ),
            Lamb([{"params": list(network[4].parameters()), "name": "head"}], lr=0.01),
        ]
    )


def train(network, optimizer, spoil):
    """The fourth step is clipped; in the fifth one entry of one gradient is not finite."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (network(x).square().mean() * (1e6 if step == 3 else 1.0)).backward()
        if step == 4:
            spoil(network[0].weight.grad)
        optimizer.step()
    return [dataclasses.asdict(record) for record in optimizer.statistics()]


def spoil_last_entry(gradient):
    """In the shard of the last process only."""
    local = local_shard(gradient)
    if not is_sharded(gradient) or gradient.device_mesh.get_rank() == 1:
        local[-1, -1] = math.inf


def one_process(implementation):
    network = model()
    records = train(network, optimizer_of(network, implementation), spoil_last_entry)
    return [p.detach() for p in network.parameters()], records


def shard(rank, folder):
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    results = {}
    halves = torch.distributed.tensor.distribute_tensor(torch.ones(4, 6), mesh, [torch.distributed.tensor.Shard(1)])
    with pytest.raises(ValueError, match="needs whole rows in each process"):
        ClippedSGD([{"params": [nn.Parameter(halves)], "rows": True}], lr=0.1, weight_decay=0.1)
    host_may_read = synchronisation.host_may_read
    for decides, implementation in CASES:
        synchronisation.host_may_read = host_may_read if decides == "host" else lambda device: False
        network = model()
        fully_shard(network, mesh=mesh)
        assert all(is_sharded(p) for p in network.parameters())
        optimizer = optimizer_of(network, implementation)
        records = train(network, optimizer, spoil_last_entry)
        results[decides, implementation] = [p.full_tensor().detach() for p in network.parameters()], records
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_as_one():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(shard, (folder,), nprocs=2)
        results = [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
    for decides, implementation in CASES:
        expected, expected_records = one_process(implementation)
        body, rows = expected_records
        assert (body["skipped_steps"], body["clipped_fraction"]) == (1, pytest.approx(1 / (STEPS - 1)))
        assert (rows["skipped_steps"], rows["steps"]) == (1, STEPS - 1)
        assert 0 < rows["clipped_fraction"] < 1
        for parameters, records in (result[decides, implementation] for result in results):
            for record, numbers in zip(records, expected_records, strict=True):
                assert record.pop("name") == numbers["name"]
                assert record == pytest.approx({k: v for k, v in numbers.items() if k != "name"}, rel=1e-10)
            for p, q in zip(parameters, expected, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_plain_tensors_are_their_own_shard():
    x = torch.ones(2)
    assert not is_sharded(x)
    assert local_shard(x) is x
