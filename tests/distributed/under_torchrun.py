"""What a user's script looks like: `torchrun --nproc-per-node 2 under_torchrun.py OUT.json`."""

from __future__ import annotations

import sys

import torch.distributed as dist

from attncheck import profile_dataset
from tests.distributed.models import Decoder, batches

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    profile_dataset(Decoder(), batches()[rank::world], gather=True, save=sys.argv[1])
    dist.destroy_process_group()
