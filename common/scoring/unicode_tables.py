"""Writes unicode_tables.h: the properties of characters as this Python's `str` knows them.

    python3 unicode_tables.py > unicode_tables.h && clang-format -i unicode_tables.h
"""

import sys
import unicodedata

CHARACTERS = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]


def alphanumeric_ranges():
    """Ranges of characters for which isalnum() is true; unassigned ones between two are let in."""
    ranges = []
    inside = False
    for c in CHARACTERS:
        if unicodedata.category(chr(c)) == "Cn":
            continue
        if chr(c).isalnum():
            if not inside:
                ranges.append([c, c])
            ranges[-1][1] = c
        inside = chr(c).isalnum()
    return ranges


def case_runs(change):
    """Runs (first, last, step, offset) of the characters that become one other, and the others."""
    runs = []
    expansions = []
    for c in CHARACTERS:
        changed = change(chr(c))
        if len(changed) > 1:
            expansions.append([c, [ord(part) for part in changed] + [0] * (3 - len(changed))])
            continue
        offset = ord(changed) - c
        if offset == 0:
            continue
        last = runs[-1] if runs else None
        if last and last[3] == offset and last[0] == last[1] and c - last[0] <= 2:
            last[1:3] = [c, c - last[0]]
        elif last and last[3] == offset and last[0] != last[1] and c - last[1] == last[2]:
            last[1] = c
        else:
            runs.append([c, c, 1, offset])
    return runs, expansions


def braced(value):
    if isinstance(value, list):
        return "{" + ", ".join(braced(part) for part in value) + "}"
    return str(value) if value < 0 else hex(value)


def table(comment, kind, name, rows):
    print(f"// {comment}")
    print(f"inline constexpr {kind} {name}[] = {{")
    for row in rows:
        print(braced(row) + ",")
    print("};\n")


def main():
    lower, lower_expansions = case_runs(str.lower)
    upper, upper_expansions = case_runs(str.upper)
    print(f"""// Written by unicode_tables.py from Unicode {unicodedata.unidata_version}: not to be edited.
// All tables are in ascending order.
#pragma once

#include <cstdint>

namespace mneme::scoring {{

struct CharacterRange {{
  char32_t first;
  char32_t last;
}};

// The characters first, first + step, ... last become themselves + offset.
struct CaseRun {{
  char32_t first;
  char32_t last;
  uint32_t step;
  int32_t offset;
}};

// One character that becomes several; 0: no further one.
struct CaseExpansion {{
  char32_t from;
  char32_t to[3];
}};
""")
    table("Letters and numbers. Unassigned characters may lie inside a range.", "CharacterRange",
          "kAlphanumeric", alphanumeric_ranges())
    table("To lower case.", "CaseRun", "kLower", lower)
    table("To upper case.", "CaseRun", "kUpper", upper)
    table("To several lower-case characters.", "CaseExpansion", "kLowerExpansions",
          lower_expansions)
    table("To several upper-case characters.", "CaseExpansion", "kUpperExpansions",
          upper_expansions)
    print("}  // namespace mneme::scoring")


if __name__ == "__main__":
    main()
