// rows.hpp's code over all tokens of a pass, on several threads where that pays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "pool.hpp"
#include "rows.hpp"

namespace regear {

template <class T>
class Layers {
public:
    Layers(Heads heads, double scale, double eps, int sets)
        : code_(kernels<T>(sets)), heads_(heads), scale_(scale), eps_(eps) {
        if (heads.query < 1 || heads.key < 1 || heads.width < 2 || heads.width % 2 || heads.query % heads.key)
            throw std::invalid_argument("heads of an even width, and query heads a multiple of key heads");
    }

    // The pass that follows: row first + i has read starts[i] tokens and reads counts[i] more.
    void begin(std::int64_t first, std::int64_t count, const std::int64_t* starts, const std::int64_t* counts,
               std::int64_t slots, int threads, const T* cos, const T* sin) {
        starts_.assign(starts, starts + count);
        offsets_.assign(1, 0);
        longest_ = 0, reads_ = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            if (starts[i] < 0 || counts[i] < 0 || starts[i] + counts[i] > slots)
                throw std::invalid_argument("a row without room for its tokens");
            offsets_.push_back(offsets_.back() + counts[i]);
            longest_ = std::max(longest_, starts[i] + counts[i]);
            reads_ += static_cast<double>(counts[i]) * static_cast<double>(starts[i] + (counts[i] + 1) / 2);
        }
        rows_ = {first, count, starts_.data(), offsets_.data()};
        slots_ = slots, threads_ = threads, cos_ = cos, sin_ = sin;
    }

    std::int64_t tokens() const { return offsets_.back(); }

    void norm(const T* x, const T* weight, T* found, std::int64_t width) const {
        spread(threads_, tokens(), 2.0 * double(tokens() * width), [&](std::int64_t from, std::int64_t to) {
            code_.norm(x + from * width, weight, found + from * width, to - from, width, eps_);
        });
    }

    // x += y, and the norm of that.
    void add_norm(T* x, const T* y, const T* weight, T* found, std::int64_t width) const {
        spread(threads_, tokens(), 3.0 * double(tokens() * width), [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t m = from; m < to; ++m) {  // one after the other: the second finds the first in the cache
                code_.add(x + m * width, y + m * width, width);
                code_.norm(x + m * width, weight, found + m * width, 1, width, eps_);
            }
        });
    }

    // x += norm(y), which is overwritten.
    void norm_add(T* x, T* y, const T* weight, std::int64_t width) const {
        norm(y, weight, y, width);
        code_.add(x, y, tokens() * width);
    }

    // Queries or keys of qkv normed in place: the `heads` of a token from head `first` on, each alone or all as one.
    void norm_heads(T* qkv, const T* weight, std::int64_t first, std::int64_t heads, bool alone) const {
        const std::int64_t W = heads_.width, each = (heads_.query + 2 * heads_.key) * W;
        for (std::int64_t m = 0; m < tokens(); ++m) {
            T* x = qkv + m * each + first * W;
            code_.norm(x, weight, x, alone ? heads : 1, alone ? W : heads * W, eps_);
        }
    }

    void gate(const T* both, T* found, std::int64_t width) const {
        spread(threads_, tokens(), 12.0 * double(tokens() * width), [&](std::int64_t from, std::int64_t to) {
            code_.gate(both + 2 * from * width, found + from * width, to - from, width);
        });
    }

    // qkv [M, (H + 2 G) W], turned in place; keys and values [rows, G, slots, W]; found [M, H W].
    void attend(T* qkv, T* keys, T* values, T* found) const {
        const std::int64_t W = heads_.width;
        const Held<T> held{keys, values, slots_};
        code_.rotate(qkv, cos_, sin_, tokens(), heads_);
        code_.store(qkv, rows_, held, heads_, 0, rows_.count);
        const double work = 2.5 * reads_ * double(heads_.query * W);
        spread(threads_, rows_.count * heads_.key, work, [&](std::int64_t from, std::int64_t to) {
            static thread_local std::vector<T> held_scratch;
            const auto wanted = static_cast<std::size_t>(scratch(longest_ + 32, W));
            if (held_scratch.size() < wanted) held_scratch.resize(wanted);
            code_.attend(qkv, rows_, held, heads_, scale_, found, held_scratch.data(), from, to);
        });
    }

private:
    const Kernels<T>& code_;
    Heads heads_;
    double scale_, eps_, reads_ = 0;
    std::vector<std::int64_t> starts_, offsets_{0};
    Rows rows_{};
    std::int64_t slots_ = 0, longest_ = 0;
    int threads_ = 1;
    const T *cos_ = nullptr, *sin_ = nullptr;
};

}  // namespace regear
