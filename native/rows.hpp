// A decoder layer but for its matrix products, over rows of a cache: norms, rotations, attention, gates.
//
// Every row is read as far as it goes, so rows of different lengths and with different numbers of new tokens need no
// padding. What a token gets does not depend on what is read beside it, to the last bit.
//
// Shape letters: M new tokens of all rows, D hidden width, F width of the gate, H query heads, G key heads, W head width.
#pragma once

#include <cstdint>

namespace regear {

// New tokens of the rows of one pass: those of row i stand at offsets[i] to offsets[i + 1] of M, and in slots from
// starts[i] on.
struct Rows {
    std::int64_t first, count;
    const std::int64_t *starts, *offsets;
};

// Keys and values of one layer: [rows, G, slots, W].
template <class T>
struct Held {
    T *keys, *values;
    std::int64_t slots;
};

struct Heads {
    std::int64_t query, key, width;
};

// One instruction set's code for one type.
template <class T>
struct Kernels {
    // found = x · weight / rms(x), row by row; [M, D].
    void (*norm)(const T* x, const T* weight, T* found, std::int64_t rows, std::int64_t width, double eps);
    // x += y.
    void (*add)(T* x, const T* y, std::int64_t count);
    // found = silu(gate) · up of [M, 2 F], gate first.
    void (*gate)(const T* both, T* found, std::int64_t rows, std::int64_t width);
    // Turn queries and keys of qkv [M, (H + 2 G) W] in place, by cos and sin [M, W].
    void (*rotate)(T* qkv, const T* cos, const T* sin, std::int64_t rows, Heads heads);
    // Keys and values of qkv into their slots.
    void (*store)(const T* qkv, const Rows& rows, Held<T> held, Heads heads, std::int64_t from, std::int64_t to);
    // found [M, H W] of the pairs (row, key head) numbered from `from` up to `to`; `scratch` holds scratch() values.
    void (*attend)(const T* qkv, const Rows& rows, Held<T> held, Heads heads, double scale, T* found, T* scratch,
                   std::int64_t from, std::int64_t to);
};

// Values of T that `attend` needs beside its arguments, where the longest row holds so many slots after the pass.
inline std::int64_t scratch(std::int64_t slots, std::int64_t width) { return 4 * (slots + 16 + width); }

// The widest set that this processor has, of those up to `most`: 0 the base, 1 AVX2, 2 AVX-512.
template <class T>
const Kernels<T>& kernels(int most);
template <>
const Kernels<float>& kernels<float>(int most);
template <>
const Kernels<double>& kernels<double>(int most);

}  // namespace regear
