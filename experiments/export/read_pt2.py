"""Answer with a pt2 file. Needs torch alone: python read_pt2.py FILE INPUTS OUTPUTS SIZE ..., raw float32."""

import sys
from pathlib import Path

import torch

network, inputs, outputs, *shape = sys.argv[1:]
x = torch.frombuffer(bytearray(Path(inputs).read_bytes()), dtype=torch.float32).reshape([int(size) for size in shape])
with torch.no_grad():
    y = torch.export.load(network).module()(x).contiguous()
Path(outputs).write_bytes(bytes(y.untyped_storage().tolist()))
