// The index as Python sees it: numpy arrays in and out, the interpreter released while it works.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>

#include <mutex>
#include <optional>

#include "index.hpp"
#include "likeliest.hpp"
#include "sample.hpp"

namespace nb = nanobind;

void bind_layers(nb::module_& module);
void bind_weights(nb::module_& module);
using namespace nb::literals;

namespace {

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> given(std::vector<T>&& values) {
    auto* held = new std::vector<T>(std::move(values));
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(held->data(), {held->size()}, owner);
}

void same(std::size_t found, std::size_t wanted) {
    if (found != wanted) throw nb::value_error("arrays of different lengths; wanted one value for each text");
}

// One call at a time: the interpreter's own lock is released while the index works.
class Guarded {
public:
    explicit Guarded(std::unique_ptr<regear::Index>&& index) : index_(std::move(index)) {}

    template <class F>
    auto with(F&& f) {
        nb::gil_scoped_release release;
        std::lock_guard<std::mutex> lock(mutex_);
        return f(*index_);
    }

    void share(Guarded& from) {
        nb::gil_scoped_release release;
        std::scoped_lock lock(mutex_, from.mutex_);  // both at once: another thread may share the other way
        index_->share(*from.index_);
    }

private:
    std::unique_ptr<regear::Index> index_;
    std::mutex mutex_;
};

std::string_view view(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

auto propose(Guarded& self, Array<std::int64_t> numbers, Array<std::int64_t> most, Array<double> least) {
    same(most.size(), numbers.size());
    same(least.size(), numbers.size());
    std::vector<std::int64_t> offsets(numbers.size() + 1);
    std::vector<std::int32_t> tokens;
    std::vector<float> chances;
    self.with([&](regear::Index& index) {
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            const std::int64_t count = most.data()[i];
            offsets[i + 1] = offsets[i] + static_cast<std::int64_t>(
                index.propose(numbers.data()[i], count > 0 ? count : 0, least.data()[i], tokens, chances));
        }
    });
    return nb::make_tuple(given(std::move(offsets)), given(std::move(tokens)), given(std::move(chances)));
}

constexpr std::size_t kWords = sizeof(regear::Thought) / sizeof(std::uint32_t);
using Thoughts = std::optional<nb::ndarray<const std::uint32_t, nb::shape<-1, kWords>, nb::c_contig, nb::device::cpu>>;

// One for each token, or null.
const regear::Thought* told(const Thoughts& thoughts, std::size_t tokens) {
    if (!thoughts) return nullptr;
    same(thoughts->shape(0), tokens);
    return reinterpret_cast<const regear::Thought*>(thoughts->data());
}

void extend_many(Guarded& self, Array<std::int64_t> numbers, Array<std::int64_t> offsets, Array<std::int32_t> tokens,
                 const Thoughts& thoughts) {
    same(offsets.size(), numbers.size() + 1);
    const regear::Thought* all = told(thoughts, tokens.size());
    const std::int64_t* at = offsets.data();
    bool ordered = at[0] >= 0 && at[numbers.size()] <= static_cast<std::int64_t>(tokens.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) ordered = ordered && at[i] <= at[i + 1];
    if (!ordered) throw nb::value_error("offsets that do not rise from 0 to the number of tokens");
    self.with([&](regear::Index& index) {
        for (std::size_t i = 0; i < numbers.size(); ++i)
            index.extend(numbers.data()[i], tokens.data() + at[i], static_cast<std::size_t>(at[i + 1] - at[i]),
                         all ? all + at[i] : nullptr);
    });
}

void observe(Guarded& self, Array<std::int64_t> numbers, Array<std::int64_t> guessed, Array<std::int64_t> kept) {
    same(guessed.size(), numbers.size());
    same(kept.size(), numbers.size());
    self.with([&](regear::Index& index) {
        for (std::size_t i = 0; i < numbers.size(); ++i)
            if (guessed.data()[i] > 0 && kept.data()[i] >= 0)
                index.observe(numbers.data()[i], guessed.data()[i], kept.data()[i]);
    });
}

auto choose(nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> scores, Array<std::uint64_t> keys,
            Array<double> temperatures) {
    same(keys.size(), scores.shape(0));
    same(temperatures.size(), scores.shape(0));
    const auto width = static_cast<std::int64_t>(scores.shape(1));
    std::vector<std::int64_t> tokens(keys.size(), -1);
    {
        nb::gil_scoped_release release;
        for (std::size_t i = 0; i < tokens.size() && width; ++i)
            tokens[i] = regear::sample(scores.data() + static_cast<std::int64_t>(i) * width, width,
                                       regear::Noise(keys.data()[i]), temperatures.data()[i]);
    }
    return given(std::move(tokens));
}

auto likeliest(nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> scores) {
    constexpr std::size_t kMost = regear::Thought::kMost;
    const std::size_t rows = scores.shape(0);
    const auto width = static_cast<std::int64_t>(scores.shape(1));
    auto* held = new std::vector<std::uint32_t>(rows * kMost);
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<std::uint32_t>*>(p); });
    {
        nb::gil_scoped_release release;
        for (std::size_t i = 0; i < rows; ++i)
            regear::likeliest(scores.data() + static_cast<std::int64_t>(i) * width, width, held->data() + i * kMost);
    }
    return nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<2>>(held->data(), {rows, kMost}, owner);
}

}  // namespace

NB_MODULE(_native, module) {
    nb::set_leak_warnings(false);  // a script's models live to the end of the interpreter, and that is no fault
    bind_layers(module);
    bind_weights(module);
    module.doc() = "Past texts as suffix automata, and guesses from them.";
    module.def("choose", &choose, "scores"_a, "keys"_a, "temperatures"_a,
               "argmax(scores / temperature + Gumbel noise) of every row, [R]; -1 where scores are not finite.");
    module.def("likeliest", &likeliest, "scores"_a,
               "Of every row its three likeliest tokens, the likeliest first, [R, 3]: a token in 24 bits, and in 8 its "
               "probability p as -16 ln p; all bits set where scores are not finite.");
    nb::class_<Guarded>(module, "Index", "Texts in flight and past ones, by group and generation.")
        .def(
            "__init__",
            [](Guarded* self, std::uint32_t generations, double decay, std::uint64_t cap_bytes, bool shared,
               std::uint32_t levels, double discount) {
                const regear::Settings settings{generations, decay, cap_bytes, shared, levels, discount};
                if (!regear::sensible(settings))
                    throw nb::value_error(
                        "wanted generations from 1 to 1024, decay above 0 and at most 1, cap_bytes >= 1048576, "
                        "levels from 1 to 64, discount from 0 to below 1");
                new (self) Guarded(std::make_unique<regear::Index>(settings));
            },
            "generations"_a = 8, "decay"_a = 0.9, "cap_bytes"_a = 1ull << 30, "shared"_a = false, "levels"_a = 2,
            "discount"_a = 0.5)
        .def(
            "start",
            [](Guarded& self, std::int64_t number, nb::bytes group, Array<std::int32_t> prompt,
               std::optional<std::uint64_t> seed, double temperature) {
                const std::string_view key = view(group);
                if (!(temperature > 0 && temperature < 1e6)) throw nb::value_error("wanted a temperature above 0");
                self.with([&](regear::Index& index) {
                    index.start(number, key, prompt.data(), prompt.size(), seed ? &*seed : nullptr, temperature);
                });
            },
            "number"_a, "group"_a, "prompt"_a, "seed"_a = nb::none(), "temperature"_a = 1.0,
            "A text in flight; `seed` is that of the noise it is drawn with, None where the best token is taken.")
        .def(
            "append",
            [](Guarded& self, std::int64_t number, std::int32_t token) {
                self.with([&](regear::Index& index) { index.extend(number, &token, 1); });
            },
            "number"_a, "token"_a, "A text's next token.")
        .def(
            "extend",
            [](Guarded& self, std::int64_t number, Array<std::int32_t> tokens, const Thoughts& thoughts) {
                const regear::Thought* all = told(thoughts, tokens.size());
                self.with([&](regear::Index& index) { index.extend(number, tokens.data(), tokens.size(), all); });
            },
            "number"_a, "tokens"_a, "thoughts"_a = nb::none(),
            "A text's next tokens; `thoughts` is what the model thought before each: three numbers as `likeliest` gives "
            "them, all bits set where nothing is known, and a sketch of 64 signs in two.")
        .def("extend_many", &extend_many, "numbers"_a, "offsets"_a, "tokens"_a, "thoughts"_a = nb::none(),
             "The next tokens of many texts: those of text i are tokens[offsets[i]:offsets[i + 1]].")
        .def("propose", &propose, "numbers"_a, "most"_a, "least"_a,
             "(offsets [N + 1], tokens, chances): at most most[i] tokens for a text, none of a chance below least[i].")
        .def("observe", &observe, "numbers"_a, "guessed"_a, "kept"_a, "How many of the last guesses stood.")
        .def(
            "finish",
            [](Guarded& self, std::int64_t number) { self.with([&](regear::Index& index) { index.finish(number); }); },
            "number"_a, "A text has ended; what it wrote stays.")
        .def(
            "learn",
            [](Guarded& self, nb::bytes group, Array<std::int32_t> prompt, Array<std::int32_t> tokens,
               const Thoughts& thoughts) {
                const std::string_view key = view(group);
                const regear::Thought* all = told(thoughts, tokens.size());
                self.with([&](regear::Index& index) {
                    index.learn(key, prompt.data(), prompt.size(), tokens.data(), tokens.size(), all);
                });
            },
            "group"_a, "prompt"_a, "tokens"_a, "thoughts"_a = nb::none(), "A text that has ended.")
        .def(
            "advance", [](Guarded& self) { self.with([](regear::Index& index) { index.advance(); }); },
            "A new epoch: texts that start from now on write into new generations.")
        .def(
            "matched",
            [](Guarded& self, std::int64_t number) {
                return self.with([&](regear::Index& index) { return index.matched(number); });
            },
            "number"_a, "Tokens at the end of a text that stand elsewhere, with something after them.")
        .def(
            "clear", [](Guarded& self) { self.with([](regear::Index& index) { index.clear(); }); },
            "Forget all texts; what was observed stays.")
        .def(
            "share",
            [](Guarded& self, Guarded& from) {
                if (&self == &from) throw nb::value_error("an index cannot share with itself");
                self.share(from);
            },
            "other"_a,
            "Read what `other` holds instead of one's own, without a copy of it: texts write into new generations, here "
            "and, as long as both are there, in `other`.")
        .def(
            "save",
            [](Guarded& self) {
                const std::string bytes = self.with([](regear::Index& index) { return index.save(); });
                return nb::bytes(bytes.data(), bytes.size());
            },
            "Everything but the texts in flight.")
        .def_static(
            "load",
            [](nb::bytes bytes) {
                const std::string_view body = view(bytes);
                std::unique_ptr<regear::Index> index;
                {
                    nb::gil_scoped_release release;
                    index = regear::Index::load(body);
                }
                if (!index) throw nb::value_error("the snapshot is damaged, or is none");
                return std::make_unique<Guarded>(std::move(index));
            },
            "bytes"_a, "An index as it was saved.")
        .def_prop_ro("bytes",
                     [](Guarded& self) { return self.with([](regear::Index& index) { return index.bytes(); }); })
        .def_prop_ro("tokens",
                     [](Guarded& self) { return self.with([](regear::Index& index) { return index.tokens(); }); })
        .def_prop_ro("groups",
                     [](Guarded& self) { return self.with([](regear::Index& index) { return index.groups(); }); });
}
