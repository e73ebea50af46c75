"""A teacher that knows nothing, of the real one's shape: random weights where its own would be."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from train.teacher import NUM_TOLD


def model() -> onnx.ModelProto:
    """A graph named as Smart Turn's: each state a sum of the bands of every second frame.

    And, as there, more behind the layer that is asked.
    """
    mixing = np.random.default_rng(0).normal(0.0, 1.0, (80, NUM_TOLD)).astype(np.float32)
    constants = {
        "mixing": mixing,
        "begin": np.array([0]),
        "end": np.array([800]),
        "axis": np.array([1]),
        "step": np.array([2]),
    }
    nodes = [
        helper.make_node("Transpose", ["input_features"], ["frames"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["frames", "begin", "end", "axis", "step"], ["steps"]),
        helper.make_node("MatMul", ["steps", "mixing"], ["add_268"]),
        helper.make_node("ReduceMean", ["add_268"], ["logits"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "turn",
        [helper.make_tensor_value_info("input_features", TensorProto.FLOAT, ["n", 80, 800])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
