"""Answer with an ONNX file. Needs onnxruntime alone: python read_onnx.py FILE INPUTS OUTPUTS SIZE ..., raw float32."""

import sys

import numpy as np
import onnxruntime

network, inputs, outputs, *shape = sys.argv[1:]
x = np.fromfile(inputs, np.float32).reshape([int(size) for size in shape])
onnxruntime.InferenceSession(network).run(None, {"input": x})[0].tofile(outputs)
