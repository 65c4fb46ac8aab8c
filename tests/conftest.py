"""What all tests share."""

import os

# The fused kernels run in Triton's interpreter here, which has to be said before anything imports Triton.
os.environ["TRITON_INTERPRET"] = "1"
