// The code of rows.hpp for one instruction set: built once for each, with REGEAR_ISA as its name.
#include <utility>  // types alone

#include "rows.hpp"
#include "vectors.hpp"

namespace regear {
namespace {

#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int kQueries = 2, kKeys = 4;
#else
constexpr int kQueries = 4, kKeys = 4;
#endif
constexpr int kAhead = 16;  // slots
constexpr int kMost = 4;  // vectors of a head's width that are summed at once

// Always the same tree, so that a sum does not depend on what else is summed.
template <class T>
ALWAYS T total(Vec<T> x) {
    T part[kLanes<T>];
    save(part, x);
    for (int step = kLanes<T> / 2; step; step /= 2)
        for (int i = 0; i < step; ++i) part[i] += part[i + step];
    return part[0];
}

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
template <class T, int... I>
ALWAYS Vec<T> chosen(Vec<T> a, Vec<T> b) {
    return __builtin_shuffle(a, b, typename Wide<T>::bits{I...});
}
#else
template <class T, int... I>
ALWAYS Vec<T> chosen(Vec<T> a, Vec<T> b) {
    return __builtin_shufflevector(a, b, I...);
}
#endif

// Lanes without the bit `Step` hold a[i] + a[i + Step]; lanes with it hold b[i − Step] + b[i].
template <class T, int Step, int... I>
ALWAYS Vec<T> paired(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    return chosen<T, (I & Step ? kLanes<T> + (I ^ Step) : I)...>(a, b) +
           chosen<T, (I & Step ? kLanes<T> + I : (I ^ Step))...>(a, b);
}
template <class T, int Step>
ALWAYS void halve(Vec<T>* x) {
    for (int j = 0; j < Step; ++j) x[j] = paired<T, Step>(x[j], x[j + Step], std::make_integer_sequence<int, kLanes<T>>{});
    if constexpr (Step > 1) halve<T, Step / 2>(x);
}

// total() of as many vectors as one has lanes, by the same tree: x[0][i] of x[i].
template <class T>
ALWAYS Vec<T> totals(Vec<T>* x) {
    halve<T, kLanes<T> / 2>(x);
    return x[0];
}

// e^x to within 2 units in the last place, for x in [−87, 88]; 0 below.
ALWAYS Vec<float> exponential(Vec<float> x) {
    using Bits = Wide<float>::bits;
    const Vec<float> low = all(-87.0f), high = all(88.0f);
    const Vec<float> kept = x > low ? (x < high ? x : high) : low;
    const Vec<float> shift = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    const Vec<float> whole = (kept * 1.44269504f + shift) - shift;
    const Vec<float> r = (kept - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vec<float> p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Bits power = (__builtin_convertvector(whole, Bits) + 127) << 23;
    const Vec<float> found = p * reinterpret_cast<const Vec<float>&>(power);
    return x > low ? found : Vec<float>{};
}
ALWAYS Vec<double> exponential(Vec<double> x) {
    for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
    return x;
}
ALWAYS float root(float x) { return __builtin_sqrtf(x); }
ALWAYS double root(double x) { return __builtin_sqrt(x); }

template <class T>
void norm(const T* x, const T* weight, T* found, std::int64_t rows, std::int64_t width, double eps) {
    constexpr int L = kLanes<T>;
    const std::int64_t even = width / L * L;
    for (std::int64_t m = 0; m < rows; ++m, x += width, found += width) {
        Vec<T> sum{};
        for (std::int64_t d = 0; d < even; d += L) sum += load(x + d) * load(x + d);
        T squares = total<T>(sum);
        for (std::int64_t d = even; d < width; ++d) squares += x[d] * x[d];
        const T scale = 1 / root(squares / static_cast<T>(width) + static_cast<T>(eps));
        for (std::int64_t d = 0; d < even; d += L) save(found + d, load(x + d) * scale * load(weight + d));
        for (std::int64_t d = even; d < width; ++d) found[d] = x[d] * scale * weight[d];
    }
}

template <class T>
void add(T* x, const T* y, std::int64_t count) {
    constexpr int L = kLanes<T>;
    const std::int64_t even = count / L * L;
    for (std::int64_t i = 0; i < even; i += L) save(x + i, load(x + i) + load(y + i));
    for (std::int64_t i = even; i < count; ++i) x[i] += y[i];
}

template <class T>
ALWAYS Vec<T> silu(Vec<T> x) {
    return x / (exponential(-x) + static_cast<T>(1));
}

template <class T>
void gate(const T* both, T* found, std::int64_t rows, std::int64_t width) {
    constexpr int L = kLanes<T>;
    const std::int64_t even = width / L * L;
    for (std::int64_t m = 0; m < rows; ++m, both += 2 * width, found += width) {
        for (std::int64_t f = 0; f < even; f += L) save(found + f, silu<T>(load(both + f)) * load(both + width + f));
        for (std::int64_t f = even; f < width; ++f) found[f] = silu<T>(all(both[f]))[0] * both[width + f];
    }
}

template <class T>
void rotate(T* qkv, const T* cos, const T* sin, std::int64_t rows, Heads heads) {
    constexpr int L = kLanes<T>;
    const std::int64_t half = heads.width / 2, even = half / L * L;
    for (std::int64_t m = 0; m < rows; ++m, cos += heads.width, sin += heads.width) {
        T* low = qkv + m * (heads.query + 2 * heads.key) * heads.width;
        for (std::int64_t h = 0; h < heads.query + heads.key; ++h, low += heads.width) {
            T* high = low + half;
            for (std::int64_t d = 0; d < even; d += L) {
                const Vec<T> a = load(low + d), b = load(high + d);
                save(low + d, a * load(cos + d) - b * load(sin + d));
                save(high + d, b * load(cos + half + d) + a * load(sin + half + d));
            }
            for (std::int64_t d = even; d < half; ++d) {
                const T a = low[d], b = high[d];
                low[d] = a * cos[d] - b * sin[d];
                high[d] = b * cos[half + d] + a * sin[half + d];
            }
        }
    }
}

template <class T>
ALWAYS void copy(const T* from, T* to, std::int64_t count) {
    __builtin_memcpy(to, from, static_cast<unsigned long>(count) * sizeof(T));
}

template <class T>
void store(const T* qkv, const Rows& rows, Held<T> held, Heads heads, std::int64_t from, std::int64_t to) {
    const std::int64_t W = heads.width, G = heads.key, each = (heads.query + 2 * G) * W;
    for (std::int64_t i = from; i < to; ++i)
        for (std::int64_t m = rows.offsets[i]; m < rows.offsets[i + 1]; ++m) {
            const std::int64_t slot = rows.starts[i] + m - rows.offsets[i];
            const T* keys = qkv + m * each + heads.query * W;
            for (std::int64_t g = 0; g < G; ++g) {
                const std::int64_t place = (((rows.first + i) * G + g) * held.slots + slot) * W;
                copy(keys + g * W, held.keys + place, W);
                copy(keys + (G + g) * W, held.values + place, W);
            }
        }
}

// The first `count` of a vector, zeros behind: what is left of a row goes through the same operations as the rest, for
// the compiler fuses those of a plain loop in one place and not in another.
template <class T>
ALWAYS Vec<T> few(const T* at, std::int64_t count) {
    T part[kLanes<T>] = {};
    copy(at, part, count);
    return load(part);
}

// Scores of Q queries against K keys; each sum is the same whatever stands beside it.
template <class T, int Q, int K>
ALWAYS void scores(const T* query, const T* key, T* found, std::int64_t stride, std::int64_t width) {
    constexpr int L = kLanes<T>;
    constexpr int all = (Q * K + L - 1) / L * L;
    Vec<T> sum[all] = {};
    std::int64_t d = 0;
    for (; d + L <= width; d += L) {
        Vec<T> q[Q];
        for (int i = 0; i < Q; ++i) q[i] = load(query + i * width + d);
        for (int j = 0; j < K; ++j) {
            const Vec<T> k = load(key + j * width + d);
            for (int i = 0; i < Q; ++i) sum[i * K + j] += q[i] * k;
        }
    }
    if (d < width) {
        Vec<T> q[Q];
        for (int i = 0; i < Q; ++i) q[i] = few(query + i * width + d, width - d);
        for (int j = 0; j < K; ++j) {
            const Vec<T> k = few(key + j * width + d, width - d);
            for (int i = 0; i < Q; ++i) sum[i * K + j] += q[i] * k;
        }
    }
    T whole[all];
    if constexpr (K > 1)
        for (int first = 0; first < all; first += L) save(whole + first, totals<T>(sum + first));
    else
        for (int i = 0; i < Q; ++i) whole[i] = total<T>(sum[i]);
    for (int i = 0; i < Q; ++i)
        for (int j = 0; j < K; ++j) found[i * stride + j] = whole[i * K + j];
}

// weights · values of Q queries, V vectors of the width, slot after slot; of the last vector only `some` are there.
template <class T, int Q, int V>
ALWAYS void weigh(const T* weights, std::int64_t stride, const T* values, std::int64_t slots, std::int64_t width,
                  T* const* found, std::int64_t some = kLanes<T>) {
    constexpr int L = kLanes<T>;
    Vec<T> sum[Q][V] = {};
    for (std::int64_t t = 0; t < slots; ++t, values += width) {
        Vec<T> value[V];
        for (int v = 0; v < V; ++v) value[v] = some < L ? few(values + v * L, some) : load(values + v * L);
        for (int i = 0; i < Q; ++i)
            for (int v = 0; v < V; ++v) sum[i][v] += value[v] * weights[i * stride + t];
    }
    for (int i = 0; i < Q; ++i)
        for (int v = 0; v < V; ++v) {
            if (some < L)
                copy(reinterpret_cast<const T*>(&sum[i][v]), found[i] + v * L, some);
            else
                save(found[i] + v * L, sum[i][v]);
        }
}

template <class T, int Q>
ALWAYS void weigh_all(const T* weights, std::int64_t stride, const T* values, std::int64_t slots, std::int64_t width,
                      T* const* found) {
    constexpr int L = kLanes<T>;
    std::int64_t d = 0;
    T* at[Q];
    const auto shift = [&] {
        for (int i = 0; i < Q; ++i) at[i] = found[i] + d;
        return at;
    };
    for (; d + kMost * L <= width; d += kMost * L) weigh<T, Q, kMost>(weights, stride, values + d, slots, width, shift());
    for (; d + L <= width; d += L) weigh<T, Q, 1>(weights, stride, values + d, slots, width, shift());
    if (d < width) weigh<T, Q, 1>(weights, stride, values + d, slots, width, shift(), width - d);
}

// Softmax of scores [slots] in place, times `scale` before; returns what to divide by.
template <class T>
ALWAYS T soften(T* scores, std::int64_t slots, T scale) {
    constexpr int L = kLanes<T>;
    const std::int64_t even = (slots + L - 1) / L * L;
    for (std::int64_t t = slots; t < even; ++t) scores[t] = -__builtin_inff();
    Vec<T> most = load(scores);
    for (std::int64_t t = L; t < even; t += L) {
        const Vec<T> x = load(scores + t);
        most = x > most ? x : most;
    }
    T top = most[0];
    for (int i = 1; i < L; ++i) top = most[i] > top ? most[i] : top;
    Vec<T> sum{};
    for (std::int64_t t = 0; t < even; t += L) {
        const Vec<T> x = exponential((load(scores + t) - top) * scale);
        save(scores + t, x);
        sum += x;
    }
    return total<T>(sum);
}

// Q queries over the same keys, of which query i reads the first reach[i]. Where nothing of these is in a cache yet
// (`cold`), keys and values are asked for in time.
template <class T, int Q>
ALWAYS void tile(const T* query, const std::int64_t* reach, const T* keys, const T* values, std::int64_t width, T scale,
                 T* weights, std::int64_t stride, T* const* found, bool cold) {
    std::int64_t slots = 0;
    for (int i = 0; i < Q; ++i) slots = reach[i] > slots ? reach[i] : slots;
    std::int64_t t = 0;
    for (; t + kKeys <= slots; t += kKeys) {
        if (cold)
            for (std::int64_t d = 0; d < kKeys * width; d += 64 / static_cast<int>(sizeof(T))) {
                __builtin_prefetch(keys + (t + kAhead) * width + d);
                __builtin_prefetch(values + t * width + d);
            }
        scores<T, Q, kKeys>(query, keys + t * width, weights + t, stride, width);
    }
    for (; t < slots; ++t) scores<T, Q, 1>(query, keys + t * width, weights + t, stride, width);
    T sums[Q];
    for (int i = 0; i < Q; ++i) {
        sums[i] = soften(weights + i * stride, reach[i], scale);
        for (std::int64_t s = reach[i]; s < slots; ++s) weights[i * stride + s] = 0;
    }
    weigh_all<T, Q>(weights, stride, values, slots, width, found);
    for (int i = 0; i < Q; ++i)
        for (std::int64_t d = 0; d < width; ++d) found[i][d] /= sums[i];
}

template <class T>
void attend(const T* qkv, const Rows& rows, Held<T> held, Heads heads, double scale, T* found, T* scratch,
            std::int64_t from, std::int64_t to) {
    const std::int64_t W = heads.width, G = heads.key, share = heads.query / G, each = (heads.query + 2 * G) * W;
    for (std::int64_t pair = from; pair < to; ++pair) {
        const std::int64_t i = pair / G, g = pair % G;
        const std::int64_t start = rows.starts[i], begin = rows.offsets[i], news = rows.offsets[i + 1] - begin;
        const T* keys = held.keys + ((rows.first + i) * G + g) * held.slots * W;
        const T* values = held.values + ((rows.first + i) * G + g) * held.slots * W;
        const std::int64_t stride = (start + news + 31) / 16 * 16;
        T* queries = scratch + kQueries * stride;
        for (std::int64_t next = 0; next < news * share;) {  // queries: a token's heads, then the next token's
            const std::int64_t left = news * share - next;
            const int count = left < kQueries ? static_cast<int>(left) : kQueries;
            std::int64_t reach[kQueries];
            T* places[kQueries];
            for (int q = 0; q < count; ++q) {
                const std::int64_t token = (next + q) / share, head = g * share + (next + q) % share;
                copy(qkv + (begin + token) * each + head * W, queries + q * W, W);
                places[q] = found + ((begin + token) * heads.query + head) * W;
                reach[q] = start + token + 1;
            }
            const T s = static_cast<T>(scale);
            switch (count) {
                case 1: tile<T, 1>(queries, reach, keys, values, W, s, scratch, stride, places, !next); break;
                case 2: tile<T, 2>(queries, reach, keys, values, W, s, scratch, stride, places, !next); break;
#if !defined(__AVX__) || defined(__AVX512F__)
                case 3: tile<T, 3>(queries, reach, keys, values, W, s, scratch, stride, places, !next); break;
                default: tile<T, 4>(queries, reach, keys, values, W, s, scratch, stride, places, !next); break;
#endif
            }
            next += count;
        }
    }
}

}  // namespace

extern const Kernels<float> REGEAR_JOIN(kFloat, REGEAR_ISA);
extern const Kernels<double> REGEAR_JOIN(kDouble, REGEAR_ISA);
const Kernels<float> REGEAR_JOIN(kFloat, REGEAR_ISA){norm<float>,   add<float>,   gate<float>,
                                                     rotate<float>, store<float>, attend<float>};
const Kernels<double> REGEAR_JOIN(kDouble, REGEAR_ISA){norm<double>,   add<double>,   gate<double>,
                                                       rotate<double>, store<double>, attend<double>};

}  // namespace regear
