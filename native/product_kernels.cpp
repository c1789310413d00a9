// The code of product.hpp for one instruction set: built once for each, with REGEAR_ISA as its name.
#include "product.hpp"
#include "vectors.hpp"

namespace regear {
namespace {

// Rows that are multiplied at once: as many as there are registers for their sums, two vectors each.
#if defined(__AVX512F__)
constexpr int kMost = 14;
#else
constexpr int kMost = 6;
#endif
constexpr int kAhead = 8192;  // bytes of the weight that are asked for before they are needed, where rows are one group
constexpr int kFew = 4;       // rows up to which the processor's own foresight does better
constexpr std::int64_t kDeep = 1024;  // inputs whose part of a block stays in the cache for all groups of rows

template <class T>
constexpr int kBlock = 2 * kLanes<T>;

// Rows in groups of nearly equal size.
struct Groups {
    std::int64_t rows, count;
    explicit Groups(std::int64_t rows) : rows(rows), count((rows + kMost - 1) / kMost) {}
    std::int64_t begin(std::int64_t group) const { return rows * group / count; }
    int size(std::int64_t group) const { return static_cast<int>(begin(group + 1) - begin(group)); }
};

template <class T>
void lay(const T* weight, T* laid, std::int64_t inputs, std::int64_t outputs) {
    constexpr int B = kBlock<T>;
    for (std::int64_t first = 0; first < outputs; first += B)
        for (std::int64_t i = 0; i < inputs; ++i)
            for (int o = 0; o < B; ++o) *laid++ = first + o < outputs ? weight[(first + o) * inputs + i] : T{};
}

template <class T>
void turn(const T* x, T* turned, std::int64_t rows, std::int64_t inputs) {
    const Groups groups(rows);
    for (std::int64_t g = 0; g < groups.count; ++g) {
        const std::int64_t begin = groups.begin(g), size = groups.size(g);
        T* to = turned + begin * inputs;
        for (std::int64_t i = 0; i < inputs; ++i)
            for (std::int64_t m = 0; m < size; ++m) *to++ = x[(begin + m) * inputs + i];
    }
}

// What is asked for beside the work: `step` bytes an input, from `at` on.
struct Ahead {
    const char* at;
    std::int64_t step;
};

// y [M, B] (+)= the product of turned rows [inputs, M] and weights [inputs, B]. Not inline: of many in one function the
// compiler keeps no sums in registers.
template <class T, int M, bool Asks>
__attribute__((noinline)) void tile(const T* weight, const T* turned, T* y, std::int64_t stride, std::int64_t inputs,
                                    bool more, Ahead ahead) {
    constexpr int L = kLanes<T>, B = kBlock<T>;
    Vec<T> low[M], high[M];
    for (int m = 0; m < M; ++m) {
        low[m] = more ? load(y + m * stride) : Vec<T>{};
        high[m] = more ? load(y + m * stride + L) : Vec<T>{};
    }
    for (std::int64_t i = 0; i < inputs; ++i, weight += B, turned += M) {
        if constexpr (Asks) {
            for (int line = 0; line < 2 * kBytes; line += 64) __builtin_prefetch(ahead.at + line, 0, 2);
            ahead.at += ahead.step;
        }
        const Vec<T> first = load(weight), second = load(weight + L);
        for (int m = 0; m < M; ++m) {
            low[m] += first * turned[m];
            high[m] += second * turned[m];
        }
    }
    for (int m = 0; m < M; ++m) {
        save(y + m * stride, low[m]);
        save(y + m * stride + L, high[m]);
    }
}

template <class T, int M = kMost>
ALWAYS void tiles(int rows, bool asks, const T* weight, const T* turned, T* y, std::int64_t stride,
                  std::int64_t inputs, bool more, Ahead ahead) {
    if (rows < M) {
        if constexpr (M > 1) tiles<T, M - 1>(rows, asks, weight, turned, y, stride, inputs, more, ahead);
        return;
    }
    if (asks) return tile<T, M, true>(weight, turned, y, stride, inputs, more, ahead);
    tile<T, M, false>(weight, turned, y, stride, inputs, more, ahead);
}

template <class T>
void multiply(const T* laid, const T* turned, T* found, T* scratch, std::int64_t rows, std::int64_t inputs,
              std::int64_t outputs, std::int64_t from, std::int64_t to) {
    if (rows == 0) return;
    constexpr int B = kBlock<T>;
    const Groups groups(rows);
    const std::int64_t parts = (inputs + kDeep - 1) / kDeep, most = (inputs + parts - 1) / parts;
    // The first group would wait for memory and the others leave it idle: each asks for a share of the next part.
    const bool asks = groups.count > 1 || rows > kFew;
    const std::int64_t step = 2 * kBytes / groups.count;
    for (std::int64_t block = from; block < to; ++block) {
        const bool whole = (block + 1) * B <= outputs;
        T* place = whole ? found + block * B : scratch;
        const std::int64_t stride = whole ? outputs : B;
        for (std::int64_t i = 0; i < inputs; i += most) {
            const std::int64_t deep = inputs - i < most ? inputs - i : most;
            const T* weight = laid + (block * inputs + i) * B;
            const char* next = reinterpret_cast<const char*>(weight) + (groups.count > 1 ? deep * 2 * kBytes : kAhead);
            for (std::int64_t g = 0; g < groups.count; ++g) {
                const std::int64_t begin = groups.begin(g), size = groups.size(g);
                tiles<T>(static_cast<int>(size), asks, weight, turned + begin * inputs + i * size,
                         place + begin * stride, stride, deep, i > 0, Ahead{next + g * deep * step, step});
            }
        }
        if (whole) continue;
        for (std::int64_t m = 0; m < rows; ++m)
            for (std::int64_t o = block * B; o < outputs; ++o) found[m * outputs + o] = scratch[m * B + o - block * B];
    }
}

}  // namespace

extern const Products<float> REGEAR_JOIN(kProductsFloat, REGEAR_ISA);
extern const Products<double> REGEAR_JOIN(kProductsDouble, REGEAR_ISA);
const Products<float> REGEAR_JOIN(kProductsFloat, REGEAR_ISA){kBlock<float>, lay<float>, turn<float>, multiply<float>};
const Products<double> REGEAR_JOIN(kProductsDouble, REGEAR_ISA){kBlock<double>, lay<double>, turn<double>,
                                                                multiply<double>};

}  // namespace regear
