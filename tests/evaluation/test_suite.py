import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import small_config
from tests.tolerances import model_terms, relative

from tunalab.data.packing import Placed, collate
from tunalab.data.sequence import is_answer, to_sequence
from tunalab.data.sources import check_sources
from tunalab.errors import UserError
from tunalab.evaluation.along import (
    DRAW_SEED,
    evaluate,
    held_out,
    held_out_losses,
    held_out_measures,
    held_out_of,
    one_step_psnr,
    pack,
)
from tunalab.evaluation.samples import draw_grid, sample_grid
from tunalab.frontends.registry import FRONTENDS
from tunalab.model.objective import draw, losses, to_space
from tunalab.settings.schema import ManifestConfig, RunConfig, StageConfig


@pytest.fixture()
def config() -> RunConfig:
    config = small_config()
    kinds = ("caption", "vqa", "text_to_image", "edit", "text")
    config.stages = {"pretrain": StageConfig(mix={f"scenes/{kind}": 1.0 for kind in kinds})}
    e = config.evaluation
    e.groups, e.easy_vqa, e.loss_documents, e.psnr_images, e.sample_prompts = 4, 0, 3, 3, 3
    config.sampling.steps = 2
    return config


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_the_suite_runs_for_every_front_end_and_repeats_itself(name, config, tiny_model, tokenizer):
    model = tiny_model(name, config=config).train()
    result = evaluate(model, tokenizer, config)
    assert model.training and torch.is_grad_enabled(), "training goes on as before"
    assert len(result["benchmarks"]) == 14 and all(score["n"] == 4 for score in result["benchmarks"].values())
    expected = ["flow/edit", "flow/text_to_image", "short/vqa", "text/caption", "text/text", "text/vqa"]
    assert sorted(set(result["losses"]) - {"short/caption"}) == expected and list(result["one_step_psnr"]) == ["0.3", "0.6", "0.9"]
    assert all(math.isfinite(v) for part in ("losses", "one_step_psnr") for v in result[part].values())
    assert evaluate(model, tokenizer, config) == result
    grid = sample_grid(model, tokenizer, config)
    assert np.array_equal(np.asarray(grid), np.asarray(sample_grid(model, tokenizer, config)))


def test_training_mode_comes_back_after_a_failure(config, tiny_model, tokenizer):
    model = tiny_model("patch_embed", config=config).train()
    config.evaluation.loss_documents = "three"  # type: ignore[assignment]
    with pytest.raises(TypeError):
        evaluate(model, tokenizer, config)
    assert model.training


@pytest.mark.parametrize("kind", ["caption", "text_to_image", "edit"])
def test_held_out_losses_are_those_of_training_without_noise_on_what_is_looked_at(kind, config, tiny_model, tokenizer):
    model = tiny_model("patch_embed", config=config)
    config.stages = {"pretrain": StageConfig(mix={f"scenes/{kind}": 1.0})}
    config.objective.understanding_noise = 1.0
    found = held_out_losses(model, tokenizer, config)
    sequences = [to_sequence(document, tokenizer, 8) for document in held_out(kind, 3, config)]
    batch = collate([[Placed(n, sequence)] for n, sequence in enumerate(sequences)], 512, tokenizer.pad)
    objective = replace(config.objective, understanding_noise=0.0)
    with torch.no_grad():
        parts = losses(model, batch, draw(batch, objective, DRAW_SEED, model.frontend.space, masking=False), objective)
    expected = {f"{name}/{kind}": float(part.sum) / part.count for name, part in parts.items() if part.count}
    assert found.keys() == expected.keys() and len(found) == 1
    assert found == pytest.approx(expected, rel=relative(model_terms(config, 64)))


def test_losses_do_not_depend_on_what_is_packed_beside(config, tiny_model, tokenizer):
    model = tiny_model("patch_embed", config=config)
    config.data.rows = 1
    one = held_out_losses(model, tokenizer, config)
    config.data.rows = 7
    assert held_out_losses(model, tokenizer, config) == pytest.approx(one, rel=relative(model_terms(config, 64)))


def test_losses_by_document_and_of_short_answers_are_those_of_each_document_alone(config, tiny_model, tokenizer):
    """Of the tokens of an answer, its end included; a description of a picture is none."""
    model = tiny_model("patch_embed", config=config)
    config.evaluation.loss_documents, config.data.row_tokens = 12, 128
    config.stages = {"pretrain": StageConfig(mix={"scenes/vqa": 1.0, "scenes/caption": 1.0})}
    found, items = held_out_measures(model, tokenizer, config)
    assert items.keys() == found.keys() >= {"text/vqa", "short/vqa", "text/caption"}
    documents = held_out("vqa", 12, config)
    nats, tokens = {"text": [], "short": []}, {"text": [], "short": []}
    for document in documents:
        sequence = to_sequence(document, tokenizer, 8)
        batch = collate([[Placed(0, sequence)]], 512, tokenizer.pad)
        with torch.no_grad():
            output = model(batch, to_space(model, batch), torch.ones(len(batch.generate_N)), draw_nothing(model, batch))
        error_K = torch.nn.functional.cross_entropy(output.logits_KV, batch.label_K, reduction="none").detach()
        answers = [len(tokenizer.encode(segment.text)) + 1 for segment in document.segments if is_answer(segment)]
        parts = error_K.split(answers)
        short = [part for part in parts if len(part) <= 8]
        assert all("on " not in tokenizer.decode(part.tolist()) for part in batch.label_K.split(answers) if len(part) <= 8)
        for sort, chosen in (("text", parts), ("short", short)):
            nats[sort].append(sum(float(part.sum()) for part in chosen))
            tokens[sort].append(sum(map(len, chosen)))
    assert sum(tokens["short"]) < sum(tokens["text"])
    for sort in ("text", "short"):
        nats_D, tokens_D = items[f"{sort}/vqa"].arrays()
        assert tokens_D.tolist() == tokens[sort] and nats_D == pytest.approx(nats[sort], rel=2e-3)
        assert found[f"{sort}/vqa"] == pytest.approx(sum(nats[sort]) / sum(tokens[sort]), rel=1e-4)


def draw_nothing(model, batch):
    """Nothing is masked."""
    return [torch.zeros(len(group), group.tokens, dtype=torch.bool) for group in batch.groups]


def test_a_source_that_is_not_trained_on_is_not_measured(config, tiny_model, tokenizer):
    config.stages = {"pretrain": StageConfig(mix={"scenes/vqa": 1.0, "scenes/text_to_image": 0.0, "easy_vqa/vqa": 1.0})}
    model = tiny_model("patch_embed", config=config)
    assert set(held_out_losses(model, tokenizer, config)) == {"short/vqa", "text/vqa"}
    config.stages = {"pretrain": StageConfig(mix={"easy_vqa/vqa": 1.0})}
    assert held_out_losses(model, tokenizer, config) == {}


def test_own_held_out_documents_are_measured_under_their_name(config, tiny_model, tokenizer, tmp_path):
    """The same numbers as of a file that holds nothing else: what is packed beside does not count, broken lines are left out."""
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 90, 10)).save(tmp_path / f"{number}.png")
    lines = [f'{{"image": "{number}.png", "caption": "a thing number {number}"}}' for number in range(6)]
    (tmp_path / "own.jsonl").write_text("\n".join([*lines, '{"image": "none.png", "caption": "x"}']))
    model = tiny_model("patch_embed", config=config)
    config.evaluation.loss_documents = 5
    config.data.manifests = {"own": ManifestConfig(path=str(tmp_path / "own.jsonl"))}
    config.stages = {"pretrain": StageConfig(mix={"scenes/vqa": 1.0})}
    config.evaluation.losses = {"mine": "manifest/own"}
    check_sources(config)
    found = held_out_losses(model, tokenizer, config)
    assert set(found) == {"short/vqa", "text/vqa", "text/mine"}
    chosen = held_out_of("manifest/own", 5, config.data)
    assert len(chosen) == 5 == len({document.segments[-1].text for document in chosen})
    config.stages = {"pretrain": StageConfig(mix={"easy_vqa/vqa": 1.0})}
    assert held_out_losses(model, tokenizer, config)["text/mine"] == pytest.approx(
        found["text/mine"], rel=relative(model_terms(config, 64))
    )
    config.stages = {"pretrain": StageConfig(mix={"manifest/own": 1.0})}
    with pytest.raises(UserError, match=r"evaluation.losses.mine=manifest/own: stage pretrain trains on it"):
        check_sources(config)
    config.evaluation.losses = {"mine": "manifest/other"}
    with pytest.raises(UserError, match="evaluation.losses.mine: unknown source 'manifest/other'; choices: .*manifest/own"):
        check_sources(config)


def test_packing_keeps_every_document_once_in_the_order_of_its_ids(config, tokenizer):
    documents = held_out("vqa", 30, config)
    config.data.row_tokens = 64  # shorter than some documents: rows grow rather than drop them
    packed = pack(documents, tokenizer, 8, config.data)
    assert sorted(n for _, numbers in packed for n in numbers) == list(range(30)) and len(packed) > 1
    for batch, numbers in packed:
        lengths = [len(to_sequence(documents[n], tokenizer, 8).ids_L) for n in numbers]
        assert batch.length_D.tolist() == lengths


def test_psnr_is_perfect_for_a_model_that_predicts_the_image(config, tiny_model, tokenizer, monkeypatch):
    model = tiny_model("patch_embed", config=config)
    forward = model.forward
    for kind in ("x", "v"):
        config.objective.prediction = kind

        def perfect(batch, x_t, t_N, mask_nT, kind=kind):
            output = forward(batch, x_t, t_N, mask_nT)
            (group,) = batch.groups
            x = group.pixels_nHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
            t = t_N.view(-1, 1, 1, 1)
            return replace(output, prediction_mChw=[x if kind == "x" else (x - x_t[0]) / (1 - t)])

        monkeypatch.setattr(model, "forward", perfect)
        found = one_step_psnr(model, tokenizer, config)
        assert all(value > 80 for value in found.values()), found
    monkeypatch.setattr(model, "forward", forward)
    config.objective.prediction = "x"
    assert all(value < 20 for value in one_step_psnr(model, tokenizer, config).values())


def test_the_grid_shows_every_image_enlarged_with_its_caption():
    images = np.stack([np.full((32, 32, 3), value, dtype=np.uint8) for value in (10, 120, 200)])
    captions = ["a", "on black: orange diamond a2 c4, gap b2, pink diamond c2 b4, pink square a3", ""]
    picture = np.asarray(draw_grid(images, captions))
    for value in (10, 120, 200):
        assert (picture == value).all(axis=2).sum() >= 128 * 128 - 20
    without = np.asarray(draw_grid(images, ["", "", ""]))
    assert (without < 5).sum() == 0 < (picture < 5).sum(), "captions are drawn"
    with pytest.raises(ValueError, match="no images"):
        draw_grid(images[:0], [])
