// A growing array of plain values whose bytes are known: it grows by an eighth, as doubling would hold a third for
// nothing, and through realloc, which moves pages of large blocks instead of copying them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace regear {

template <class T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }

    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    std::size_t size() const { return size_; }
    std::size_t bytes() const { return room_ * sizeof(T); }
    T* data() { return data_; }
    const T* data() const { return data_; }

    std::uint32_t push(const T& value) {
        if (size_ == room_) {
            const T kept = value;  // it may lie in the block that moves
            reserve(grown(room_));
            data_[size_] = kept;
        } else {
            data_[size_] = value;
        }
        return static_cast<std::uint32_t>(size_++);
    }

    void assign(std::size_t count, const T& value) {
        resize(count);
        for (std::size_t i = 0; i < count; ++i) data_[i] = value;
    }

    // New values are not set.
    void resize(std::size_t count) {
        if (count > room_) reserve(count);
        size_ = count;
    }

    // As many values as if each had been pushed, not set: the bytes are those of the buffer that was saved.
    void resize_as_pushed(std::size_t count) {
        std::size_t room = room_;
        while (room < count) room = grown(room);
        if (room > room_) reserve(room);
        size_ = count;
    }

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(room_, other.room_);
    }

private:
    static std::size_t grown(std::size_t room) { return room + room / 8 + 16; }

    void reserve(std::size_t room) {
        void* moved = std::realloc(static_cast<void*>(data_), room * sizeof(T));
        if (!moved) throw std::bad_alloc();
        data_ = static_cast<T*>(moved);
        room_ = room;
    }

    T* data_ = nullptr;
    std::size_t size_ = 0, room_ = 0;
};

}  // namespace regear
