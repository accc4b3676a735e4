// Memory that a thread reads next, to be fetched before it is needed.
#pragma once
#include <cstdint>

namespace step3 {

struct Range {
    const char *at = nullptr;
    int64_t bytes = 0;
    // Part `i` of `count`, in whole lines.
    Range part(int64_t i, int64_t count) const {
        const int64_t lines = bytes / 64, begin = lines * i / count, end = lines * (i + 1) / count;
        return {at + begin * 64, (end - begin) * 64};
    }
};
}  // namespace step3
