// A suffix automaton of many token sequences, grown one token at a time, with the number of places of every string.
//
// Source: Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985); for several texts, Mohri,
// Moreno and Weinstein, "General suffix automaton construction algorithm" (2009). A state is a class of strings that
// end at the same places; a sequence may stop, go on later, or branch off where another one stood.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.hpp"
#include "thought.hpp"

namespace regear {

struct State {
    std::uint32_t length;  // of the class's longest string
    std::uint32_t link;    // the class of its longest suffix that ends at more places
    std::uint32_t count;   // places
    std::int32_t token;    // first edge, held here: three of four states have no other
    std::uint32_t to;      // 0: none, as nothing leads back to the root
    std::uint32_t more;    // 1 + index of the next edge, 0: none; the highest bit says that they are in the table
};

struct Edge {
    std::int32_t token;
    std::uint32_t to;
    std::uint32_t next;  // as State::more, without the bit
};

class Automaton {
public:
    static constexpr std::uint32_t kRoot = 0, kNone = 0xffffffffu;
    static constexpr std::uint64_t kMostTokens = 1ull << 31;  // counts are of 32 bits

    Automaton() { states_.push({0, kNone, 0, 0, 0, 0}); }

    // The state of a sequence after one more token; `from` is its state before, kRoot at the beginning. `work` grows by
    // the number of suffixes that were visited.
    std::uint32_t extend(std::uint32_t from, std::int32_t token, std::uint64_t& work) {
        const std::uint32_t now = step(from, token, work);
        for (std::uint32_t v = now; v != kRoot; v = states_[v].link) {
            ++states_[v].count;
            ++work;
        }
        ++tokens_;
        return now;
    }

    // What the model thought after this state's longest string. Every end of it keeps the last place that it was told of.
    // `last` is 1 + the number of the text's last place, 0 where it has none, and becomes this one.
    void tell(std::uint32_t state, const Thought& thought, std::uint8_t writer, std::uint32_t& last, std::uint64_t& work) {
        if (state == kRoot) return;
        if (!latest_.size()) {
            latest_.resize_as_pushed(states_.size());
            for (std::size_t i = 0; i < latest_.size(); ++i) latest_[i] = 0;
        }
        const std::uint32_t place = 1 + places_.push({thought, 0, 0, writer});
        if (last && place - last <= 0xffff) places_[place - 1].before = static_cast<std::uint16_t>(place - last);
        last = place;
        for (std::uint32_t v = state; v != kRoot; v = states_[v].link) {
            places_[place - 1].alike = latest_[v];  // the last is that of the string of one token
            latest_[v] = place;
            ++work;
        }
    }

    // 1 + the number of the last place that a state was told of; 0: none.
    std::uint32_t latest(std::uint32_t state) const { return latest_.size() ? latest_[state] : 0; }
    std::size_t places() const { return places_.size(); }
    const Place& place(std::uint32_t number) const { return places_[number - 1]; }

    // Where an edge leads, or kRoot.
    std::uint32_t next(std::uint32_t from, std::int32_t token) const {
        const std::uint32_t* to = find(from, token);
        return to ? *to : kRoot;
    }

    const State& operator[](std::uint32_t state) const { return states_[state]; }

    // Calls f(token, to) for every edge until f returns false.
    template <class F>
    void each(std::uint32_t from, F&& f) const {
        const State& s = states_[from];
        if (!s.to || !f(s.token, s.to)) return;
        for (std::uint32_t at = s.more & ~kTable; at; at = edges_[at - 1].next)
            if (!f(edges_[at - 1].token, edges_[at - 1].to)) return;
    }

    std::uint64_t tokens() const { return tokens_; }
    std::size_t states() const { return states_.size(); }
    std::size_t bytes() const {
        return sizeof(*this) + states_.bytes() + edges_.bytes() + table_.bytes() + latest_.bytes() + places_.bytes();
    }

    template <class Out>
    void save(Out& out) const {
        out.number(tokens_);
        out.array(states_);
        out.array(edges_);
        out.array(latest_);
        out.array(places_);
    }

    // False: what was read cannot even be walked; see sound.hpp for the rest.
    template <class In>
    bool load(In& in) {
        if (!in.number(tokens_) || !in.array(states_) || !in.array(edges_) || !in.array(latest_) || !in.array(places_) ||
            !in_range())
            return false;
        hashed_ = 0;
        table_.resize(0);
        for (std::uint32_t v = 0; v < states_.size(); ++v)
            if (states_[v].more & kTable) enter_all(v);
        return true;
    }

private:
    static constexpr std::uint32_t kTable = 0x80000000u;
    static constexpr int kListed = 8;  // edges beyond the first that are looked through one by one

    struct Entry {
        std::uint32_t state, edge;  // edge: 1 + index, 0: free
    };

    std::uint32_t step(std::uint32_t from, std::int32_t token, std::uint64_t& work) {
        if (const std::uint32_t* to = find(from, token)) {
            const std::uint32_t known = *to;
            return states_[known].length == states_[from].length + 1 ? known : split(from, token, known, work);
        }
        const std::uint32_t now = states_.push({states_[from].length + 1, kRoot, 0, 0, 0, 0});
        if (latest_.size()) latest_.push(0);
        std::uint32_t p = from;
        const std::uint32_t* to = nullptr;
        while (p != kNone && !(to = find(p, token))) {
            add(p, token, now);
            p = states_[p].link;
            ++work;
        }
        if (p != kNone) {
            const std::uint32_t known = *to;
            const std::uint32_t link =
                states_[known].length == states_[p].length + 1 ? known : split(p, token, known, work);
            states_[now].link = link;
        }
        return now;
    }

    // The strings of `known` up to the length of p's and one token, in a class of their own.
    std::uint32_t split(std::uint32_t p, std::int32_t token, std::uint32_t known, std::uint64_t& work) {
        const State old = states_[known];
        const std::uint32_t copy = states_.push({states_[p].length + 1, old.link, old.count, old.token, old.to, 0});
        if (latest_.size()) latest_.push(latest_[known]);
        std::uint32_t head = 0;
        for (std::uint32_t at = old.more & ~kTable; at; at = edges_[at - 1].next) {
            head = 1 + edges_.push({edges_[at - 1].token, edges_[at - 1].to, head});
            ++work;
        }
        states_[copy].more = head | (old.more & kTable);
        if (old.more & kTable) enter_all(copy);
        states_[known].link = copy;
        while (p != kNone) {
            std::uint32_t* to = find(p, token);
            if (!to || *to != known) break;
            *to = copy;
            p = states_[p].link;
            ++work;
        }
        return copy;
    }

    std::uint32_t* find(std::uint32_t from, std::int32_t token) {
        return const_cast<std::uint32_t*>(static_cast<const Automaton*>(this)->find(from, token));
    }

    const std::uint32_t* find(std::uint32_t from, std::int32_t token) const {
        const State& s = states_[from];
        if (s.token == token && s.to) return &s.to;
        if (!s.more) return nullptr;
        if (s.more & kTable) {
            for (std::size_t at = place(from, token);; at = (at + 1) & (table_.size() - 1)) {
                const Entry& entry = table_[at];
                if (!entry.edge) return nullptr;
                if (entry.state == from && edges_[entry.edge - 1].token == token) return &edges_[entry.edge - 1].to;
            }
        }
        for (std::uint32_t at = s.more; at; at = edges_[at - 1].next)
            if (edges_[at - 1].token == token) return &edges_[at - 1].to;
        return nullptr;
    }

    void add(std::uint32_t from, std::int32_t token, std::uint32_t to) {
        if (!states_[from].to) {
            states_[from].token = token;
            states_[from].to = to;
            return;
        }
        const std::uint32_t more = states_[from].more;
        const std::uint32_t edge = 1 + edges_.push({token, to, more & ~kTable});
        states_[from].more = edge | (more & kTable);
        if (more & kTable) {
            enter(from, edge);
            return;
        }
        int listed = 0;
        for (std::uint32_t at = edge; at && listed <= kListed; at = edges_[at - 1].next) ++listed;
        if (listed > kListed) {
            states_[from].more |= kTable;
            enter_all(from);
        }
    }

    void enter_all(std::uint32_t state) {
        for (std::uint32_t at = states_[state].more & ~kTable; at; at = edges_[at - 1].next) enter(state, at);
    }

    void enter(std::uint32_t state, std::uint32_t edge) {
        if (4 * (hashed_ + 1) > 3 * table_.size()) grow();
        put({state, edge});
        ++hashed_;
    }

    void grow() {
        Buffer<Entry> old;
        old.swap(table_);
        table_.assign(old.size() ? 2 * old.size() : 64, {0, 0});
        for (std::size_t i = 0; i < old.size(); ++i)
            if (old[i].edge) put(old[i]);
    }

    void put(const Entry& entry) {
        std::size_t at = place(entry.state, edges_[entry.edge - 1].token);
        while (table_[at].edge) at = (at + 1) & (table_.size() - 1);
        table_[at] = entry;
    }

    std::size_t place(std::uint32_t state, std::int32_t token) const {
        const std::uint64_t key = (static_cast<std::uint64_t>(state) << 32) | static_cast<std::uint32_t>(token);
        return ((key * 0x9e3779b97f4a7c15ull) >> 29) & (table_.size() - 1);
    }

    // Every index in range, every edge in one list, every walk along links ends.
    bool in_range() const {
        const std::size_t n = states_.size(), m = edges_.size();
        if (!n || n >= kTable || m >= kTable || states_[0].length || states_[0].link != kNone) return false;
        std::vector<bool> listed(m);
        std::size_t found = 0;
        for (std::size_t i = 0; i < n; ++i) {
            const State& s = states_[i];
            if (i && (s.link >= n || states_[s.link].length >= s.length)) return false;
            if (s.to >= n || (s.more && !s.to) || s.more == kTable) return false;
            for (std::uint32_t at = s.more & ~kTable; at; at = edges_[at - 1].next, ++found) {
                if (at > m || listed[at - 1] || !edges_[at - 1].to || edges_[at - 1].to >= n) return false;
                listed[at - 1] = true;
            }
        }
        return found == m && (latest_.size() == 0 ? places_.size() == 0 : latest_.size() == n) && told();
    }

    // Places that are there: the later the shorter the string, and each before those that point to it.
    bool told() const {
        for (std::size_t i = 1; i < latest_.size(); ++i) {
            const std::uint32_t link = states_[i].link;
            if (latest_[i] > places_.size() || (link && latest_[link] < latest_[i])) return false;
        }
        for (std::size_t i = 0; i < places_.size(); ++i)
            if (places_[i].alike > i || places_[i].before > i || places_[i].unused || !places_[i].thought.known()) return false;
        return !latest_.size() || !latest_[kRoot];
    }

    Buffer<State> states_;
    Buffer<Edge> edges_;
    Buffer<Entry> table_;
    Buffer<std::uint32_t> latest_;  // of every state, once there is any
    Buffer<Place> places_;
    std::size_t hashed_ = 0;
    std::uint64_t tokens_ = 0;
};

}  // namespace regear
