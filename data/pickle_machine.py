"""A pickle read as data: names stay names, nothing is imported, nothing is called.

Python's own unpickler must be talked out of running what a file says. This one has nothing to run it with:
whatever a pickle would call becomes an `Inert` record of the call. Everything is bounded by the bytes that
are really there, because a few bytes can claim any size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pickletools import genops
from typing import Any

from speechgpt.data.bounded_reader import Reader

MAX_OPCODES = 10_000_000  # an embedded dictionary of 250,000 words takes 2 million
MAX_NESTED = 4  # pickles inside pickles: joblib's arrays of objects
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


# Called after a record got its state, with the stream behind it: joblib puts an array's bytes there.
BuildHook = Callable[[Inert, Reader, "Machine"], None]


class Machine:
    """The stack machine of pickle protocols 0 to 5. `load` reads one pickle from where the stream stands."""

    def __init__(self, reader: Reader, on_build: BuildHook | None = None, nested: int = 0) -> None:
        if nested > MAX_NESTED:
            raise ValueError(f"pickles nested more than {MAX_NESTED} deep")
        self.nested = nested
        self.persistent: list[Inert] = []  # in the order of their mention
        self._reader = reader
        self._on_build = on_build
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stacks below each mark

    def load(self) -> Any:
        for count, (opcode, argument, _) in enumerate(genops(self._reader)):
            if count > MAX_OPCODES:
                raise ValueError(f"a pickle of more than {MAX_OPCODES} opcodes")
            name = opcode.name
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _PUSH:
                self._stack.append(argument)
            elif name in _NEW:
                self._stack.append(_NEW[name]())
            elif name == "STOP":
                return self._pop()
            elif handler := _HANDLERS.get(name):
                handler(self, argument)
            elif name == "PROTO" and argument > 5:
                raise ValueError(f"pickle protocol {argument}; expected 0 to 5")
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"the pickle opcode {name} has no place in a checkpoint")
        raise ValueError("the pickle has no end")

    def load_nested(self) -> Any:
        return Machine(self._reader, self._on_build, self.nested + 1).load()

    def _pop(self) -> Any:
        if not self._stack:
            raise ValueError("the pickle takes from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError("the pickle looks at an empty stack")
        return self._stack[-1]

    def _pop_mark(self, _: Any = None) -> list[Any]:
        if not self._marks:
            raise ValueError("the pickle returns to a mark that it never set")
        found, self._stack = self._stack, self._marks.pop()
        return found

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._top())

    def _drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:  # POP may also take a mark away
            self._pop_mark()

    def _put(self, index: Any) -> None:
        self._memo[int(index)] = self._top()

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: Any) -> None:
        if int(index) not in self._memo:
            raise ValueError("the pickle recalls what it never stored")
        self._stack.append(self._memo[int(index)])

    def _tuple(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(tuple(values))

    def _short_tuple(self, size: int) -> None:
        values = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(values)))

    def _list(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(values)

    def _dict(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append({})
        self._set(values)

    def _frozen(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(frozenset(check_key(value) for value in values))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target.items = target.items or []
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise ValueError(f"the pickle appends to a {type(target).__name__}")

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if len(values) % 2:
            raise ValueError("the pickle sets a key without a value")
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(target, Inert):
            target.pairs = target.pairs or []
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            target.update((check_key(key), value) for key, value in pairs)
        else:
            raise ValueError(f"the pickle sets keys of a {type(target).__name__}")

    def _append_one(self, _: Any) -> None:
        self._append([self._pop()])

    def _append_many(self, _: Any) -> None:
        self._append(self._pop_mark())

    def _set_one(self, _: Any) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _set_many(self, _: Any) -> None:
        self._set(self._pop_mark())

    def _add_many(self, _: Any) -> None:
        values, target = self._pop_mark(), self._top()
        if isinstance(target, Inert):
            self._append(values)
        elif isinstance(target, set):
            target.update(check_key(value) for value in values)
        else:
            raise ValueError(f"the pickle adds members to a {type(target).__name__}")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")  # how genops joins the two lines
        self._stack.append(Inert(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("the pickle names a class by something that is no text")
        self._stack.append(Inert(module, name))

    def _reduce(self, _: Any) -> None:
        args = self._pop()
        self._stack.append(record_call(self._pop(), args))

    def _new_with_keywords(self, _: Any) -> None:
        keywords, args = self._pop(), self._pop()
        if not isinstance(keywords, dict) or not isinstance(args, tuple):
            raise ValueError("the pickle makes an object of things that are no arguments")
        self._stack.append(record_call(self._pop(), (*args, keywords) if keywords else args))

    def _object(self, _: Any) -> None:
        values = self._pop_mark()
        if not values:
            raise ValueError("the pickle makes an object of no class")
        self._stack.append(record_call(values[0], tuple(values[1:])))

    def _instance(self, argument: str) -> None:
        values = tuple(self._pop_mark())
        self._global(argument)
        self._stack.append(record_call(self._pop(), values))

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, Inert):
            raise ValueError(f"the pickle sets the state of a {type(target).__name__}")
        target.state = state
        if self._on_build is not None:
            self._on_build(target, self._reader, self)

    def _persistent(self, _: Any) -> None:
        identity = self._pop()
        found = Inert("", PERSISTENT, identity if isinstance(identity, tuple) else (identity,))
        self.persistent.append(found)
        self._stack.append(found)


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


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_PUSH = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_HANDLERS: dict[str, Callable[[Machine, Any], Any]] = {
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": Machine._pop_mark,
    "DUP": Machine._duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    "MEMOIZE": Machine._memoize,
    "TUPLE": Machine._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "LIST": Machine._list,
    "DICT": Machine._dict,
    "FROZENSET": Machine._frozen,
    "APPEND": Machine._append_one,
    "APPENDS": Machine._append_many,
    "SETITEM": Machine._set_one,
    "SETITEMS": Machine._set_many,
    "ADDITEMS": Machine._add_many,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._new_with_keywords,
    "OBJ": Machine._object,
    "INST": Machine._instance,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
}
