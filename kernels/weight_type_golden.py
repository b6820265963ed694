"""Prints the expected values of weight_type_test.cc, made with PyPI gguf 0.19.0 and numpy.

The bytes of each block come from a linear congruential generator that the test repeats; the fields
that hold float16 scales are then overwritten with fixed numbers, since random ones would be NaN.
"""
import gguf
import numpy as np

BLOCKS = 3
HALF_FIELDS = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
               "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

for name, fields in HALF_FIELDS.items():
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    state = 12345
    data = bytearray()
    for _ in range(BLOCKS * size):
        state = (state * 1664525 + 1013904223) % 2**32
        data.append(state >> 24)
    for block in range(BLOCKS):
        for index, field in enumerate(fields):
            value = np.float16(0.0123 * (block + 1) - 0.07 * index)
            data[block * size + field:block * size + field + 2] = value.tobytes()
    values = gguf.quants.dequantize(np.frombuffer(bytes(data), np.uint8), kind).reshape(-1)
    picks = [0, 1, elements // 2 - 1, elements + 17, 2 * elements + elements // 2 + 3,
             BLOCKS * elements - 1]
    # The sum is weighted by position, so that swapped elements change it.
    total = float(np.sum(values.astype(np.float64) * (np.arange(len(values)) % 97 + 1)))
    print(f"    {{WeightType::k{name.replace('_K', 'K')}, "
          f"{{{', '.join(float(values[i]).hex() + 'f' for i in picks)}}}, {total!r}}},")
