#!/usr/bin/env python3
"""What the example `tune` leaves in its folder is whole, and inducer-tuning starts at the frozen model and improves on it.

    check_example.py FOLDER
"""

import json
import pathlib
import sys
import xml.etree.ElementTree

METHODS = ("prefix", "inducer", "inducer-lora", "lora")
# Relative: held-out loss at initialisation against the frozen model's.
CLOSE = 0.01


def read_table(path):
    """`{method: {column: cell}}` of a Markdown table."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}


def tensors_in(path):
    """Names of a safetensors file's tensors, whose data lie within the file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    assert header and all(8 + size + t["data_offsets"][1] <= len(data) for t in header.values()), path
    return sorted(header)


def main(folder):
    xml.etree.ElementTree.parse(folder / "curves.svg")
    for method in METHODS:
        tensors_in(folder / f"adapter-{method}.safetensors")
    table = read_table(folder / "table.md")
    assert len(table) == 1 + len(METHODS), list(table)
    inducer = table["inducer-tuning"]
    frozen, start, after = (float(inducer[column]) for column in ("before", "at start", "after"))
    assert abs(start / frozen - 1) <= CLOSE, f"inducer-tuning starts at {start}, the frozen model is at {frozen}"
    assert after < frozen, f"inducer-tuning ends at {after}, the frozen model is at {frozen}"
    print(f"frozen {frozen}, inducer-tuning at start {start}, after {after}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
