// Vectors of the instruction set that a file is built for, and what is common to the files that are built for each.
// Nothing here may come from the standard library: a function of it, built for a wide set, could be linked into code
// for a narrow one.
#pragma once

#include <cstdint>

#define ALWAYS inline __attribute__((always_inline))
#define REGEAR_JOIN_(a, b) a##b
#define REGEAR_JOIN(a, b) REGEAR_JOIN_(a, b)

namespace regear {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

template <class T>
struct Wide;
template <>
struct Wide<float> {
    typedef float type __attribute__((vector_size(kBytes), aligned(4), may_alias));
    typedef std::int32_t bits __attribute__((vector_size(kBytes)));
};
template <>
struct Wide<double> {
    typedef double type __attribute__((vector_size(kBytes), aligned(8), may_alias));
    typedef std::int64_t bits __attribute__((vector_size(kBytes)));
};
template <class T>
using Vec = typename Wide<T>::type;

template <class T>
ALWAYS Vec<T> load(const T* at) {
    return *reinterpret_cast<const Vec<T>*>(at);
}
template <class T>
ALWAYS void save(T* at, Vec<T> x) {
    *reinterpret_cast<Vec<T>*>(at) = x;
}
template <class T>
ALWAYS Vec<T> all(T x) {
    return Vec<T>{} + x;
}

}  // namespace
}  // namespace regear
