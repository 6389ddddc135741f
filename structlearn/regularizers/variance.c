/* Values y before a rectifier: for each unit five sums over samples, and SHADE's gradient (variance.py), in one pass each.

   Values are worked on LANES at a time, with the vectors that GCC and Clang have beside plain C: they do the same
   on every processor, and need no luck with loops. NaN and infinity stay what they are. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

/* Vectors that are asked for ahead of their use: without, values that just left the cache take twice as long. */
enum { AHEAD = 32 };

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

typedef struct {
    floats y, squares, p0, above, p0_above; /* of y, y^2, p0 = exp(-relu(y)), relu(y), p0 relu(y) */
} sums;

static inline floats load(const float *from, size_t width) {
    floats values = {0};
    memcpy(&values, from, width * sizeof *from);
    return values;
}

static inline void store(float *to, floats values, size_t width) { memcpy(to, &values, width * sizeof *to); }

static inline floats all(float value) { return value - (floats){0}; }

static inline floats where(ints mask, floats yes, floats no) {
    return (floats)(((ints)yes & mask) | ((ints)no & ~mask));
}

/* exp(-z) for z >= 0: 2^n exp(r) with |r| <= ln(2)/2, where seven terms of the series are exact to 5e-9. ln(2) in two
   parts, of which n times the first is exact. */
static inline floats falling(floats z) {
    floats x = where(z > 87.0f, all(-87.0f), -z);
    ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, ints);
    floats whole = __builtin_convertvector(n, floats);
    floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    floats series = all(1.0f / 5040);
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 1.0f / 2;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return series * (floats)((n + 127) << 23);
}

static inline float total(floats values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += values[lane];
    return sum;
}

static inline void take(double *found, sums s) {
    found[0] += total(s.y);
    found[1] += total(s.squares);
    found[2] += total(s.p0);
    found[3] += total(s.above);
    found[4] += total(s.p0_above);
}

/* `width` units (or samples of one) at a time, `count` times, each `stride` after the last. */
static inline sums strip(const float *y, size_t stride, size_t count, size_t width) {
    sums s = {{0}};
    for (size_t i = 0; i < count; i++) {
        __builtin_prefetch(y + (i + AHEAD) * stride);
        floats x = load(y + i * stride, width);
        floats z = where(x < 0.0f, all(0), x);
        floats p0 = falling(z);
        s.y += x;
        s.squares += x * x;
        s.p0 += p0;
        s.above += z;
        s.p0_above += p0 * z;
    }
    return s;
}

/* Vectors of a map that are summed in float: short sums stay exact. */
enum { SHORT = 64 };

/* y is [examples, units, inner]; table is [examples, 5, units]. From example `first` until before `last`. */
void sums_of_maps(const float *y, float *table, size_t units, size_t inner, size_t first, size_t last) {
    size_t full = inner / LANES, rest = inner % LANES;
    for (size_t place = first * units; place < last * units; place++) {
        double found[5] = {0};
        for (size_t at = 0; at < full; at += SHORT)
            take(found, strip(y + place * inner + at * LANES, LANES, at + SHORT < full ? SHORT : full - at, LANES));
        if (rest) {
            take(found, strip(y + place * inner + full * LANES, LANES, 1, rest));
            found[2] -= LANES - rest; /* p0 is 1 in the lanes that are not there */
        }
        for (size_t which = 0; which < 5; which++)
            table[(place / units * 5 + which) * units + place % units] = (float)found[which];
    }
}

/* y is [rows, units]; table is [blocks, 5, units], each of so many rows. From block `first` until before `last`. */
void sums_of_rows(const float *y, float *table, size_t rows, size_t units, size_t block, size_t first, size_t last) {
    for (size_t at = first; at < last; at++) {
        size_t count = (at + 1) * block < rows ? block : rows - at * block;
        for (size_t unit = 0; unit < units; unit += LANES) {
            size_t width = unit + LANES <= units ? LANES : units - unit;
            const float *from = y + at * block * units + unit;
            sums s = width == LANES ? strip(from, units, count, LANES) : strip(from, units, count, width);
            float *found = table + at * 5 * units + unit;
            store(found, s.y, width);
            store(found + units, s.squares, width);
            store(found + 2 * units, s.p0, width);
            store(found + 3 * units, s.above, width);
            store(found + 4 * units, s.p0_above, width);
        }
    }
}

/* From the sums [5, units, inner] what is asked of them (variance.py): for each the sums of p0, p0 y and p1 y; the loss. */
float moments(const float *found, const float *mean0, const float *mean1, float *p0, float *p0_y, float *p1_y,
              size_t samples, size_t units, size_t inner) {
    double loss = 0;
    for (size_t unit = 0; unit < units; unit++) {
        double s[5] = {0}, m0 = mean0[unit], m1 = mean1[unit];
        for (size_t which = 0; which < 5; which++)
            for (size_t at = 0; at < inner; at++)
                s[which] += found[(which * units + unit) * inner + at];
        double with = s[3] - s[4], without = s[0] - with;
        p0[unit] = (float)s[2];
        p0_y[unit] = (float)without;
        p1_y[unit] = (float)with;
        loss += s[1] - m1 * (2 * s[0] - samples * m1) + (m1 - m0) * (2 * without - (m0 + m1) * s[2]);
    }
    return (float)loss;
}

/* given + factor slope; of nothing given, 0. */
static inline void add(const float *y, const float *given, float *out, size_t width, floats mean0, floats mean1,
                       float factor) {
    __builtin_prefetch(y + AHEAD * LANES);
    if (given)
        __builtin_prefetch(given + AHEAD * LANES);
    floats x = load(y, width);
    floats p0 = falling(where(x < 0.0f, all(0), x));
    floats turn = where(x > 0.0f, mean0 + mean1 + 2.0f - 2.0f * x, all(2));
    floats slope = 2.0f * (x - mean1) + (mean1 - mean0) * p0 * turn;
    store(out, (given ? load(given, width) : all(0)) + factor * slope, width);
}

/* y, given (or none) and out are [examples, units, inner]. */
void slopes_of_maps(const float *y, const float *given, float *out, const float *mean0, const float *mean1,
                    float factor, size_t units, size_t inner, size_t first, size_t last) {
    size_t full = inner / LANES * LANES;
    for (size_t place = first * units; place < last * units; place++) {
        floats m0 = all(mean0[place % units]), m1 = all(mean1[place % units]);
        const float *from = y + place * inner, *with = given ? given + place * inner : NULL;
        float *to = out + place * inner;
        for (size_t at = 0; at < full; at += LANES)
            add(from + at, with ? with + at : NULL, to + at, LANES, m0, m1, factor);
        if (full < inner)
            add(from + full, with ? with + full : NULL, to + full, inner - full, m0, m1, factor);
    }
}

/* y, given (or none) and out are [rows, units]. */
void slopes_of_rows(const float *y, const float *given, float *out, const float *mean0, const float *mean1,
                    float factor, size_t units, size_t first, size_t last) {
    size_t full = units / LANES * LANES;
    for (size_t row = first; row < last; row++) {
        const float *from = y + row * units, *with = given ? given + row * units : NULL;
        float *to = out + row * units;
        for (size_t unit = 0; unit < full; unit += LANES)
            add(from + unit, with ? with + unit : NULL, to + unit, LANES, load(mean0 + unit, LANES),
                load(mean1 + unit, LANES), factor);
        if (full < units)
            add(from + full, with ? with + full : NULL, to + full, units - full, load(mean0 + full, units - full),
                load(mean1 + full, units - full), factor);
    }
}
