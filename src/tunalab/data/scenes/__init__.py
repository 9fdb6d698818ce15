"""scenes: a procedural corpus of shapes, charts, words and patterns, with its exact scene graph as ground truth."""

from tunalab.data.scenes.corpus import EDITS, ScenesCorpus, caption_examples, draw_edit, text_sample
from tunalab.data.scenes.graph import Item, Scene
from tunalab.data.scenes.questions import benchmark, benchmark_scenes
from tunalab.data.scenes.render import masks, render
from tunalab.data.scenes.sampling import EXAMPLE_LEVELS, SceneSettings, scene
from tunalab.data.scenes.sentences import caption
from tunalab.data.scenes.vocabulary import BENCHMARKS, SCENE_KINDS, SPLITS

__all__ = [
    "BENCHMARKS",
    "EDITS",
    "EXAMPLE_LEVELS",
    "SCENE_KINDS",
    "SPLITS",
    "Item",
    "Scene",
    "SceneSettings",
    "ScenesCorpus",
    "benchmark",
    "benchmark_scenes",
    "caption",
    "caption_examples",
    "draw_edit",
    "masks",
    "render",
    "scene",
    "text_sample",
]
