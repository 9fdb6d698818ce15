"""What a stage of training changes: which parameters learn, at what rate, and whether visual tokens are masked."""

from tunalab.config import MaskingConfig, OptimizerConfig, StageConfig
from tunalab.model.unified import UnifiedModel


def set_trainable(model: UnifiedModel, train: str) -> None:
    """Switch gradients on for the parts that a stage trains: all | connector | without_encoder (see StageConfig).

    A front-end without connector trains everything in every stage: its budget is spent, not skipped. Frozen and fixed parts never
    learn.
    """
    frontend = model.frontend
    whole = train == "all" or not frontend.connector_parts
    for name, parameter in model.named_parameters():
        part = name.split(".")[1] if name.startswith("frontend.") else None
        if part in (*frontend.frozen_parts, *frontend.fixed_parts):
            learns = False
        elif whole:
            learns = True
        elif train == "connector":
            learns = part in frontend.connector_parts
        else:
            learns = part is None or part in frontend.connector_parts
        parameter.requires_grad_(learns)


def learning_rate(stage: StageConfig, optimizer: OptimizerConfig, stage_step: int) -> float:
    """Linear warm-up from the start of the stage, then constant: so every point of a curve is a legitimate end of training."""
    return stage.lr * min(1.0, (stage_step + 1) / max(optimizer.warmup_steps, 1))


def masks(masking: MaskingConfig, stage: StageConfig, stage_progress: float) -> bool:
    """Whether visual tokens are masked at this point: only in the last part of a stage that masks."""
    return masking.ratio > 0 and stage.masking and stage_progress >= masking.start
