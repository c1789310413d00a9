// Which instruction set's code runs.
#include "rows.hpp"

namespace regear {

extern const Kernels<float> kFloatbase;
extern const Kernels<double> kDoublebase;
#ifdef REGEAR_X86
extern const Kernels<float> kFloatavx2, kFloatavx512;
extern const Kernels<double> kDoubleavx2, kDoubleavx512;
#define REGEAR_WIDER(name) &name##avx2, &name##avx512
#else
#define REGEAR_WIDER(name) nullptr, nullptr
#endif

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

const int kSets = sets();

template <class T>
const Kernels<T>& chosen(int most, const Kernels<T>* const (&held)[3]) {
    return *held[most < 0 ? 0 : most < kSets ? most : kSets];
}

}  // namespace

template <>
const Kernels<float>& kernels<float>(int most) {
    return chosen<float>(most, {&kFloatbase, REGEAR_WIDER(kFloat)});
}
template <>
const Kernels<double>& kernels<double>(int most) {
    return chosen<double>(most, {&kDoublebase, REGEAR_WIDER(kDouble)});
}

}  // namespace regear
