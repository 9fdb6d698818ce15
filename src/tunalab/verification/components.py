"""What can be read off the tiny components: probes of frozen features by kind of question, retrieval, reconstruction.

Shapes: B images, N patch tokens, V features of a token, P prompts, A answers.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from tunalab.data.scenes.graph import Scene
from tunalab.data.scenes.questions import benchmark_scenes
from tunalab.data.scenes.render import render
from tunalab.data.scenes.sampling import draw_scene, stream
from tunalab.data.scenes.vocabulary import BENCHMARKS
from tunalab.frontends.components.store import SHIPPED, Collection, load_encoder, load_vae
from tunalab.frontends.components.training import to_tensor
from tunalab.frontends.encoder import FEATURE_LAYER
from tunalab.verification import Table

LEVEL, IMAGE_SIZE, PATCH = 1, 32, 8
TRAINED, VALIDATED, TESTED = 4096, 1024, 500  # scenes; a test has fewer where there are not so many
PENALTIES = (1e-3, 1e-2)  # C of the logistic regression, chosen on the validation scenes
ITERATIONS = 60  # of it: more change the accuracy by less than a question in fifty
STEPS, BATCH, RATE = 400, 128, 2e-3  # of the attentive probe

Features = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [-1, 1] -> (B, N, V)


class Questions(NamedTuple):
    """``prompt_B`` and ``answer_B`` are indices; -1: an answer that is in no training scene."""

    image_BCHW: Tensor
    prompt_B: Tensor
    answer_B: Tensor


class Kind(NamedTuple):
    train: Questions
    validation: Questions
    test: Questions
    prompts: int
    answers: int


def tables() -> list[Table]:
    return [_probes(), _reconstruction()]


def _probes() -> Table:
    collection = Collection(SHIPPED)
    rows = [
        ["pixels of a patch", *_row(_pixels)],
        ["random weights", *_row(_encoder(collection.names("encoder")[0], pretrained=False))],
    ]
    rows += [[name, *_row(_vae(name))] for name in collection.names("vae")]
    for name in collection.names("encoder"):
        quality = collection.index[name]["quality"]
        rows.append([name, *_row(_encoder(name)), f"{quality['image_to_text_recall_at_1']:.3f}"])
    about = (
        f"Accuracy on scenes of level {LEVEL} of the split `test` ({TESTED} a kind, or all that there are), linear / attentive "
        f"probe, of frozen features: those that front-ends read (block {FEATURE_LAYER} of the encoder). Probes are trained on "
        f"{TRAINED} scenes of the split `train`. Linear: logistic regression on all {(IMAGE_SIZE // PATCH) ** 2} patch tokens side "
        f"by side, one for each prompt, its penalty chosen on {VALIDATED} further scenes. Attentive: one layer of attention whose "
        "query is a learnt vector of the prompt. Retrieval: share of 256 held-out images whose caption ranks first (chance .004), "
        "as measured in the training (`index.json`), as the text tower is not kept."
    )
    return Table(
        "Probes", about, ["features", *BENCHMARKS, "retrieval"], [row + [""] * (len(BENCHMARKS) + 2 - len(row)) for row in rows]
    )


def _row(features: Features) -> list[str]:
    cells = []
    for kind in BENCHMARKS:
        data = questions(kind)
        with torch.no_grad():
            read = [
                torch.cat([features(part_BCHW) for part_BCHW in one.image_BCHW.split(512)])
                for one in (data.train, data.validation, data.test)
            ]
        cells.append(f"{linear(data, *read):.2f} / {attentive(data, read[0], read[2]):.2f}")
    return cells


@cache
def questions(kind: str) -> Kind:
    drawn = [draw_scene(stream("probe", kind, index), "train", kind, LEVEL) for index in range(TRAINED + VALIDATED)]
    tested = benchmark_scenes(kind, LEVEL, "test", 0, TESTED, fewer=True)
    prompts = {prompt: i for i, prompt in enumerate(sorted({scene.prompt for scene in drawn + tested}))}
    answers = {answer: i for i, answer in enumerate(sorted({scene.answer for scene in drawn}))}

    def of(scenes: list[Scene]) -> Questions:
        views = [view for scene in scenes for view in (scene, scene.twin) if view is not None]
        images_BHWC = np.stack([render(view, IMAGE_SIZE) for view in views])
        prompt_B = torch.tensor([prompts[view.prompt] for view in views])
        return Questions(to_tensor(images_BHWC), prompt_B, torch.tensor([answers.get(view.answer, -1) for view in views]))

    return Kind(of(drawn[:TRAINED]), of(drawn[TRAINED:]), of(tested), len(prompts), len(answers))


def linear(data: Kind, train_BNV: Tensor, validation_BNV: Tensor, test_BNV: Tensor) -> float:
    mean, std = train_BNV.mean(dim=0), train_BNV.std(dim=0) + 1e-6
    train, validation, test = (((x - mean) / std).flatten(1).numpy() for x in (train_BNV, validation_BNV, test_BNV))
    warnings.filterwarnings("ignore", message="lbfgs failed to converge")
    right = {C: [0, 0] for C in PENALTIES}  # of the validation scenes, of the test scenes
    for prompt in range(data.prompts):
        rows = data.train.prompt_B == prompt
        if len(data.train.answer_B[rows].unique()) < 2:
            continue
        for C in PENALTIES:
            model = LogisticRegression(C=C, max_iter=ITERATIONS).fit(train[rows], data.train.answer_B[rows])
            for i, (x, one) in enumerate(((validation, data.validation), (test, data.test))):
                asked = one.prompt_B == prompt
                if asked.any():
                    right[C][i] += int((torch.from_numpy(model.predict(x[asked])) == one.answer_B[asked]).sum())
    best = max(PENALTIES, key=lambda C: right[C][0])
    return right[best][1] / len(data.test.answer_B)


class AttentiveProbe(nn.Module):
    def __init__(self, prompts: int, answers: int, tokens: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.position_NV = nn.Parameter(torch.randn(tokens, 128) * 0.02)
        self.read = nn.Linear(width, 128)
        self.query = nn.Embedding(prompts, 128)
        self.attention = nn.MultiheadAttention(128, 4, batch_first=True)
        self.answer = nn.Linear(128, answers)

    def forward(self, features_BNV: Tensor, prompt_B: Tensor) -> Tensor:
        """Logits (B, A)."""
        h_BNV = self.read(self.norm(features_BNV)) + self.position_NV
        query_B1V = self.query(prompt_B)[:, None]
        pooled_B1V, _ = self.attention(query_B1V, h_BNV, h_BNV, need_weights=False)
        logits_BA: Tensor = self.answer(pooled_B1V[:, 0])
        return logits_BA


def attentive(data: Kind, train_BNV: Tensor, test_BNV: Tensor) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        probe = AttentiveProbe(data.prompts, data.answers, *train_BNV.shape[1:])
        optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        for _ in range(STEPS):
            chosen_B = torch.randint(len(train_BNV), (BATCH,))
            loss = F.cross_entropy(probe(train_BNV[chosen_B], data.train.prompt_B[chosen_B]), data.train.answer_B[chosen_B])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (probe(test_BNV, data.test.prompt_B).argmax(dim=1) == data.test.answer_B).float().mean().item()


def _pixels(image_BCHW: Tensor) -> Tensor:
    return F.pixel_unshuffle(image_BCHW, PATCH).flatten(2).mT


def _encoder(name: str, pretrained: bool = True) -> Features:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = load_encoder(Collection(SHIPPED).component(name), pretrained).eval()

    def features(image_BCHW: Tensor) -> Tensor:
        block = len(vit.blocks) + FEATURE_LAYER
        read: Any = vit.forward_intermediates(image_BCHW, indices=[block], output_fmt="NLC", intermediates_only=True)
        features_BNV: Tensor = read[0]
        return features_BNV

    return features


def _vae(name: str) -> Features:
    codec = load_vae(Collection(SHIPPED).component(name))
    return lambda image_BCHW: codec.encode(image_BCHW).flatten(2).mT


def _reconstruction() -> Table:
    collection = Collection(SHIPPED)
    rows = []
    for name in collection.names("vae"):
        quality = collection.index[name]["quality"]
        rows.append([name, f"{quality['psnr_db']:.1f}", f"{quality['psnr_db_worst_tenth']:.1f}", str(quality["n"])])
    about = "PSNR in decibels, mean over held-out scenes of all kinds and levels, as measured in the training (`index.json`)."
    return Table("Reconstruction by the VAEs", about, ["VAE", "PSNR", "mean of the worst tenth", "images"], rows)
