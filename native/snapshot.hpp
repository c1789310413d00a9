// Bytes written one value after the other, and read back with every length checked; a sum at the end finds damage.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "buffer.hpp"

namespace regear {

inline std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

inline std::uint64_t sum_of(const char* data, std::size_t size) {
    std::uint64_t sum = mixed(size + 1), word;
    for (; size >= sizeof word; data += sizeof word, size -= sizeof word) {
        std::memcpy(&word, data, sizeof word);
        sum = mixed(sum ^ word) + 0x9e3779b97f4a7c15ull;
    }
    word = 0;
    if (size) std::memcpy(&word, data, size);
    return mixed(sum ^ word);
}

class Out {
public:
    template <class T>
    void number(const T& value) {
        bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }

    void text(std::string_view value) {
        number<std::uint64_t>(value.size());
        bytes.append(value);
    }

    template <class T>
    void array(const Buffer<T>& values) {
        number<std::uint64_t>(values.size());
        bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    }

    std::string bytes;
};

class In {
public:
    explicit In(std::string_view bytes) : left_(bytes) {}

    template <class T>
    bool number(T& value) {
        if (left_.size() < sizeof value) return false;
        std::memcpy(&value, left_.data(), sizeof value);
        left_.remove_prefix(sizeof value);
        return true;
    }

    bool text(std::string& value) {
        std::uint64_t size;
        if (!number(size) || size > left_.size()) return false;
        value.assign(left_.substr(0, size));
        left_.remove_prefix(size);
        return true;
    }

    template <class T>
    bool array(Buffer<T>& values) {
        std::uint64_t count;
        if (!number(count) || count > left_.size() / sizeof(T)) return false;
        values.resize_as_pushed(count);
        if (count) std::memcpy(static_cast<void*>(values.data()), left_.data(), count * sizeof(T));
        left_.remove_prefix(count * sizeof(T));
        return true;
    }

    bool done() const { return left_.empty(); }

private:
    std::string_view left_;
};

}  // namespace regear
