// The likeliest tokens after a place of a text, as the model had them: what a past text might as well have become.
#pragma once

#include <cstdint>

namespace regear {

// The likeliest first: a token in the upper 24 bits, and in the lower 8 its probability p as −16 ln p, rounded.
struct Likely {
    static constexpr int kMost = 4;
    static constexpr std::uint32_t kNone = 0xffffffffu;  // in place of the first: nothing is known
    static constexpr double kStep = 1.0 / 16;

    std::uint32_t held[kMost];

    bool known() const { return held[0] != kNone; }
    std::int32_t token(int i) const { return static_cast<std::int32_t>(held[i] >> 8); }
    std::uint8_t level(int i) const { return static_cast<std::uint8_t>(held[i] & 0xff); }
};

}  // namespace regear
