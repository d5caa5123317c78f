"""A pickle read as data: names stay names, nothing is imported, nothing is called.

Python's own unpickler must be talked out of running what a file says. This one has nothing to run it with:
whatever a pickle would call becomes an `Inert` record of the call. Everything is bounded by the bytes that
are really there, because a few bytes can claim any size, and what they make is charged to a budget, because
one byte makes an empty set of 216.
"""

import sys
from collections.abc import Callable
from pickletools import genops
from typing import Any

from speechgpt.data.bounded_reader import Budget, Reader
from speechgpt.data.inert_record import PERSISTENT, Inert, check_key, record_call

MAX_OPCODES = 10_000_000  # an embedded dictionary of 250,000 words takes 2 million
MAX_NESTED = 4  # pickles inside pickles: joblib's arrays of objects
# Bytes of CPython 3.12, rounded up: every opcode may take a place on the stack and one in a container.
PLACE_BYTES = 24
ENTRY_BYTES = 110  # of a dict or set that grows


# Called after a record got its state, with the stream behind it: joblib puts an array's bytes there.
BuildHook = Callable[[Inert, Reader, "Machine"], None]


class Machine:
    """The stack machine of pickle protocols 0 to 5. `load` reads one pickle from where the stream stands."""

    def __init__(self, reader: Reader, budget: Budget, on_build: BuildHook | None = None) -> None:
        self.nested = 0  # pickles around this one
        self.opcodes = 0  # theirs and those of finished ones among them
        self.budget = budget
        self.persistent: list[Inert] = []  # in the order of their mention
        self._reader = reader
        self._on_build = on_build
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stacks below each mark

    def load(self) -> Any:
        for opcode, argument, _ in genops(self._reader):
            self.opcodes += 1
            if self.opcodes > MAX_OPCODES:
                raise ValueError(f"a pickle of more than {MAX_OPCODES} opcodes")
            name = opcode.name
            held = 0 if argument is None else sys.getsizeof(argument)
            self.budget.take(PLACE_BYTES + held + _COSTS.get(name, 0))
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
        if self.nested == MAX_NESTED:
            raise ValueError(f"pickles nested more than {MAX_NESTED} deep")
        inner = Machine(self._reader, self.budget, self._on_build)
        inner.nested, inner.opcodes = self.nested + 1, self.opcodes
        found, self.opcodes = inner.load(), inner.opcodes
        return found

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
        self.budget.take(ENTRY_BYTES * len(values))
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
        self.budget.take(ENTRY_BYTES * len(values) // 2)
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
            self.budget.take(ENTRY_BYTES * len(values))
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

    def _call(self, callee: Any, args: Any) -> None:
        self.budget.take(PLACE_BYTES * len(args) if isinstance(args, tuple) else 0)  # it may be copied
        self._stack.append(record_call(callee, args))

    def _reduce(self, _: Any) -> None:
        args = self._pop()
        self._call(self._pop(), args)

    def _new_with_keywords(self, _: Any) -> None:
        keywords, args = self._pop(), self._pop()
        if not isinstance(keywords, dict) or not isinstance(args, tuple):
            raise ValueError("the pickle makes an object of things that are no arguments")
        self._call(self._pop(), (*args, keywords) if keywords else args)

    def _object(self, _: Any) -> None:
        values = self._pop_mark()
        if not values:
            raise ValueError("the pickle makes an object of no class")
        self._call(values[0], tuple(values[1:]))

    def _instance(self, argument: str) -> None:
        values = tuple(self._pop_mark())
        self._global(argument)
        self._call(self._pop(), values)

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


_RECORD = 300  # with the lists that its items and pairs may come to
_COSTS = {
    **{"EMPTY_LIST": 110, "LIST": 72, "EMPTY_DICT": 250, "DICT": 250, "EMPTY_SET": 232, "FROZENSET": 232},
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 64),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"), _RECORD),
    **{"BINPERSID": _RECORD + 72, "MARK": 100},
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 140),
}
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
