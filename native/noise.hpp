// The noise of regear.ops.noise, one value at a time: a function of a text's seed, a place in it and a token. A guess
// drawn with it is the engine's own draw nearly as often as two samplers can agree (Daliri et al., arXiv 2408.07978).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "snapshot.hpp"

namespace regear {

class Noise {
public:
    Noise(std::uint64_t seed, std::uint64_t position)
        : Noise(mixed(mixed(mixed(seed + kGolden) + kGolden) ^ mixed(position + kGolden))) {}

    explicit Noise(std::uint64_t key)
        : low_(static_cast<std::uint32_t>(key)), high_(static_cast<std::uint32_t>(key >> 32)) {}

    std::uint32_t low() const { return low_; }
    std::uint32_t high() const { return high_; }

    // Gumbel noise of a token.
    double operator()(std::int32_t token) const {
        const std::uint32_t bits = hashed(hashed(static_cast<std::uint32_t>(token) ^ low_) + high_) & 0x7fffffffu;
        const double uniform = std::min((bits + 0.5) / 2147483648.0, 1 - 1.0 / 16777216);
        return -std::log(-std::log1p(-uniform));
    }

private:
    static constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ull;

    static std::uint32_t hashed(std::uint32_t x) {
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        return x ^ (x >> 16);
    }

    std::uint32_t low_, high_;
};

}  // namespace regear
