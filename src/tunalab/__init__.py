"""tunalab: what does the visual front-end of a unified multimodal model buy?"""

__version__ = "0.1.0"
