"""What a user's script looks like: profiles without end into OUT.json, until Ctrl-C."""

from __future__ import annotations

import itertools
import signal
import sys

import torch

from attncheck import profile_dataset
from tests.distributed.models import Decoder, batches

if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    endless = itertools.cycle(batches())
    try:
        profile_dataset(
            Decoder(), (print(flush=True) or batch for batch in endless), save=sys.argv[1]
        )
    except KeyboardInterrupt as stopped:
        print(repr(stopped.profile), stopped.batches)  # type: ignore[attr-defined]
        sys.exit(130)
