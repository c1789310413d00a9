// What the model thought at a place of a text: which tokens might have come, and where in its own space it was. A past
// text might as well have become any of these, and of two places with the same last words the one that the model saw more
// alike says more of how this text goes on.
#pragma once

#include <cstdint>

namespace regear {

struct Thought {
    static constexpr int kMost = 3;
    static constexpr std::uint32_t kNone = 0xffffffffu;  // in place of the first token: nothing is known
    static constexpr double kStep = 1.0 / 16;

    std::uint32_t likely[kMost];  // the likeliest first: a token in 24 bits, and in 8 its probability p as −16 ln p
    std::uint32_t sketch[2];      // signs of the state's products with fixed directions; all 0: not known

    bool known() const { return likely[0] != kNone; }
    std::int32_t token(int i) const { return static_cast<std::int32_t>(likely[i] >> 8); }
    std::uint8_t level(int i) const { return static_cast<std::uint8_t>(likely[i] & 0xff); }
    std::uint64_t signs() const { return static_cast<std::uint64_t>(sketch[1]) << 32 | sketch[0]; }
};

// A place in a past text.
struct Place {
    Thought thought;        // its sketch is of the state one token earlier, which a text knows of its own newest token
    std::uint32_t alike;    // 1 + number of the place before it that stands behind the same token; 0: none
    std::uint16_t before;   // how many places ago its text had its last one; 0: not known
    std::uint8_t writer;    // which text, nearly surely
    std::uint8_t unused = 0;
};

}  // namespace regear
