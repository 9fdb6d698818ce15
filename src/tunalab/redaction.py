"""Credentials out of every text that is kept or shown: settings, records, logs, messages. Connections use the full ones.

What is taken away leaves ``***``, so that a saved setting says that it is not complete (:func:`is_incomplete`). A process that
must have it whole, such as a run of a sweep, is given it in its environment (:func:`hand_over`, :func:`restored`).
"""

import base64
import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import unquote, unquote_plus

MARK = "***"
FULL = "TUNALAB_FULL_SETTINGS"  # variable of the environment: settings with credentials, a JSON list

# Query keys, without - and _ and in small letters, by how they end. In AWS and Google URLs everything belongs to the signature.
_SECRET_KEY = re.compile(
    r"(x(amz|goog).*|.*(token|key|keyid|secret|secretid|password|passwd|passphrase|pwd|signature|sig|credentials?|auth|authorization)"
    r"|pass|pw|sas|awsaccesskeyid|googleaccessid|jwt)"
)
# What stands beside a signature and changes with it: of Azure, CloudFront, and S3's second version.
_SIGNED_KEY = re.compile(r"se|sp|sv|st|sr|ss|srt|spr|sip|sdd|ske|skt|sks|skv|skoid|sktid|saoid|suoid|scid|expires|policy|keypairid")
_SIGNATURE = re.compile(r"sig|signature|sas")

_SCHEME = r"(?P<head>(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?:(?:\\*/){2}(?!/)|/(?=[^/@\s]*:\S*@)))"  # \\/: of JSON; one /: of a Path
_URL = re.compile(rf"{_SCHEME}(?P<rest>(?:(?![A-Za-z][A-Za-z0-9+.-]*:(?:\\*/){{2}})[^\s\"'<>`])+)")  # up to the next one
_WHOLE_URL = re.compile(rf"{_SCHEME}(?P<rest>.+)", re.DOTALL)
# The scheme was forgotten; timm:NAME@FILE and hf-hub:NAME@REVISION are encoders.
_BARE = re.compile(r"(?<![\w/@.%+~:*-])(?!(?:timm|hf-hub|transformers):)(?://)?[\w.%+~-]+:[^\s@/\"'<>]+@(?=\w)")
_DATABASE = re.compile(r"(postgres|mysql|mariadb|mssql|oracle|cockroach|redshift|snowflake|mongodb|redis|amqp)", re.IGNORECASE)
_PORT = re.compile(r":\d{0,5}$|\]$")  # or an address of IPv6
_QUERY = re.compile(r"(?P<start>[?&#]|&amp;)(?P<pairs>[\w.~%\[\]-]+=[^\s\"'<>`)]*)")
_ENCODED = re.compile(r"%3A%2F%2F[^\s&\"'<>]*?%40", re.IGNORECASE)  # a URL inside the query of another
_HEADER = re.compile(r"(?i)(\b(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer|token)?\s*)[^\s'\",}]+")
_PASSWORD = re.compile(r"(?i)(\b(?:password|passwd|pwd)\s?=\s?)(?:'[^']*'|[^\s&\"',;)]+)")  # libpq and ODBC


def redacted(text: str, *urls: str) -> str:
    """``text`` without the credentials of the URLs inside it: user-info, and the values of query keys that look secret.

    ``urls``: full ones, known to the caller, whose credentials may stand in the text in other ways, as errors of libraries quote
    them (decoded, cut, by themselves).
    """
    for secret in sorted({secret for url in urls for secret in _secrets(url)}, key=len, reverse=True):
        # A short one may be a part of any word.
        text = text.replace(secret, MARK) if len(secret) > 7 else re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MARK, text)
    if "=" in text:
        text = _QUERY.sub(_without_values, text)
        text = _PASSWORD.sub(rf"\g<1>{MARK}", text)
    if "@" in text:
        text = _BARE.sub(f"{MARK}@", _URL.sub(_without_user, text))
    if "%" in text:
        text = _ENCODED.sub(f"%3A%2F%2F{MARK}%40", text)
    return _HEADER.sub(rf"\g<1>{MARK}", text) if "uthorization" in text or "UTHORIZATION" in text else text


def redacted_settings(node: Any) -> Any:
    """Nested mappings and lists of settings, each text of them :func:`redacted`, whatever characters stand in a password."""
    if isinstance(node, str):
        return redacted(_WHOLE_URL.sub(_without_user, node) if _WHOLE_URL.match(node) else node)
    if isinstance(node, Mapping):
        return {key: redacted_settings(value) for key, value in node.items()}
    return [redacted_settings(value) for value in node] if isinstance(node, list | tuple) else node


def is_incomplete(node: Any) -> bool:
    """Whether a setting, or one inside, was saved without its credentials."""
    if isinstance(node, str):
        return f"/{MARK}@" in node or f"={MARK}" in node
    members = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return any(is_incomplete(member) for member in members)


def hand_over(arguments: Sequence[str], environment: MutableMapping[str, str]) -> list[str]:
    """The arguments of a command without credentials; with ``environment`` the command gets them back by :func:`restored`.

    The words of a command are visible to everybody (``ps``), logged, and written into job scripts.
    """
    full: list[str] = json.loads(environment.get(FULL, "[]"))
    shown = [_argument(argument) for argument in arguments]
    full += [argument for argument, short in zip(arguments, shown, strict=True) if argument != short and argument not in full]
    if full:
        environment[FULL] = json.dumps(full)
    return shown


def restored(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments that :func:`hand_over` was given."""
    full = {_argument(argument): argument for argument in json.loads(environment.get(FULL, "[]"))}
    return [full.get(argument, argument) for argument in arguments]


def hide_credentials() -> None:
    """From here on neither log records nor the traceback of an error that nobody caught show credentials, whoever makes them."""
    if sys.excepthook is not _show:
        sys.excepthook = _show
        make = logging.getLogRecordFactory()

        def made(*given: Any, **more: Any) -> logging.LogRecord:
            record = make(*given, **more)
            try:
                text = record.getMessage()
            except (TypeError, ValueError, KeyError):  # its own mistake, which logging reports
                return record
            clean = redacted(text)
            if clean != text:
                record.msg, record.args = clean, ()
            return record

        logging.setLogRecordFactory(made)


def _show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    with suppress(OSError, AttributeError):  # nobody reads any more
        print(redacted("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr, flush=True)


def _argument(argument: str) -> str:
    """``key=value`` by its value, which may be a URL from its first letter on."""
    key, equals, value = argument.partition("=")
    return f"{key}={redacted_settings(value)}" if equals and "://" not in key else str(redacted_settings(argument))


def _without_user(found: re.Match[str]) -> str:
    rest = found["rest"]
    return found["head"] + (MARK + rest[rest.rindex("@", 0, end) :] if (end := _user_end(found["scheme"], rest)) else rest)


def _user_end(scheme: str, rest: str) -> int:
    """Up to which letter of what follows ``scheme://`` the last @ ends the user-info; 0 without user-info.

    By rule it may hold no / ? # unless encoded. Database URLs are read as SQLAlchemy does, which takes them; and keys of S3 have /.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if _DATABASE.match(scheme):
        path = rest.partition("?")[0]
        return len(path) if "@" in path else len(rest) if "@" in rest and ":" in authority else 0
    if "@" in authority:
        return len(authority)
    if ":" in authority and not _PORT.search(authority) and "@" in rest:
        return rest.index("@") + 1
    return 0


def _without_values(found: re.Match[str]) -> str:
    pairs = [pair.partition("=") for pair in re.split(r"(?<=[&;#?])", found["pairs"])]
    names = [re.sub(r"[-_]", "", unquote(name).lower()) for name, _, _ in pairs]
    signed = any(_SIGNATURE.fullmatch(name) for name in names)
    shown = found["start"]
    for name, (key, equals, value) in zip(names, pairs, strict=True):
        secret = _SECRET_KEY.fullmatch(name) or (signed and _SIGNED_KEY.fullmatch(name))
        end = next((end for end in ("&amp;", "&", ";", "#", "?") if value.endswith(end)), "")
        shown += f"{key}={MARK}{end}" if secret and value != end else f"{key}{equals}{value}"
    return shown


def _secrets(url: str) -> set[str]:
    """What may not be shown of one URL, in every form: encoded, decoded, in parts, and as a header carries it."""
    found: set[str] = set()
    whole = _WHOLE_URL.match(url)
    rest, scheme = (whole["rest"], whole["scheme"]) if whole else (url, "https")
    if end := _user_end(scheme, rest):
        user = rest[: rest.rindex("@", 0, end)]
        name, _, password = user.partition(":")
        decoded = f"{unquote(name)}:{unquote(password)}"
        parts = re.split(r"[@/?#:]", password) if re.search(r"[@/?#:]", password) else []
        found |= {user, password or name, unquote(password or name), base64.b64encode(decoded.encode()).decode(), *parts}
    for query in _QUERY.finditer(url):
        for key, _, value in (pair.partition("=") for pair in re.split("[&;#?]", query["pairs"])):
            if _SECRET_KEY.fullmatch(re.sub(r"[-_]", "", unquote(key).lower())):
                found |= {value, unquote(value), unquote_plus(value)}
    return {secret for secret in found if len(secret) > 3}
