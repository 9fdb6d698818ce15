"""tunalab: what does the visual front-end of a unified multimodal model buy?"""

import os

__version__ = "0.1.0"

# PyTorch chooses its own kernels by this variable and lays out bf16 matrices as oneDNN can, which does
# not know of it: on a processor with AVX-512, attention in bf16 would end in an error.
if os.environ.get("ATEN_CPU_CAPABILITY") in ("avx2", "default"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
