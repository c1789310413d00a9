// Which instruction set's code runs.
#include "product.hpp"
#include "rows.hpp"

namespace regear {

#ifdef REGEAR_X86
#define REGEAR_SETS(type, name) \
    extern const type name##base, name##avx2, name##avx512; \
    const type* const name[3] = {&name##base, &name##avx2, &name##avx512};
#else
#define REGEAR_SETS(type, name) \
    extern const type name##base; \
    const type* const name[3] = {&name##base, nullptr, nullptr};
#endif

REGEAR_SETS(Kernels<float>, kFloat)
REGEAR_SETS(Kernels<double>, kDouble)
REGEAR_SETS(Products<float>, kProductsFloat)
REGEAR_SETS(Products<double>, kProductsDouble)

namespace {

// How many of the wider sets than the base this processor has.
int sets() {
#ifdef REGEAR_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? 2
               : 1;
#else
    return 0;
#endif
}

template <class Code>
const Code& chosen(int most, const Code* const (&held)[3]) {
    static const int kSets = sets();
    return *held[most < 0 ? 0 : most < kSets ? most : kSets];
}

}  // namespace

template <>
const Kernels<float>& kernels<float>(int most) {
    return chosen(most, kFloat);
}
template <>
const Kernels<double>& kernels<double>(int most) {
    return chosen(most, kDouble);
}
template <>
const Products<float>& products<float>(int most) {
    return chosen(most, kProductsFloat);
}
template <>
const Products<double>& products<double>(int most) {
    return chosen(most, kProductsDouble);
}

}  // namespace regear
