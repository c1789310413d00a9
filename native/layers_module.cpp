// Layers as Python sees them: addresses in, since a layer makes four calls of a few microseconds, and taking a tensor
// apart costs as much as the call. Who calls must hold what the addresses point to: contiguous, of the right type.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "layers.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = std::uintptr_t;
using Counts = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Other threads of the interpreter may run meanwhile, where it is long enough for the switch to pay.
template <class F>
void run(bool release, F&& f) {
    if (!release) return f();
    nb::gil_scoped_release released;
    f();
}

constexpr std::int64_t kLong = 1 << 16;

template <class T>
void bind(nb::module_& module, const char* name) {
    using Layers = regear::Layers<T>;
    nb::class_<Layers>(module, name, "The layers of a decoder but for their products, over rows of a cache.")
        .def(
            "__init__",
            [](Layers* self, std::int64_t query, std::int64_t key, std::int64_t width, double scale, double eps,
               int sets) { new (self) Layers({query, key, width}, scale, eps, sets); },
            "query_heads"_a, "key_heads"_a, "width"_a, "scale"_a, "eps"_a, "sets"_a = 2,
            "Of the instruction sets 0 (base), 1 (AVX2) and 2 (AVX-512), the widest up to `sets` that is there.")
        .def(
            "begin",
            [](Layers& self, std::int64_t first, Counts starts, Counts counts, std::int64_t slots, int threads,
               Address cos, Address sin) {
                if (starts.size() != counts.size()) throw nb::value_error("as many starts as counts");
                self.begin(first, static_cast<std::int64_t>(starts.size()), starts.data(), counts.data(), slots,
                           threads, at<const T>(cos), at<const T>(sin));
            },
            "first"_a, "starts"_a, "counts"_a, "slots"_a, "threads"_a, "cos"_a, "sin"_a,
            "The pass that follows: row first + i has read starts[i] tokens, and reads counts[i] more.")
        .def(
            "norm",
            [](const Layers& self, Address x, Address weight, Address found, std::int64_t width) {
                run(self.tokens() * width > kLong,
                    [&] { self.norm(at<const T>(x), at<const T>(weight), at<T>(found), width); });
            },
            "x"_a, "weight"_a, "found"_a, "width"_a)
        .def(
            "add_norm",
            [](const Layers& self, Address x, Address y, Address weight, Address found, std::int64_t width) {
                run(self.tokens() * width > kLong,
                    [&] { self.add_norm(at<T>(x), at<const T>(y), at<const T>(weight), at<T>(found), width); });
            },
            "x"_a, "y"_a, "weight"_a, "found"_a, "width"_a, "x += y; found is the norm of that.")
        .def(
            "norm_add",
            [](const Layers& self, Address x, Address y, Address weight, std::int64_t width) {
                run(self.tokens() * width > kLong,
                    [&] { self.norm_add(at<T>(x), at<T>(y), at<const T>(weight), width); });
            },
            "x"_a, "y"_a, "weight"_a, "width"_a, "x += norm(y), which is overwritten.")
        .def(
            "norm_heads",
            [](const Layers& self, Address qkv, Address weight, std::int64_t first, std::int64_t heads, bool alone) {
                self.norm_heads(at<T>(qkv), at<const T>(weight), first, heads, alone);
            },
            "qkv"_a, "weight"_a, "first"_a, "heads"_a, "alone"_a)
        .def(
            "gate",
            [](const Layers& self, Address both, Address found, std::int64_t width) {
                run(self.tokens() * width > kLong, [&] { self.gate(at<const T>(both), at<T>(found), width); });
            },
            "both"_a, "found"_a, "width"_a, "silu(gate) · up.")
        .def(
            "attend",
            [](const Layers& self, Address qkv, Address keys, Address values, Address found) {
                run(true, [&] { self.attend(at<T>(qkv), at<T>(keys), at<T>(values), at<T>(found)); });
            },
            "qkv"_a, "keys"_a, "values"_a, "found"_a, "Turns queries and keys in place, keeps keys and values, attends.");
}

}  // namespace

void bind_layers(nb::module_& module) {
    bind<float>(module, "Layers32");
    bind<double>(module, "Layers64");
}
