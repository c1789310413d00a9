// argmax(z / temperature + g(key, token)) over a vocabulary, without most of the noise: a token's noise can only decide
// where its hash is below e^(score − best), and nearly all hashes are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "noise.hpp"

namespace regear {

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define REGEAR_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define REGEAR_WIDE
#endif

constexpr int kBlock = 256;

// Which of a block's tokens might score above `best`; whether any. Loops over plain arrays, that compilers vectorise.
REGEAR_WIDE inline bool contenders(const float* scores, std::int32_t first, std::uint32_t low, std::uint32_t high,
                                   float scale, float best, std::int32_t* may) {
    float uniform[kBlock], bound[kBlock];
    std::int32_t bits[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        std::uint32_t x = (static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(i)) ^ low;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        x = (x ^ (x >> 16)) + high;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        bits[i] = static_cast<std::int32_t>((x ^ (x >> 16)) & 0x7fffffffu);
    }
    for (int i = 0; i < kBlock; ++i) uniform[i] = static_cast<float>(bits[i]) * (1.0f / 2147483648.0f);
    for (int i = 0; i < kBlock; ++i) {
        // 2^t from above: a float's bits, read as a number, are linear between powers of two; 0.001 is for rounding.
        float t = (scores[i] * scale - best) * 1.4427f + 0.001f;
        t = t > -126.0f ? t : -126.0f;
        t = t < 1.0f ? t : 1.0f;
        bits[i] = static_cast<std::int32_t>((t + 127.0f) * 8388608.0f);
    }
    std::memcpy(bound, bits, sizeof bound);
    std::int32_t any = 0;
    for (int i = 0; i < kBlock; ++i) {
        may[i] = uniform[i] <= bound[i];
        any |= may[i];
    }
    return any;
}

// The largest value; not a number where any is none.
REGEAR_WIDE inline float largest(const float* values, std::int64_t count) {
    constexpr int kLanes = 64;
    float held[kLanes];
    std::int32_t odd[kLanes] = {};
    for (float& x : held) x = values[0];
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int k = 0; k < kLanes; ++k) {
            held[k] = values[i + k] > held[k] ? values[i + k] : held[k];
            odd[k] |= values[i + k] != values[i + k];
        }
    for (; i < count; ++i) {
        held[0] = values[i] > held[0] ? values[i] : held[0];
        odd[0] |= values[i] != values[i];
    }
    std::int32_t any = 0;
    for (const std::int32_t found : odd) any |= found;
    if (any) return NAN;
    for (int half = kLanes / 2; half; half /= 2)  // as a tree: in a row each would wait for the one before
        for (int k = 0; k < half; ++k) held[k] = held[k + half] > held[k] ? held[k + half] : held[k];
    return held[0];
}

// The token, or −1 where a score is no number that noise can be added to.
inline std::int64_t sample(const float* scores, std::int64_t width, const Noise& noise, double temperature) {
    const float divisor = static_cast<float>(temperature), scale = 1 / divisor;
    const float top = largest(scores, width);
    if (!std::isfinite(top / divisor)) return -1;
    float best = -INFINITY;
    std::int64_t token = -1;
    const auto weigh = [&](std::int64_t i) {
        const float score = scores[i] / divisor + static_cast<float>(noise(static_cast<std::int32_t>(i)));
        if (score > best || (score == best && i < token)) best = score, token = i;
    };
    std::int64_t place = 0;
    while (scores[place] != top) ++place;
    weigh(place);  // a bound to begin with
    std::int32_t may[kBlock];
    const std::int64_t blocks = width / kBlock * kBlock;
    for (std::int64_t first = 0; first < blocks; first += kBlock)
        if (contenders(scores + first, static_cast<std::int32_t>(first), noise.low(), noise.high(), scale, best, may))
            for (int i = 0; i < kBlock; ++i)
                if (may[i]) weigh(first + i);
    for (std::int64_t i = blocks; i < width; ++i) weigh(i);
    return token;
}

}  // namespace regear
