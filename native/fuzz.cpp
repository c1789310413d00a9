// Random operations on random indexes, under sanitizers: fuzz SEED OPERATIONS. Ends with 0 if all went well.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "index.hpp"
#include "snapshot.hpp"

namespace {

using regear::Index;
using Engine = std::mt19937_64;

constexpr std::int64_t kRows = 24;
constexpr std::size_t kMost = 16;
std::uint64_t seed = 0, operation = 0;

void wanted(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "seed %llu, operation %llu: wanted %s\n", static_cast<unsigned long long>(seed),
                 static_cast<unsigned long long>(operation), what);
    std::abort();
}

class Fuzz {
public:
    explicit Fuzz(Engine& engine) : engine_(engine) {
        constexpr std::uint64_t kKinds[] = {5, 5, 150, 400};
        symbols_ = 1 + below(kKinds[below(4)]);
        // Caps from 1 MiB: with few generations and long texts they are reached.
        settings_ = {static_cast<std::uint32_t>(1 + below(below(4) ? 4 : 40)), below(2) ? 0.9 : 1e-3,
                     (1ull << 20) + below(1 << 18), below(2) == 0, static_cast<std::uint32_t>(1 + below(4)),
                     0.5 * below(2)};
        index_ = std::make_unique<Index>(settings_);
    }

    void step() {
        const std::uint64_t kind = below(1000);
        if (kind < 80) start();
        else if (kind < 480) extend(below(8));
        else if (kind < 483) extend(below(5000));
        else if (kind < 900) propose();
        else if (kind < 980) index_->observe(number(), below(kMost + 2), below(kMost + 2));
        else if (kind < 998) index_->finish(number());
        else if (kind < 999) advance();
        else if (below(6) == 0) reload();
        else if (below(6) == 0) share();
        else learn();
        wanted(index_->bytes() <= settings_.cap_bytes, "no more bytes than the cap");
    }

private:
    std::uint64_t below(std::uint64_t limit) { return engine_() % limit; }
    std::int64_t number() { return static_cast<std::int64_t>(below(kRows)) - 2; }

    const std::vector<std::int32_t>& tokens(std::size_t count) {
        tokens_.clear();
        const std::uint64_t often = below(3);  // one token over and over, runs, or any
        std::int32_t last = token();
        while (tokens_.size() < count) {
            if (often == 2 || (often == 1 && below(8) == 0)) last = token();
            tokens_.push_back(last);
        }
        return tokens_;
    }

    std::int32_t token() { return static_cast<std::int32_t>(below(symbols_)) - 1; }

    const regear::Thought* thoughts(std::size_t count) {
        thoughts_.clear();
        for (; count; --count) {
            regear::Thought one{};
            for (std::uint32_t& held : one.likely) held = static_cast<std::uint32_t>(below(symbols_) << 8 | below(256));
            if (below(4)) one.sketch[0] = static_cast<std::uint32_t>(engine_());
            if (below(8) == 0) one.likely[0] = regear::Thought::kNone;
            thoughts_.push_back(one);
        }
        return thoughts_.data();
    }

    std::string group() { return std::string(1 + below(2), static_cast<char>('a' + below(5))); }

    void learn() {
        const auto& all = tokens(4 + below(300));
        index_->learn(group(), all.data(), 4, all.data() + 4, all.size() - 4, below(2) ? thoughts(all.size() - 4) : nullptr);
    }

    // Two indexes of one past: what one writes, the other does not see. Either goes on alone.
    void share() {
        auto other = std::make_unique<Index>(settings_);
        other->share(*index_);
        wanted(other->tokens() == index_->tokens(), "as many tokens after sharing");
        if (below(2)) index_.swap(other);
        const std::string before = other->save();
        for (std::uint64_t i = below(200); i; --i) {
            start();
            extend(below(30));
            propose();
            if (below(20) == 0) learn();
            if (below(50) == 0) advance();
        }
        wanted(other->save() == before, "an index that another's texts do not change");
        if (below(4) == 0) index_->clear();
    }

    void start() {
        const std::string group = this->group();
        const std::uint64_t noise = engine_();
        const auto& prompt = tokens(below(100) ? below(4) : below(3000));
        index_->start(number(), group, prompt.data(), prompt.size(), below(2) ? &noise : nullptr, below(3) * 0.7 + 1e-3);
    }

    void extend(std::size_t count) {
        const auto& added = tokens(count);
        index_->extend(number(), added.data(), added.size(), below(2) ? thoughts(count) : nullptr);
    }

    void propose() {
        guesses_.clear();
        chances_.clear();
        const std::int64_t row = number();
        const std::size_t most = below(kMost), found = index_->propose(row, most, below(3) * 0.1, guesses_, chances_);
        wanted(found <= most && guesses_.size() == found && chances_.size() == found, "no more guesses than asked for");
        for (std::size_t i = 0; i < found; ++i) {
            wanted(guesses_[i] >= -1 && guesses_[i] < static_cast<std::int64_t>(symbols_), "tokens that were written or thought of");
            wanted(chances_[i] >= 0 && chances_[i] <= (i ? chances_[i - 1] : 1.0f), "chances that fall");
        }
        wanted(!found || index_->matched(row) > 0, "no guess without a match");
    }

    void advance() {
        for (std::uint64_t i = below(50) ? 1 : 3000; i; --i) index_->advance();
    }

    void reload() {
        std::string saved = index_->save();
        auto loaded = Index::load(saved);
        wanted(loaded && loaded->save() == saved, "the same after save and load");
        wanted(loaded->tokens() == index_->tokens() && loaded->bytes() <= settings_.cap_bytes, "as many tokens, no more bytes");
        index_ = std::move(loaded);
        std::string damaged = saved;
        damaged[below(saved.size())] ^= static_cast<char>(1 << below(8));
        wanted(!Index::load(damaged), "no index from flipped bits");
        wanted(!Index::load(std::string_view(saved).substr(0, below(saved.size()))), "no index from a part");
        resigned(saved);
    }

    // Numbers that are not the index's own under a right sum: refused, or an index that works.
    void resigned(std::string saved) {
        saved.resize(saved.size() - 8);
        for (std::uint64_t i = 1 + below(3); i; --i) {
            const std::size_t from = below(saved.size() - 8), to = below(saved.size() - 8);
            if (below(2)) saved.replace(to, 4, saved.substr(from, 4));
            else saved[to] = static_cast<char>(saved[to] + below(3) - 1);
        }
        const std::uint64_t sum = regear::sum_of(saved.data(), saved.size());
        saved.append(reinterpret_cast<const char*>(&sum), sizeof sum);
        const auto loaded = Index::load(saved);
        if (!loaded) return;
        std::vector<std::int32_t> guesses;
        std::vector<float> chances;
        for (const char* group : {"a", "b", "cc"}) {
            const auto& some = tokens(300);
            loaded->start(0, group, some.data(), 4, nullptr);
            for (std::size_t at = 4; at < some.size(); at += 37) {
                loaded->extend(0, some.data() + at, std::min<std::size_t>(37, some.size() - at));
                loaded->propose(0, kMost, 0, guesses, chances);
            }
        }
    }

    Engine& engine_;
    regear::Settings settings_;
    std::uint64_t symbols_;
    std::unique_ptr<Index> index_;
    std::vector<std::int32_t> tokens_, guesses_;
    std::vector<float> chances_;
    std::vector<regear::Thought> thoughts_;
};

}  // namespace

int main(int count, char** words) {
    if (count != 3) return std::fputs("fuzz SEED OPERATIONS\n", stderr), 2;
    seed = std::strtoull(words[1], nullptr, 10);
    const std::uint64_t operations = std::strtoull(words[2], nullptr, 10);
    Engine engine(seed);
    while (operation < operations) {
        Fuzz fuzz(engine);
        for (std::uint64_t i = 500 + engine() % 30'000; i && operation < operations; --i, ++operation) fuzz.step();
    }
    std::printf("%llu operations\n", static_cast<unsigned long long>(operation));
}
