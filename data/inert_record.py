"""What a pickle names or would have called, as a record of it."""

from dataclasses import dataclass
from typing import Any

PERSISTENT = "persistent id"  # name of the records that stand for torch's storages


@dataclass(eq=False, slots=True, repr=False)
class Inert:
    """A name that a pickle mentions, or what it would have made by calling that name.

    It is compared and hashed by identity, has no attribute of the foreign class and cannot be called.
    """

    module: str
    name: str
    args: tuple | None = None  # None: the name alone, not called
    state: Any = None  # what __setstate__ would have got
    items: list | None = None  # what would have been appended
    pairs: list | None = None  # (key, value) that would have been set

    @property
    def path(self) -> str:
        """For messages: short, and without what a terminal would obey."""
        return "".join(c if c.isprintable() else "?" for c in f"{self.module}.{self.name}"[:100])

    def __repr__(self) -> str:
        return f"<inert {self.path}>"


def record_call(callee: Any, args: Any) -> Inert:
    """What the call of `callee` would have made; nothing is called."""
    if not isinstance(callee, Inert) or not isinstance(args, tuple):
        raise ValueError(f"the pickle calls a {type(callee).__name__}")
    if callee.args is not None:  # something that a call returned, called again
        return Inert("", "a result called again", (callee, *args))
    if callee.module in ("copyreg", "copy_reg") and args and isinstance(args[0], Inert):
        # How objects without a constructor of their own are pickled: the class is the first argument.
        if callee.name == "_reconstructor" and len(args) == 3:
            return Inert(args[0].module, args[0].name, args[2:] if args[2] is not None else ())
        if callee.name == "__newobj__":
            return Inert(args[0].module, args[0].name, args[1:])
    return Inert(callee.module, callee.name, args)


def check_key(value: Any) -> Any:
    """Keys whose hash takes no time: nested tuples that share their parts would take for ever."""
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, int) and part.bit_length() > 64:
            raise ValueError("the pickle has a number of more than 64 bits as a key")
        if not (part is None or isinstance(part, (str, bytes, int, float, Inert))):
            raise ValueError(f"the pickle has a {type(part).__name__} as a key")
    return value
