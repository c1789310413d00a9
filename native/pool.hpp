// Threads that wait for work which is over in microseconds.
//
// A decoder's pass is a few hundred pieces of work one after the other. Starting a thread for each takes as long as the
// piece, so these stay, look out for the next piece for a moment, and sleep when none comes.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace regear {

class Pool {
public:
    // f(0) to f(parts - 1), each once, f(0) here; returns when all are done. Where others already wait for their parts,
    // all are done here, one after the other.
    template <class F>
    static void run(int parts, F&& f) {
        parts = std::min(parts, kMost);
        if (parts > 1) {
            Pool& pool = here();
            std::unique_lock<std::mutex> alone(pool.one_, std::try_to_lock);
            if (alone.owns_lock()) return pool.share(parts, f);
        }
        for (int i = 0; i < parts; ++i) f(i);
    }

private:
    static constexpr int kMost = 256;
    static constexpr std::chrono::microseconds kPatience{100};

    // That of this process: a fork has none of its parent's threads. Never taken down, as threads may still wait in it.
    static Pool& here() {
#if defined(__unix__) || defined(__APPLE__)
        static std::atomic<Pool*> held{nullptr};
        static std::atomic<long> owner{0};
        static std::mutex making;
        const long me = getpid();
        if (owner.load(std::memory_order_acquire) != me) {
            const std::lock_guard<std::mutex> lock(making);
            if (owner.load(std::memory_order_relaxed) != me) {
                held.store(new Pool, std::memory_order_relaxed);
                owner.store(me, std::memory_order_release);
            }
        }
        return *held.load(std::memory_order_relaxed);
#else
        static Pool* const held = new Pool;
        return *held;
#endif
    }

    template <class F>
    void share(int parts, F& f) {
        for (; threads_ < parts - 1; ++threads_) {
            const int number = threads_ + 1;
            const std::uint64_t seen = call_.load(std::memory_order_relaxed);
            std::thread([this, number, seen] { serve(number, seen); }).detach();
        }
        work_ = [](void* what, int part) { (*static_cast<F*>(what))(part); };
        what_ = &f;
        left_.store(parts - 1, std::memory_order_relaxed);
        const std::uint64_t number = (call_.load(std::memory_order_relaxed) >> 16) + 1;
        {
            const std::lock_guard<std::mutex> lock(sleep_);
            call_.store(number << 16 | static_cast<std::uint64_t>(parts), std::memory_order_release);
        }
        if (sleepers_.load()) wake_.notify_all();
        f(0);
        for (int looks = 0; left_.load(std::memory_order_acquire); ++looks)
            if (looks > 1000) std::this_thread::yield();  // they may share a core with this one
    }

    // The number of a call and how many parts it has are one value, so that a thread that has none in it looks at
    // nothing else of it.
    void serve(int part, std::uint64_t seen) {
        for (;;) {
            std::uint64_t call = call_.load(std::memory_order_acquire);
            if (call == seen) call = next(seen);
            seen = call;
            if (part >= static_cast<int>(call & 0xffff)) continue;
            work_(what_, part);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::uint64_t next(std::uint64_t seen) {
        const auto until = std::chrono::steady_clock::now() + kPatience;
        do {
            for (int looks = 0; looks < 64; ++looks)
                if (const std::uint64_t call = call_.load(std::memory_order_acquire); call != seen) return call;
            std::this_thread::yield();
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return call_.load(std::memory_order_relaxed) != seen; });
        sleepers_.fetch_sub(1);
        return call_.load(std::memory_order_acquire);
    }

    std::mutex one_, sleep_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> call_{0};
    std::atomic<int> left_{0}, sleepers_{0};
    int threads_ = 0;
    void (*work_)(void*, int) = nullptr;
    void* what_ = nullptr;
};

constexpr double kWorth = 4e5;  // multiplications that are worth a thread

// f(from, to) over [0, pieces) of `work` multiplications in all.
template <class F>
void spread(int threads, std::int64_t pieces, double work, F&& f) {
    const auto parts = static_cast<int>(
        std::max<std::int64_t>(1, std::min<std::int64_t>({threads, pieces, static_cast<std::int64_t>(work / kWorth)})));
    Pool::run(parts, [&](int i) { f(pieces * i / parts, pieces * (i + 1) / parts); });
}

}  // namespace regear
