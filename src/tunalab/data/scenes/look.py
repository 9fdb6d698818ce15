"""How a scene is drawn and spoken of; the corpus and its benchmarks ask nothing else of it."""

import numpy as np

from tunalab.data.scenes.graph import Scene
from tunalab.data.scenes.render import render
from tunalab.data.scenes.sentences import caption


class Look:
    """As it is: plain shapes, and the words of the graph. Others change what is shown and said, never what is asked."""

    def image(self, scene: Scene, image_size: int) -> np.ndarray:
        """(image_size, image_size, 3) uint8."""
        return render(scene, image_size)

    def caption(self, scene: Scene) -> str:
        """It determines the image up to jitter."""
        return caption(scene)

    def said(self, text: str, kind: str = "") -> str:
        """A question, an answer or a sentence about a scene of a kind."""
        return text

    def told(self, instruction: str) -> str:
        """An instruction to edit."""
        return instruction

    def choices(self, scene: Scene) -> tuple[str, ...]:
        """The answers that the main question leaves open, where they are a few."""
        return scene.choices


SHAPES = Look()
