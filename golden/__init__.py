"""The specification of the accelerator: arithmetic, formats, descriptors, registers, and the whole model in NumPy."""

import os
import sys

# Large products are spread over the cores in `golden.ternary`, on a BLAS of one thread: OpenBLAS's own threads wait by
# spinning, which on a busy machine costs a factor of ten and more. NumPy reads this when it is imported.
if "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
