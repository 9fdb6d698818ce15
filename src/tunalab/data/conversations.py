"""Conversations: lists of {"from", "value"} or {"role", "content"} -> (prompt, answer) pairs, checked."""

from typing import Any

from tunalab.data.documents import Reject

PLACEHOLDER = "<image>"
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


def read_turns(conversations: Any, images: int) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a conversation about ``images`` images.

    Turns alternate between human and gpt; a system turn may come first and opens the first prompt. That prompt has a
    placeholder for each image (:func:`place_images`), which a system turn follows where images come first. Later in the
    conversation a placeholder would answer for turns that were held without its image. Answers keep their indentation.

    Raises:
        Reject: anything else, with the number of the turn (from 1).
    """
    if not isinstance(conversations, list) or not conversations:
        raise Reject("conversations must be a list with at least one turn")
    turns = [_read_turn(turn, number) for number, turn in enumerate(conversations, start=1)]
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    roles = [role for role, _ in turns]
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
        raise Reject(f"turns must alternate between human and gpt, starting with human; found {', '.join(roles[:8])}")
    if PLACEHOLDER in system or any(PLACEHOLDER in value for _, value in turns[1:]):
        raise Reject(f"{PLACEHOLDER} outside the first human turn")

    pairs = []
    for number in range(0, len(turns), 2):
        prompt, answer = turns[number][1], turns[number + 1][1]
        if number == 0:
            prompt = place_images(prompt, images)
        if not prompt:
            raise Reject("empty prompt")
        if number == 0 and system:
            text = prompt
            while text.startswith(PLACEHOLDER):
                text = text.removeprefix(PLACEHOLDER)
            prompt = prompt[: len(prompt) - len(text)] + f"{system}\n{text}".strip()
        if not answer:
            raise Reject("empty answer")
        pairs.append((prompt, answer))
    return pairs


def place_images(text: str, images: int) -> str:
    """``text`` with a placeholder for each of its ``images``, without white space beside them.

    A placeholder stays where it stands. Without any the images come first, and also where all stand on lines of their own
    behind the text: data sets write a question so as often as with the image first, and mean the same.

    Raises:
        Reject: it has some, but not one for each image.
    """
    before, *after = text.split(PLACEHOLDER)
    if after and not images:
        raise Reject(f"{PLACEHOLDER} without an image")
    if after and len(after) != images:
        raise Reject(f"{len(after)} times {PLACEHOLDER}, {'one image' if images == 1 else f'{images} images'}")
    if not after or (before.rstrip(" \t").endswith("\n") and not "".join(after).strip()):
        return PLACEHOLDER * images + before.strip()
    return PLACEHOLDER.join(part.strip() for part in (before, *after))


def check_text(value: Any, name: str, indented: bool = False) -> str:
    """``value`` without outer white space and without a byte order mark.

    ``indented``: it may be code, so the indentation of its first line stays. One blank before a single line is none.

    Raises:
        Reject: it is no string, no UTF-8, or holds half a surrogate pair: JSON can escape it, no tokenizer can encode it.
    """
    if isinstance(value, bytes):  # of a table
        raise Reject(f"{name} is not UTF-8")
    if not isinstance(value, str):
        raise Reject(f"{name} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject(f"{name} holds half a surrogate pair at character {error.start}") from error
    value = value.removeprefix("\ufeff").rstrip()
    text = value.lstrip()
    indentation = value[: len(value) - len(text)].rpartition("\n")[2]
    kept = indented and (indentation != " " or "\n" in text)
    return indentation + text if kept else text


def _read_turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Reject(f"turn {number} must be an object, not {type(turn).__name__}")
    role, value = (turn.get("from"), turn.get("value")) if "from" in turn else (turn.get("role"), turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise Reject(f"turn {number} is from {role!r}; choices: {', '.join(_ROLES)}")
    return _ROLES[role], check_text(value, f"the value of turn {number}", indented=_ROLES[role] == "gpt")
