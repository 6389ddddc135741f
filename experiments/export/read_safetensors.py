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
    tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
if about["model"]["name"] == "mlp":
    linear = list(about["widths"])
    layers = {name.rpartition(".")[0] for name in tensors}
    x = x.reshape(len(x), -1)
    for layer in sorted(layers, key=lambda name: (name == linear[-1], int(name.rpartition(".")[2]) if "." in name else 0)):
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        if layer in linear:
            x = (x if layer == linear[0] else np.maximum(x, 0)) @ weight.T + bias
        else:
            deviation = np.sqrt(tensors[f"{layer}.running_var"] + 1e-5)
            x = (x - tensors[f"{layer}.running_mean"]) / deviation * weight + bias
else:
    x = np.array([tensor.sum(dtype=np.float64) for tensor in tensors.values()], np.float32)
x.astype(np.float32).tofile(outputs)
