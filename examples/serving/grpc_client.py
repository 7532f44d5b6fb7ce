"""Classify image files by TensorFlow Serving's gRPC API.

    pip install tensorflow-serving-api
    python examples/serving/grpc_client.py --model pets cat.jpg dog.jpg

The model is to be exported with --image-bytes.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("images", nargs="+", type=pathlib.Path, help="JPEG or PNG files")
parser.add_argument("--model", required=True, help="the server's name for the model")
parser.add_argument("--server", default="localhost:8500")
args = parser.parse_args()

request = predict_pb2.PredictRequest()
request.model_spec.name = args.model
request.model_spec.signature_name = "image_bytes"
try:
    files = [path.read_bytes() for path in args.images]
except OSError as error:
    parser.exit(2, f"{error.filename}: {error.strerror}\n")
request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(files, tf.string))
with grpc.insecure_channel(args.server) as channel:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    try:
        answer = stub.Predict(request, timeout=60)
    except grpc.RpcError as error:
        parser.exit(1, f"{error.code().name}: {error.details()}\n")

outputs = {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}
for index, path in enumerate(args.images):
    best = outputs["classes"][index]
    name = outputs["labels"][index].decode() if "labels" in outputs else f"class {best}"
    print(f"{path}: {name}, {outputs['probabilities'][index][best]:.2%}")
