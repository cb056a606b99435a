"""Reading pickles without running anything that stands in them.

A pickle is a program for a small stack machine: its instructions push values, gather them into lists, tuples and
dicts, and call functions by their names. Python's own reader imports what is named and calls it. The machine here has
the same instructions but knows only the names it is given, each with a stand-in; every other name is refused, and
nothing of another library is imported or called. `pickletools` takes the bytes apart into instructions.

Source: the instructions are described in Python's `pickletools`.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minifocal.errors import InputError, shown

MAX_KEY = 2**31
"""Up to here integers have hashes of their own; larger ones can be chosen so that all have the same."""

MAX_INSTRUCTIONS = 2**20
"""A list or dict takes one byte to ask for and some sixty of memory. CIFAR-100's training file has 250,000 of them."""

PUSHED = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE")
    + ("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
)
"""Instructions that push the value they carry."""


class StandIn:
    """Stands for an object that a pickle makes: keeps what it is given, for the reader to check."""

    def set_state(self, state: Any) -> None:
        """Take the attributes that the pickle sets."""
        raise InputError("refused a pickle that sets attributes where there are none")


def run_pickle(data: bytes, names: Mapping[str, Any], load_persistent: Callable[[Any], Any] | None = None) -> Any:
    """Run a pickle on the restricted machine and give the value it builds.

    Args:
        data: the whole pickle.
        names: what each "module.name" stands for: a function, a class of stand-ins, or any other value.
        load_persistent: gives the object behind a persistent identifier; without it there is none.
    Returns:
        plain Python values and stand-ins. Strings of Python 2 come as bytes.
    Raises:
        InputError: another name, an unknown instruction, arguments that a stand-in does not take, or damage; one line.
    """
    try:
        return _Machine(names, load_persistent).run(data)
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything, and all of it means the same
        raise InputError("expected a pickle, but it is damaged, cut short or another format") from error


class _Machine:
    """A stack, a stack of what lay below each mark, and a memo; a method for each instruction."""

    def __init__(self, names: Mapping[str, Any], load_persistent: Callable[[Any], Any] | None) -> None:
        self.names, self.load_persistent = names, load_persistent
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number == MAX_INSTRUCTIONS:
                raise InputError(f"refused a pickle of more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name in PUSHED:
                self.stack.append(argument)
            elif opcode.name in INSTRUCTIONS:
                INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise InputError(f"refused a pickle with the instruction {opcode.name}")
        return self.stack.pop()

    def ignore(self, argument: Any) -> None:
        pass

    def push_python2_string(self, text: str) -> None:
        self.stack.append(text.encode("latin-1"))

    def mark(self, argument: Any) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below_marks.pop()
        return items

    def push_tuple(self, argument: Any) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def push_list(self, argument: Any) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def push_dict(self, argument: Any) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set_items(items)

    def push_short_tuple(self, size: int) -> None:
        items = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(items[::-1]))

    def append(self, argument: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, argument: Any) -> None:
        self._extend(self.pop_mark())

    def set_item(self, argument: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def set_items(self, argument: Any) -> None:
        self._set_items(self.pop_mark())

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def put_next(self, argument: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def push_name(self, module_and_name: str) -> None:
        self.stack.append(self._find(module_and_name.replace(" ", ".", 1)))

    def push_name_from_stack(self, argument: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise InputError(f"refused a pickle that names {_type_name(module)} and {_type_name(name)}")
        self.stack.append(self._find(f"{module}.{name}"))

    def call(self, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self._call(function, arguments)

    def call_with_marked(self, module_and_name: str) -> None:
        arguments = self.pop_mark()
        self._call(self._find(module_and_name.replace(" ", ".", 1)), arguments)

    def set_state(self, argument: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn):
            target.set_state(state)
        elif type(target) is not dict:  # of a dict that stands for a richer one the attributes are not needed
            raise InputError(f"refused a pickle that sets attributes of {_type_name(target)}")

    def push_persistent(self, argument: Any) -> None:
        if self.load_persistent is None:
            raise InputError("refused a pickle with objects outside of it")
        self.stack.append(self.load_persistent(self.stack.pop()))

    def _find(self, name: str) -> Any:
        if name not in self.names:
            raise InputError(f"refused a pickle that names {shown(name)}")
        return self.names[name]

    def _call(self, function: Any, arguments: Iterable[Any]) -> None:
        name = next((name for name, known in self.names.items() if known is function and callable(known)), None)
        if name is None or not isinstance(arguments, tuple | list):
            raise InputError(f"refused a pickle that calls {_type_name(function)}")
        try:
            self.stack.append(function(*arguments))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"refused a pickle that calls {name} with arguments it does not take") from error

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise InputError(f"refused a pickle that appends to {_type_name(target)}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise InputError(f"refused a pickle that sets items of {_type_name(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a deeply nested tuple would overflow the interpreter's own stack.
            if not isinstance(key, str | bytes) and not (type(key) is int and abs(key) < MAX_KEY):
                raise InputError(f"refused a pickle with a key that is {_type_name(key)}")
            target[key] = value


def _type_name(value: Any) -> str:
    return f"a {type(value).__name__}"


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.ignore,
    "FRAME": _Machine.ignore,
    "STOP": _Machine.ignore,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "STRING": _Machine.push_python2_string,
    "BINSTRING": _Machine.push_python2_string,
    "SHORT_BINSTRING": _Machine.push_python2_string,
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.push_tuple,
    "TUPLE1": lambda machine, _: machine.push_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_short_tuple(3),
    "LIST": _Machine.push_list,
    "DICT": _Machine.push_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put_next,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.push_name,
    "STACK_GLOBAL": _Machine.push_name_from_stack,
    "INST": _Machine.call_with_marked,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.push_persistent,
}
