"""Pickles that run code where they are unpickled: each leaves the file `mark` if it was run."""

import builtins
import os
import pickle

import torch


def objects(mark):
    """By the instruction that does it; picklers write these in any protocol."""
    line = touching(mark)
    return {
        "os.system": _Reduced(os.system, f"touch {mark}"),
        "eval": _Reduced(builtins.eval, line),
        "exec": _Reduced(builtins.exec, line),
        "a pickle in a pickle": _Reduced(pickle.loads, pickle.dumps(_Reduced(builtins.eval, line))),
        "__setstate__": _WithState(line),
    }


def touching(mark):
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


class _Reduced:
    def __init__(self, function, argument):
        self.made_by = (function, (argument,))

    def __reduce__(self):
        return self.made_by


class _WithState:
    def __init__(self, line):
        self.line = line

    def __setstate__(self, state):
        eval(state["line"])  # noqa: S307


def places(value):
    """Where a state dict can hold a value."""
    tensor = torch.zeros(2)
    return {
        "at the top": value,
        "as a value": {"a": tensor, "b": value},
        "as a key": {value: tensor},
        "nested": {"a": tensor, "state_dict": {"x": [value]}},
        "in a list": [tensor, (value,)],
        "before the tensors": {"a": ((value,),), "b": tensor},
    }


def programs(mark):
    """Written by hand, for the other instructions that import or call."""
    path = str(mark).encode()
    touch = b"X" + len(b"touch " + path).to_bytes(4, "little") + b"touch " + path
    return {
        "GLOBAL, protocol 0": b"cos\nsystem\n(S'touch " + path + b"'\ntR.",
        "INST": b"(S'touch " + path + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'touch " + path + b"'\no.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + touch + b"\x85R.",
        "STACK_GLOBAL, no protocol": b"\x8c\x02os\x8c\x06system\x93" + touch + b"\x85R.",
        "GLOBAL by an old name": b"\x80\x02c__builtin__\nexec\nX"
        + len(touching(mark)).to_bytes(4, "little")
        + touching(mark).encode()
        + b"\x85R.",
        "called, then dropped": b"cos\nsystem\n(S'touch " + path + b"'\ntR0}.",
    }


ODDITIES = {  # each is refused because nothing but the listed names and instructions is taken
    "EXT1": b"\x80\x02\x82\x01)R.",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04cbuiltins\neval\n)}\x92.",
    "PERSID": b"Pos.system\n.",
    "a text called": b"\x80\x02X\x09\x00\x00\x00os.system)R.",
    "a dtype called": b"\x80\x02ctorch\nfloat32\n)R.",
    "called without a tuple": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "attributes of a name": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "attributes of a list": b"\x80\x02]}b.",
    "below a name": b"\x80\x02ccollections\nOrderedDict.__init__\n.",
    "below a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
    "a module of torch that is none": b"\x80\x02ctorch._utils._rebuild_tensor_v2\n__globals__\n.",
    "a name with a space": b"\x80\x02ctorch \nFloatStorage\n.",
    "a storage of another kind": b"\x80\x02(U\x06modulectorch\nFloatStorage\nU\x010NK\x01tQ.",
}
