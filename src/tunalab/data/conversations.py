"""Conversations: lists of {"from", "value"} or {"role", "content"} -> (prompt, answer) pairs, checked."""

from typing import Any

from tunalab.data.documents import Reject

PLACEHOLDER = "<image>"
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


def read_turns(conversations: Any, images: int) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a conversation about ``images`` images, without their placeholders.

    Turns alternate between human and gpt; a system turn may come first and opens the first prompt. The placeholders may
    stand in the first human turn, one an image, or be left out: our layout shows the images before all text, so later in
    the conversation one would answer for turns that were held without it. A prompt is empty only if images stand alone.

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
            prompt = take_placeholder(prompt, images)
        if not prompt and not (images and number == 0):
            raise Reject("empty prompt")
        if number == 0 and system:
            prompt = f"{system}\n{prompt}".strip()
        if not answer:
            raise Reject("empty answer")
        pairs.append((prompt, answer))
    return pairs


def take_placeholder(text: str, images: int) -> str:
    """``text`` without its image placeholders.

    Raises:
        Reject: it has some, but not one for each of its ``images``.
    """
    before, *after = text.split(PLACEHOLDER)
    if not after:
        return text.strip()
    if not images:
        raise Reject(f"{PLACEHOLDER} without an image")
    if len(after) != images:
        raise Reject(f"{len(after)} times {PLACEHOLDER}, {'one image' if images == 1 else f'{images} images'}")
    return " ".join([before.rstrip(), *(part.strip() for part in after[:-1]), after[-1].lstrip()]).strip()


def check_text(value: Any, name: str) -> str:
    """``value`` without outer white space.

    Raises:
        Reject: it is no string, or holds half a surrogate pair: JSON can escape it, no tokenizer can encode it.
    """
    if not isinstance(value, str):
        raise Reject(f"{name} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Reject(f"{name} holds half a surrogate pair at character {error.start}") from error
    return value.strip()


def _read_turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Reject(f"turn {number} must be an object, not {type(turn).__name__}")
    role, value = (turn.get("from"), turn.get("value")) if "from" in turn else (turn.get("role"), turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise Reject(f"turn {number} is from {role!r}; choices: {', '.join(_ROLES)}")
    return _ROLES[role], check_text(value, f"the value of turn {number}")
