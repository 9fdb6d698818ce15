"""Text to token ids and back, and the six special tokens that a packed sequence needs.

Any fast Hugging Face tokenizer serves (Qwen2.5 at full scale); :func:`train_tokenizer` makes the
tiny one of micro scale.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunalab.data.pretrained import locate, reading
from tunalab.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SIDECAR = "tunalab_tokenizer.json"


@dataclass(frozen=True)
class SpecialTokens:
    """Names, within the vocabulary, of the tokens that frame text (bos, eos), images (boi, eoi), image slots and padding."""

    bos: str = "<|bos|>"
    eos: str = "<|eos|>"
    boi: str = "<|boi|>"
    eoi: str = "<|eoi|>"
    image_pad: str = "<|image|>"
    pad: str = "<|pad|>"


# Names that a Qwen2.5 vocabulary already holds, so that nothing needs to be added to its embedding table.
QWEN25_SPECIALS = SpecialTokens(
    bos="<|im_start|>",
    eos="<|im_end|>",
    boi="<|vision_start|>",
    eoi="<|vision_end|>",
    image_pad="<|image_pad|>",
    pad="<|endoftext|>",
)


class Tokenizer:
    """A fast tokenizer with its special ids: ``bos eos boi eoi image_pad pad``.

    Spaces before a text never matter: ``encode("red") == encode(" red")``, so that an answer has one spelling wherever it
    stands. With ``prefix_space`` a lower-case start becomes the token it is inside a sentence; capitals and digits, which
    are tokens of their own there, need no prefix. ``chat``: in which turns documents are laid out with it (decoder.chat;
    sequence.py). ``decode(encode(s)) == s`` for every s without outer spaces (a real tokenizer
    may normalise Unicode first). Text that spells a special token is encoded as text, never as that token.
    """

    def __init__(
        self,
        backend: "PreTrainedTokenizerFast",
        specials: SpecialTokens = SpecialTokens(),
        prefix_space: bool = False,
        chat: str = "none",
    ) -> None:
        """Raises UserError when a special token is not in the vocabulary, or when two of them are the same, or for turns of a chat
        when bos and eos are not those that begin and end a turn.
        """
        vocabulary = backend.get_vocab()
        missing = [f"{role} {name}" for role, name in asdict(specials).items() if name not in vocabulary]
        if missing:
            raise UserError(f"tokenizer lacks special tokens: {', '.join(missing)} (Tokenizer.with_specials adds them)")
        if len(set(asdict(specials).values())) < len(asdict(specials)):
            raise UserError(f"tokenizer's special tokens must differ from each other: {asdict(specials)}")
        turn, own = (QWEN25_SPECIALS.bos, QWEN25_SPECIALS.eos), (specials.bos, specials.eos)
        if chat != "none" and own != turn:
            needed, found = (f"{bos} and {eos}" for bos, eos in (turn, own))
            raise UserError(f"decoder.chat={chat} needs a tokenizer whose texts begin and end with {needed}; this one has {found}")
        self.backend = backend
        self.specials = specials
        self.prefix_space = prefix_space
        self.chat = chat
        self.bos: int = vocabulary[specials.bos]
        self.eos: int = vocabulary[specials.eos]
        self.boi: int = vocabulary[specials.boi]
        self.eoi: int = vocabulary[specials.eoi]
        self.image_pad: int = vocabulary[specials.image_pad]
        self.pad: int = vocabulary[specials.pad]

    @classmethod
    def with_specials(
        cls, backend: "PreTrainedTokenizerFast", specials: SpecialTokens = SpecialTokens(), prefix_space: bool = False
    ) -> "Tokenizer":
        """Like the constructor, but adds the special tokens the vocabulary lacks (the embedding table must grow with it)."""
        vocabulary = backend.get_vocab()
        absent = [name for name in asdict(specials).values() if name not in vocabulary]
        if absent:
            backend.add_tokens(absent, special_tokens=True)
        return cls(backend, specials, prefix_space)

    def with_chat(self, chat: str) -> "Tokenizer":
        """The same tokenizer, for documents in these turns. Raises UserError as the constructor."""
        return self if chat == self.chat else Tokenizer(self.backend, self.specials, self.prefix_space, chat)

    @property
    def vocabulary(self) -> int:
        """Number of ids, special and added ones included."""
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without any special token; two blanks or more at its start are an indentation, and stay."""
        text = _without_blank(text)
        if self.prefix_space and text and not (text[0].isupper() or text[0].isdigit() or text[0] == " "):
            text = " " + text
        rust = self.backend.backend_tokenizer
        # At every call: neither a copy nor a pickle of a tokenizer keeps it, and a call of the backend itself takes it back.
        rust.encode_special_tokens = True
        if rust.truncation is not None:  # also left behind by such a call, or by a tokenizer.json
            rust.no_truncation()
        if rust.padding is not None:
            rust.no_padding()
        return list(rust.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens are dropped, and a blank at the start that is no indentation."""
        return _without_blank(str(self.backend.backend_tokenizer.decode(list(ids), skip_special_tokens=True)))

    def save(self, folder: Path) -> None:
        self.backend.save_pretrained(str(folder))
        sidecar = {"specials": asdict(self.specials), "prefix_space": self.prefix_space}
        (folder / SIDECAR).write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, specials: SpecialTokens | None = None) -> "Tokenizer":
        """A tokenizer that :meth:`save` wrote, or any Hugging Face folder when ``specials`` names its special tokens.

        Raises UserError when the folder does not hold one, or lacks a special token.
        """
        from transformers import PreTrainedTokenizerFast

        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"no tokenizer in {folder} (tokenizer.json is missing)")
        prefix_space = False
        try:
            if (folder / SIDECAR).is_file():
                sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
                specials = specials or SpecialTokens(**sidecar["specials"])
                prefix_space = bool(sidecar["prefix_space"])
            backend = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:  # tokenizers raises Exception itself for a file that is none of its own
            raise UserError(f"tokenizer in {folder} cannot be read: {first_line(error)}") from error
        return cls(backend, specials or SpecialTokens(), prefix_space)


def train_tokenizer(texts: Iterable[str], vocabulary: int = 512) -> Tokenizer:
    """Byte-level BPE in which frequent lower-case words are one token, and capitals and digits always stand alone.

    Rendered words are capitals: the model has to read them letter by letter. A space belongs to the lower-case word or mark
    behind it, so a letter or digit is the same token at the start, inside and at the end of a word.
    Raises UserError when ``vocabulary`` cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as RustTokenizer
    from transformers import PreTrainedTokenizerFast

    specials = SpecialTokens()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(alphabet) + len(asdict(specials))
    if vocabulary < least:
        raise UserError(f"tokenizer vocabulary={vocabulary} is too small (at least {least}: bytes and special tokens)")
    pieces = r"\p{Lu}|\p{N}| ?[^\s\p{Lu}\p{N}\p{P}\p{S}]+| ?[\p{P}\p{S}]|\s"
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(asdict(specials).values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # Training texts get the prefix that encoding gives them, else words at the start of a text would be learnt apart.
    rust.train_from_iterator((" " + text.lstrip(" ") for text in texts), trainer)
    backend = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token=specials.bos, eos_token=specials.eos, pad_token=specials.pad)
    return Tokenizer(backend, specials, prefix_space=True)


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


def _without_blank(text: str) -> str:
    stripped = text.lstrip(" ")
    return stripped if len(text) - len(stripped) < 2 else text
