// Whether what was read from a snapshot is the automaton of some texts: a sum finds damage, and this finds a writer that
// was wrong. All that growing and reading count on follows from it.
#pragma once

#include <vector>

#include "automaton.hpp"

namespace regear {

// Every string of a state and one more token belong to one state; the states that lead to one with one token are a chain
// of links, the longest of them shorter by one; a state ends at all the places of those that link to it.
inline bool sound(const Automaton& automaton) {
    constexpr std::uint32_t kRoot = Automaton::kRoot, kNone = Automaton::kNone;
    const auto n = static_cast<std::uint32_t>(automaton.states());
    std::vector<std::uint32_t> into(n), from(n, kNone);
    std::vector<std::int32_t> tokens(n);
    std::vector<std::uint64_t> places(n);
    bool fine = automaton.tokens() <= Automaton::kMostTokens;
    for (std::uint32_t s = 0; s < n && fine; ++s) {
        const State& state = automaton[s];
        if (s != kRoot) places[state.link] += state.count;
        automaton.each(s, [&](std::int32_t token, std::uint32_t to) {
            const State& next = automaton[to];
            if (s == kRoot) {
                fine = next.link == kRoot;
            } else {
                const std::uint32_t shorter = automaton.next(state.link, token);
                fine = shorter == to || (shorter && shorter == next.link &&
                                         automaton[shorter].length == automaton[state.link].length + 1);
            }
            fine = fine && next.length > state.length && automaton.next(s, token) == to;
            ++into[to];
            if (next.length == state.length + 1) from[to] = s, tokens[to] = token;
            return fine;
        });
    }
    for (std::uint32_t s = 0; s < n && fine; ++s) {
        if (s == kRoot) {
            fine = places[s] == automaton.tokens();
            continue;
        }
        std::uint32_t chain = 0;
        for (std::uint32_t p = from[s]; p != kNone && automaton.next(p, tokens[s]) == s; p = automaton[p].link) ++chain;
        fine = chain && chain == into[s] && automaton[s].count && automaton[s].count >= places[s];
    }
    return fine;
}

}  // namespace regear
