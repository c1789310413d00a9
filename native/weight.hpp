// A weight laid out for product.hpp's code, on several threads where that pays.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "arena.hpp"
#include "pool.hpp"
#include "product.hpp"

namespace regear {

template <class T>
class Weight {
public:
    // A copy of weight [O, I].
    Weight(Arena& arena, const T* weight, std::int64_t outputs, std::int64_t inputs, int sets)
        : code_(products<T>(sets)), outputs_(outputs), inputs_(inputs) {
        if (outputs < 1 || inputs < 1) throw std::invalid_argument("a weight of at least one output and one input");
        blocks_ = (outputs + code_.block - 1) / code_.block;
        laid_ = std::static_pointer_cast<T>(arena.take(sizeof(T) * static_cast<std::size_t>(blocks_ * code_.block * inputs)));
        code_.lay(weight, laid_.get(), inputs, outputs);
    }

    // found [M, O] = x [M, I] Wᵀ.
    void multiply(const T* x, T* found, std::int64_t rows, int threads) const {
        static thread_local std::vector<T> held_turned;
        T* turned = room(held_turned, rows * inputs_);
        code_.turn(x, turned, rows, inputs_);
        const double work = static_cast<double>(rows + kReading) * static_cast<double>(inputs_ * outputs_);
        spread(threads, blocks_, work, [&](std::int64_t from, std::int64_t to) {
            static thread_local std::vector<T> held_scratch;
            code_.multiply(laid_.get(), turned, found, room(held_scratch, rows * code_.block), rows, inputs_, outputs_,
                           from, to);
        });
    }

    std::int64_t outputs() const { return outputs_; }
    std::int64_t inputs() const { return inputs_; }

private:
    static constexpr std::int64_t kReading = 4;  // rows whose multiplications take as long as reading the weight

    static T* room(std::vector<T>& held, std::int64_t wanted) {
        if (held.size() < static_cast<std::size_t>(wanted)) held.resize(static_cast<std::size_t>(wanted));
        return held.data();
    }

    const Products<T>& code_;
    std::int64_t outputs_, inputs_, blocks_;
    std::shared_ptr<T> laid_;
};

}  // namespace regear
