"""The memory-bound pieces of a FLUX block, each as one kernel.

`plain` says in torch what each piece computes. The other files hold the same as Triton kernels, and
import triton at the top: nobody imports them but `choice`, and that on a CUDA device only.
"""
