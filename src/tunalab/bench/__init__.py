"""Figures that are promised: what is measured, and with --gpu what is measured on a CUDA device."""

PARTS = ("training", "generation", "sweep", "figure", "status", "start_up")
GPU_PARTS = (
    *("agreement", "agreement_fused_loss", "step", "step_0_5b", "step_fused_loss"),
    *("step_not_compiled", "step_not_recomputed", "profile"),
)
