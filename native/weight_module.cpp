// Weights as Python sees them: addresses in, as in layers_module.cpp.
#include <nanobind/nanobind.h>

#include "weight.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = std::uintptr_t;

template <class T>
void bind(nb::module_& module, const char* name) {
    using Weight = regear::Weight<T>;
    nb::class_<Weight>(module, name, "A weight [O, I], once more in the layout that products with few rows read fastest.")
        .def(
            "__init__",
            [](Weight* self, Address weight, std::int64_t outputs, std::int64_t inputs, int sets) {
                static regear::Arena arena;
                new (self) Weight(arena, reinterpret_cast<const T*>(weight), outputs, inputs, sets);
            },
            "weight"_a, "outputs"_a, "inputs"_a, "sets"_a = 2,
            "Of the instruction sets 0 (base), 1 (AVX2) and 2 (AVX-512), the widest up to `sets` that is there.")
        .def_prop_ro("outputs", &Weight::outputs)
        .def_prop_ro("inputs", &Weight::inputs)
        .def(
            "multiply",
            [](const Weight& self, Address x, Address found, std::int64_t rows, int threads) {
                nb::gil_scoped_release released;
                self.multiply(reinterpret_cast<const T*>(x), reinterpret_cast<T*>(found), rows, threads);
            },
            "x"_a, "found"_a, "rows"_a, "threads"_a, "found [rows, O] = x [rows, I] Wᵀ.");
}

}  // namespace

void bind_weights(nb::module_& module) {
    bind<float>(module, "Weight32");
    bind<double>(module, "Weight64");
}
