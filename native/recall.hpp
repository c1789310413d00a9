// How likely each token is at places like this one: what the model thought there, a mean over places of past texts.
//
// Of every automaton, the last place behind each end of the text, from the longest end down, and of the places behind the
// same last token the newest. The longer the end that a place shares with the text, the more it says, and the more alike
// the model's own states were one token ago, of which a text knows that of its newest token. Behind a guess nothing is
// known of that, and a place goes by how alike the place was that it follows.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "automaton.hpp"

namespace regear {

// A text's place in an automaton: the longest end that it knows, and how much it counts for.
struct Walker {
    const Automaton* automaton;
    std::uint32_t state, length;
    double weight;
    bool own;
};

struct Candidate {
    std::int32_t token;
    double count, share;
};

// Which candidate a token is.
class Known {
public:
    // Nothing is known any more, and so many tokens will be.
    void clear(std::size_t most) {
        std::size_t size = held_.empty() ? 256 : held_.size();
        while (size < 2 * most) size *= 2;
        if (size != held_.size() || !++now_) {
            held_.assign(size, {});
            now_ = 1;
        }
    }

    // The number that stands for a token: `fresh` where it had none.
    std::size_t number(std::int32_t token, std::size_t fresh) {
        std::size_t at = (static_cast<std::uint32_t>(token) * 0x9e3779b1u) >> 7 & (held_.size() - 1);
        while (held_[at].when == now_ && held_[at].token != token) at = (at + 1) & (held_.size() - 1);
        if (held_[at].when != now_) held_[at] = {token, now_, fresh};
        return held_[at].number;
    }

private:
    struct Slot {
        std::int32_t token;
        std::uint32_t when;
        std::size_t number;
    };

    std::vector<Slot> held_;
    std::uint32_t now_ = 0;
};

class Recall {
public:
    Recall() {
        for (std::size_t same = 0; same < worth_.size(); ++same)
            worth_[same] = std::exp(kAlike * static_cast<double>(same) / kSigns);
    }

    // Who asks: the sketch of its state one token ago, the number of its places, its temperature.
    void begin(std::uint64_t sketch, std::uint8_t writer, double temperature) {
        sketch_ = sketch, writer_ = writer, first_ = true;
        found_.clear();
        powers_.set(temperature);
        plain_.set(1);
    }

    // Adds to the `count` of the candidates from `first` on, which was 0, what is thought of their tokens, and candidates
    // for tokens that have none; returns the weight of it all, 0 where no place is known.
    double add(const std::vector<Walker>& walkers, std::vector<Candidate>& candidates, std::size_t first) {
        before_.swap(found_);
        found_.clear();
        for (std::size_t w = 0; w < walkers.size(); ++w)
            if (walkers[w].automaton->places()) collect(walkers[w], static_cast<std::uint32_t>(w));
        if (found_.empty()) return first_ = false, 0;
        known_.clear(candidates.size() - first + found_.size() * Thought::kMost);
        for (std::size_t i = first; i < candidates.size(); ++i) known_.number(candidates[i].token, i);
        double all = 0;
        for (const Found& one : found_) {
            const Place& place = walkers[one.walker].automaton->place(one.place);
            const bool own = writer_ && place.writer == writer_;
            const double whose = own ? kOwn : walkers[one.walker].own ? 1 : kForeign;
            const double weight = walkers[one.walker].weight * whose * one.length * one.length *
                                  worth_[static_cast<std::size_t>(one.alike)];
            all += weight;
            spread(place.thought, weight, candidates);
        }
        first_ = false;
        return all;
    }

private:
    static constexpr int kEnds = 4, kLinks = 64;  // places behind ends of the text, and links looked at for them
    static constexpr int kChain = 12;             // places behind its last token
    static constexpr double kOwn = 6;             // weight of a text's own places beside those of others
    static constexpr double kForeign = 2;         // what a thought at another group's place weighs more than a count there
    static constexpr double kAlike = 20;          // the logarithm of the weight of states whose signs are all the same
    static constexpr int kSigns = 64, kUnknown = 35;  // of a sketch; of these the same, where that is not known

    struct Found {
        std::uint32_t walker, place;
        double length;
        int alike;  // signs that are the same
    };

    // e^(−level / 16 / temperature).
    struct Powers {
        double temperature = 0;
        std::array<double, 256> of{};

        void set(double wanted) {
            if (temperature == wanted) return;
            temperature = wanted;
            for (std::size_t level = 0; level < of.size(); ++level)
                of[level] = std::exp(-static_cast<double>(level) * Thought::kStep / wanted);
        }
    };

    void collect(const Walker& walker, std::uint32_t number) {
        const Automaton& automaton = *walker.automaton;
        const std::size_t begin = found_.size();
        std::uint32_t state = walker.state, length = walker.length, last = 0;
        int links = 0;
        for (; state != Automaton::kRoot && links < kLinks; ++links) {
            const std::uint32_t place = automaton.latest(state);
            if (place && place != last && found_.size() - begin < kEnds) take(automaton, number, place, length);
            last = place;
            state = automaton[state].link;
            length = automaton[state].length;
        }
        if (state != Automaton::kRoot) return;
        for (int i = 0; last && i < kChain; ++i, last = automaton.place(last).alike) {
            bool known = false;
            for (std::size_t k = begin; k < found_.size() && !known; ++k) known = found_[k].place == last;
            if (!known) take(automaton, number, last, 1);
        }
    }

    void take(const Automaton& automaton, std::uint32_t walker, std::uint32_t place, std::uint32_t length) {
        found_.push_back({walker, place, static_cast<double>(length), alike(automaton.place(place), walker, place)});
    }

    int alike(const Place& place, std::uint32_t walker, std::uint32_t number) const {
        if (first_) {
            if (!sketch_ || !place.thought.signs()) return kUnknown;
            int same = kSigns;
            for (std::uint64_t other = place.thought.signs() ^ sketch_; other; other &= other - 1) --same;
            return same;
        }
        if (place.before)
            for (const Found& one : before_)
                if (one.walker == walker && one.place == number - place.before) return one.alike;
        return kUnknown;
    }

    // Of the tokens that are not kept only the sum is known, and that none is likelier than the last that is. Powers are
    // those of shares of the likeliest one.
    void spread(const Thought& thought, double weight, std::vector<Candidate>& candidates) {
        constexpr int K = Thought::kMost;
        double sum = 0, left = 1, kept[K];
        for (int i = 0; i < K; ++i) {
            const int below = thought.level(i) - thought.level(0);
            sum += kept[i] = powers_.of[static_cast<std::size_t>(below > 0 ? below : 0)];
            left -= plain_.of[thought.level(i)];
        }
        sum += std::max(left, 0.0) * kept[K - 1] / plain_.of[thought.level(K - 1)];
        for (int i = 0; i < K; ++i) {
            const std::size_t at = known_.number(thought.token(i), candidates.size());
            if (at == candidates.size()) candidates.push_back({thought.token(i), 0, 0});
            candidates[at].count += weight * kept[i] / sum;
        }
    }

    std::uint64_t sketch_ = 0;
    std::uint8_t writer_ = 0;
    bool first_ = true;
    std::array<double, kSigns + 1> worth_;
    Powers plain_, powers_;
    Known known_;
    std::vector<Found> found_, before_;
};

}  // namespace regear
