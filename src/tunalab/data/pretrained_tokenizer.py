"""The tokenizer of a pretrained decoder, with the tokens that frame images."""

from tunalab.data.pretrained import locate, reading
from tunalab.data.tokenizer import QWEN25_SPECIALS, SIDECAR, Tokenizer
from tunalab.errors import UserError

# transformers makes a tokenizer of no words where files are missing; bytes alone are this many.
LEAST_IDS = 256


def pretrained_tokenizer(given: str, setting: str, add: bool = True) -> Tokenizer:
    """A tokenizer by its folder or its name on the Hub.

    What :meth:`Tokenizer.save` wrote is loaded as it is, complete or not at all. Of any other the special tokens are Qwen2.5's
    (which are the official models' too); those it lacks are added behind its last id, unless ``add`` is False.
    Raises UserError, one line: nothing there, damaged or incomplete files, special tokens that are missing and may not be added.
    """
    from transformers import PreTrainedTokenizerFast

    source = locate(given, setting)
    folder = source.folder
    if folder and (folder / SIDECAR).is_file():
        return Tokenizer.load(folder)
    if folder and not (folder / "tokenizer.json").is_file():
        raise UserError(f"{source.what}: no tokenizer in that folder (tokenizer.json is missing)")
    with reading(source):
        # tokenizer.json as it stands. AutoTokenizer goes by the model's class, and gives another's cutting of words to such a file.
        backend = PreTrainedTokenizerFast.from_pretrained(source.name, subfolder=source.subfolder)
    if len(backend.get_vocab()) < LEAST_IDS:
        raise UserError(f"{source.what}: the tokenizer has {len(backend.get_vocab())} ids: its files are incomplete")
    return Tokenizer.with_specials(backend, QWEN25_SPECIALS) if add else Tokenizer(backend, QWEN25_SPECIALS)
