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
    float lanes[64] = {};
    for (int first = 0; first < kBlock; first += 64)
        for (int i = 0; i < 64; ++i) {
            float t = (scores[first + i] - top) * 1.44269504f;
            t = t > -126.0f ? t : -126.0f;
            const std::int32_t whole = static_cast<std::int32_t>(t) - 1;  // t is at most 0
            const float rest = t - static_cast<float>(whole);
            const std::int32_t bits = (whole + 127) << 23;
            float power;
            std::memcpy(&power, &bits, sizeof power);
            lanes[i] += (1.0f + rest * (0.6951f + rest * (0.2276f + rest * 0.0774f))) * power;
        }
    for (int half = 32; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Of scores [width], as in Thought; none where one of the likeliest is no number, or there are too few or too many tokens.
inline void likeliest(const float* scores, std::int64_t width, std::uint32_t* found) {
    constexpr float kFar = 16;  // below the best, what all tokens together hardly add up to
    constexpr int K = Thought::kMost;
    std::fill(found, found + K, Thought::kNone);
    if (width < K || width > (1 << 24)) return;
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
    float top = -INFINITY;
    double sum = 0;  // of e^(score − top)
    const auto rise = [&](float score) {
        if (score <= top) return;
        sum *= std::exp(static_cast<double>(top) - score);
        top = score;
    };
    const std::int64_t blocks = width / kBlock * kBlock;
    for (std::int64_t first = 0; first < blocks; first += kBlock) {
        const float most = largest(scores + first, kBlock);
        rise(most);
        if (most > top - kFar) sum += mass(scores + first, top);
        if (most > best[K - 1])
            for (int i = 0; i < kBlock; ++i) enter(first + i);
    }
    for (std::int64_t i = blocks; i < width; ++i) {
        rise(scores[i]);
        if (scores[i] > top - kFar) sum += std::exp(static_cast<double>(scores[i]) - top);
        enter(i);
    }
    if (!std::isfinite(top + sum + best[K - 1])) return;
    const double whole = std::log(sum);
    for (int i = 0; i < K; ++i) {
        const double level = std::round((whole + top - best[i]) / Thought::kStep);
        found[i] = static_cast<std::uint32_t>(tokens[i]) << 8 |
                   static_cast<std::uint32_t>(level > 0 ? (level < 255 ? level : 255) : 0);
    }
}

}  // namespace regear
