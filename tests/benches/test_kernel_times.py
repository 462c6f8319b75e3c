"""Kernels are sorted by names that CUDA's libraries, torch and Triton really give them."""

import pytest

from bench.kernel_times import backend_of, breakdown, group_of

KERNELS = {
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1": "attention",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_bias_TNT": "gemm",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "gemm",
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal>": "gemm",
    "triton_tem_fused_addmm_3": "gemm",
    "triton_red_fused_add_mul_native_layer_norm_2": "elementwise",
    "void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<BFloat16>>": "elementwise",
    "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>": "copy",
    "void at::native::CatArrayBatchedCopy_vectorized<at::native::OpaqueType<2u>>": "copy",
    "Memcpy DtoD (Device -> Device)": "copy",
    "aten::addmm": "gemm",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
}


@pytest.mark.parametrize(("kernel", "group"), KERNELS.items())
def test_the_group_of_a_kernel(kernel, group):
    assert group_of(kernel) == group


def test_the_backend_is_the_one_that_took_most_of_the_time():
    cudnn, flash = list(KERNELS)[:2]
    assert backend_of({cudnn: 9.0, flash: 1.0}) == "cudnn"
    assert backend_of({cudnn: 1.0, flash: 9.0}) == "flash"
    assert backend_of({"nvjet_tst": 9.0}) == "math"


def test_shares_add_up_and_the_longest_come_first():
    told = breakdown({kernel: (float(number), 2) for number, kernel in enumerate(KERNELS, 1)})
    assert sum(told["share_percent"].values()) == pytest.approx(100, abs=0.1)
    times = [kernel["ms"] for kernel in told["top"]]
    assert times == sorted(times, reverse=True)
    assert told["launches"] == 2 * len(KERNELS)
