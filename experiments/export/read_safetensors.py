"""Answer with a safetensors file of a perceptron. Needs safetensors and numpy: arguments as read_onnx.py.

Of another network: the sum of each tensor, in the order of their names.
"""

import json
import sys

import numpy as np
from safetensors import safe_open

network, inputs, outputs, *shape = sys.argv[1:]
x = np.fromfile(inputs, np.float32).reshape([int(size) for size in shape])
with safe_open(network, "np") as file:
    about = json.loads(file.metadata()["structlearn"])
    if about["model"]["name"] == "mlp":
        x = x.reshape(len(x), -1)
        for place, name in enumerate(about["widths"]):
            x = np.maximum(x, 0) if place else x
            x = x @ file.get_tensor(f"{name}.weight").T + file.get_tensor(f"{name}.bias")
    else:
        names = sorted(file.keys())
        x = np.array([file.get_tensor(name).sum(dtype=np.float64) for name in names], np.float32)
x.tofile(outputs)
