// x Wᵀ for a few rows x and a large weight W, which lies in memory as it is read.
//
// Decoding multiplies a handful of tokens with every weight of the model. What that takes is the larger of two times:
// that of reading the weights, and that of the multiplications; but only if both go on at once, so the weights are read
// in one stream and asked for some kilobytes ahead. Every output is one sum in the order of the inputs, so what a row
// gets does not depend on what is multiplied beside it, nor on the number of threads, to the last bit.
//
// Shape letters: M rows, I inputs, O outputs, B outputs of a block.
#pragma once

#include <cstdint>

namespace regear {

// One instruction set's code for one type.
template <class T>
struct Products {
    std::int64_t block;  // B
    // weight [O, I] as blocks [ceil(O / B), I, B], with zeros behind the last output.
    void (*lay)(const T* weight, T* laid, std::int64_t inputs, std::int64_t outputs);
    // x [M, I] turned for `multiply`: groups of rows, each [I, rows of the group]; as many values as x.
    void (*turn)(const T* x, T* turned, std::int64_t rows, std::int64_t inputs);
    // found [M, O], its outputs of the blocks from `from` up to `to`; `scratch` holds M · B values.
    void (*multiply)(const T* laid, const T* turned, T* found, T* scratch, std::int64_t rows, std::int64_t inputs,
                     std::int64_t outputs, std::int64_t from, std::int64_t to);
};

// The widest set that this processor has, of those up to `most`: 0 the base, 1 AVX2, 2 AVX-512.
template <class T>
const Products<T>& products(int most);
template <>
const Products<float>& products<float>(int most);
template <>
const Products<double>& products<double>(int most);

}  // namespace regear
