"""What commands that make images share: options of the model, of its sampler and of where images go, and what they come to."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tunalab.errors import UserError

if TYPE_CHECKING:
    from tunalab.config import SamplingConfig
    from tunalab.exporting import Loaded

Number = TypeVar("Number", int, float)
MODEL_HELP = "run directory or exported folder"


def add_sampling(sub: argparse.ArgumentParser, n: int | None, images: str) -> None:
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the images; those that are there are kept")
    sub.add_argument("--n", type=int, default=n, help=images)
    sub.add_argument("--seed", type=int, default=0, help="default: 0")
    sub.add_argument("--steps", type=int, help="of the sampler; default for this and the next five: the model's own")
    sub.add_argument("--guidance", type=float, help="1: none")
    sub.add_argument("--negative", metavar="TEXT", help="what guidance leads away from")
    sub.add_argument("--sampler", choices=("euler", "heun"))
    sub.add_argument("--shift", type=float, help="of the sampler's times: above 1, more of the steps are near the noise")
    sub.add_argument("--clamp", choices=("none", "official"), help="of 1 - t; official leaves noise in more than 20 steps")


def add_model_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--size", metavar="SIZE", help="64, or HEIGHTxWIDTH such as 384x512 (default: as the model was trained)")
    sub.add_argument("--raw", action="store_true", help="the weights that go on training, not their averages")
    sub.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    sub.add_argument("--batch-tokens", type=int, metavar="N", help="tokens held at a time: fewer take less memory")


def load_model(arguments: argparse.Namespace) -> "tuple[Loaded, str]":
    """The model, and the precision that it computes in."""
    from tunalab.exporting import load
    from tunalab.inference.precision import find_device, precision

    device = find_device(arguments.device)
    loaded = load(arguments.model, device, arguments.raw)
    return loaded, precision(loaded.config, device)


def seeds_of(arguments: argparse.Namespace) -> list[int]:
    n, first = positive("--n", arguments.n), arguments.seed
    within("seed", "--seed", first, 0)
    within("seed", f"--seed={first} --n={n}: the last seed", first + n - 1, 0)
    return list(range(first, first + n))


def sampling_of(arguments: argparse.Namespace, own: "SamplingConfig") -> "SamplingConfig":
    """The model's own sampler but for what is given."""
    from tunalab.checks import check_sampling

    steps = within("sampling.steps", "--steps", arguments.steps, own.steps)
    guidance = within("sampling.guidance", "--guidance", arguments.guidance, own.guidance)
    # Of edits too, in the way in which the model guides them. 0 there would mean another way: `edit` refuses it.
    of_edits = (arguments.guidance or own.edit_guidance) if own.edit_guidance else 0.0
    negative = own.negative_prompt if arguments.negative is None else arguments.negative
    check_utf8("--negative", negative)
    given = replace(own, method=arguments.sampler or own.method, clamp=arguments.clamp or own.clamp)
    shift = within("sampling.shift", "--shift", arguments.shift, own.shift)
    sampling = replace(given, steps=steps, guidance=guidance, edit_guidance=of_edits, negative_prompt=negative, shift=shift)
    check_sampling(sampling)
    return sampling


def check_utf8(what: str, text: str) -> None:
    """Raises UserError, naming ``what``, for the bytes of a terminal that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {ascii(text)} is not text in UTF-8") from error


def bounds_of(arguments: argparse.Namespace) -> dict[str, int]:
    """``batch_tokens``, where it is given."""
    given = arguments.batch_tokens
    return {} if given is None else {"batch_tokens": positive("--batch-tokens", given)}


def within(key: str, option: str, given: Number | None, default: Number) -> Number:
    """What is given, if it may be the setting ``key``; otherwise the default."""
    from tunalab.checks import check_value

    if given is None:
        return default
    check_value(key, option, given)
    return given


def positive(option: str, given: int) -> int:
    if given < 1:
        raise UserError(f"{option}={given} is out of range (from 1)")
    return given
