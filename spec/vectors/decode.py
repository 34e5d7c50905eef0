#!/usr/bin/env python3
"""Checks the test vectors of PV-MSI 1.0 with a decoder written from the text of the specification.

Each vector is decoded and, where it has a meaning, encoded again. README.md describes the files;
the numbers in comments are clauses in ../src.
"""

import io
import json
import pathlib
import struct
import sys


class Refusal(Exception):
    """What is wrong with some bytes and, where a host refuses more than bytes, its parameter."""


# Chapter 3: types. Each takes a value from a reader, and turns one into bytes.
def hexadecimal(value):
    return f"0x{value:X}"


def byte_of(reader):
    byte = reader.read(1)
    if not byte:
        raise Refusal("truncated")  # W-304
    return byte[0]


class Number:  # W-301, W-302; one of 64 bits is text, since many readers of JSON round it
    def __init__(self, bits):
        self.bits = bits

    def decode(self, reader):
        value = 0
        for shift in range(0, self.bits, 7):
            byte = byte_of(reader)
            if shift + 7 >= self.bits and byte >> self.bits - shift:
                raise Refusal("malformed")
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        return hexadecimal(value) if self.bits == 64 else value

    def encode(self, value):
        value = int(value, 16) if self.bits == 64 else value
        assert 0 <= value < 1 << self.bits, value
        groups = bytearray()
        while value >= 0x80:
            groups.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes(groups) + bytes([value])


class Boolean:  # W-303
    def decode(self, reader):
        byte = byte_of(reader)
        if byte > 1:
            raise Refusal("malformed")
        return byte == 1

    def encode(self, value):
        assert type(value) is bool, value
        return bytes([value])


class Optional:  # W-303
    def __init__(self, inner):
        self.inner = inner

    def decode(self, reader):
        return self.inner.decode(reader) if Boolean().decode(reader) else None

    def encode(self, value):
        return b"\0" if value is None else b"\1" + self.inner.encode(value)


class Enumeration:  # W-303
    def __init__(self, *names):
        self.names = names

    def decode(self, reader):
        number = U32.decode(reader)
        if number >= len(self.names):
            raise Refusal("malformed")
        return self.names[number]

    def encode(self, value):
        return U32.encode(self.names.index(value))


class Flags:  # W-303
    def __init__(self, *names):
        self.names = [*names, *(f"bit {bit}" for bit in range(len(names), 32))]

    def of_bits(self, bits):
        return [name for bit, name in enumerate(self.names) if bits >> bit & 1]

    def to_bits(self, value):
        return sum(1 << self.names.index(name) for name in value)

    def decode(self, reader):
        return self.of_bits(U32.decode(reader))

    def encode(self, value):
        return U32.encode(self.to_bits(value))


class Structure:  # W-303
    def __init__(self, fields):
        self.fields = fields

    def decode(self, reader):
        return {name: kind.decode(reader) for name, kind in self.fields.items()}

    def encode(self, value):
        assert value.keys() == self.fields.keys(), value
        return b"".join(kind.encode(value[name]) for name, kind in self.fields.items())


class List:  # W-303
    def __init__(self, item):
        self.item = item

    def decode(self, reader):
        return [self.item.decode(reader) for _ in range(U16.decode(reader))]

    def encode(self, value):
        return U16.encode(len(value)) + b"".join(map(self.item.encode, value))


U16, U32, U64, BOOLEAN = Number(16), Number(32), Number(64), Boolean()
VERSION_TYPE = Structure({"major": U16, "minor": U16})
MESSAGE = Structure({"address": U64, "data": U32})
KIND = Enumeration("MSI", "MSI-X")
MODE = Enumeration("trapped", "direct")
DELIVERY = Enumeration("unknown", "host", "bypass")
PARAMETER = Enumeration(
    "header", "version", "buffer length", "body length", "body", "answer room", "kind", "count",
    "vector", "duplicate vector", "message", "sequence", "shared message")
FEATURES = Flags("direct", "msi", "extended-destination-id")  # W-102
REASONS = Flags(  # W-501
    "not-assigned", "policy", "no-isolation", "not-mappable", "msix-disabled", "decoding-off",
    "power-state", "host-revoked", "held-event", "migrated", "no-table",
    "unreadable")
TYPES = {
    "u16": U16, "u32": U32, "u64": U64, "boolean": BOOLEAN, "optional u16": Optional(U16),
    "message": MESSAGE, "kind": KIND, "table mode": MODE, "delivery": DELIVERY,
    "parameter": PARAMETER, "features": FEATURES, "reasons": REASONS,
}

# Chapter 4: number, request and answer of each call. Chapter 7: statuses, bodies of errors.

NOTHING = Structure({})
GENERATION = Structure({"generation": U32})
STATE = {"mode": MODE, "reasons": REASONS, "generation": U32}
SETUPS = List(Structure({"message": Optional(MESSAGE), "masked": BOOLEAN}))
GRANTS = List(Structure({"table message": Optional(MESSAGE), "pending": BOOLEAN}))
VECTOR_STATES = List(Structure({
    "assigned": BOOLEAN, "guest message": Optional(MESSAGE), "table message": Optional(MESSAGE),
    "masked": BOOLEAN, "pending": BOOLEAN}))
UPDATES = List(Structure({"vector": U16, "message": MESSAGE}))
AGREED = {"version": VERSION_TYPE, "features": FEATURES}
LIMITS = Structure({"largest buffer": U32, "vectors": U16})
CALLS = {
    "negotiate": (1, Structure(AGREED), Structure({**AGREED, "limits": LIMITS})),
    "query-function": (2, NOTHING, Structure({
        "MSI vectors": U16, "MSI-X vectors": U16, "assigned": U16, **STATE,
        "delivery": DELIVERY})),
    "query-vectors": (
        3, Structure({"first": U16, "count": U16}),
        Structure({"generation": U32, "vectors": VECTOR_STATES})),
    "configure": (
        4, Structure({"kind": KIND, "requested": U16, "sequence": U32, "vectors": SETUPS}),
        Structure({"granted": U16, **STATE, "vectors": GRANTS})),
    "update": (5, Structure({"vectors": UPDATES}), GENERATION),
    "release": (6, NOTHING, GENERATION),
    "restore": (7, NOTHING, Structure(STATE)),
}
CALL_NAMES = {number: name for name, (number, _, _) in CALLS.items()}
STATUSES = {  # W-701
    0x00: "success", 0x10: "not supported", 0x20: "no such function", 0x30: "parameter",
    0x40: "busy", 0x50: "no resources", 0x60: "denied", 0x70: "hardware error",
    0xFFFFFFFF: "sentinel",
}
STATUS_NUMBERS = {name: number for number, name in STATUSES.items()}
TAKEN_AS = {**dict.fromkeys(STATUS_NUMBERS), "sentinel": "not supported"}  # G-204
ERROR_BODIES = {
    "parameter": Structure({"parameter": PARAMETER, "vector": Optional(U16)}),
    "busy": Structure({"sequence": U32, "delay": U32}),
}


def whole(kind, data):
    reader = io.BytesIO(data)
    value = kind.decode(reader)
    if reader.read(1):
        raise Refusal("trailing bytes")  # W-304
    return value


class Body:
    """A body, refused as far as it alone tells."""

    def __init__(self, direction, call, status):
        self.answer = direction == "answer"
        self.call = None if self.answer and status != "success" else call
        self.kind = CALLS[call][1 + self.answer] if self.call else ERROR_BODIES.get(status, NOTHING)

    def decode(self, reader):
        value = whole(self.kind, reader.read())
        vectors = value.get("vectors", [])
        if "granted" in value and not 1 <= value["granted"] == len(vectors):
            raise Refusal("malformed")  # H-440, G-702
        if not self.answer and (
                value.get("count", 1) == 0  # H-430
                or value.get("requested", 2048) < max(1, len(vectors))  # H-442
                or self.call == "update" and not vectors):  # H-450
            raise Refusal("refused", "count")
        if self.call == "update" and len({each["vector"] for each in vectors}) < len(vectors):
            raise Refusal("refused", "duplicate vector")  # H-450
        return value

    def encode(self, value):
        return self.kind.encode(value)


# Chapter 2: the header, and a buffer of header and body.
class Header:
    LAYOUT = struct.Struct("<4sHHIIIIII")

    def __init__(self, direction):
        self.direction = direction

    def decode(self, reader):
        (magic, major, minor, call, function, buffer, body, status,
         reserved) = self.LAYOUT.unpack(reader.read(32))
        if magic != b"PMSI" or buffer < 32:
            # H-210, G-702
            raise Refusal("unanswered" if self.direction == "request" else "malformed")
        if self.direction == "request":
            if buffer > 65536:
                raise Refusal("refused", "buffer length")  # H-211
            if reserved:
                raise Refusal("refused", "header")  # H-212
            if CALL_NAMES.get(call) != "negotiate" and (major != 1 or minor > 0):
                raise Refusal("refused", "version")  # H-131, H-212, H-411
            if body > buffer - 32:
                raise Refusal("refused", "body length")  # H-212
        elif body > buffer - 32:
            raise Refusal("malformed")  # G-702
        return {
            "version": {"major": major, "minor": minor}, "call": CALL_NAMES.get(call, call),
            "function": {"segment": function >> 16, "bus": function >> 8 & 0xFF,
                         "device": function >> 3 & 0x1F, "function": function & 7},
            "buffer length": buffer, "body length": body,
            "status": STATUSES.get(status, hexadecimal(status)), "reserved": reserved,
        }

    def encode(self, value):
        place, call, status = value["function"], value["call"], value["status"]
        function = (place["segment"] << 16 | place["bus"] << 8 | place["device"] << 3
                    | place["function"])
        status = STATUS_NUMBERS[status] if status in STATUS_NUMBERS else int(status, 16)
        return self.LAYOUT.pack(
            b"PMSI", value["version"]["major"], value["version"]["minor"],
            CALLS[call][0] if call in CALLS else call, function, value["buffer length"],
            value["body length"], status, value["reserved"])


class Buffer(Header):
    def body(self, header):
        return Body(self.direction, header["call"], header["status"])

    def decode(self, reader):
        header = super().decode(reader)
        if self.direction == "request" and header["call"] not in CALLS:
            raise Refusal("not supported")  # H-401
        if self.direction == "answer" and TAKEN_AS.get(header["status"], "unknown"):
            return {"header": header}
        data = reader.read(header["body length"])
        return {"header": header, "body": whole(self.body(header), data)}

    def encode(self, value):
        header = value["header"]
        body = self.body(header).encode(value["body"]) if "body" in value else b""
        return super().encode(header) + body


# Chapter 1: the service block.
class ServiceBlock:
    LAYOUT = struct.Struct("<I12sII8xIQ4xII8x")
    SIGNATURE = b"PV-MSI" + bytes(6)

    def __init__(self, base):
        self.base = base

    def decode(self, reader):
        (highest, signature, version, features, port, register, buffer,
         vectors) = self.LAYOUT.unpack(reader.read(64))
        if signature != self.SIGNATURE or highest < self.base + 3 or version >> 16 != 1:
            raise Refusal("ignored")  # G-106
        return {
            "version": {"major": version >> 16, "minor": version & 0xFFFF},
            "features": FEATURES.of_bits(features), "I/O port": port,
            "doorbell register": hexadecimal(register), "largest buffer": buffer,
            "vectors": vectors,
        }

    def encode(self, value):
        version = value["version"]["major"] << 16 | value["version"]["minor"]
        return self.LAYOUT.pack(
            self.base + 3, self.SIGNATURE, version, FEATURES.to_bits(value["features"]),
            value["I/O port"], int(value["doorbell register"], 16), value["largest buffer"],
            value["vectors"])


# The vectors (README.md).
def expand_bytes(parts):
    data = bytearray()
    for part in [parts] if isinstance(parts, str) else parts:
        part = {"repeat": 1, "bytes": part} if isinstance(part, str) else part
        first = part.get("from", 0)
        for number in range(first, first + part["repeat"]):
            data += bytes.fromhex(part["bytes"].replace("{n}", U16.encode(number).hex()))
    return bytes(data)


def expand_meaning(value, number=None):
    if isinstance(value, dict):
        return {name: expand_meaning(item, number) for name, item in value.items()}
    if not isinstance(value, list):
        return number if value == "{n}" else value
    items = []
    for item in value:
        if isinstance(item, dict) and "repeat" in item:
            first = item.get("from", 0)
            numbers = range(first, first + item["repeat"])
            items += [expand_meaning(item["item"], number) for number in numbers]
        else:
            items.append(expand_meaning(item, number))
    return items


def kind_of(stated):
    kind, direction = stated["type"], stated.get("direction")
    if kind == "service block":
        return ServiceBlock(int(stated["base"], 16))
    if kind == "body":
        return Body(direction, stated.get("call"), stated.get("status", "success"))
    return {"header": Header, "buffer": Buffer}[kind](direction) if direction else TYPES[kind]


def check(stated):
    """What is not as a vector states it, or None."""
    data, direction = expand_bytes(stated["bytes"]), stated.get("direction")
    value = error = parameter = taken = None
    try:
        value = whole(kind_of(stated), data)
        if direction == "answer" and stated["type"] != "body":
            taken = TAKEN_AS.get(value.get("header", value)["status"], "hardware error")  # G-702
    except Refusal as refusal:
        error, parameter = (*refusal.args, None)[:2]
        if direction == "request" and error in ("truncated", "malformed", "trailing bytes"):
            parameter = "body"  # W-304
        taken = "hardware error" if direction == "answer" else None  # W-304, G-702
    found = (error, parameter, taken)
    if found != (stated.get("error"), stated.get("parameter"), stated.get("taken as")):
        return f"error, parameter, taken as: {found}"
    meaning = expand_meaning(stated.get("meaning"))
    if value != meaning:
        return f"decodes as {value}"
    if error is None:
        encoded = kind_of(stated).encode(meaning)
        if (encoded == data) != stated.get("canonical", True):
            return f"encodes as {encoded.hex(' ')}"
    return None


def main():
    total = failed = 0
    for file in sorted(pathlib.Path(__file__).parent.glob("*.json")):
        for stated in json.loads(file.read_text(encoding="utf-8"))["vectors"]:
            try:
                problem = check(stated)
            except Exception as exception:  # a vector that is not as README.md says
                problem = f"{type(exception).__name__}: {exception}"
            total += 1
            if problem:
                failed += 1
                print(f"{file.name}: {stated['name']}: {problem[:1000]}")
    print(f"{total - failed} passed, {failed} failed")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
