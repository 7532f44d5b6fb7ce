"""Classify image files by TensorFlow Serving's REST API.

    python examples/serving/rest_client.py --model pets cat.jpg dog.jpg

The model is to be exported with --image-bytes. Needs Python alone.
"""

import argparse
import base64
import json
import pathlib
import sys
import urllib.error
import urllib.request

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("images", nargs="+", type=pathlib.Path, help="JPEG or PNG files")
parser.add_argument(
    "--model", required=True, help="the name that the server has for it"
)
parser.add_argument("--server", default="http://localhost:8501")
parser.add_argument("--top", type=int, default=3, help="classes an image")
args = parser.parse_args()

instances = []
for path in args.images:
    try:
        data = path.read_bytes()
    except OSError as error:
        parser.exit(2, f"{path}: {error.strerror}\n")
    instances.append({"image_bytes": {"b64": base64.b64encode(data).decode()}})
request = urllib.request.Request(
    f"{args.server}/v1/models/{args.model}:predict",
    json.dumps({"signature_name": "image_bytes", "instances": instances}).encode(),
    {"Content-Type": "application/json"},
)
try:
    with urllib.request.urlopen(request, timeout=60) as response:
        predictions = json.load(response)["predictions"]
except urllib.error.HTTPError as error:  # the server says what is wrong with it
    try:
        message = json.load(error)["error"]
    except (ValueError, KeyError):  # from something between
        message = error.reason
    parser.exit(1, f"the server refused ({error.code}): {message}\n")
except (urllib.error.URLError, TimeoutError) as error:
    parser.exit(1, f"no server answers at {args.server} ({error})\n")

for path, prediction in zip(args.images, predictions, strict=True):
    label = prediction.get("labels", f"class {prediction['classes']}")
    probabilities = sorted(
        enumerate(prediction["probabilities"]), key=lambda pair: -pair[1]
    )
    print(f"{path}: {label}")
    for index, probability in probabilities[: args.top]:
        print(f"    {probability:7.2%}  class {index}")
sys.exit(0)
