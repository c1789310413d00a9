#include "index.hpp"

#include <algorithm>
#include <cmath>

#include "snapshot.hpp"
#include "sound.hpp"

namespace regear {

namespace {

constexpr char kMagic[8] = {'r', 'e', 'g', 'e', 'a', 'r', 'S', '2'};
constexpr std::string_view kShared = "";  // groups' own keys begin with a letter

// The sketch of the last of so many thoughts.
std::uint64_t signs(const Thought* thoughts, std::size_t count) {
    return thoughts && count && thoughts[count - 1].known() ? thoughts[count - 1].signs() : 0;
}

std::uint64_t name_of(const std::int32_t* prompt, std::size_t count) {
    return sum_of(reinterpret_cast<const char*>(prompt), count * sizeof *prompt);
}

}  // namespace

void Index::start(std::int64_t number, std::string_view key, const std::int32_t* prompt, std::size_t count,
                  const std::uint64_t* seed, double temperature, bool reads) {
    finish(number);
    Row& row = rows_[number];
    row.noisy = seed != nullptr;
    row.seed = seed ? *seed : 0;
    row.temperature = temperature;
    row.writer = number < 0 ? 0 : static_cast<std::uint8_t>(1 + number % 255);
    row.position = count;
    row.scopes.reserve(2);
    row.scopes.push_back({&group("g" + std::string(key)), ~0ull, {}, reads});
    if (settings_.shared) row.scopes.push_back({&group(kShared), ~0ull, {}, reads});
    for (Scope& scope : row.scopes) {
        Group& own = *scope.group;
        ++own.live;
        used_.splice(used_.end(), used_, own.use);
        if (own.generations.empty() || own.generations.back().epoch < epoch_ || full(own.generations.back()))
            renew(own);
    }
    for (Scope& scope : row.scopes) begin(scope, prompt, count, row);
    make_room();
}

void Index::extend(std::int64_t number, const std::int32_t* tokens, std::size_t count, const Thought* thoughts) {
    const auto found = rows_.find(number);
    if (found == rows_.end()) return;
    Row& row = found->second;
    row.position += count;
    for (std::size_t at = 0; at < count; at += kSlice) {
        for (Scope& scope : row.scopes)
            write(scope, tokens + at, std::min(kSlice, count - at), thoughts ? thoughts + at : nullptr, row);
        row.sketch = signs(thoughts, std::min(at + kSlice, count));
        make_room();
    }
}

void Index::learn(std::string_view group, const std::int32_t* prompt, std::size_t length, const std::int32_t* tokens,
                  std::size_t count, const Thought* thoughts) {
    constexpr std::int64_t kPast = -1;
    start(kPast, group, prompt, length, nullptr, 1, false);
    extend(kPast, tokens, count, thoughts);
    finish(kPast);
}

void Index::finish(std::int64_t number) {
    const auto found = rows_.find(number);
    if (found == rows_.end()) return;
    for (Scope& scope : found->second.scopes) {
        --scope.group->live;
        forget(*scope.group);
    }
    rows_.erase(found);
}

Index::Group& Index::group(std::string_view key) {
    auto& held = groups_[std::string(key)];
    if (!held) {
        held = std::make_unique<Group>();
        held->key = key;
        held->use = used_.insert(used_.end(), held.get());
        bytes_ += kGroupBytes + key.size();
    }
    return *held;
}

// A group that holds nothing and that nobody reads goes.
void Index::forget(Group& group) {
    if (group.live || !group.generations.empty()) return;
    bytes_ -= kGroupBytes + group.key.size();
    used_.erase(group.use);
    groups_.erase(std::string(group.key));
}

// A new generation to write into.
void Index::renew(Group& group) {
    if (group.generations.size() >= settings_.generations) {
        bytes_ -= group.generations.front().counted;
        group.generations.erase(group.generations.begin());
    }
    group.generations.push_back({serial_++, epoch_, std::make_shared<Automaton>(), {}, 0});
    ++group.changes;
    account(group.generations.back());
}

// Places in generations that are still there; the newest is written to, from its root where it is new to the text.
void Index::sync(Scope& scope) {
    Group& group = *scope.group;
    if (group.generations.empty()) renew(group);
    if (scope.changes == group.changes) return;
    std::vector<Cursor> cursors;
    for (const Generation& generation : group.generations) {
        Cursor cursor{generation.serial, Automaton::kRoot, 0, false, 0, 0};
        for (const Cursor& old : scope.cursors)
            if (old.serial == generation.serial) cursor = old;
        cursor.writes = generation.serial == group.generations.back().serial;
        cursors.push_back(cursor);
    }
    scope.cursors = std::move(cursors);
    scope.changes = group.changes;
}

void Index::begin(Scope& scope, const std::int32_t* prompt, std::size_t count, const Row& row) {
    sync(scope);
    const std::uint64_t name = name_of(prompt, count);
    const auto known = scope.group->generations.back().prompts.find(name);
    if (known == scope.group->generations.back().prompts.end()) {
        for (std::size_t at = 0; at < count; at += kSlice) {
            write(scope, prompt + at, std::min(kSlice, count - at), nullptr, row);
            make_room();
        }
        sync(scope);
        Generation& newest = scope.group->generations.back();
        newest.prompts.emplace(name, scope.cursors.back().state);
        account(newest);
        return;
    }
    const Generation& newest = scope.group->generations.back();
    for (std::size_t g = 0; scope.reads && g + 1 < scope.cursors.size(); ++g)
        for (std::size_t i = 0; i < count; ++i)
            read(*scope.group->generations[g].automaton, scope.cursors[g].state, scope.cursors[g].length, prompt[i]);
    Cursor& own = scope.cursors.back();
    own.state = known->second;
    own.length = (*newest.automaton)[own.state].length;
}

void Index::write(Scope& scope, const std::int32_t* tokens, std::size_t count, const Thought* thoughts,
                  const Row& row) {
    constexpr std::uint64_t kUsual = 64;
    sync(scope);
    if (full(scope.group->generations.back())) {
        renew(*scope.group);
        sync(scope);
    }
    auto& generations = scope.group->generations;
    for (std::size_t g = 0; scope.reads && g + 1 < generations.size(); ++g)
        for (std::size_t i = 0; i < count; ++i)
            read(*generations[g].automaton, scope.cursors[g].state, scope.cursors[g].length, tokens[i]);
    Cursor& own = scope.cursors.back();
    Automaton& automaton = *generations.back().automaton;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t work = 0;
        if (thoughts && thoughts[i].known()) {
            Thought thought = thoughts[i];
            const std::uint64_t before = i ? signs(thoughts, i) : row.sketch;
            thought.sketch[0] = static_cast<std::uint32_t>(before);
            thought.sketch[1] = static_cast<std::uint32_t>(before >> 32);
            automaton.tell(own.state, thought, row.writer, own.place, work);
        }
        own.state = automaton.extend(own.state, tokens[i], work);
        own.toil += work > kUsual ? work - kUsual : 0;
        if (own.toil > kToil) {  // one token over and over: every place has as many suffixes as there are places
            own.state = Automaton::kRoot;
            own.toil = 0;
        }
    }
    own.length = automaton[own.state].length;
    account(generations.back());
}

bool Index::full(const Generation& generation) const {
    return generation.counted > settings_.cap_bytes / (2 * settings_.generations) ||
           generation.automaton->states() > (1u << 30) ||
           generation.automaton->tokens() > Automaton::kMostTokens / 2 || generation.automaton.use_count() > 1;
}

void Index::account(Generation& generation) {
    const std::uint64_t now =
        generation.automaton->bytes() + sizeof(Generation) + generation.prompts.size() * kPromptBytes;
    bytes_ += now - generation.counted;
    generation.counted = now;
}

// An eighth is left free: arrays grow in steps, and what is counted must never be above the cap.
void Index::make_room() {
    while (bytes() > settings_.cap_bytes - settings_.cap_bytes / 8)
        if (!drop_oldest(false) && !drop_oldest(true)) return;
}

// The oldest generation of the group that was started longest ago; `only`: also one that texts are writing to.
bool Index::drop_oldest(bool only) {
    for (Group* group : used_) {
        auto& held = group->generations;
        if (held.empty() || (!only && group->live && held.size() == 1)) continue;
        bytes_ -= held.front().counted;
        held.erase(held.begin());
        ++group->changes;
        forget(*group);
        return true;
    }
    return false;
}

std::uint64_t Index::tokens() const {
    std::uint64_t found = 0;
    for (const auto& [key, group] : groups_)
        for (const Generation& generation : group->generations) found += generation.automaton->tokens();
    return found;
}

// The longest end of what was read that the automaton knows, after one more token.
void Index::read(const Automaton& automaton, std::uint32_t& state, std::uint32_t& length, std::int32_t token) {
    std::uint32_t to;
    while (!(to = automaton.next(state, token)) && state != Automaton::kRoot) {
        state = automaton[state].link;
        length = automaton[state].length;
    }
    state = to;
    length = to ? length + 1 : 0;
}

void Index::walk(Row& row) {
    walkers_.clear();
    for (Scope& scope : row.scopes) {
        sync(scope);
        const auto& generations = scope.group->generations;
        for (std::size_t g = 0; g < generations.size(); ++g) {
            const double age = static_cast<double>(epoch_ - generations[g].epoch);
            const bool own = &scope == &row.scopes.front();
            const double weight = (own ? 1 : kForeign) * std::max(std::pow(settings_.decay, age), kFaint);
            walkers_.push_back(
                {generations[g].automaton.get(), scope.cursors[g].state, scope.cursors[g].length, weight, own});
        }
    }
}

// Ends that nothing follows give way to shorter ones; returns the longest that is left. Other groups are asked only
// where a text's own knows no more than its last token.
std::uint32_t Index::settle(std::vector<Walker>& walkers) {
    std::uint32_t own = 0, any = 0;
    for (Walker& walker : walkers) {
        while (walker.state != Automaton::kRoot && !(*walker.automaton)[walker.state].to) {
            walker.state = (*walker.automaton)[walker.state].link;
            walker.length = (*walker.automaton)[walker.state].length;
        }
        any = std::max(any, walker.length);
        if (walker.own) own = std::max(own, walker.length);
    }
    return own > 1 ? own : any;
}

std::uint32_t Index::matched(std::int64_t number) {
    const auto found = rows_.find(number);
    if (found == rows_.end()) return 0;
    walk(found->second);
    return settle(walkers_);
}

std::size_t Index::propose(std::int64_t number, std::size_t most, double least, std::vector<std::int32_t>& tokens,
                           std::vector<float>& chances) {
    const auto found = rows_.find(number);
    if (found == rows_.end()) return 0;
    Row& row = found->second;
    row.cells.clear();
    walk(row);
    recall_.begin(row.sketch, row.writer, row.temperature);
    double path = 1;
    while (row.cells.size() < most) {
        const Noise noise(row.seed, row.position + row.cells.size());
        Guess guess;
        if (!weigh(row.noisy ? &noise : nullptr, guess)) break;
        const std::uint8_t cell = Calibration::cell(guess.length, guess.sureness, guess.told);
        path *= calibration_.chance(cell);
        if (path < least) break;
        row.cells.push_back(cell);
        tokens.push_back(guess.token);
        chances.push_back(static_cast<float>(path));
        for (Walker& walker : walkers_) read(*walker.automaton, walker.state, walker.length, guess.token);
    }
    return row.cells.size();
}

void Index::observe(std::int64_t number, std::size_t guessed, std::size_t kept) {
    const auto found = rows_.find(number);
    if (found == rows_.end()) return;
    const auto& cells = found->second.cells;
    const std::size_t known = std::min({guessed, cells.size(), kept + 1});
    for (std::size_t i = 0; i < known; ++i) calibration_.add(cells[i], i < kept);
}

// The next token by the counts after the longest contexts, and by what the model thought there; false: nothing is known
// of it.
bool Index::weigh(const Noise* noise, Guess& guess) {
    const std::uint32_t longest = settle(walkers_);
    levels_.clear();
    candidates_.clear();
    lower_ = walkers_;
    for (std::uint32_t at = longest; at && levels_.size() < settings_.levels && gather(at);) {
        std::uint32_t next = 0;  // the longest shorter end that stands at more places in any of them
        for (const Walker& walker : lower_)
            next = std::max(next, walker.length < at
                                      ? walker.length
                                      : (*walker.automaton)[(*walker.automaton)[walker.state].link].length);
        at = next;
    }
    const std::size_t first = levels_.empty() ? candidates_.size() : levels_.back().first;
    if (!levels_.empty()) interpolate();
    const bool told = mix(first);
    if (first == candidates_.size()) return false;
    guess = choose(candidates_.data() + first, candidates_.data() + candidates_.size(), noise, told ? kSharp : 1);
    guess.length = longest;
    guess.told = told;
    return true;
}

// Mixes into the shares of the candidates from `first` on what the model thought at places like this one; false: no place
// is known.
bool Index::mix(std::size_t first) {
    for (std::size_t i = first; i < candidates_.size(); ++i) candidates_[i].count = 0;
    const double all = recall_.add(walkers_, candidates_, first);
    if (!(all > 0)) return false;
    const double counted = levels_.empty() ? 0 : kCounted;
    for (std::size_t i = first; i < candidates_.size(); ++i) {
        Candidate& one = candidates_[i];
        one.share = (1 - counted) * one.count / all + counted * one.share;
    }
    return true;
}

// Without noise the largest share, which is also how sure it is. With noise the engine's own draw, were the shares its
// probabilities: it is sure as far as no unknown token, of what the shares leave, and no other known one may win.
Index::Guess Index::choose(const Candidate* first, const Candidate* end, const Noise* noise, double power) {
    double best = -1e300, second = -1e300, left = 1, share = 0;
    std::int32_t token = -1;
    for (const Candidate* one = first; one != end; ++one) {
        left -= one->share;
        const double score = noise ? power * std::log(one->share) + (*noise)(one->token) : one->share;
        if (score > best || (score == best && one->token < token)) {
            second = best;
            best = score;
            token = one->token;
            share = one->share;
        } else {
            second = std::max(second, score);
        }
    }
    if (!noise) return {token, best, 0, false};
    const double plain = best - (power - 1) * std::log(share);
    return {token, std::exp(-std::max(left, 1e-3) * std::exp(-plain)) / (1 + std::exp((second - best) / 0.5)), 0, false};
}

// What follows the end of this length, over all automata that know it; false: too many things do.
bool Index::gather(std::uint32_t length) {
    Level level{length, candidates_.size(), candidates_.size(), 0, 0};
    bool narrow = true;
    for (Walker& walker : lower_) {
        if (walker.length < length) continue;
        const Automaton& automaton = *walker.automaton;
        while (automaton[automaton[walker.state].link].length >= length) walker.state = automaton[walker.state].link;
        walker.length = length;
        automaton.each(walker.state, [&](std::int32_t token, std::uint32_t to) {
            std::size_t i = level.first;
            while (i < candidates_.size() && candidates_[i].token != token) ++i;
            if (i == candidates_.size()) candidates_.push_back({token, 0, 0});
            candidates_[i].count += walker.weight * automaton[to].count;
            return narrow = candidates_.size() - level.first <= kWide;
        });
        if (!narrow) {
            candidates_.resize(level.first);
            return false;
        }
    }
    level.end = candidates_.size();
    for (std::size_t i = level.first; i < level.end; ++i) {
        level.total += candidates_[i].count;
        level.kinds += std::min(1.0, candidates_[i].count);
    }
    levels_.push_back(level);
    return true;
}

// Shares with absolute discounting (Ney, Essen and Kneser, 1994): what every count gives up goes to the shorter context.
// What follows a longer context also follows a shorter one: the last level's candidates are all there are.
void Index::interpolate() {
    const Level& all = levels_.back();
    for (std::size_t k = levels_.size(); k-- > 0;) {
        const Level& level = levels_[k];
        const double given = &level == &all ? 0 : settings_.discount * level.kinds / level.total;
        for (std::size_t j = all.first; j < all.end; ++j) candidates_[j].share *= given;
        for (std::size_t i = level.first; i < level.end; ++i) {
            const Candidate& one = candidates_[i];
            std::size_t j = all.first;
            while (candidates_[j].token != one.token) ++j;
            candidates_[j].share += (one.count - settings_.discount * std::min(1.0, one.count)) / level.total;
        }
    }
}

void Index::clear() {
    rows_.clear();
    used_.clear();
    groups_.clear();
    bytes_ = 0;
}

void Index::share(const Index& from) {
    clear();
    settings_ = from.settings_;
    epoch_ = from.epoch_;
    serial_ = from.serial_;
    for (const Group* theirs : from.used_) {
        Group& own = group(theirs->key);
        own.generations = theirs->generations;
        for (const Generation& generation : own.generations) bytes_ += generation.counted;
    }
}

std::string Index::save() const {
    Out out;
    out.bytes.assign(kMagic, sizeof kMagic);
    out.number(settings_.generations);
    out.number(settings_.decay);
    out.number(settings_.cap_bytes);
    out.number<std::uint8_t>(settings_.shared);
    out.number(settings_.levels);
    out.number(settings_.discount);
    out.number(epoch_);
    calibration_.save(out);
    const auto filled = [](const Group* group) { return !group->generations.empty(); };
    out.number<std::uint64_t>(std::count_if(used_.begin(), used_.end(), filled));
    for (const Group* group : used_) {
        if (!filled(group)) continue;
        out.text(group->key);
        out.number<std::uint64_t>(group->generations.size());
        for (const Generation& generation : group->generations) {
            out.number(generation.epoch);
            std::vector<std::pair<std::uint64_t, std::uint32_t>> prompts(generation.prompts.begin(),
                                                                         generation.prompts.end());
            std::sort(prompts.begin(), prompts.end());
            out.number<std::uint64_t>(prompts.size());
            for (const auto& [name, state] : prompts) {
                out.number(name);
                out.number(state);
            }
            generation.automaton->save(out);
        }
    }
    out.number(sum_of(out.bytes.data(), out.bytes.size()));
    return std::move(out.bytes);
}

std::unique_ptr<Index> Index::load(std::string_view bytes) {
    std::uint64_t sum, groups, generations, prompts;
    std::uint8_t shared;
    if (bytes.size() < sizeof kMagic + sizeof sum || std::memcmp(bytes.data(), kMagic, sizeof kMagic)) return nullptr;
    const std::string_view body = bytes.substr(0, bytes.size() - sizeof sum);
    std::memcpy(&sum, body.data() + body.size(), sizeof sum);
    if (sum != sum_of(body.data(), body.size())) return nullptr;
    In in(body.substr(sizeof kMagic));
    Settings settings;
    if (!in.number(settings.generations) || !in.number(settings.decay) || !in.number(settings.cap_bytes) ||
        !in.number(shared) || !in.number(settings.levels) || !in.number(settings.discount))
        return nullptr;
    settings.shared = shared;
    if (!sensible(settings)) return nullptr;
    auto index = std::make_unique<Index>(settings);
    if (!in.number(index->epoch_) || !index->calibration_.load(in) || !in.number(groups)) return nullptr;
    for (std::uint64_t i = 0; i < groups; ++i) {
        std::string key;
        if (!in.text(key) || index->groups_.count(key) || !in.number(generations) || !generations ||
            generations > settings.generations)
            return nullptr;
        Group& group = index->group(key);
        for (std::uint64_t g = 0; g < generations; ++g) {
            Generation one{index->serial_++, 0, std::make_shared<Automaton>(), {}, 0};
            if (!in.number(one.epoch) || one.epoch > index->epoch_ || !in.number(prompts)) return nullptr;
            for (std::uint64_t p = 0; p < prompts; ++p) {
                std::uint64_t name;
                std::uint32_t state;
                if (!in.number(name) || !in.number(state)) return nullptr;
                one.prompts[name] = state;
            }
            if (!one.automaton->load(in) || !sound(*one.automaton)) return nullptr;
            for (const auto& [name, state] : one.prompts)
                if (state >= one.automaton->states()) return nullptr;
            group.generations.push_back(std::move(one));
            index->account(group.generations.back());
        }
    }
    if (!in.done()) return nullptr;
    index->make_room();
    return index;
}

bool sensible(const Settings& settings) {
    return settings.generations >= 1 && settings.generations <= 1024 && settings.decay > 0 && settings.decay <= 1 &&
           settings.cap_bytes >= (1u << 20) && settings.cap_bytes <= (1ull << 48) && settings.levels >= 1 &&
           settings.levels <= 64 && settings.discount >= 0 && settings.discount < 1;
}

}  // namespace regear
