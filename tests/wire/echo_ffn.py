"""An FFN instance in a process of its own: prints where it listens, answers twice the activations.

python echo_ffn.py ADDRESS SILENCE
"""

import sys

import torch
from wire_world import SECRET, SHAPES

from step3.wire import FFNEndpoint, Timing

if __name__ == "__main__":
    torch.set_num_threads(1)
    timing = Timing(heartbeat=0.05, silence=float(sys.argv[2]))
    with FFNEndpoint(0, SHAPES, SECRET, timing=timing) as endpoint:
        print(endpoint.listen(sys.argv[1]), flush=True)
        while True:
            group = endpoint.serve(1.0)
            endpoint.events()
            if group is not None:
                endpoint.reply(group, 2 * group.x(torch.float32))
