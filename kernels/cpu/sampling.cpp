// The choice of the next token.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace longview::kernels::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

[[noreturn]] void refuse_logit(std::int64_t id, float value) {
    throw Error(Category::kDevice,
                "the model's scores are broken: the score of token " + std::to_string(id) + " is " +
                    std::to_string(value) +
                    "; the weights are damaged or the device computed wrongly, so check the model "
                    "files and try again",
                {{"token", std::to_string(id)}, {"value", std::to_string(value)}});
}

void check(const SampleParams& p) {
    LONGVIEW_CHECK(p.vocab > 0 && p.vocab <= std::numeric_limits<std::int32_t>::max(),
                   "there is something to choose from");
    LONGVIEW_CHECK(p.temperature >= 0.0F, "the temperature is not negative");
    LONGVIEW_CHECK(p.top_k >= 0 && p.top_p >= 0.0F && p.min_p >= 0.0F && p.min_p <= 1.0F,
                   "top_k and top_p are not negative, min_p lies between 0 and 1");
    LONGVIEW_CHECK(p.repetition_penalty > 0.0F, "the repetition penalty is positive");
    LONGVIEW_CHECK(std::isfinite(p.presence_penalty) && std::isfinite(p.frequency_penalty),
                   "penalties are numbers");
}

/// values = logits, with -inf for ids that may not come.
void copy_allowed(const SampleParams& p, float* values) {
    constexpr float kLargest = std::numeric_limits<float>::max();
    bool broken = false;
    for (std::int64_t i = 0; i < p.vocab; ++i) {
        const bool allowed = p.suppressed == nullptr || p.suppressed[i] == 0;
        values[i] = allowed ? p.logits[i] : kNever;
        broken |= !(values[i] <= kLargest);  // NaN or +inf
    }
    if (!broken) return;
    const float* const at =
        std::find_if(values, values + p.vocab, [](float v) { return !(v <= kLargest); });
    refuse_logit(at - values, *at);
}

/// Penalties for ids of the history; `counts` holds vocab integers.
void penalise(const SampleParams& p, float* values, std::int32_t* counts) {
    const bool wanted =
        p.repetition_penalty != 1.0F || p.presence_penalty != 0.0F || p.frequency_penalty != 0.0F;
    if (!wanted || p.history_length <= 0) return;
    std::fill(counts, counts + p.vocab, 0);
    for (std::int64_t i = 0; i < p.history_length; ++i) {
        LONGVIEW_CHECK(p.history[i] >= 0 && p.history[i] < p.vocab,
                       "ids of the history are in the vocabulary");
        ++counts[p.history[i]];
    }
    for (std::int64_t i = 0; i < p.history_length; ++i) {
        const std::int32_t id = p.history[i];
        if (counts[id] == 0) continue;  // done
        float& value = values[id];
        value = value < 0.0F ? value * p.repetition_penalty : value / p.repetition_penalty;
        value -= p.presence_penalty + p.frequency_penalty * static_cast<float>(counts[id]);
        counts[id] = 0;
    }
}

/// The id of the largest value, the lowest one among equals.
std::int32_t largest_of(const float* values, std::int64_t count) {
    std::int64_t best = 0;
    for (std::int64_t i = 1; i < count; ++i)
        if (values[i] > values[best]) best = i;
    if (values[best] == kNever) {
        throw Error(Category::kBug, "internal error: no token may be chosen, all " +
                                        std::to_string(count) + " are suppressed");
    }
    if (!std::isfinite(values[best])) refuse_logit(best, values[best]);
    return static_cast<std::int32_t>(best);
}

/// Ids by value, largest first and the lower id among equals; sorted only as far as asked for.
class Ranking {
  public:
    Ranking(const float* values, std::int64_t count, std::int32_t* ids)
        : values_(values), ids_(ids), end_(ids) {
        for (std::int64_t i = 0; i < count; ++i)
            if (values[i] > kNever) *end_++ = static_cast<std::int32_t>(i);
    }

    std::int64_t size() const { return end_ - ids_; }
    const std::int32_t* ids() const { return ids_; }

    /// Makes the first `count` ids right.
    void sort_first(std::int64_t count) {
        const auto before = [v = values_](std::int32_t a, std::int32_t b) {
            return v[a] != v[b] ? v[a] > v[b] : a < b;
        };
        constexpr std::int64_t kHeap = 1024;  // below, a heap of the best needs hardly any moves
        std::int32_t* const from = ids_ + sorted_;
        std::int32_t* const to = ids_ + std::min(count, size());
        if (to <= from) return;
        if (to - from <= kHeap) {
            std::partial_sort(from, to, end_, before);
        } else {
            if (to != end_) std::nth_element(from, to, end_, before);
            std::sort(from, to, before);
        }
        sorted_ = to - ids_;
    }

    std::int32_t operator[](std::int64_t rank) {
        if (rank >= sorted_) sort_first(std::max<std::int64_t>(64, 8 * rank));
        return ids_[rank];
    }

  private:
    const float* values_;
    std::int32_t* ids_;
    std::int32_t* end_;
    std::int64_t sorted_ = 0;
};

/// Filters and draw for one distribution: exp((values - largest) / temperature).
class Draw {
  public:
    Draw(const SampleParams& p, const float* values, float largest, float* weights,
         std::int32_t* ids)
        : p_(p), values_(values), weights_(weights), ids_(ids) {
        exp_row(values, largest, 1.0F / p.temperature, p.vocab, weights);
    }

    std::int32_t next() {
        const bool top_k = p_.top_k > 0 && p_.top_k < p_.vocab;
        if (!top_k && p_.top_p >= 1.0F && p_.min_p <= 0.0F)
            return pick(p_.vocab, [](std::int64_t i) { return static_cast<std::int32_t>(i); });
        Ranking ranking(values_, p_.vocab, ids_);
        const std::int64_t kept = keep(ranking, top_k);
        // By id again: the draw does not depend on which filter kept the ids.
        std::sort(ids_, ids_ + kept);
        return pick(kept, [this](std::int64_t i) { return ids_[i]; });
    }

  private:
    /// How many of the ranking's first ids pass all filters.
    std::int64_t keep(Ranking& ranking, bool top_k) {
        std::int64_t limit = ranking.size();
        double total = 0.0;
        if (top_k) {
            limit = std::min<std::int64_t>(limit, p_.top_k);
            ranking.sort_first(limit);
            for (std::int64_t i = 0; i < limit; ++i) total += weights_[ranking[i]];
        } else if (p_.top_p < 1.0F) {
            for (std::int64_t i = 0; i < p_.vocab; ++i) total += weights_[i];
        }
        if (p_.top_p >= 1.0F && p_.min_p <= 0.0F) return limit;
        const double enough = p_.top_p >= 1.0F ? std::numeric_limits<double>::infinity()
                                               : static_cast<double>(p_.top_p) * total;
        double sum = weights_[ranking[0]];
        std::int64_t kept = 1;  // the largest stays in any case
        for (; kept < limit && sum < enough; ++kept) {
            const float weight = weights_[ranking[kept]];
            if (weight < p_.min_p) break;  // the largest weight is 1
            sum += weight;
        }
        return kept;
    }

    /// Splitmix64's finaliser: every bit of the input moves every bit of the output.
    static std::uint64_t mix(std::uint64_t z) {
        z += 0x9E3779B97F4A7C15ULL;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
        return z ^ (z >> 31);
    }

    /// One of `count` ids by weight: where the running sum in order of id passes u times the
    /// total, for a u in [0, 1) that seed and step determine.
    template <class Id>
    std::int32_t pick(std::int64_t count, const Id& id) const {
        double total = 0.0;
        for (std::int64_t i = 0; i < count; ++i) total += weights_[id(i)];
        const double u = static_cast<double>(mix(mix(p_.seed) ^ p_.step) >> 11) * 0x1p-53;
        const double target = u * total;
        double sum = 0.0;
        std::int32_t chosen = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            const float weight = weights_[id(i)];
            if (!(weight > 0.0F)) continue;
            chosen = id(i);
            sum += weight;
            if (sum > target) break;
        }
        return chosen;
    }

    const SampleParams& p_;
    const float* values_;
    float* weights_;
    std::int32_t* ids_;
};

}  // namespace

std::int32_t sample(Context& c, const SampleParams& p) {
    check(p);
    const auto vocab = static_cast<std::size_t>(p.vocab);
    static_assert(sizeof(std::int32_t) == sizeof(float));
    float* const values = c.shared_scratch(3 * vocab);
    float* const weights = values + vocab;
    auto* const ids = reinterpret_cast<std::int32_t*>(weights + vocab);
    copy_allowed(p, values);
    penalise(p, values, ids);
    const std::int32_t best = largest_of(values, p.vocab);
    // So cold that only the largest has a weight.
    if (!std::isfinite(1.0F / p.temperature)) return best;
    return Draw(p, values, values[best], weights, ids).next();
}

}  // namespace longview::kernels::cpu
