"""Launches a kernel that does nothing, as far as that goes without a GPU: past the ptxas that jaxlib runs to assemble it.

Prints the ptxas that natjax says jaxlib takes: `python tests/deviceless/assembly.py`.
"""

import ctypes
import zlib

from jax._src.lib import gpu_triton

from natjax_kernels.triton import ptxas

_PTX = ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry nothing() { ret; }\n"
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)


def launch() -> None:
    """Calls what XLA calls for a Triton kernel; it fails where the driver is wanted."""
    kernel = gpu_triton.TritonKernel("nothing", 1, 1, 0, _PTX, "", 90)
    call = zlib.compress(gpu_triton.TritonKernelCall(kernel, 1, 1, 1, []).to_proto("nothing", b""))
    capsule, of = gpu_triton.get_custom_call(), ctypes.pythonapi
    of.PyCapsule_GetName.restype, of.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    of.PyCapsule_GetPointer.restype = ctypes.c_void_p
    of.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    function = _CALL(of.PyCapsule_GetPointer(capsule, of.PyCapsule_GetName(capsule)))
    status = ctypes.create_string_buffer(256)  # room for what went wrong
    function(None, None, call, len(call), ctypes.addressof(status))


if __name__ == "__main__":
    launch()
    here = ptxas.plugin()
    found = here and ptxas.find(here)
    print(found and found.path)
