// Past and present texts as automata, and guesses at how a text goes on from the strings it shares with them.
//
// A group holds one automaton an epoch, its generations; the oldest are dropped as a whole, so that nothing is ever
// deleted from an automaton. Texts in flight write into the newest generation of their group as they grow: the suffix
// link of such a text's state is the longest of its ends that stands anywhere else, its siblings' and its own past
// included, and needs no search. Older generations do not change, and every text keeps its place in each.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "automaton.hpp"
#include "noise.hpp"
#include "recall.hpp"

namespace regear {

struct Settings {
    std::uint32_t generations = 8;  // a group holds at most
    double decay = 0.9;             // weight of a generation, to the power of its age in epochs
    std::uint64_t cap_bytes = 1ull << 30;
    bool shared = false;       // whether one more group holds the texts of all
    std::uint32_t levels = 2;  // contexts that a guess weighs, from the longest down
    double discount = 0.5;     // of every count, in favour of the shorter context
};

bool sensible(const Settings& settings);

// How often a token with this length of context stood that looked so sure; by counts alone, or told what the model thought.
class Calibration {
public:
    static constexpr int kLengths = 9, kShares = 10, kCells = 2 * kLengths * kShares;

    static std::uint8_t cell(std::uint32_t length, double share, bool told) {
        int octave = 0;
        while (length > 1 && octave < kLengths - 1) length >>= 1, ++octave;
        const int bin = share >= 1 ? kShares - 1 : static_cast<int>(share * kShares);
        return static_cast<std::uint8_t>((told * kLengths + octave) * kShares + bin);
    }

    double chance(std::uint8_t cell) const {
        const double prior = (cell % kShares + 0.5) / kShares;
        return (stood_[cell] + kPrior * prior) / (tried_[cell] + kPrior);
    }

    void add(std::uint8_t cell, bool stood) {
        stood_[cell] = kMemory * stood_[cell] + stood;
        tried_[cell] = kMemory * tried_[cell] + 1;
    }

    template <class Out>
    void save(Out& out) const {
        for (double x : stood_) out.number(x);
        for (double x : tried_) out.number(x);
    }

    template <class In>
    bool load(In& in) {
        for (auto* part : {&stood_, &tried_})
            for (double& x : *part)
                if (!in.number(x) || !(x >= 0 && x <= 1e6)) return false;
        for (std::size_t i = 0; i < tried_.size(); ++i)
            if (stood_[i] > tried_[i]) return false;
        return true;
    }

private:
    static constexpr double kPrior = 8, kMemory = 0.999;
    std::array<double, kCells> stood_{}, tried_{};
};

class Index {
public:
    explicit Index(const Settings& settings) : settings_(settings) {}
    Index(const Index&) = delete;
    Index& operator=(const Index&) = delete;

    // A text in flight. Texts of one group and generation with one prompt store it once.
    // `seed`, if not null: of the noise that its tokens are drawn with, at this temperature. A text that does not read
    // only writes, which takes the less the more generations there are.
    void start(std::int64_t number, std::string_view group, const std::int32_t* prompt, std::size_t count,
               const std::uint64_t* seed, double temperature = 1, bool reads = true);
    // Its next tokens, and, if not null, what the model thought before each. Numbers that were not started are passed
    // over.
    void extend(std::int64_t number, const std::int32_t* tokens, std::size_t count, const Thought* thoughts = nullptr);
    void finish(std::int64_t number);
    // A text that has ended.
    void learn(std::string_view group, const std::int32_t* prompt, std::size_t length, const std::int32_t* tokens,
               std::size_t count, const Thought* thoughts = nullptr);
    // A new epoch: texts that start from now on write into new generations.
    void advance() { ++epoch_; }

    // At most `most` tokens that may come next, and the chance that each stands with all before it; it ends before a
    // chance below `least`. Appended to both; returns how many.
    std::size_t propose(std::int64_t number, std::size_t most, double least, std::vector<std::int32_t>& tokens,
                        std::vector<float>& chances);
    // Of the last `guessed` tokens that were proposed, the first `kept` stood.
    void observe(std::int64_t number, std::size_t guessed, std::size_t kept);
    // Tokens at the end of a text that stand elsewhere and went on from there, over all it reads.
    std::uint32_t matched(std::int64_t number);

    std::uint64_t bytes() const { return bytes_ + rows_.size() * kRowBytes; }
    std::uint64_t tokens() const;
    std::size_t groups() const { return groups_.size(); }
    const Settings& settings() const { return settings_; }

    // What was observed stays, all else goes.
    void clear();
    // As clear(), then `from` without its texts in flight. Nothing is copied: texts write into new generations, here and,
    // while both are there, in `from`.
    void share(const Index& from);

    std::string save() const;
    // Null: damaged, or not a snapshot.
    static std::unique_ptr<Index> load(std::string_view bytes);

private:
    static constexpr std::uint64_t kRowBytes = 512, kGroupBytes = 512, kPromptBytes = 64;
    static constexpr std::size_t kSlice = 512;          // tokens written between looks at the cap
    static constexpr std::uint64_t kToil = 1ull << 18;  // visits beyond the usual before a text begins anew
    static constexpr double kForeign = 0.05;            // weight of what other groups' texts say
    static constexpr double kFaint = 1e-100;            // weight of a generation at least: shares of 0 are none
    static constexpr int kWide = 64;                    // continuations of a context that says nothing any more
    static constexpr double kCounted = 0.15;            // weight of counts beside what the model thought
    static constexpr double kSharp = 1.4;               // power of both together: a mean over texts is flatter than any

    struct Generation {
        std::uint64_t serial, epoch;
        std::shared_ptr<Automaton> automaton;  // one that is shared is only read
        std::unordered_map<std::uint64_t, std::uint32_t> prompts;  // where texts go on from
        std::uint64_t counted = 0;                                 // bytes, as they stand in bytes_
    };

    struct Group {
        std::string key;
        std::vector<Generation> generations;  // oldest first
        std::uint64_t changes = 0;            // of the list above
        std::size_t live = 0;                 // texts in flight that read it
        std::list<Group*>::iterator use;
    };

    struct Cursor {
        std::uint64_t serial;
        std::uint32_t state, length;
        bool writes;
        std::uint64_t toil;
        std::uint32_t place;  // 1 + number of the text's last one; 0: none
    };

    // What a text reads and writes of one group.
    struct Scope {
        Group* group;
        std::uint64_t changes = ~0ull;
        std::vector<Cursor> cursors;  // one a generation
        bool reads = true;
    };

    struct Row {
        std::vector<Scope> scopes;
        std::vector<std::uint8_t> cells;  // of the last proposal
        bool noisy = false;
        double temperature = 1;
        std::uint8_t writer = 0;   // of its places
        std::uint64_t sketch = 0;  // of the model's state before its newest token; 0: not known
        std::uint64_t seed = 0, position = 0;  // of the noise; tokens known
    };

    struct Level {
        std::uint32_t length;
        std::size_t first, end;  // in candidates_
        double total, kinds;
    };

    struct Guess {
        std::int32_t token;
        double sureness;  // between 0 and 1
        std::uint32_t length;  // of the longest context
        bool told;             // whether it knows what the model thought at places like this one
    };


    Group& group(std::string_view key);
    void forget(Group& group);
    void renew(Group& group);
    void sync(Scope& scope);
    void begin(Scope& scope, const std::int32_t* prompt, std::size_t count, const Row& row);
    void write(Scope& scope, const std::int32_t* tokens, std::size_t count, const Thought* thoughts, const Row& row);
    void account(Generation& generation);
    void make_room();
    bool drop_oldest(bool only);
    bool full(const Generation& generation) const;

    void walk(Row& row);
    bool weigh(const Noise* noise, Guess& guess);
    static Guess choose(const Candidate* first, const Candidate* end, const Noise* noise, double power);
    bool gather(std::uint32_t length);
    void interpolate();
    bool mix(std::size_t first);
    static std::uint32_t settle(std::vector<Walker>& walkers);
    static void read(const Automaton& automaton, std::uint32_t& state, std::uint32_t& length, std::int32_t token);

    Settings settings_;
    std::uint64_t epoch_ = 0, serial_ = 0, bytes_ = 0;
    std::unordered_map<std::string, std::unique_ptr<Group>> groups_;
    std::list<Group*> used_;  // longest unused first
    std::unordered_map<std::int64_t, Row> rows_;
    Calibration calibration_;
    std::vector<Walker> walkers_, lower_;
    std::vector<Level> levels_;
    std::vector<Candidate> candidates_;
    Recall recall_;
};

}  // namespace regear
