"""What happens to files: cut, flipped, overwritten, replaced by something hostile; for the fuzz runs over what is read."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

DEEP, WIDE = b"[" * 100_000, b"9" * 5_000


def _archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.ones(3))
    return file.getvalue()


NASTY = (
    b"", b"\n", b"\0" * 64, b"\xff\xfe{", DEEP, b'{"a":' * 50_000, WIDE, b'{"a": ' + WIDE + b"}", b"null", b"[null]", b"{}", b"[]", b"[[]]", b'"x"',
    b"NaN", b'{"a": NaN}', b'["\\ud800"]', b"a,b\n1\n", b'"', b'"' + b"x" * 200_000, b"PAR1", b"PAR1" + b"\xff" * 64 + b"PAR1",
    b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }          \n",
    b"\x93NUMPY\x01\x00\x56\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 99999), }             \n",
    b"\xff" * 7 + b"\x7f" + b"{}", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 99) + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,99999]}}',
    b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1 << 40), b"&a [*a]", b"a: &a [1]\nb: *c", b"x: !!python/object/apply:os.system [echo]", b"\x1f\x8b\x08", b"PK\x03\x04", _archive(),
)  # fmt: skip


@st.composite
def damage(draw: Any) -> Callable[[bytes], bytes]:
    """A change of a file's bytes: one of NASTY instead, a cut, flipped bits, bytes put in, taken out or doubled."""
    kind = draw(st.sampled_from(("nasty", "cut", "flip", "put", "take", "double")))
    if kind == "nasty":
        made = draw(st.sampled_from(NASTY))
        return lambda whole: made
    at, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 40))
    more, bit = draw(st.binary(min_size=1, max_size=12) | st.sampled_from(NASTY)), draw(st.integers(0, 7))

    def change(whole: bytes) -> bytes:
        place = int(at * len(whole))
        if kind == "cut":
            return whole[:place]
        if kind == "flip":
            return whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
        if kind == "put":
            return whole[:place] + more + whole[place:]
        behind = whole[place + length :] if kind == "take" else whole[place:]
        return whole[: place + (length if kind == "double" else 0)] + behind

    return change
