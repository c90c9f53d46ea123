"""Keep libraries from reporting to their makers: the texts that a model scores may be private."""

import os
import sys


def disable_telemetry() -> None:
    """Switch reports of ONNX Runtime, OpenVINO and the hub's client off. Must be called before they are imported.

    ONNX Runtime would write an id of the device and a database of events into the user's cache folder, and send them.
    OpenVINO would write an id into the home folder, and send the fact that it was imported. What the environment holds
    does not count.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # OpenVINO has no switch. It reports through a package of its own, and does without if that cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes an import fail
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # its downloads then name no library and no environment
