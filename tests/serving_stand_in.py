"""A stand-in for TensorFlow Serving's predict APIs, around a real SavedModel.

    python tests/serving_stand_in.py FOLDER NAME

serves the highest version below FOLDER and prints the ports of REST and gRPC. After the
REST API's documentation: the row form ("instances") and the column form ("inputs"),
base64 as {"b64": ...}, a bare value where there is one input or output, errors as
{"error": ...}.
"""

import base64
import binascii
import http.server
import json
import pathlib
import sys
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
version = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
loaded = tf.saved_model.load(str(folder / str(version)), tags=["serve"])


class Refused(Exception):
    """What the client did wrong, and the HTTP status that says so."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


def decoded(value):
    """Replace every {"b64": ...} by its bytes."""
    if isinstance(value, dict) and set(value) == {"b64"}:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise Refused(f"Unable to base64 decode: {error}") from error
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value


def tensor(value, spec):
    """Make a tensor of an input, or refuse it."""
    value = decoded(value)
    try:
        result = tf.constant(value, dtype=spec.dtype)
    except (TypeError, ValueError) as error:
        raise Refused(f"Failed to process element: {error}") from error
    if not spec.shape.is_compatible_with(result.shape):
        raise Refused(
            f"input must be of shape {spec.shape}, got {result.shape}: {spec.name}"
        )
    return result


def listed(array):
    """Return JSON's own values; bytes as text."""
    if isinstance(array, np.ndarray):
        return [listed(item) for item in array]
    return array.decode() if isinstance(array, bytes) else array.item()


def predict(body):
    """Answer one request."""
    try:
        request = json.loads(body)
    except json.JSONDecodeError as error:
        raise Refused(f"JSON Parse error: {error}") from error
    if not isinstance(request, dict) or ("instances" in request) == (
        "inputs" in request
    ):
        raise Refused("JSON must have exactly one of 'instances' and 'inputs'")
    signature = request.get("signature_name", "serving_default")
    if signature not in loaded.signatures:
        raise Refused(f'Serving signature name: "{signature}" not found', 404)
    function = loaded.signatures[signature]
    specs = function.structured_input_signature[1]
    if "instances" in request:
        rows = request["instances"]
        if not isinstance(rows, list) or not rows:
            raise Refused("'instances' must be a non-empty list")
        named = [isinstance(row, dict) and set(row) == set(specs) for row in rows]
        if len(specs) == 1 and not any(named):
            (key,) = specs
            rows = [{key: row} for row in rows]
        elif not all(named):
            raise Refused(f"every instance must have the keys {sorted(specs)}")
        inputs = {key: [row[key] for row in rows] for key in specs}
    else:
        inputs = request["inputs"]
        if len(specs) == 1 and not (
            isinstance(inputs, dict) and set(inputs) == set(specs)
        ):
            (key,) = specs
            inputs = {key: inputs}
        if not isinstance(inputs, dict) or set(inputs) != set(specs):
            raise Refused(f"'inputs' must have the keys {sorted(specs)}")
    try:
        outputs = function(**{k: tensor(inputs[k], specs[k]) for k in specs})
    except tf.errors.InvalidArgumentError as error:
        raise Refused(error.message) from error
    outputs = {key: listed(value.numpy()) for key, value in outputs.items()}
    if "inputs" in request:
        return {"outputs": outputs if len(outputs) > 1 else outputs.popitem()[1]}
    rows = [
        dict(zip(outputs, values, strict=True))
        for values in zip(*outputs.values(), strict=True)
    ]
    return {"predictions": rows if len(outputs) > 1 else [*outputs.popitem()[1]]}


class Handler(http.server.BaseHTTPRequestHandler):
    """The two addresses of a model."""

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path != f"/v1/models/{name}":
            return self.answer(404, {"error": f"no such address: {self.path}"})
        status = {
            "version": str(version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        self.answer(200, {"model_version_status": [status]})

    def do_POST(self):
        known = (f"/v1/models/{name}", f"/v1/models/{name}/versions/{version}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if self.path not in [f"{address}:predict" for address in known]:
                raise Refused(f"Servable not found for request: {self.path}", 404)
            self.answer(200, predict(body))
        except Refused as error:
            self.answer(error.status, {"error": str(error)})

    def log_message(self, *_):
        """Say nothing."""


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The one call of the gRPC API that the client makes."""

    def Predict(self, request, context):
        spec = request.model_spec
        if spec.name != name or spec.signature_name not in loaded.signatures:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {spec.name}")
        function = loaded.signatures[spec.signature_name]
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        try:
            outputs = function(**inputs)
        except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:500])
        answer = predict_pb2.PredictResponse()
        for key, value in outputs.items():
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return answer


calls = grpc.server(futures.ThreadPoolExecutor(2))
prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
    Predictions(), calls
)
port = calls.add_insecure_port("localhost:0")
calls.start()
server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
print(server.server_port, port, flush=True)
server.serve_forever()
