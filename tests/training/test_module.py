from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import save_qwen_tokenizer
from tests.tolerances import assert_gradients_close, assert_sums_close, model_terms
from tests.training.conftest import quick_config
from tests.variants import SETTINGS
from tunalab.data.packing import PackedBatch, Placed, collate
from tunalab.data.scenes.corpus import ScenesCorpus
from tunalab.data.scenes.sampling import SceneSettings
from tunalab.data.sequence import to_sequence
from tunalab.data.stream import Step
from tunalab.data.tokenizer import QWEN25_SPECIALS
from tunalab.errors import UserError
from tunalab.frontends.components.store import Components
from tunalab.inference.prompts import question_prompt
from tunalab.model import objective
from tunalab.model.unified import build_model
from tunalab.settings.schema import RunConfig
from tunalab.trained.model import load
from tunalab.training import run
from tunalab.training.checkpoints import MANIFEST, CheckpointStore, learnt_weights
from tunalab.training.joint import LOSSES, JointStep
from tunalab.training.module import Harness, NonFiniteLoss
from tunalab.training.run import train


def make_harness(config: RunConfig) -> Harness:
    components = Components()
    model = build_model(config, components, components.tokenizer.vocabulary)
    harness = Harness(config, model)
    harness.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    harness.configure_model()
    harness.on_fit_start()
    return harness


def rows(kinds: list[str], per_row: int = 3) -> list[list[Placed]]:
    tokenizer = Components().tokenizer
    made = []
    for number, kind in enumerate(kinds):
        document = ScenesCorpus(kind, "train", SceneSettings(32, (1.0, 0.0, 0.0), 3, 0, "grid")).document(number)
        made.append(Placed(number, to_sequence(document, tokenizer, 8)))
    return [made[i : i + per_row] for i in range(0, len(made), per_row)]


def batch_of(rows: list[list[Placed]]) -> PackedBatch:
    return collate(rows, 256, 0)


def step_of(batches: list[PackedBatch]) -> JointStep:
    mine = Step("pretrain", 0, 0.9, batches, 0, {})
    counts = {name: sum(objective.loss_counts(batch)[name] for batch in batches) for name in LOSSES}
    return JointStep(mine, mine.stage, mine.stage_step, mine.stage_progress, mine.tokens, mine.images, 0.0, counts)


def gradients(harness: Harness) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in harness.learnt().items() if p.grad is not None}


def test_accumulated_and_recomputed_gradients_are_those_of_one_batch(variant: str) -> None:
    # Unequal on purpose: one micro-batch only answers, the other only generates, with other counts.
    packed = rows(["vqa", "caption", "text", "text_to_image", "edit", "text_to_image"])
    results = []
    for split, recompute in (([packed], False), ([[packed[0]], [packed[1]]], False), ([packed], True)):
        harness = make_harness(quick_config(variant, activation_checkpointing=recompute))
        attends: list[int] = []
        projections = [layer.self_attn.o_proj for layer in harness.model.decoder.model.layers]
        projections += [block.o for block in harness.model.head.blocks]
        for module in projections:
            module.register_forward_hook(lambda *_, attends=attends: attends.append(1))
        with torch.no_grad():  # weights that start at zero would let no gradient through
            for parameter in harness.model.head.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        means = harness._backward(step_of([batch_of(part) for part in split]))
        results.append((means, gradients(harness), len(attends) / len(projections)))
    (means, grads, ran), (split_means, split_grads, _), (_, again, ran_again) = results
    assert (ran, ran_again) == (1, 2)  # every block, once more in the backward pass
    terms = model_terms(quick_config(variant), 256)
    for name, mean in means.items():
        assert_sums_close(torch.tensor(split_means[name]), torch.tensor(mean), terms)
    assert_gradients_close(split_grads, grads, 3 * terms)
    # The same operations on the same numbers, and so the same rounding, but for gradients that are added in another order.
    assert_gradients_close(again, grads, terms=256)


def test_a_sampled_posterior_reaches_training(variant: str) -> None:
    """A function of the seed and the place in the stream: the same at every call."""
    if "vae" not in SETTINGS[variant]:
        with pytest.raises(UserError, match="vae_posterior=sample"):
            make_harness(quick_config(variant, frontend__vae_posterior="sample"))
        return
    step = step_of([batch_of(rows(["caption", "text_to_image"]))])
    configs = [quick_config(variant, frontend__vae_posterior=word) for word in ("mean", "sample", "sample")]
    mean, drawn, again = (make_harness(config)._backward(step) for config in configs)
    assert drawn == again and all(drawn[name] != mean[name] for name in LOSSES)


@pytest.mark.parametrize("kinds", [["text", "text", "text"], ["vqa", "caption", "vqa"], ["caption", "text_to_image", "text"]])
def test_every_part_takes_part_without_changing_anything(kinds: list[str]) -> None:
    """What several ranks need (a gradient for every parameter, zero where a batch has nothing for it), against one rank alone."""
    step = step_of([batch_of(rows(kinds))])
    alone, one_of_many = make_harness(quick_config("tuna_r")), make_harness(quick_config("tuna_r"))
    one_of_many.model.every_part = True
    means = alone._backward(step)
    forget, one_of_many._forget_unused = one_of_many._forget_unused, lambda step: None  # type: ignore[method-assign]
    assert one_of_many._backward(step) == means
    found = gradients(one_of_many)
    assert found.keys() == one_of_many.learnt().keys()
    expected = gradients(alone)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected.get(name, torch.zeros_like(gradient))), name
    forget(step)
    assert gradients(one_of_many).keys() == expected.keys()


@pytest.mark.slow
def test_every_variant_overfits_one_batch(variant: str) -> None:
    config = quick_config(variant, objective__understanding_noise=0.0, objective__masking__ratio=0.0)
    harness = make_harness(config)
    batch = batch_of(rows(["vqa", "caption", "text_to_image"]))
    draws = objective.draw(batch, config.objective, 0, harness.model.frontend.space, masking=False)
    optimizer = torch.optim.AdamW(harness.learnt().values(), lr=1e-2)

    def losses() -> dict[str, torch.Tensor]:
        parts = objective.losses(harness.model, batch, draws, config.objective)
        return {name: part.sum / part.count for name, part in parts.items()}

    first = {name: loss.item() for name, loss in losses().items()}
    for _ in range(40):
        optimizer.zero_grad()
        sum(losses().values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    last = {name: loss.item() for name, loss in losses().items()}
    assert last["text"] < 0.1 * first["text"]
    assert last["flow"] < 0.4 * first["flow"]


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    config = quick_config(checkpoint_seconds=0.0)
    original = Harness._backward

    def poisoned(self: Harness, step: Step) -> dict[str, float]:
        if self.progress.steps == 4:
            with torch.no_grad():
                self.model.head.output.bias.fill_(float("nan"))
        return original(self, step)

    monkeypatch.setattr(Harness, "_backward", poisoned)
    assert train(config, tmp_path) == 1
    assert "not finite at step 4" in capsys.readouterr().out
    newest = CheckpointStore(tmp_path / "checkpoints").newest_valid()
    assert newest is not None and newest.name == "step-000000004"
    assert all(torch.isfinite(tensor).all() for tensor in learnt_weights(newest, raw=True).weights.values())
    monkeypatch.undo()


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    harness = make_harness(quick_config())
    harness.optimizers = lambda: harness.configure_optimizers()  # type: ignore[method-assign, assignment]
    parameter = harness.model.head.output.bias
    parameter.register_hook(lambda grad: grad * float("inf"))
    before = parameter.detach().clone()
    with pytest.raises(NonFiniteLoss, match="gradient norm"):
        harness.training_step(step_of([batch_of(rows(["text_to_image"]))]), 0)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("chat", ["none", "qwen"])
def test_what_is_trained_in_turns_is_used_in_turns(chat: str, tmp_path: Path) -> None:
    """From the run as from its export."""
    save_qwen_tokenizer(tmp_path / "qwen", (QWEN25_SPECIALS.bos, QWEN25_SPECIALS.eos))
    config = quick_config(
        data__row_tokens=1024,
        data__questions_per_image=1,
        decoder__tokenizer=str(tmp_path / "qwen"),
        decoder__chat=chat,
        stages={"sft": {"tokens": 2000, "mix": {"scenes/vqa": 1.0}}},
        evaluation__points=1,
    )
    assert train(config, tmp_path / "run") == 0
    load(tmp_path / "run", "cpu").save_pretrained(tmp_path / "export")
    for loaded in (load(tmp_path / "run", "cpu"), load(tmp_path / "export", "cpu")):
        assert loaded.tokenizer.chat == chat
        prompt = question_prompt(loaded.tokenizer, loaded.model.frontend.space, None, "how many rings?")
        assert (loaded.tokenizer.decode(prompt.ids_L[-11:].tolist()) == "assistant\n") == (chat == "qwen")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__pretrain__mix": {"manifest/absent": 1.0}}, "absent"),
        ({"frontend__encoder": "tiny/seed7"}, "tiny/seed7: no such encoder"),
        ({"stages__pretrain__mix": {"nothing/here": 1.0}}, "nothing"),
    ],
)
def test_a_mistake_leaves_no_claimed_folder(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(quick_config("tuna_r", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if message == "absent":
        assert train(quick_config(), tmp_path / "run") == 0


def test_no_tracked_run_is_begun_when_a_start_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(quick_config(checkpoint_seconds=0.0), tmp_path / "run") == 0
    for checkpoint in CheckpointStore(tmp_path / "run" / "checkpoints").steps():
        (checkpoint / MANIFEST).unlink()
    begun: list[object] = []
    monkeypatch.setattr(run, "Tracker", lambda *arguments, **more: begun.append(arguments))
    with pytest.raises(UserError, match="every checkpoint .* is damaged"):
        train(quick_config(checkpoint_seconds=0.0, tracking__enabled=True), tmp_path / "run")
    assert not begun
