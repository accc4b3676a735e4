"""The hot operations on x86 CPUs: a small C++ library and what calls it.

The sources beside this file are compiled when the package is built, once for each level of processor;
`open_library` takes the best that this one can run. The files to begin with are step3_cpu.h (the interface),
panels.h and activations.h (how operands lie), and vector_product.h, widened_product.h or
amx_product.h (the product that everything is made of).
"""

from step3.kernels.cpu.library import INTEGER_LEVELS, LEVELS, Library, open_library, why_not, why_not_int8

__all__ = ["INTEGER_LEVELS", "LEVELS", "Library", "open_library", "why_not", "why_not_int8"]
