"""Asks NVIDIA's driver for its devices. A program of its own, with nothing but Python's library:

    python cuda_driver.py      a JSON object: {"version": 13000, "devices": [["NVIDIA H200", 9, 0], …]}, or {"error": …}

So a driver that hangs or crashes takes nobody along, and what it allocates and opens is gone when it has answered.
"""

import ctypes
import json
import sys

LIBRARIES = ("libcuda.so.1", "libcuda.so")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_NO_DEVICE = 100
_NAME_BYTES = 256


class DriverError(Exception):
    """Why there is no answer."""


def ask() -> dict[str, object]:
    """The CUDA version that the driver knows (13.0 is 13000), and each visible device with its compute capability."""
    library = _library()
    _call(library, "cuInit", 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    devices = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        _call(library, "cuDeviceGet", ctypes.byref(device), index)
        _call(library, "cuDeviceGetName", name, _NAME_BYTES, device)
        _call(library, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        _call(library, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        devices.append((name.value.decode(errors="replace"), major.value, minor.value))
    return {"version": version.value, "devices": devices}


def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DriverError(f"NVIDIA's driver library, {LIBRARIES[0]}, does not load")


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(library, function)(*arguments)
    if status == _NO_DEVICE:
        raise DriverError("the driver shows no device")
    if status:
        raise DriverError(f"the driver's {function} fails with error {status}")


def main() -> int:
    """0 in any case: what is wrong is an answer."""
    try:
        said = ask()
    except DriverError as error:
        said = {"error": str(error)}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
