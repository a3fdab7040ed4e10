"""The peak that MFU is measured against: a table for GPUs, a measured matrix product on CPU."""

import torch

from lightning_gpt.nn.machine_limits import gemm_flops

# Dense tensor-core TFLOP/s in bf16 without sparsity, from the makers' data sheets; fp32 runs as TF32 there.
GPU_BF16_TFLOPS: dict[str, float] = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}


def gpu_peak_flops(name: str, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a GPU by its name as CUDA reports it; None when it is not in the table."""
    for key, tflops in GPU_BF16_TFLOPS.items():
        if key in name:
            return tflops * 1e12 * (0.5 if dtype == torch.float32 else 1.0)
    return None


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that one device could reach in this precision, or None when unknown."""
    if device.type == "cpu":
        return gemm_flops(dtype)
    if device.type == "cuda":
        return gpu_peak_flops(torch.cuda.get_device_name(device), dtype)
    return None
