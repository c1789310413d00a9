// The likeliest tokens of the scores of a whole vocabulary, and their probabilities.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "sample.hpp"
#include "thought.hpp"

namespace regear {

// The sum of e^(score − top) over a block, to within 1 in 1,000; scores are at most `top`.
REGEAR_WIDE inline float mass(const float* scores, float top) {
    float part[kBlock];
    std::int32_t bits[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        float t = (scores[i] - top) * 1.44269504f;
        t = t > -126.0f ? t : -126.0f;
        const std::int32_t whole = static_cast<std::int32_t>(t) - 1;  // t is at most 0
        const float rest = t - static_cast<float>(whole);
        part[i] = 1.0f + rest * (0.6951f + rest * (0.2276f + rest * 0.0774f));
        bits[i] = (whole + 127) << 23;
    }
    float power[kBlock], lanes[64] = {}, sum = 0;
    std::memcpy(power, bits, sizeof power);
    for (int first = 0; first < kBlock; first += 64)
        for (int i = 0; i < 64; ++i) lanes[i] += part[first + i] * power[first + i];
    for (const float lane : lanes) sum += lane;
    return sum;
}

// Of scores [width], as in Thought; none where one of the likeliest is no number, or there are too few or too many tokens.
inline void likeliest(const float* scores, std::int64_t width, std::uint32_t* found) {
    constexpr float kFar = 16;  // below the best, what all tokens together hardly add up to
    constexpr int K = Thought::kMost;
    std::fill(found, found + K, Thought::kNone);
    const float top = width < K || width > (1 << 24) ? INFINITY : largest(scores, width);
    if (!std::isfinite(top)) return;
    float best[K];
    std::int64_t tokens[K];
    std::fill(best, best + K, -INFINITY);
    std::fill(tokens, tokens + K, 0);
    const auto enter = [&](std::int64_t token) {
        const float score = scores[token];
        if (!(score > best[K - 1])) return;
        int at = K - 1;
        for (; at && score > best[at - 1]; --at) best[at] = best[at - 1], tokens[at] = tokens[at - 1];
        best[at] = score;
        tokens[at] = token;
    };
    double sum = 0;
    const std::int64_t blocks = width / kBlock * kBlock;
    for (std::int64_t first = 0; first < blocks; first += kBlock) {
        const float most = largest(scores + first, kBlock);
        if (most > top - kFar) sum += mass(scores + first, top);
        if (most > best[K - 1])
            for (int i = 0; i < kBlock; ++i) enter(first + i);
    }
    for (std::int64_t i = blocks; i < width; ++i) {
        sum += std::exp(static_cast<double>(scores[i]) - top);
        enter(i);
    }
    if (!std::isfinite(best[K - 1])) return;
    const double whole = std::log(sum);
    for (int i = 0; i < K; ++i) {
        const double level = std::round((whole + top - best[i]) / Thought::kStep);
        found[i] = static_cast<std::uint32_t>(tokens[i]) << 8 |
                   static_cast<std::uint32_t>(level > 0 ? (level < 255 ? level : 255) : 0);
    }
}

}  // namespace regear
